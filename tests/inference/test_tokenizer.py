import pytest

from sbs_jax.errors import UserError
from sbs_jax.inference.tokenizer import EOS_ID, SentencePieceTokenizer
from tests import sentencepiece_models

TEXTS = [
    "Anna has 3 apples",
    "  two\n lines\tand ½ Ж — 漢",
    "premise</s>hypothesis</s>",
    "",
]


@pytest.fixture(scope="module")
def tokenizer():
    return SentencePieceTokenizer(sentencepiece_models.with_bytes())


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_those_of_training(tokenizer, text):
    from sbs_jax.data import settings
    from sbs_jax.data.dataset_vocabulary import DatasetVocabulary
    from sbs_jax.data.settings import DataSettings

    vocabulary = DatasetVocabulary("inference_toy", lambda: [])
    with settings.override(DataSettings(vocabulary_path=str(sentencepiece_models.with_bytes()))):
        (expected,) = vocabulary.encode_batch([text])
        assert tokenizer.encode(text) == expected
        tokens = [*expected[:5], EOS_ID, 7, 8]
        assert tokenizer.decode(tokens) == vocabulary.decode(tokens)
        assert tokenizer.decode([5, 499, 6]) == vocabulary.decode([5, 499, 6])


def test_half_a_surrogate_pair_is_replaced(tokenizer):
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a?b")


@pytest.mark.parametrize("text", ["Anna has 3 apples", "a Ж漢 b"])
def test_pieces_join_to_the_text_and_count_all_tokens(tokenizer, text):
    tokens = tokenizer.encode(text)
    pieces = tokenizer.pieces(tokens)
    assert "".join(piece for piece, _ in pieces).strip() == text
    assert sum(count for _, count in pieces) == len(tokens)


def test_what_is_no_model_is_told(tmp_path):
    (tmp_path / "x.model").write_bytes(b"no")
    with pytest.raises(UserError, match=r"x\.model: is no SentencePiece model"):
        SentencePieceTokenizer(tmp_path / "x.model")
    with pytest.raises(UserError, match=r"nowhere: is no SentencePiece model"):
        SentencePieceTokenizer(tmp_path / "nowhere")
