"""Vocabularies of files: SentencePiece models, and tokenizers of decoders.

A SentencePiece model has T5's ids (pad 0, EOS 1, unknown 2). SentencePiece's own package encodes
and decodes; TensorFlow is imported where a SeqIO program asks for `encode_tf` or `decode_tf`.

What a text goes through is what T5's public vocabulary does too (SentencePiece's ``nmt_nfkc``):
NFKC normalisation, and every run of white space, newlines included, becomes one space. So the
choices of a CommonsenseQA input follow one another on one line, separated by their ``(a)`` to
``(e)``. Unlike T5's, a trained vocabulary knows every character, through its bytes (``<``, ``{``,
``~`` are unknown to T5's), and splits numbers into digits, so that small students can copy numbers
that they never saw.
"""

from __future__ import annotations

import abc
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sentencepiece

from sbs_jax import remote, remote_copies, text_tokenizer
from sbs_jax.errors import UserError
from sbs_jax.token_ids import EOS_ID, EOS_STRING, PAD_ID, UNK_ID, require_t5_ids

if TYPE_CHECKING:
    from sbs_jax.data.tensorflow_setup import seqio, tf


class Vocabulary(abc.ABC):
    """A vocabulary with T5's ids of padding and EOS, as `seqio.Vocabulary` defines one.

    It has that class's properties and methods without importing TensorFlow, so SeqIO and T5X take
    it for one of theirs.
    """

    pad_id = PAD_ID
    eos_id = EOS_ID
    bos_id: int | None = None
    extra_ids = 0

    @property
    def unk_id(self) -> int | None:
        """The id of what cannot be spelt."""
        return UNK_ID

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """How many ids there are."""

    @property
    @abc.abstractmethod
    def tokenizer(self) -> Any:
        """What encodes and decodes, with the methods of SentencePiece's processor."""

    def encode(self, s: str) -> list[int]:
        """Returns the ids of a text, without EOS."""
        return list(self.tokenizer.encode([s])[0])

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids, up to and including the first EOS."""
        tokens = [int(token) for token in (ids.numpy() if hasattr(ids, "numpy") else ids)]
        if self.unk_id is not None:
            tokens = [self.unk_id if token >= self.vocab_size else token for token in tokens]
        if EOS_ID in tokens:
            tokens = tokens[: tokens.index(EOS_ID) + 1]
        return self.tokenizer.decode(tokens)

    def encode_tf(self, s: tf.Tensor) -> tf.Tensor | tf.RaggedTensor:
        """Returns the ids of a text tensor, without EOS: [T] of one, ragged [N, None] of N."""
        from sbs_jax.data import tensorflow_texts

        return tensorflow_texts.encode(self, s)

    def decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        """Returns the text of a tensor of ids, up to the first EOS."""
        from sbs_jax.data import tensorflow_texts

        return tensorflow_texts.decode(self, ids)


class SentencePieceVocabulary(Vocabulary):
    """A SentencePiece model in a file.

    Attributes:
      sentencepiece_model_file: the path of the SentencePiece model.
      sp_model: the bytes of that file.
    """

    _loading = threading.Lock()  # SentencePiece does not load models in several threads at a time

    def __init__(self, path: str) -> None:
        """Reads the file.

        Raises:
          OSError: it cannot be read.
          RuntimeError: it is no SentencePiece model.
        """
        self.sentencepiece_model_file = path
        self.sp_model = Path(path).read_bytes()
        with self._loading:
            self._tokenizer = sentencepiece.SentencePieceProcessor(model_proto=self.sp_model)

    @property
    def vocab_size(self) -> int:
        """How many pieces there are."""
        return self._tokenizer.get_piece_size()

    @property
    def tokenizer(self) -> sentencepiece.SentencePieceProcessor:
        """SentencePiece's own object."""
        return self._tokenizer

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SentencePieceVocabulary):
            return NotImplemented
        return self._tokenizer.serialized_model_proto() == other._tokenizer.serialized_model_proto()

    def __hash__(self) -> int:
        return hash(SentencePieceVocabulary)


def require_fit(vocabulary: Vocabulary | seqio.Vocabulary, model_vocab_size: int) -> None:
    """Checks that a model with `model_vocab_size` embeddings can read `vocabulary`.

    Raises:
      UserError: it cannot.
    """
    if vocabulary.vocab_size > model_vocab_size:
        raise UserError(
            f"The vocabulary has {vocabulary.vocab_size} pieces but the model's vocab_size is "
            f"{model_vocab_size}: enlarge that, or train a vocabulary with "
            f"--gin.VOCABULARY_SIZE={model_vocab_size}."
        )


def decode_tokens(vocabulary: Vocabulary, tokens: Sequence[int] | np.ndarray) -> str:
    """Returns the text of tokens whole; `vocabulary.decode` would stop at an EOS in the middle.

    The EOS at the end, if there is one, is not shown, those before it are (`EOS_STRING`).
    """
    tokens = np.asarray(tokens)
    if tokens.size and tokens[-1] == EOS_ID:
        tokens = tokens[:-1]
    pieces = np.split(tokens, np.flatnonzero(tokens == EOS_ID))
    return EOS_STRING.join(vocabulary.tokenizer.decode(piece.tolist()) for piece in pieces)


class TokenizerVocabulary(Vocabulary):
    """A `tokenizer.json`, or the tokenizer of a GGUF file, with T5's ids of padding and EOS.

    Attributes:
      sentencepiece_model_file: its path (what other vocabularies call theirs).
    """

    def __init__(self, path: str) -> None:
        """Reads the file; raises a `UserError` if it cannot."""
        self._tokenizer = _Processor(path)
        self.sentencepiece_model_file = path

    @property
    def unk_id(self) -> int | None:
        """None: every text can be spelt."""
        return None

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return self._tokenizer.text.size

    @property
    def tokenizer(self) -> _Processor:
        """The tokenizer, with the methods of SentencePiece's processor."""
        return self._tokenizer

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenizerVocabulary):
            return NotImplemented
        return self.sentencepiece_model_file == other.sentencepiece_model_file

    def __hash__(self) -> int:
        return hash(self.sentencepiece_model_file)


class _Processor:
    """A tokenizer with the methods that this package calls of SentencePiece's processor."""

    def __init__(self, path: str) -> None:
        self.text = text_tokenizer.TextTokenizer(path)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of texts."""
        return self.text.encode_batch(texts)

    def decode(self, ids: list[int]) -> str:
        """Returns the text of ids."""
        return self.text.decode(ids)

    def id_to_piece(self, token: int) -> str:
        """Returns the vocabulary's own spelling of a token."""
        return self.text.id_to_piece(token)

    def serialized_model_proto(self) -> bytes:
        """Returns bytes that say what the tokenizer is."""
        return self.text.serialized()


def open_vocabulary(path: str) -> SentencePieceVocabulary | TokenizerVocabulary:
    """Opens a SentencePiece model, a `tokenizer.json` or the tokenizer of a GGUF file.

    Raises:
      UserError: it cannot be read, or its PAD, EOS and UNK have other ids than a T5's.
    """
    if text_tokenizer.is_tokenizer(path):
        return TokenizerVocabulary(path)
    path = os.fspath(remote_copies.local(path)) if remote.is_remote(path) else path
    try:
        vocabulary = SentencePieceVocabulary(path)
        tokenizer = vocabulary.tokenizer
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"VOCABULARY_PATH={path}: is no SentencePiece model that can be read ({reason})."
        ) from error
    ids = (tokenizer.pad_id(), tokenizer.eos_id(), tokenizer.unk_id())
    require_t5_ids(f"VOCABULARY_PATH={path}", *ids)
    return vocabulary
