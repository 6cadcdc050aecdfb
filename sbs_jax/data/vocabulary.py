"""The vocabulary of a data set: a named SentencePiece model, or one trained on its texts.

SeqIO wants a vocabulary when a task is registered, long before gin has said which one it is:
`DatasetVocabulary` finds out at its first use. Both kinds have T5's ids (pad 0, EOS 1, unknown 2).
SentencePiece's own package encodes and decodes; TensorFlow is imported where a SeqIO program asks
for `encode_tf` or `decode_tf`.

What a text goes through is what T5's public vocabulary does too (SentencePiece's ``nmt_nfkc``):
NFKC normalisation, and every run of white space, newlines included, becomes one space. So the
choices of a CommonsenseQA input follow one another on one line, told apart by their ``(a)`` to
``(e)``. Unlike T5's, a trained vocabulary knows every character, through its bytes (``<``, ``{``,
``~`` are unknown to T5's), and splits numbers into digits, so that small students can copy numbers
that they never saw.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sentencepiece

from sbs_jax import remote, remote_copies, text_tokenizer
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.sentencepiece_training import train_sentencepiece
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError
from sbs_jax.files import atomic_open, atomic_write_text
from sbs_jax.token_ids import EOS_ID, PAD_ID, UNK_ID

if TYPE_CHECKING:
    from sbs_jax.data.tensorflow_setup import seqio, tf

EOS_STRING = "</s>"
"""Within a text this means the token EOS, as it does to Hugging Face's T5 tokenizers: natural
language inference has it between premise and hypothesis."""


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

    @abc.abstractmethod
    def _encode(self, s: str) -> list[int]: ...

    @abc.abstractmethod
    def _decode(self, ids: list[int]) -> str: ...

    def encode(self, s: str) -> list[int]:
        """Returns the ids of a text, without EOS."""
        return self._encode(s)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids, up to and including the first EOS."""
        tokens = [int(token) for token in (ids.numpy() if hasattr(ids, "numpy") else ids)]
        if self.unk_id is not None:
            tokens = [self.unk_id if token >= self.vocab_size else token for token in tokens]
        if EOS_ID in tokens:
            tokens = tokens[: tokens.index(EOS_ID) + 1]
        return self._decode(tokens)

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
      sentencepiece_model_file: its path.
      sp_model: its bytes.
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

    def _encode(self, s: str) -> list[int]:
        return self._tokenizer.encode(s)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SentencePieceVocabulary):
            return NotImplemented
        return self._tokenizer.serialized_model_proto() == other._tokenizer.serialized_model_proto()

    def __hash__(self) -> int:
        return hash(SentencePieceVocabulary)


class DatasetVocabulary(Vocabulary):
    """The vocabulary that the settings in force name for one data set, found at first use.

    Every call goes to the vocabulary of a file, see `resolve`. `EOS_STRING` within a text
    becomes EOS; SentencePiece itself would spell it.
    """

    def __init__(self, dataset: str, texts: Callable[[], Iterable[str]]) -> None:
        """Makes the vocabulary of `dataset`; `texts` reads what to train one on, if need be."""
        self._dataset = dataset
        self._texts = texts
        self._resolved: dict[DataSettings, SentencePieceVocabulary | TokenizerVocabulary] = {}

    def resolve(self) -> SentencePieceVocabulary | TokenizerVocabulary:
        """Returns the vocabulary itself.

        With `DataSettings.vocabulary_path` this is that model. Otherwise it is the one in
        ``model_dir/vocabulary/``, trained and written there if missing; without a `model_dir`, it
        is kept in the user's cache folder, under a name made of its texts and options.

        Raises:
          UserError: the model cannot be read, has other ids than T5's for padding and EOS, or was
            trained for something else; the texts do not fit `vocabulary_size`.
        """
        settings = settings_lib.current()
        found = self._resolved.get(settings)
        if found is None or not os.path.isfile(found.sentencepiece_model_file):
            path = settings.vocabulary_path or str(self._own(settings))
            found = self._resolved[settings] = open_vocabulary(path)
        return found

    def _own(self, settings: DataSettings) -> Path:
        """The tokenizer that the run keeps, or else a trained SentencePiece model."""
        if settings.model_dir is not None:
            kept = remote.place(settings.model_dir) / "vocabulary" / text_tokenizer.FILE
            if kept.is_file():
                return kept
        return self._trained(settings)

    def _trained(self, settings: DataSettings) -> Path:
        if settings.model_dir is not None:
            folder = remote.place(settings.model_dir) / "vocabulary"
            path = folder / "spiece.model"
            if path.is_file() and _may_reuse(path, self._dataset, settings.vocabulary_size):
                return path
            texts = sorted(self._texts())
        else:
            texts = sorted(self._texts())
            folder = _cache_folder() / _fingerprint(texts, settings.vocabulary_size)[:16]
            path = folder / "spiece.model"
            if path.is_file():
                return path
        try:
            model = train_sentencepiece(texts, settings.vocabulary_size)
        except ValueError as error:
            raise UserError(f"The vocabulary of '{self._dataset}': {error}.") from error
        origin = {
            "dataset": self._dataset,
            "vocabulary_size": settings.vocabulary_size,
            "texts": len(texts),
            "fingerprint": _fingerprint(texts, settings.vocabulary_size),
        }
        atomic_write_text(folder / "origin.json", json.dumps(origin, indent=2) + "\n")
        with atomic_open(path, "wb") as file:
            file.write(model)
        return path

    @property
    def vocab_size(self) -> int:
        """How many pieces there are."""
        return self.resolve().vocab_size

    @property
    def tokenizer(self) -> Any:
        """SentencePiece's own object."""
        return self.resolve().tokenizer

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of many texts, without EOS."""
        if not any(EOS_STRING in text for text in texts):
            return self.tokenizer.encode(list(texts))
        return [list(self._encode(text)) for text in texts]

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encodes many texts, each different piece of them once.

        Returns:
          int32, the ids of all texts behind one another, each text's EOS included; and the texts'
          lengths in ids, int64 [texts].
        """
        numbers: dict[str, int] = {}
        pieces, counts = [], np.empty(len(texts), np.int64)
        for index, text in enumerate(texts):
            own = text.split(EOS_STRING)
            counts[index] = len(own)
            pieces += [numbers.setdefault(piece, len(numbers)) for piece in own]
        encoded = self.tokenizer.encode(list(numbers))
        # Behind each piece comes EOS: within a text, or at its end.
        lengths = np.fromiter((len(ids) + 1 for ids in encoded), np.int64, len(encoded))
        flat = np.full(lengths.sum(), EOS_ID, np.int32)
        kept = np.ones(flat.size, bool)
        kept[np.cumsum(lengths) - 1] = False
        flat[kept] = np.fromiter(itertools.chain.from_iterable(encoded), np.int32)
        order = np.array(pieces, np.int64)
        chosen = lengths[order]
        ends = np.cumsum(chosen)
        starts = (np.cumsum(lengths) - lengths)[order]
        index = np.arange(chosen.sum()) + np.repeat(starts - (ends - chosen), chosen)
        text_ends = np.concatenate([[0], ends])[np.concatenate([[0], np.cumsum(counts)])]
        return flat[index], np.diff(text_ends)

    def _encode(self, s: str) -> list[int]:
        first, *others = self.tokenizer.encode(s.split(EOS_STRING))
        return list(first) + [token for ids in others for token in (EOS_ID, *ids)]

    def _decode(self, ids: list[int]) -> str:
        return self.resolve().decode(ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DatasetVocabulary):
            return NotImplemented
        # Data sets that share a named vocabulary may be mixed; trained ones differ.
        return self._dataset == other._dataset or bool(settings_lib.current().vocabulary_path)

    def __hash__(self) -> int:
        return hash(DatasetVocabulary)

    def __deepcopy__(self, memo: dict[int, Any]) -> DatasetVocabulary:
        return self  # gin copies its arguments; this one has no state of its own

    def __repr__(self) -> str:
        return f"DatasetVocabulary({self._dataset!r})"


@contextlib.contextmanager
def removed_on_error(model_dir: Path | None) -> Iterator[None]:
    """Removes the vocabulary that was trained in the ``with`` block if an error ends the block.

    So an error that ends a program before its training leaves nothing in MODEL_DIR, and no folder
    that was not there before. A vocabulary that was there before the block stays.

    Args:
      model_dir: the run's folder; None does nothing.
    """
    if model_dir is None or (model_dir / "vocabulary" / "spiece.model").is_file():
        yield
        return
    existed = model_dir.is_dir()
    try:
        yield
    except BaseException:
        folder = model_dir / "vocabulary"
        for name in ("spiece.model", "origin.json"):
            (folder / name).unlink(missing_ok=True)
        for empty in (folder,) if existed else (folder, model_dir):
            with contextlib.suppress(OSError):  # something else lies there
                empty.rmdir()
        raise


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

    def _encode(self, s: str) -> list[int]:
        return self._tokenizer.text.encode(s)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.text.decode(ids)

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
    if (tokenizer.pad_id(), tokenizer.eos_id(), tokenizer.unk_id()) != (PAD_ID, EOS_ID, UNK_ID):
        raise UserError(
            f"VOCABULARY_PATH={path}: has the ids pad={tokenizer.pad_id()}, "
            f"eos={tokenizer.eos_id()}, unk={tokenizer.unk_id()}, but T5 needs 0, 1 and 2."
        )
    return vocabulary


def _may_reuse(path: Path, dataset: str, vocabulary_size: int) -> bool:
    """Tells whether a trained vocabulary is the one that is asked for.

    If it is another one, a run that depends on it is protected by a `UserError`; where nothing but
    the vocabulary was ever written, it is simply trained again.
    """
    try:
        origin = json.loads((path.parent / "origin.json").read_text(encoding="utf-8"))
        found = (origin["dataset"], origin["vocabulary_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return True  # put there by hand: the user knows
    if found == (dataset, vocabulary_size):
        return True
    if any(other != path.parent for other in path.parent.parent.iterdir()):
        raise UserError(
            f"{path}: was trained on '{found[0]}' with VOCABULARY_SIZE="
            f"{found[1]}, but this run asks for '{dataset}' with {vocabulary_size}; take another "
            "MODEL_DIR, or name the vocabulary with VOCABULARY_PATH."
        )
    return False


def _fingerprint(texts: Sequence[str], vocabulary_size: int) -> str:
    digest = hashlib.sha256(f"{sentencepiece.__version__} {vocabulary_size}\n".encode())
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def _cache_folder() -> Path:
    return remote_copies.cache_root() / "vocabulary"
