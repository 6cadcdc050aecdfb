"""Tokenizers of pretrained decoders: ids of padding and EOS, texts there and back."""

import json

import numpy as np
import pytest

from sbs_jax.checkpoints import record
from sbs_jax.errors import UserError
from sbs_jax.text_tokenizer import TextTokenizer
from tests.decoder.support import save_tokenizer, smollm2_path


@pytest.fixture
def path(tmp_path):
    """Characters: token i is chr(i), 0 to 2 are <pad>, <s>, </s>; EOS is </s>."""
    save_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return tmp_path / "tokenizer.json"


def test_ids_of_padding_and_eos_are_those_of_t5(path):
    tokenizer = TextTokenizer(path)
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.size) == (0, 2, 133)
    assert tokenizer.encode("ab") == [97, 98]
    assert tokenizer.encode("a</s>b<s>") == [97, 1, 98, 2]
    assert tokenizer.decode([97, 98, 1, 99]) == "ab"
    assert tokenizer.decode([97, 2, 98, 500]) == "ab"
    assert tokenizer.pieces([97, 1]) == [("a", 1), ("</s>", 1)]
    assert tokenizer.id_to_piece(1) == "</s>"


@pytest.mark.parametrize("settings", [{}, {"eos_token": "<nothing>"}])
def test_a_tokenizer_that_names_no_eos_is_refused(path, settings):
    (path.parent / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="which token ends a text"):
        TextTokenizer(path)


def test_a_run_keeps_its_tokenizer(path, tmp_path):
    folder = tmp_path / "run"
    for _ in range(2):
        record.keep_vocabulary(folder, path)
    kept = record.kept_vocabulary(folder)
    assert kept.name == "tokenizer.json"
    again, first = TextTokenizer(kept), TextTokenizer(path)
    assert (again.pad_id, again.eos_id) == (first.pad_id, first.eos_id)
    assert again.encode("xyz</s>") == first.encode("xyz</s>")


def test_the_vocabulary_of_tasks_gives_the_same_tokens(path):
    from sbs_jax.data.vocabulary import open_vocabulary

    vocabulary, tokenizer = open_vocabulary(str(path)), TextTokenizer(path)
    texts = ["ab", "", "c</s>d"]
    ragged = vocabulary.encode_tf(np.array(texts))
    assert ragged.to_list() == [tokenizer.encode(text) for text in texts]
    assert vocabulary.encode_tf("ab").numpy().tolist() == [97, 98]
    assert vocabulary.vocab_size == tokenizer.size
    assert vocabulary.decode([97, 98, 1, 0, 0]) == "ab"


def test_smollm2s_own():
    tokenizer = TextTokenizer(smollm2_path())
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.size) == (0, 2, 49_152)
    text = "Ann has 12 apples.\n  How <many>? héllo 🙂"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert "".join(piece for piece, _ in tokenizer.pieces(ids)) == text
    assert sum(count for _, count in tokenizer.pieces(ids)) == len(ids)
