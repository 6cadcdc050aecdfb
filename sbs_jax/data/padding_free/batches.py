"""Makes padding-free batches, of equally many tokens or of equally many examples.

`TokenBatches` and `ExactBatches` are `batching.BatchStream`s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sbs_jax.data import batch_arrays, epochs
from sbs_jax.data.batch_arrays import Fill, HostBatch
from sbs_jax.data.example_stream import ExampleStream, Windows
from sbs_jax.data.padding_free import proposal
from sbs_jax.data.padding_free.groups import GroupMaker, divide, split
from sbs_jax.data.padding_free.sizes import PARTS
from sbs_jax.data.records import Records
from sbs_jax.errors import UserError

SAMPLE = 1024
"""The number of examples whose lengths decide on the sizes of batches."""

BATCHES_OF_WINDOW = 16
"""The least number of batches that are made of one window, so that their examples mix."""

FEW = 32
"""Batches of fewer examples than this vary so much that sizes are rounded more coarsely."""


class _Groups:
    """The sizes of batches, and what makes batches of these sizes.

    Attributes:
      sizes: the usual sizes of a group.
      fill: how full the batches were so far.
    """

    def __init__(
        self,
        records: Records,
        row_targets: int,
        batches: Sequence[Sequence[np.ndarray]],
        count: int,
    ) -> None:
        """Chooses the sizes by some batches, with `count` groups each; see `proposal.propose`."""
        self.sizes = proposal.propose(records, row_targets, batches, count)
        self._records, self._count = records, count
        self._maker = GroupMaker(
            records, [(kind.inputs, kind.targets) for kind in self.sizes.kinds]
        )
        self.fill: Fill = self._maker.fill

    def batch(
        self, examples: Sequence[np.ndarray], *, least: int = 1, multiple: int = 1
    ) -> HostBatch:
        """Returns the batch of examples, of each the ids of its records.

        Args:
          examples: the examples.
          least: `PARTS` of the usual sizes that the batch has at least.
          multiple: the number of `PARTS` is rounded up to a multiple of it.
        """
        groups = [self._maker.place(ids) for ids in split(self._records, examples, self._count)]
        needed = max(least, *(group.parts_needed(self.sizes) for group in groups))
        needed = -(-needed // multiple) * multiple
        return self._maker.make(groups, self.sizes.scaled(needed))


class TokenBatches(Iterator[HostBatch]):
    """Makes batches of about as many tokens as BATCH_SIZE rows hold.

    The examples are taken in windows of `batch_arrays.WINDOW` or more. Those of a window are
    divided among its batches so that all of these have about equally many tokens.
    """

    def __init__(
        self, stream: ExampleStream, row_lengths: tuple[int, int], batch_size: int, groups: int
    ) -> None:
        """Chooses the sizes of batches; makes no batch yet.

        Args:
          stream: the examples.
          row_lengths: input and target tokens of the rows that BATCH_SIZE counts.
          batch_size: how many of these rows a batch would have.
          groups: the number of groups of a batch.

        Raises:
          UserError: a batch would have fewer examples than groups.
        """
        self._stream, records = stream, stream.records
        sample = epochs.first_examples(records, SAMPLE)
        examples = proposal.examples_of(records, sample, row_lengths, batch_size)
        _check_examples(f"BATCH_SIZE = {batch_size}", examples, groups)
        window = stream.size / _windows(stream.size, examples)
        self._examples = window / max(1, round(window / examples))
        count = max(1, int(len(sample) / self._examples))
        batches = self._divided(sample[: round(count * self._examples)], np.random.default_rng(0))
        self._groups = _Groups(records, row_lengths[1], batches, groups)
        self.sizes, self.fill = self._groups.sizes, self._groups.fill
        # The batches of a window depend on how many it has.
        self.identity = ("padding-free", f"{examples:.6g} examples a batch")
        self._windows = Windows(stream, _windows(stream.size, self._examples), self._window)

    def __next__(self) -> HostBatch:
        """Returns the next batch."""
        ((batches, number, _),) = self._windows.take(1)
        # They are made to be equal: what is smaller by chance is not worth another program.
        return self._groups.batch(batches[number], least=PARTS)

    def _window(self, ids: np.ndarray, rng: np.random.Generator) -> list[list[np.ndarray]]:
        """Returns the batches of a window, by example."""
        divided = self._divided(epochs.by_example(self._stream.starts, ids), rng)
        return [divided[number] for number in rng.permutation(len(divided))]

    def _divided(
        self, examples: list[np.ndarray], rng: np.random.Generator
    ) -> list[list[np.ndarray]]:
        count = max(1, round(len(examples) / self._examples))
        return divide(self._stream.records, examples, count, rng)


class ExactBatches(Iterator[HostBatch]):
    """Makes batches of exactly EXAMPLES_PER_BATCH examples."""

    def __init__(
        self,
        stream: ExampleStream,
        row_lengths: tuple[int, int],
        examples_per_batch: int,
        groups: int,
    ) -> None:
        """Chooses the sizes of batches; makes no batch yet.

        Args:
          stream: the examples.
          row_lengths: see `TokenBatches`.
          examples_per_batch: how many examples a batch has.
          groups: the number of groups of a batch.

        Raises:
          UserError: a batch has fewer examples than groups.
        """
        exactly = examples_per_batch
        _check_examples(f"EXAMPLES_PER_BATCH = {exactly}", exactly, groups)
        self._stream, self._examples = stream, exactly
        sample = epochs.first_examples(stream.records, SAMPLE)
        batches = [
            [sample[at % len(sample)] for at in range(start, start + exactly)]
            for start in range(0, max(1, len(sample) // exactly) * exactly, exactly)
        ]
        self._groups = _Groups(stream.records, row_lengths[1], batches, groups)
        self.sizes, self.fill = self._groups.sizes, self._groups.fill
        self.identity = ("padding-free",)

    def __next__(self) -> HostBatch:
        """Returns the next batch."""
        examples = epochs.by_example(self._stream.starts, self._stream.take(self._examples))
        return self._groups.batch(examples, multiple=2 if self._examples < FEW else 1)


def _check_examples(setting: str, examples: float, groups: int) -> None:
    if round(examples) < groups:
        raise UserError(
            f"{setting} makes padding-free batches of about {round(examples)} examples, fewer "
            f"than their {groups} parts (devices along `data` × NUM_MICROBATCHES): choose a "
            "larger one."
        )


def _windows(size: int, examples: float) -> int:
    """How many windows an epoch of `size` examples has, in batches of about `examples`."""
    window = max(batch_arrays.WINDOW, round(BATCHES_OF_WINDOW * examples))
    return -(-size // window)
