"""Data sets that are published in one file; their test examples are always the same fifth of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sbs_jax import DataSettings, Example
from sbs_jax.data.release import ConvertFn, LoadFn, completions_of, make_examples
from sbs_jax.data.rows import Row, read_rows
from sbs_jax.parsers import find_parser

SHARE = 0.2
"""Share of the examples that are test examples."""

FilesFn = Callable[[Path, str], tuple[Path, str, bool]]
"""Returns for a folder and a split the file of its examples, what the split is called in the names
of the completions' files, and whether the split is but a part of that file."""


def published_files(
    name: str,
    files: FilesFn,
    convert: ConvertFn,
    parser: str,
    *,
    read: Callable[[Path], list[Row]] = read_rows,
) -> LoadFn:
    """Returns a loader of the files in ``DATA_DIR/NAME/``; see `FilesFn`.

    Args:
      name: the name of the data set.
      files: finds the file of a split.
      convert: see `sbs_jax.data.release.ConvertFn`.
      parser: key of `sbs_jax.parsers.PARSERS`.
      read: reads the rows of a file.
    """

    def load(split: str, settings: DataSettings) -> list[Example]:
        folder = settings.folder(name)
        path, word, is_part = files(folder, split)
        rows = read(path)
        examples = make_examples(
            rows,
            completions_of(folder / "llm", word, len(rows), path),
            convert=convert,
            parser=find_parser(parser),
            keep_unlabeled=settings.keep_blank_rationales,
        )
        return part_of(split, examples) if is_part else examples

    return load


def part_of(split: str, examples: list[Example]) -> list[Example]:
    """Returns the examples of ``train`` or ``test``, in the file's order; never depends on SEED."""
    order = np.random.default_rng(0).permutation(len(examples))
    count = max(1, round(len(examples) * SHARE))
    chosen = order[:count] if split == "test" else order[count:]
    return [examples[index] for index in sorted(chosen)]


def find_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    """Returns the first of `names` that is a file of `folder`, whatever its case; None if none."""
    by_name = {path.name.lower(): path for path in sorted(folder.glob("*")) if path.is_file()}
    return next((by_name[name.lower()] for name in names if name.lower() in by_name), None)
