"""tokenizer.json encodes and decodes as SentencePiece does."""

import os

import pytest
import sentencepiece
import tokenizers

from sbs_jax.checkpoints.tokenizer_files import build_tokenizer, read_sentencepiece, tokenizer_files
from sbs_jax.errors import UserError
from tests.sentencepiece_models import texts, train

RELEASE = os.environ.get("SBS_RELEASE_DIR")
ODD = [
    "",
    " ",
    "two  spaces   and more ",
    " at the front",
    "lines\nand\r\ntabs\t\tbetween",
    "ñ é e\u0301 漢字 😀 👍🏽 ﬁ ① ½ ẞ İ",
    "no\u00a0break \u3000wide zero\u200bwidth soft\u00adhyphen \ufeffmark",
    "5 + 3 = 8, 12.50 $ (x) {y} ~ < “quoted” … — −",
    "مرحبا १२३ ＦＵＬＬ　ｗｉｄｔｈ",
    "▁ already",
    "nul \x00 and bell \x07",
    "x" * 300,
]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("byte_fallback", [True, False])
def test_ids_are_sentencepiece_s(tmp_path, kind, byte_fallback):
    path = train(
        tmp_path / "spiece.model",
        texts(),
        model_type=kind,
        byte_fallback=byte_fallback,
        **({} if kind == "unigram" else {"vocab_size": 320 if byte_fallback else 64}),
    )
    compare(path, texts() + ODD)


def compare(path, texts):
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = build_tokenizer(read_sentencepiece(path))
    for text in texts:
        ids = theirs.encode(text)
        assert ours.encode(text).ids == [*ids, 1], text
        if 2 not in ids:  # Hugging Face leaves out what is unknown; SentencePiece writes ⁇.
            assert ours.decode([*ids, 1], skip_special_tokens=True) == theirs.decode(ids), text


def test_the_text_of_eos_is_eos(tmp_path):
    path = train(tmp_path / "spiece.model", texts())
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = build_tokenizer(read_sentencepiece(path))
    expected = [*theirs.encode("Mary buy"), 1, *theirs.encode("red apples"), 1]
    assert ours.encode("Mary buy </s> red apples").ids == expected


@pytest.mark.skipif(RELEASE is None, reason="SBS_RELEASE_DIR is unset")
@pytest.mark.parametrize("name", ["svamp", "cqa"])
def test_real_texts(tmp_path, name):
    from sbs_jax.data import settings
    from sbs_jax.data.registration import import_tasks
    from sbs_jax.data.registry import find_dataset
    from sbs_jax.data.sentencepiece_training import train_sentencepiece
    from tests.examples import load_examples

    import_tasks(f"sbs_jax.tasks.{name}")
    with settings.override(settings.DataSettings(data_dir=RELEASE)):
        examples = load_examples(find_dataset(name), "test")[:400]
    real = [text for x in examples for text in (x["input"], x["llm_rationale"]) if text]
    path = tmp_path / "spiece.model"
    path.write_bytes(train_sentencepiece(real, 2000))
    compare(path, real + ["predict: " + text for text in real[:50]] + ODD)


def test_files(tmp_path):
    proto = read_sentencepiece(train(tmp_path / "spiece.model", texts()))
    files = tokenizer_files(proto, max_length=96)
    assert '"model_max_length": 96' in files["tokenizer_config.json"]
    assert '"eos_token": "</s>"' in files["special_tokens_map.json"]
    assert tokenizers.Tokenizer.from_str(files["tokenizer.json"]).token_to_id("<pad>") == 0


def test_what_is_no_vocabulary_of_a_t5(tmp_path):
    with pytest.raises(UserError, match=r"ids pad=-1, eos=2, unk=0, but T5 needs 0, 1 and 2"):
        options = {"pad_id": -1, "eos_id": 2, "unk_id": 0, "bos_id": 1}
        read_sentencepiece(train(tmp_path / "llama.model", texts(), **options))
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"\x0a\xff\xff")
    with pytest.raises(UserError, match=r"broken\.model: is no SentencePiece model"):
        read_sentencepiece(broken)
    with pytest.raises(UserError, match=r"missing\.model: is no SentencePiece model"):
        read_sentencepiece(tmp_path / "missing.model")
    word = read_sentencepiece(train(tmp_path / "word.model", texts(), model_type="word"))
    with pytest.raises(UserError, match=r"has the type 3; a tokenizer\.json can be made of"):
        build_tokenizer(word)
