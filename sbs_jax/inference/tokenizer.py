"""Text to tokens and back, through a SentencePiece model and nothing else (no TensorFlow)."""

from __future__ import annotations

import os
from collections.abc import Sequence

import sentencepiece

from sbs_jax.errors import UserError
from sbs_jax.text_tokenizer import TextTokenizer, is_tokenizer
from sbs_jax.token_ids import EOS_ID, EOS_STRING, UNK_ID, require_t5_ids


def open_tokenizer(path: str | os.PathLike[str]) -> SentencePieceTokenizer | TextTokenizer:
    """Reads a vocabulary: a SentencePiece model, a `tokenizer.json` or a GGUF file's.

    Raises:
      UserError: It cannot be read.
    """
    return TextTokenizer(path) if is_tokenizer(path) else SentencePieceTokenizer(path)


class SentencePieceTokenizer:
    """T5's tokens of a SentencePiece model; the same as training's `data.vocabulary` gives."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Reads the model.

        Raises:
          UserError: it cannot be read, or has other ids than T5's for padding, EOS and unknown.
        """
        self.path = os.fspath(path)
        try:
            self._model = sentencepiece.SentencePieceProcessor()
            self._model.Load(self.path)
        except (OSError, RuntimeError, TypeError) as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise UserError(
                f"{self.path}: is no SentencePiece model that can be read ({reason})."
            ) from error
        model = self._model
        require_t5_ids(self.path, model.pad_id(), model.eos_id(), model.unk_id())

    @property
    def size(self) -> int:
        """Number of pieces."""
        return self._model.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without EOS at the end."""
        # Half of a surrogate pair, as JSON may escape it, is no text that UTF-8 could hold.
        text = text.encode("utf-8", "replace").decode("utf-8")
        first, *others = (self._model.encode(part) for part in text.split(EOS_STRING))
        return first + [token for ids in others for token in (EOS_ID, *ids)]

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of `tokens` up to the first EOS; ids beyond the pieces are unknown."""
        ids = []
        for token in tokens:
            if token == EOS_ID:
                break
            ids.append(int(token) if token < self.size else UNK_ID)
        return self._model.decode(ids)

    def pieces(self, tokens: Sequence[int]) -> list[tuple[str, int]]:
        """Cuts tokens into what can be shown.

        Args:
          tokens: ids.

        Returns:
          Pairs of a text and how many tokens it stands for: one, but for the bytes of a character
          that the vocabulary lacks. Joined, the texts are what the student reads.
        """
        shown: list[tuple[str, int]] = []
        run: list[int] = []  # bytes that wait for the rest of their character

        def flush() -> None:
            if run:
                shown.append((self._model.decode(run), len(run)))
                run.clear()

        for token in map(int, tokens):
            if token < self.size and self._model.is_byte(token):
                run.append(token)
                continue
            flush()
            text = self._model.id_to_piece(token) if token < self.size else "⁇"
            shown.append((text.replace("▁", " "), 1))
        flush()
        return shown
