"""Which shapes a student's programs are compiled for, while others are still being compiled."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from sbs_jax.decoding import shapes
from sbs_jax.inference.prompting import Kind

Use = tuple[Kind, tuple[int, int]]
"""What is asked for, and the shape of the query's own candidates, (0, 0) for none."""


@dataclasses.dataclass(frozen=True)
class WarmUp:
    """How far a warm-up is.

    Attributes:
      compiled: how many shapes are compiled.
      total: how many there will be.
      answers: whether queries of every kind and length can be answered.
    """

    compiled: int
    total: int
    answers: bool


class CompiledShapes:
    """The shapes (rows, length) of each use that queries may be answered in.

    Without a warm-up these are all: programs are then compiled for a shape when it first occurs.
    """

    def __init__(self, row_counts: Sequence[int], lengths: Sequence[int]) -> None:
        """Knows nothing compiled yet.

        Args:
          row_counts: possible numbers of rows, increasing.
          lengths: possible numbers of tokens of inputs, increasing.
        """
        self._row_counts = row_counts
        self._lengths = lengths
        self._compiled: dict[Use, tuple[tuple[int, int], ...]] = {}

    def in_order(self) -> list[tuple[int, int]]:
        """Returns all shapes, most useful first: any query fits into the first one.

        Then come more rows, which take the load, and then less padding.
        """
        pairs = itertools.product(self._row_counts, self._lengths)
        longest = self._lengths[-1]
        return sorted(pairs, key=lambda shape: (shape[1] != longest, shape[0], -shape[1]))

    def add(self, use: Use, shape: tuple[int, int]) -> None:
        """Records that `shape` is compiled; from the first call on, others of `use` wait for it."""
        # Replaced, not changed: another thread may be reading.
        self._compiled[use] = (*self._compiled.get(use, ()), shape)

    def fit(self, use: Use, count: int, length: int) -> tuple[int, int]:
        """Returns the rows and the length that `count` queries of `length` tokens are put into.

        That may be fewer rows than queries: the queries then take turns.

        Args:
          use: what is asked for, and the shape of the queries' own candidates.
          count: how many queries there are.
          length: the length, out of the possible ones.
        """
        rows = shapes.fit(min(count, self._row_counts[-1]), self._row_counts)
        compiled = self._compiled.get(use)
        if compiled is None:
            return rows, length
        usable = [shape for shape in compiled if shape[1] >= length]
        enough = [shape for shape in usable if shape[0] >= rows]
        return min(enough) if enough else max(usable, key=lambda shape: (shape[0], -shape[1]))

    def most_rows(self, use: Use, length: int) -> int:
        """Returns the largest number of rows that `fit` gives."""
        return self.fit(use, self._row_counts[-1], length)[0]
