"""SentencePiece models with T5's ids, trained on a few texts."""

import functools
import io
import random
import tempfile
from pathlib import Path

from sentencepiece import SentencePieceTrainer


def texts():
    """Two hundred sentences of a dozen words each."""
    words = ["How", "many", "apples", "did", "Mary", "buy", "in", "12", "days?", "34", "red."]
    rng = random.Random(0)
    return [" ".join(rng.choices(words, k=12)) for _ in range(200)]


def train(path, texts, **options):
    """Writes a model to `path`; `options` are SentencePiece's own."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2}
        | {"hard_vocab_limit": False, "vocab_size": 400}
        | options,
    )
    path.write_bytes(model.getvalue())
    return path


@functools.cache
def with_bytes():
    """The path of a model that can write any text: it falls back to bytes. Trained once."""
    sentences = [
        "predict: Anna has 3 apples and buys 4 pears. How many are there?",
        "explain: She had 3 and then 4 more, so the sum is 3 + 4. Answer: 7",
        "Where would you go? Answer Choices: (a) zoo (b) sea (c) park",
        "yes no perhaps",
    ]
    path = Path(tempfile.mkdtemp()) / "spiece.model"
    return train(path, sentences * 5, byte_fallback=True)
