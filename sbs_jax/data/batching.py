"""Streams of batches: endless, shuffled and resumable for training, finite for evaluation.

Every process of a run makes the same global batches and takes its share of them, so their order
depends neither on how many processes there are nor on which one looks. `data.batch_arrays` says
which arrays a batch has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, cast

import numpy as np

from sbs_jax.data import batch_arrays, epochs, padding_free
from sbs_jax.data.batch_arrays import Batch, BatchMaker, Fill, WindowRows
from sbs_jax.data.packing import Placement
from sbs_jax.data.records import Records
from sbs_jax.errors import UserError

AUTO: Final = "auto"
"""TASK_FEATURE_LENGTHS that are left to the data: see `data.auto_lengths`."""


@dataclasses.dataclass(frozen=True)
class Batching:
    """How records become batches; gin/runs/train.gin binds the attributes to macros.

    Attributes:
      feature_lengths: TASK_FEATURE_LENGTHS: row lengths in tokens, of `inputs` and `targets`; or
        `auto`, for which a training run puts those that its data propose.
      batch_size: rows of a batch; packed rows hold several records each.
      pack: put several records into a row.
      examples_per_batch: the number of examples, each with all its records, in every batch, in as
        few rows as they fit into; `batch_size` is not used then. None makes batches of rows.
      padding_free: let the tokens of all examples stand behind one another, without rows; see
        `data.padding_free`. A batch has `examples_per_batch` examples, or about as many as
        `batch_size` rows hold.
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


class TrainBatches(Iterator[Batch]):
    """Endless batches of training records.

    In each epoch the examples are shuffled by (seed, epoch), the records of one example staying
    neighbours, and every record comes exactly once. Batch k depends on the arguments and k alone.
    With `Records.draw`, the records of one variant of each example come, drawn by (seed, epoch).

    An epoch of a mixture has as many examples as all its tasks together, of each task as its rate
    says: one task's examples come several times before another's have all come. Each task goes
    through its own examples in orders of its own, and on where the epoch before stopped.

    * With `batch_size`, a batch has that many rows. Packed, the shuffled examples are taken in
      windows of `batch_arrays.WINDOW`; the records of a window are packed together and its rows
      shuffled. What is left over at the end of an epoch is filled up from the next one.
    * With `examples_per_batch`, a batch has exactly that many examples and as many rows as they
      need, rounded up to a multiple of `row_multiple` so that few shapes occur.
    * With `padding_free`, a batch has `row_multiple` groups of tokens. Where `batch_size` says how
      many examples it has, they are taken in windows of `batch_arrays.WINDOW` or more, and divided
      among its batches so that all of these have about equally many tokens.

    Attributes:
      fill: how full the batches were that this object has made.
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
          batching: see the class.
          seed: decides the order of the examples, together with the epoch.
          row_multiple: see the class.

        Raises:
          UserError: there are no records, or an argument is out of its range.
        """
        if not len(records):
            raise UserError(f"There is nothing to train on: {records.counts}.")
        examples_per_batch = batching.examples_per_batch
        _check_positive("BATCH_SIZE", batching.batch_size if examples_per_batch is None else 1)
        _check_positive("EXAMPLES_PER_BATCH", examples_per_batch or 1)
        if batching.padding_free and not batching.pack:
            raise UserError("PADDING_FREE = True has no rows that PACK = False could speak of.")
        self._maker = BatchMaker(records, batching.lengths)
        self._starts = records.example_starts
        self._batch_size = batching.batch_size
        self._examples_per_batch = examples_per_batch
        self._row_multiple = row_multiple
        self._seed = seed
        self._pack = batching.pack
        rows = "examples" if examples_per_batch else "packed" if batching.pack else "single"
        lengths = (self._maker.row_inputs, self._maker.row_targets)
        self._identity = [rows, int(seed), *lengths, records.fingerprint()]
        if records.source is not None:
            self._identity.append("inputs encoded once")
        if epochs.draws(records):
            self._identity.append("one rationale an epoch")
        if records.mixture:
            self._identity.append([list(task) for task in records.mixture])
        self._epoch = 0
        # Position in the epoch: an example, or else a window and a row of it.
        self._example = 0
        self._window = 0
        self._row = 0
        self._order = self._shuffled()
        if self._order.computed:
            self._identity.append("order computed")
        self._rows: WindowRows | None = None
        self._sizes: padding_free.Sizes | None = None
        self._examples: float | None = None  # of a padding-free batch
        if batching.padding_free:
            self._use_groups()

    def _use_groups(self) -> None:
        """Prepares for padding-free batches."""
        lengths = (self._maker.row_inputs, self._maker.row_targets)
        records, exactly = self._maker.records, self._examples_per_batch
        sample = epochs.first_examples(records, padding_free.SAMPLE)
        examples = (
            padding_free.examples_of(records, sample, lengths, self._batch_size)
            if exactly is None
            else float(exactly)
        )
        if round(examples) < self._row_multiple:
            name = (
                f"BATCH_SIZE = {self._batch_size}"
                if exactly is None
                else f"EXAMPLES_PER_BATCH = {exactly}"
            )
            raise UserError(
                f"{name} makes padding-free batches of about {round(examples)} examples, fewer "
                f"than their {self._row_multiple} parts (devices along `data` × "
                "NUM_MICROBATCHES): choose a larger one."
            )
        self._examples = examples
        if exactly is None:
            window = self._order.size / self._windows
            self._examples = window / max(1, round(window / examples))
            count = max(1, int(len(sample) / self._examples))
            batches = self._divided(
                sample[: round(count * self._examples)], np.random.default_rng(0)
            )
        else:
            count = max(1, len(sample) // exactly)
            batches = [
                [sample[at % len(sample)] for at in range(start, start + exactly)]
                for start in range(0, count * exactly, exactly)
            ]
        self._sizes = padding_free.propose(records, lengths[1], batches, self._row_multiple)
        kinds = [(kind.inputs, kind.targets) for kind in self._sizes.kinds]
        self._groups = padding_free.GroupMaker(records, kinds)
        self._identity[0] = "padding-free"
        if exactly is None:
            # The batches of a window depend on how many it has.
            self._identity.append(f"{examples:.6g} examples a batch")
        self._batches: list[list[np.ndarray]] | None = None

    @property
    def sizes(self) -> padding_free.Sizes | None:
        """The usual sizes of padding-free batches; None of others."""
        return self._sizes

    @property
    def fill(self) -> Fill | padding_free.GroupFill:
        """How full the batches were so far."""
        return self._maker.fill if self._sizes is None else self._groups.fill

    def state(self) -> dict[str, Any]:
        """Returns the position of the next batch; JSON can hold it."""
        return {
            "epoch": self._epoch,
            "example": self._example,
            "window": self._window,
            "row": self._row,
            "identity": self._identity,
        }

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
        self._epoch, self._example = int(state["epoch"]), int(state["example"])
        self._window, self._row = int(state["window"]), int(state["row"])
        self._order = self._shuffled()
        self._rows = self._batches = None

    def __next__(self) -> Batch:
        """Returns the next batch."""
        wanted = self._examples_per_batch
        if self._sizes is not None:
            if wanted is None:
                return self._grouped(self._next_divided())
            return self._grouped(epochs.by_example(self._starts, self._taken(wanted)))
        if wanted is not None:
            return self._next_examples(wanted)
        return self._next_rows(self._batch_size)

    def _shuffled(self) -> epochs.Epoch:
        return epochs.Epoch(self._maker.records, self._starts, self._seed, self._epoch)

    def _next_epoch(self) -> None:
        self._epoch += 1
        self._example = self._window = self._row = 0
        self._order = self._shuffled()

    def _taken(self, wanted: int) -> np.ndarray:
        """Returns the ids of the records of the next examples."""
        chosen = []
        while wanted:
            taken = self._order.examples(self._example, self._example + wanted)
            chosen.append(self._order.drawn(epochs.records_of(self._starts, taken)))
            wanted -= taken.size
            self._example += taken.size
            if self._example == self._order.size:
                self._next_epoch()
        return np.concatenate(chosen)

    def _next_examples(self, wanted: int) -> Batch:
        ids = self._taken(wanted)
        placement = self._maker.place(ids, self._pack)
        rows = -(-placement.rows // self._row_multiple) * self._row_multiple
        return self._maker.make(ids, placement, rows)

    def _next_rows(self, wanted: int) -> Batch:
        pieces: list[tuple[np.ndarray, Placement]] = []
        filled = 0
        while filled < wanted:
            if self._rows is None:
                self._rows = self._window_rows()
            taken = min(wanted - filled, self._rows.placement.rows - self._row)
            pieces.append(self._rows.slice(self._row, self._row + taken, filled))
            filled += taken
            self._row += taken
            if self._row == self._rows.placement.rows:
                self._row, self._rows = 0, None
                self._window += 1
                if self._window == self._windows:
                    self._next_epoch()
        ids = np.concatenate([piece[0] for piece in pieces])
        placement = Placement.joined([piece[1] for piece in pieces], wanted)
        return self._maker.make(ids, placement, wanted)

    def _next_divided(self) -> list[np.ndarray]:
        """Returns the examples of the next batch of a window."""
        if self._batches is None:
            examples = epochs.by_example(self._starts, self._window_records())
            rng = np.random.default_rng([self._seed, self._epoch, self._window + 1])
            divided = self._divided(examples, rng)
            self._batches = [divided[number] for number in rng.permutation(len(divided))]
        batch = self._batches[self._row]
        self._row += 1
        if self._row == len(self._batches):
            self._row, self._batches = 0, None
            self._window += 1
            if self._window == self._windows:
                self._next_epoch()
        return batch

    def _divided(
        self, examples: list[np.ndarray], rng: np.random.Generator
    ) -> list[list[np.ndarray]]:
        """Divides examples among batches of about `_examples` each."""
        count = max(1, round(len(examples) / cast(float, self._examples)))
        return padding_free.divide(self._maker.records, examples, count, rng)

    def _grouped(self, examples: list[np.ndarray]) -> Batch:
        """Returns the padding-free batch of examples."""
        assert self._sizes is not None
        parts = padding_free.split(self._maker.records, examples, self._row_multiple)
        groups = [self._groups.place(ids) for ids in parts]
        needed = max(group.parts_needed(self._sizes) for group in groups)
        if self._examples_per_batch is None:
            # These are made to be equal: what is smaller by chance is not worth another program.
            needed = max(needed, padding_free.PARTS)
        elif self._examples_per_batch < padding_free.FEW:
            needed += needed % 2
        return self._groups.make(groups, self._sizes.scaled(needed))

    @property
    def _windows(self) -> int:
        window = batch_arrays.WINDOW
        if self._examples is not None:
            window = max(window, round(padding_free.BATCHES_OF_WINDOW * self._examples))
        return -(-self._order.size // window)

    def _window_records(self) -> np.ndarray:
        """Returns the ids of the records of the present window."""
        # Windows of equal size, so that none at the end is too small to pack well.
        bounds = np.linspace(0, self._order.size, self._windows + 1).astype(np.int64)
        examples = self._order.examples(bounds[self._window], bounds[self._window + 1])
        return self._order.drawn(epochs.records_of(self._starts, examples))

    def _window_rows(self) -> WindowRows:
        ids = self._window_records()
        placement = self._maker.place(ids, self._pack)
        if self._pack:
            # Packing opens rows for the longest records first; batches must not come in that order.
            rng = np.random.default_rng([self._seed, self._epoch, self._window + 1])
            new_number = rng.permutation(placement.rows)
            placement = dataclasses.replace(placement, row=new_number[placement.row])
        return WindowRows(ids, placement)


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
        _check_positive("BATCH_SIZE", batch_size)
        self._maker = BatchMaker(records, feature_lengths)
        self._batch_size = batch_size
        self._rows = WindowRows(np.arange(len(records)), self._maker.place_all(pack))

    @property
    def fill(self) -> Fill:
        """How full the batches were so far."""
        return self._maker.fill

    def __len__(self) -> int:
        return -(-self._rows.placement.rows // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches; the iteration may be repeated."""
        for start in range(0, self._rows.placement.rows, self._batch_size):
            ids, placement = self._rows.slice(start, start + self._batch_size, 0)
            yield self._maker.make(ids, placement, self._batch_size)


def _check_positive(name: str, value: int | None) -> None:
    if not isinstance(value, int | np.integer) or value < 1:
        raise UserError(f"{name} must be a positive whole number, not {value!r}.")
