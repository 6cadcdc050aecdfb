import dataclasses
import json
import multiprocessing
import shutil

import pytest
import sentencepiece

from sbs_jax.data import datasets, registry, sentencepiece_training
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.dataset_vocabulary import DatasetVocabulary, removed_on_error
from sbs_jax.data.resolving import resolve_task
from sbs_jax.data.sentencepiece_training import train_sentencepiece
from sbs_jax.data.settings import DataSettings
from sbs_jax.data.tensorflow_setup import tf
from sbs_jax.data.vocabulary import EOS_ID, UNK_ID, require_fit
from sbs_jax.errors import UserError
from tests.examples import load_examples

TEXTS = [
    "predict: Ann has 12 apples and 3 pears.\nHow many?",
    "( 12.0 + 3.0 )",
    "(12 + 3)",
    "12 + 3 = 15. So she has fifteen.",
] * 5


def train_elsewhere(texts):
    return train_sentencepiece(texts, 1000)


def test_the_same_texts_give_the_same_bytes():
    model = train_sentencepiece(TEXTS, 1000)
    assert train_sentencepiece(TEXTS, 1000) == model
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(train_elsewhere, (TEXTS,)) == model
    assert train_sentencepiece([*TEXTS, "more text"], 1000) != model


def test_trained_vocabularies_have_t5s_ids(use):
    with use():
        tokenizer = registry.find_dataset("svamp").vocabulary.tokenizer
    assert [tokenizer.id_to_piece(i) for i in range(3)] == ["<pad>", "</s>", "<unk>"]
    assert tokenizer.bos_id() == -1


@pytest.mark.parametrize(
    "text",
    ["( 84.0 / 2.0 )", "((1,234.5 + 7) * -2)", "a < b > c", "{x} [y] ~ ^", "× ÷ − é 中 🙂", "a_b"],
)
def test_every_character_survives(use, text):
    with use():
        vocabulary = resolve_task("svamp_sbs").vocabulary
        ids = vocabulary.encode(text)
        assert vocabulary.decode(ids) == text
        assert vocabulary.decode([*ids, 1, 5, 6]) == text  # up to EOS
        assert 2 not in ids


def test_white_space_becomes_single_spaces(use):
    with use():
        vocabulary = resolve_task("svamp_sbs").vocabulary
        assert vocabulary.decode(vocabulary.encode(" a\n\nb\t c ")) == "a b c"


def test_numbers_are_split_into_digits(use):
    with use():
        tokenizer = registry.find_dataset("svamp").vocabulary.tokenizer
        digits = [piece for piece in tokenizer.encode("1234567", out_type=str) if piece != "▁"]
    assert digits == list("1234567")


def test_words_of_small_texts_are_pieces(use):
    with use():
        tokenizer = registry.find_dataset("svamp").vocabulary.tokenizer
        assert "▁predict" in tokenizer.encode("predict: x", out_type=str)


def test_python_and_tensorflow_agree(use):
    texts = ["predict: Ann has 12 apples.", "é 中", "", "a\nb", "\0"]
    with use():
        vocabulary = registry.find_dataset("svamp").vocabulary
        for text, ids in zip(texts, vocabulary.encode_batch(texts), strict=True):
            assert vocabulary.encode(text) == ids
            assert vocabulary.encode_tf(text).numpy().tolist() == ids
            decoded = vocabulary.decode_tf(tf.constant(ids, tf.int32)).numpy().decode()
            assert decoded == vocabulary.decode(ids)


def test_a_trained_vocabulary_stays_in_the_models_folder(use, tmp_path):
    with use(model_dir=str(tmp_path)):
        size = resolve_task("svamp_sbs").vocabulary.vocab_size
        path = tmp_path / "vocabulary" / "spiece.model"
        model = path.read_bytes()
        origin = json.loads((tmp_path / "vocabulary" / "origin.json").read_text())
        assert origin["dataset"] == "svamp"
    # A copy of the folder is used as it is, even if the texts are not there any more.
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "vocabulary", copy / "vocabulary")
    with use(model_dir=str(copy), data_dir=None):
        assert resolve_task("svamp_sbs").vocabulary.vocab_size == size
    with use(vocabulary_path=str(path), data_dir=None):
        assert resolve_task("cqa_sbs").vocabulary.vocab_size == size
    assert path.read_bytes() == model


def test_a_run_keeps_its_vocabulary(use, tmp_path):
    with use(model_dir=str(tmp_path)):
        _ = resolve_task("svamp_sbs").vocabulary
    with use(model_dir=str(tmp_path), vocabulary_size=700):
        assert resolve_task("svamp_sbs").vocabulary.vocab_size <= 700  # nothing depends on it yet
    (tmp_path / "config.gin").touch()
    with (
        use(model_dir=str(tmp_path)),
        pytest.raises(UserError, match=r"with VOCABULARY_SIZE=700.* 8192; take another MODEL_DIR"),
    ):
        registry.find_dataset("cqa").vocabulary.resolve()


def test_without_a_models_folder_the_users_cache_holds_it(use, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with use(model_dir=None):
        _ = resolve_task("svamp_sbs").vocabulary
    with use(model_dir=None, seed=9):
        _ = resolve_task("svamp_sbs").vocabulary
    assert len(list((tmp_path / "sbs_jax" / "vocabulary").glob("*/spiece.model"))) == 1


def test_held_out_texts_do_not_shape_the_vocabulary(use):
    with use():
        texts = set(datasets.vocabulary_texts(registry.find_dataset("svamp")))
        for split in ("validation", "test"):
            for example in load_examples("svamp", split):
                assert "predict: " + example["input"] not in texts
        everything = datasets.vocabulary_texts(registry.find_dataset("svamp"))
    with use(train_fraction=0.5):
        assert datasets.vocabulary_texts(registry.find_dataset("svamp")) == everything


def test_what_cannot_be_a_vocabulary_is_refused(use, tmp_path):
    wrong_ids = tmp_path / "wrong.model"
    with wrong_ids.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS), model_writer=file, vocab_size=60, hard_vocab_limit=False
        )
    with (
        use(vocabulary_path=str(wrong_ids)),
        pytest.raises(UserError, match=r"wrong\.model: has the ids pad=-1, eos=2, unk=0"),
    ):
        _ = resolve_task("svamp_sbs").vocabulary
    for path in (tmp_path / "none.model", tmp_path / "text.model"):
        (tmp_path / "text.model").write_text("hello")
        with (
            use(vocabulary_path=str(path)),
            pytest.raises(UserError, match=rf"VOCABULARY_PATH=.*{path.name}: is no SentencePiece"),
        ):
            _ = resolve_task("svamp_sbs").vocabulary


@pytest.mark.parametrize("size", [1, 100, 258])
def test_a_vocabulary_too_small_for_bytes_is_refused(use, tmp_path, size):
    with (
        use(model_dir=str(tmp_path), vocabulary_size=size),
        pytest.raises(UserError, match=f"'svamp': VOCABULARY_SIZE={size} leaves no room"),
    ):
        _ = resolve_task("svamp_sbs").vocabulary
    assert not list(tmp_path.iterdir())


def test_no_texts_give_no_vocabulary():
    with pytest.raises(ValueError, match="no texts"):
        train_sentencepiece(["", " "], 1000)


def test_a_vocabulary_must_fit_the_model(use):
    with use():
        found = resolve_task("svamp_sbs").vocabulary
        require_fit(found, found.vocab_size)
        with pytest.raises(UserError, match=r"has \d+ pieces but the model's vocab_size is 100"):
            require_fit(found, 100)


def test_equality_allows_mixing_only_with_one_vocabulary(use):
    svamp, cqa = (registry.find_dataset(name).vocabulary for name in ("svamp", "cqa"))
    with use():
        assert svamp == svamp
        assert svamp != cqa
    with use(vocabulary_path="x"):
        assert svamp == cqa
    assert svamp != 3
    assert repr(cqa) == "DatasetVocabulary('cqa')"
    assert svamp.eos_id == EOS_ID
    assert svamp.unk_id == UNK_ID


def test_of_very_many_texts_evenly_spaced_ones_are_taken(monkeypatch):
    texts = [f"text number {i} of a hundred" for i in range(100)]
    half = train_sentencepiece(texts[::2], 400)
    assert train_sentencepiece(texts, 400) != half
    monkeypatch.setattr(sentencepiece_training, "MOST_TEXTS", 60)
    assert train_sentencepiece(texts, 400) == half


def test_an_error_leaves_no_vocabulary_that_was_trained_before_it(tmp_path):
    texts = TEXTS
    vocabulary = DatasetVocabulary("left_behind", lambda: texts)
    model_dir = tmp_path / "run"
    settings = DataSettings(model_dir=str(model_dir), vocabulary_size=400)
    with settings_lib.override(settings):
        with pytest.raises(UserError, match="later"), removed_on_error(model_dir):
            vocabulary.resolve()
            assert (model_dir / "vocabulary" / "spiece.model").is_file()
            raise UserError("later")
        assert not model_dir.exists()
        # It is trained again when it is needed again, and stays where nothing fails.
        with removed_on_error(model_dir):
            vocabulary.resolve()
        (model_dir / "config.gin").write_text("")
        with pytest.raises(UserError), removed_on_error(model_dir):
            vocabulary.resolve()
            raise UserError("later")
    assert (model_dir / "vocabulary" / "spiece.model").is_file()
    other = tmp_path / "other"
    other.mkdir()
    with (
        settings_lib.override(dataclasses.replace(settings, model_dir=str(other))),
        pytest.raises(UserError),
        removed_on_error(other),
    ):
        vocabulary.resolve()
        raise UserError("later")
    assert list(other.iterdir()) == []
