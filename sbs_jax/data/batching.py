"""Streams of batches: endless, shuffled and resumable for training, finite for evaluation.

Every process of a run makes the same global batches and takes its share of them, so their order
depends neither on how many processes there are nor on which one looks. `data.batch_arrays` says
which arrays a batch has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, Protocol

import numpy as np

from sbs_jax.data import epochs
from sbs_jax.data.batch_arrays import BatchMaker, Fill, HostBatch, WindowRows, row_lengths
from sbs_jax.data.example_stream import ExampleStream, Position
from sbs_jax.data.padding_free.batches import ExactBatches, TokenBatches
from sbs_jax.data.padding_free.sizes import Sizes
from sbs_jax.data.records import Records
from sbs_jax.data.row_batches import ExampleBatches, RowBatches
from sbs_jax.errors import UserError, require_positive

AUTO: Final = "auto"
"""TASK_FEATURE_LENGTHS that are left to the data: see `data.auto_lengths`."""


@dataclasses.dataclass(frozen=True)
class Batching:
    """How records become batches; gin/runs/train.gin binds the attributes to macros.

    Attributes:
      feature_lengths: TASK_FEATURE_LENGTHS: row lengths in tokens, of `inputs` and `targets`; or
        `auto`, for which a training run puts those that its data propose.
      batch_size: rows of a batch; packed rows hold several records each.
      pack: whether several records are put into a row.
      examples_per_batch: the number of examples in every batch, each with all of its records, in as
        few rows as they fit into; `batch_size` is not used then. None makes batches of rows.
      padding_free: whether batches have no rows, and the tokens of all examples lie one behind
        another; see `data.padding_free`. A batch has `examples_per_batch` examples, or about as
        many as `batch_size` rows hold.
      num_microbatches: equal slices of a batch that are computed one after another, which saves
        memory; see `training.step.make_train_step`.
    """

    feature_lengths: Mapping[str, int] | Literal["auto"]
    batch_size: int = 64
    pack: bool = True
    examples_per_batch: int | None = None
    padding_free: bool = False
    num_microbatches: int = 1

    @property
    def lengths(self) -> Mapping[str, int]:
        """The row lengths as numbers.

        Raises:
          ValueError: they are still left to the data.
        """
        if isinstance(self.feature_lengths, str):
            raise ValueError("the row lengths have to be found in the data first")
        return self.feature_lengths


class BatchStream(Protocol):
    """What makes the next batch of an `ExampleStream`; each kind of batches has a class."""

    @property
    def identity(self) -> tuple[str, ...]:
        """The kind of batches, and what their order depends on besides lengths and seed."""

    @property
    def fill(self) -> Fill:
        """How full the batches were so far."""

    @property
    def sizes(self) -> Sizes | None:
        """The usual sizes of padding-free batches; None of others."""

    def __next__(self) -> HostBatch:
        """Returns the next batch."""


class TrainBatches(Iterator[HostBatch]):
    """Endless batches of training records.

    In each epoch the examples are shuffled by (seed, epoch), the records of one example stay
    neighbours, and every record is trained exactly once. Batch k depends on the arguments and k
    alone. With `Records.draw`, an epoch trains one variant of each example, drawn by (seed, epoch).

    An epoch of a mixture has as many examples as all of its tasks together, and the rates say how
    these are divided among the tasks; so the examples of one task may be repeated before those of
    another have all been used. Each task has orders of its own, and continues in the next epoch
    where it stopped.

    How examples become batches: see `row_batches.RowBatches` and `ExampleBatches`, and for
    padding-free batches `padding_free.batches.TokenBatches` and `ExactBatches`.
    """

    def __init__(
        self,
        records: Records,
        batching: Batching,
        *,
        seed: int,
        row_multiple: int = 1,
    ) -> None:
        """Starts at the first batch of the first epoch.

        Args:
          records: the records of a training split.
          batching: how they become batches.
          seed: decides the order of the examples, together with the epoch.
          row_multiple: into how many equal parts batches are cut: the number of rows is a multiple
            of it where the examples decide on it, and the number of groups of padding-free batches.

        Raises:
          UserError: there are no records, or an argument is out of its range.
        """
        if not len(records):
            raise UserError(f"There is nothing to train on: {records.counts}.")
        if batching.examples_per_batch is None:
            require_positive(BATCH_SIZE=batching.batch_size)
        else:
            require_positive(EXAMPLES_PER_BATCH=batching.examples_per_batch)
        if batching.padding_free and not batching.pack:
            raise UserError("PADDING_FREE = True has no rows that PACK = False could speak of.")
        self._examples = ExampleStream(records, seed)
        self._batches = _batch_stream(self._examples, batching, row_multiple)
        kind, *more = self._batches.identity
        lengths = row_lengths(batching.lengths)
        self._identity = [kind, int(seed), *lengths, records.fingerprint()]
        if records.source is not None:
            self._identity.append("inputs encoded once")
        if epochs.draws(records):
            self._identity.append("one rationale an epoch")
        if records.mixture:
            self._identity.append([list(task) for task in records.mixture])
        if self._examples.order_is_computed:
            self._identity.append("order computed")
        self._identity += more

    @property
    def sizes(self) -> Sizes | None:
        """The usual sizes of padding-free batches; None of others."""
        return self._batches.sizes

    @property
    def fill(self) -> Fill:
        """How full the batches were that this object has made."""
        return self._batches.fill

    def state(self) -> dict[str, Any]:
        """Returns the position of the next batch; JSON can hold it."""
        return {**dataclasses.asdict(self._examples.at), "identity": self._identity}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to a position that `state` returned, perhaps in another process.

        Raises:
          UserError: it belongs to other data, lengths or another seed.
        """
        if list(state["identity"]) != self._identity:
            raise UserError(
                "The checkpoint's position in the data belongs to other data or settings (the "
                "examples, the vocabulary, TASK_FEATURE_LENGTHS, SEED, PADDING_FREE or packing "
                "have changed): restore these, or start in a new MODEL_DIR."
            )
        self._examples.go_to(Position.of(state))

    def __next__(self) -> HostBatch:
        """Returns the next batch."""
        return next(self._batches)


def _batch_stream(examples: ExampleStream, batching: Batching, row_multiple: int) -> BatchStream:
    """Returns what makes batches of the kind that `batching` asks for."""
    count, maker = batching.examples_per_batch, BatchMaker(examples.records, batching.lengths)
    if batching.padding_free:
        lengths = (maker.row_inputs, maker.row_targets)
        if count is None:
            return TokenBatches(examples, lengths, batching.batch_size, row_multiple)
        return ExactBatches(examples, lengths, count, row_multiple)
    if count is None:
        return RowBatches(examples, maker, batching.batch_size, batching.pack)
    return ExampleBatches(examples, maker, count, batching.pack, row_multiple)


class EvalBatches:
    """The records of a split once, in their own order: an iterable that has a length.

    Each batch has `batch_size` rows; those that the last one lacks are empty.

    Attributes:
      fill: how full the batches are that were made so far.
    """

    def __init__(
        self,
        records: Records,
        batch_size: int,
        feature_lengths: Mapping[str, int],
        pack: bool = True,
    ) -> None:
        """Places all records.

        Args:
          records: the records of one split.
          batch_size: rows of a batch.
          feature_lengths: ``inputs`` and ``targets``, the lengths of a row.
          pack: whether rows hold several records.

        Raises:
          UserError: an argument is out of its range.
        """
        require_positive(BATCH_SIZE=batch_size)
        self._maker = BatchMaker(records, feature_lengths)
        self._batch_size = batch_size
        self._rows = WindowRows(np.arange(len(records)), self._maker.place_all(pack))

    @property
    def fill(self) -> Fill:
        """How full the batches were so far."""
        return self._maker.fill

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def __iter__(self) -> Iterator[HostBatch]:
        """Yields the batches; the iteration may be repeated."""
        for start in range(0, len(self._rows), self._batch_size):
            ids, placement = self._rows.slice(start, start + self._batch_size, 0)
            yield self._maker.make(ids, placement, self._batch_size)
