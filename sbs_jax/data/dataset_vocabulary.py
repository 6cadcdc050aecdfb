"""The vocabulary of a data set: the one that is named, or one that is trained on its texts.

SeqIO wants a vocabulary when a task is registered, long before gin has said which one it is:
`DatasetVocabulary` finds out at its first use.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from sbs_jax import remote, remote_copies, text_tokenizer
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.ragged import spans, starts_of
from sbs_jax.data.sentencepiece_training import train_sentencepiece
from sbs_jax.data.settings import DataSettings
from sbs_jax.data.vocabulary import (
    SentencePieceVocabulary,
    TokenizerVocabulary,
    Vocabulary,
    open_vocabulary,
)
from sbs_jax.errors import UserError
from sbs_jax.files import atomic_open, atomic_write_text
from sbs_jax.token_ids import EOS_ID, EOS_STRING


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
            name = _fingerprint(texts, settings.vocabulary_size)[:16]
            folder = remote_copies.cache_root() / "vocabulary" / name
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
        return [self.encode(text) for text in texts]

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encodes many texts, each different piece of them once.

        Returns:
          int32, the ids of all texts behind one another, each text's EOS included; and the texts'
          lengths in ids, int64 [texts].
        """
        split = [text.split(EOS_STRING) for text in texts]
        counts = np.fromiter(map(len, split), np.int64, len(split))
        numbers: dict[str, int] = {}
        pieces = [numbers.setdefault(piece, len(numbers)) for own in split for piece in own]
        del split
        encoded = self.tokenizer.encode(list(numbers))
        # Behind each piece comes EOS: within a text, or at its end.
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded)) + 1
        flat = np.full(lengths.sum(), EOS_ID, np.int32)
        kept = np.ones(flat.size, bool)
        kept[np.cumsum(lengths) - 1] = False
        flat[kept] = np.fromiter(itertools.chain.from_iterable(encoded), np.int32)
        order = np.array(pieces, np.int64)
        chosen = lengths[order]
        ends = np.cumsum(chosen)
        text_ends = np.concatenate([[0], ends])[np.concatenate([[0], np.cumsum(counts)])]
        return flat[spans(starts_of(lengths)[order], chosen)], np.diff(text_ends)

    def encode(self, s: str) -> list[int]:
        """Returns the ids of a text, without EOS at its end; `EOS_STRING` within it becomes EOS."""
        first, *others = self.tokenizer.encode(s.split(EOS_STRING))
        return list(first) + [token for ids in others for token in (EOS_ID, *ids)]

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
