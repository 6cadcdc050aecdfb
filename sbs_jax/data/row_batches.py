"""Batches of rows of fixed length, packed or not; the classes are `batching.BatchStream`s."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from sbs_jax.data import batch_arrays
from sbs_jax.data.batch_arrays import BatchMaker, HostBatch, WindowRows
from sbs_jax.data.example_stream import ExampleStream, Windows
from sbs_jax.data.packing import Placement


class RowBatches(Iterator[HostBatch]):
    """Makes batches that have as many rows as BATCH_SIZE says.

    The examples are taken in windows of `batch_arrays.WINDOW`; the records of a window are packed
    together and its rows shuffled. What is left over at the end of an epoch is filled up from the
    next one.
    """

    sizes = None

    def __init__(
        self, stream: ExampleStream, maker: BatchMaker, batch_size: int, pack: bool
    ) -> None:
        """Makes no batch yet; `pack` says whether rows hold several records."""
        self.identity, self.fill = ("packed" if pack else "single",), maker.fill
        self._maker, self._batch_size, self._pack = maker, batch_size, pack
        self._windows = Windows(stream, -(-stream.size // batch_arrays.WINDOW), self._rows)

    def __next__(self) -> HostBatch:
        """Returns the next batch."""
        pieces: list[tuple[np.ndarray, Placement]] = []
        filled = 0
        for rows, start, stop in self._windows.take(self._batch_size):
            pieces.append(rows.slice(start, stop, filled))
            filled += stop - start
        ids = np.concatenate([piece[0] for piece in pieces])
        placement = Placement.joined([piece[1] for piece in pieces], filled)
        return self._maker.make(ids, placement, filled)

    def _rows(self, ids: np.ndarray, rng: np.random.Generator) -> WindowRows:
        placement = self._maker.place(ids, self._pack)
        if self._pack:
            # Packing opens rows for the longest records first; batches must not come in that order.
            new_number = rng.permutation(placement.rows)
            placement = dataclasses.replace(placement, row=new_number[placement.row])
        return WindowRows(ids, placement)


class ExampleBatches(Iterator[HostBatch]):
    """Makes batches of exactly EXAMPLES_PER_BATCH examples, in as many rows as these need."""

    sizes = None

    def __init__(
        self,
        stream: ExampleStream,
        maker: BatchMaker,
        examples_per_batch: int,
        pack: bool,
        row_multiple: int,
    ) -> None:
        """Makes no batch yet.

        Args:
          stream: the examples.
          maker: places their records in rows, and writes the arrays.
          examples_per_batch: how many examples a batch has.
          pack: whether rows hold several records.
          row_multiple: the number of rows is rounded up to a multiple of it, so that few shapes
            occur.
        """
        self.identity, self.fill = ("examples",), maker.fill
        self._stream, self._maker, self._examples = stream, maker, examples_per_batch
        self._pack, self._row_multiple = pack, row_multiple

    def __next__(self) -> HostBatch:
        """Returns the next batch."""
        ids = self._stream.take(self._examples)
        placement = self._maker.place(ids, self._pack)
        rows = -(-placement.rows // self._row_multiple) * self._row_multiple
        return self._maker.make(ids, placement, rows)
