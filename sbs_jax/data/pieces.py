"""Pieces of a split in the release layout: some lines of its file, and the completions beside them.

A piece is read without the rest of the file, so that a split that is larger than the memory can be
read one piece after the other, or in several processes (`first_pass`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from sbs_jax.data.release import (
    ConvertFn,
    Example,
    ParseFn,
    completion_files_of,
    make_examples,
    read_completions,
    release_files,
)
from sbs_jax.data.rows import Row, is_one_json
from sbs_jax.data.settings import RELEASE, DataSettings
from sbs_jax.errors import UserError
from sbs_jax.json_files import FilePart, read_jsonl

_completions = functools.lru_cache(maxsize=1)(read_completions)


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some neighbouring rows of a JSONL file.

    Attributes:
      path: the file.
      part: where they lie in it.
      rows: how many they are, blank lines not counted.
      completions: files of the teacher's completions, and which of a file's completions go with the
        rows: the first one, and the one behind the last. None where there are none.
    """

    path: Path
    part: FilePart
    rows: int
    completions: tuple[tuple[Path, int, int], ...] | None = None


@dataclasses.dataclass(frozen=True)
class ReleasePieces:
    """Splits and reads the files of a data set in the release layout, whose rows are its examples.

    Attributes:
      names: the data set's name, and others that its folder may have.
      convert: makes the fields of an example of a row.
      parser: takes completions apart.
    """

    names: Sequence[str]
    convert: ConvertFn
    parser: ParseFn

    def split(self, split: str, settings: DataSettings, rows: int) -> list[Piece]:
        """Splits the file of a split.

        Args:
          split: ``train``, ``validation`` or ``test``.
          settings: where the data set lies.
          rows: the largest number of rows that a piece has.

        Returns:
          The pieces in the file's order; none where the file is no JSONL, or where its lines or
          completions are not those that `release.load_release` would read.

        Raises:
          UserError: the data set cannot be found, or its completions cannot be read.
        """
        if settings.source_of(self.names[0]) != RELEASE:
            return []
        path, folder = release_files(settings, self.names[0], split, self.names[1:])
        if not path.is_file() or path.suffix not in (".json", ".jsonl"):
            return []
        if is_one_json(path, "utf-8-sig"):
            return []
        pieces = _split_lines(path, rows)
        files = completion_files_of(folder, split)
        return _with_completions(pieces, files) if files else pieces

    def load(self, piece: Piece, settings: DataSettings) -> list[Example]:
        """Returns the examples of a piece, as `release.load_release` does those of the file.

        Raises:
          UserError: a line is malformed, or no row is an example.
        """
        lines = read_jsonl(piece.path, part=piece.part)
        rows = [Row(values, piece.path, line) for line, values in lines]
        completions = None
        if piece.completions is not None:
            completions = [
                completion
                for path, start, stop in piece.completions
                for completion in _completions(path)[start:stop]
            ]
        if len(rows) != piece.rows or len(completions or rows) != piece.rows:
            raise UserError(f"{piece.path}: was changed while it was read; start again.")
        return make_examples(
            rows,
            completions,
            convert=self.convert,
            parser=self.parser,
            keep_unlabeled=settings.keep_blank_rationales,
        )


def _split_lines(path: Path, rows: int) -> list[Piece]:
    """Splits a JSONL file; [] where text and bytes do not have the same lines."""
    pieces = []
    start, first, found, end = 0, 1, 0, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if b"\r" in line.removesuffix(b"\n").removesuffix(b"\r"):
                return []
            end += len(line)
            found += not line.isspace()
            if found == rows:
                pieces.append(Piece(path, FilePart(start, end - start, first), found))
                start, first, found = end, number + 1, 0
    if found:
        pieces.append(Piece(path, FilePart(start, end - start, first), found))
    return pieces


def _with_completions(pieces: Sequence[Piece], files: Sequence[Path]) -> list[Piece]:
    """Finds the completions of each piece; [] where there is not one for each row."""
    sizes = [len(read_completions(path)) for path in files]
    if sum(sizes) != sum(piece.rows for piece in pieces):
        return []
    found, before = [], 0
    for piece in pieces:
        spans, start = [], 0
        for path, size in zip(files, sizes, strict=True):
            first, stop = max(before - start, 0), min(before + piece.rows - start, size)
            if first < stop:
                spans.append((path, first, stop))
            start += size
        found.append(dataclasses.replace(piece, completions=tuple(spans)))
        before += piece.rows
    return found
