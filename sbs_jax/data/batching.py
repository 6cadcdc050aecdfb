"""Batches of records: shuffled, packed, endless and resumable. Pure numpy.

A batch is a dict of arrays, int32 but for the last one; B rows, S and T the feature lengths of
inputs and targets:

    encoder_input_tokens   [B, S]
    encoder_segment_ids    [B, S]  1.. within a row, 0 on padding, also when rows are not packed
    decoder_input_tokens   [B, T]  the targets, shifted right within each segment, starting with 0
    decoder_target_tokens  [B, T]
    decoder_target_parts   [B, T]  the code of each target token's part, PADDING elsewhere
    decoder_segment_ids    [B, T]

and where records share their inputs (`Records.source`)

    decoder_source_ids     [B, T]  the encoder's segment that each target's token is about

and where the data weighs tokens (`Records.target_weights`)

    decoder_token_weights  [B, T]  float32, 0 on padding

Every process of a run makes the same global batches and takes its share of them, so their order
depends neither on how many processes there are nor on which one looks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np

from sbs_jax.data.packing import Placement, one_per_row, pack, share_inputs
from sbs_jax.data.records import Records
from sbs_jax.errors import UserError

Batch = dict[str, np.ndarray]

WEIGHTS = "decoder_token_weights"

AUTO: Final = "auto"
"""TASK_FEATURE_LENGTHS that are left to the data: see `data.auto_lengths`."""

WINDOW = 2048
"""Examples that are shuffled first and then packed together. Large enough for full rows, small
enough that a window is packed in some tens of milliseconds."""


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
      num_microbatches: equal slices of a batch that are computed one after another, which saves
        memory; see `training.step.make_train_step`.
    """

    feature_lengths: Mapping[str, int] | Literal["auto"]
    batch_size: int = 64
    pack: bool = True
    examples_per_batch: int | None = None
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


@dataclasses.dataclass
class Fill:
    """How full batches are.

    Attributes:
      rows: so far, empty ones included.
      records: in them.
      input_tokens: that are not padding.
      target_tokens: that are not padding.
      row_inputs: room for input tokens in a row.
      row_targets: room for target tokens in a row.
    """

    row_inputs: int
    row_targets: int
    rows: int = 0
    records: int = 0
    input_tokens: int = 0
    target_tokens: int = 0

    @property
    def inputs(self) -> float:
        """Share of the encoder's tokens that are not padding, 0 to 1."""
        return self.input_tokens / max(1, self.rows * self.row_inputs)

    @property
    def targets(self) -> float:
        """Share of the decoder's tokens that are not padding, 0 to 1."""
        return self.target_tokens / max(1, self.rows * self.row_targets)

    def __str__(self) -> str:
        return (
            f"inputs {self.inputs:.1%} and targets {self.targets:.1%} full, "
            f"{self.records / max(1, self.rows):.2f} records a row"
        )


class _BatchMaker:
    """Turns placed records into arrays, and keeps the books on how full they are."""

    def __init__(self, records: Records, feature_lengths: Mapping[str, int]) -> None:
        self.records = records
        self.row_inputs, self.row_targets = row_lengths(feature_lengths)
        if len(records) and (
            records.input_lengths.max() > self.row_inputs
            or records.target_lengths.max() > self.row_targets
        ):
            raise ValueError("records are longer than these feature lengths: load them with these")
        self.fill = Fill(self.row_inputs, self.row_targets)

    def place(self, ids: np.ndarray, packed: bool) -> Placement:
        """Returns the placement of the records `ids` [R]."""
        records = self.records
        lengths = (records.input_lengths[ids], records.target_lengths[ids])
        return place_records(records, ids, *lengths, self.row_inputs, self.row_targets, packed)

    def place_all(self, packed: bool) -> Placement:
        """Returns the placement of all records in their own order, some thousands at a time."""
        pieces, rows = [], 0
        for start in range(0, len(self.records), 2 * WINDOW):
            ids = np.arange(start, min(start + 2 * WINDOW, len(self.records)))
            pieces.append(self.place(ids, packed).moved(rows))
            rows += pieces[-1].rows
        return Placement.joined(pieces, rows)

    def make(self, ids: np.ndarray, placement: Placement, rows: int) -> Batch:
        """Returns the batch of `rows` rows with the records `ids` [R], placed so."""
        records = self.records
        lengths = {"inputs": self.row_inputs, "targets": self.row_targets}
        shapes = array_shapes(lengths, rows, shared_inputs=records.source is not None)
        batch = {name: np.zeros(shape, np.int32) for name, shape in shapes.items()}
        if records.target_weights is not None:
            batch[WEIGHTS] = np.zeros((rows, self.row_targets), np.float32)
        flat = {name: array.reshape(-1) for name, array in batch.items()}

        start = placement.row * self.row_inputs + placement.input_start
        # Several records of a row may have the same inputs in the same place.
        shared = records.source is not None
        once = np.unique(start, return_index=True)[1] if shared else np.s_[:]
        source, goal, sizes = _gather(records.input_offsets, ids[once], start[once])
        flat["encoder_input_tokens"][goal] = records.input_tokens[source]
        flat["encoder_segment_ids"][goal] = np.repeat(placement.source[once], sizes)
        self.fill.input_tokens += source.size

        start = placement.row * self.row_targets + placement.target_start
        source, goal, sizes = _gather(records.target_offsets, ids, start)
        targets = records.target_tokens[source]
        flat["decoder_target_tokens"][goal] = targets
        flat["decoder_target_parts"][goal] = records.target_parts[source]
        flat["decoder_segment_ids"][goal] = np.repeat(placement.segment, sizes)
        if records.target_weights is not None:
            flat[WEIGHTS][goal] = records.target_weights[source]
        if records.source is not None:
            flat["decoder_source_ids"][goal] = np.repeat(placement.source, sizes)
        shifted = np.empty_like(targets)
        shifted[1:] = targets[:-1]
        shifted[np.cumsum(sizes) - sizes] = 0
        flat["decoder_input_tokens"][goal] = shifted
        self.fill.target_tokens += source.size

        self.fill.rows += rows
        self.fill.records += ids.size
        return batch


def _gather(
    offsets: np.ndarray, ids: np.ndarray, goal_starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns flat indices to copy sequences from and to, and the sequences' lengths."""
    starts = offsets[ids]
    lengths = offsets[ids + 1] - starts
    before = np.cumsum(lengths) - lengths
    step = np.arange(lengths.sum())
    return (
        step + np.repeat(starts - before, lengths),
        step + np.repeat(goal_starts - before, lengths),
        lengths,
    )


def place_records(
    records: Records,
    ids: np.ndarray,
    input_lengths: np.ndarray,
    target_lengths: np.ndarray,
    row_inputs: int,
    row_targets: int,
    packed: bool,
) -> Placement:
    """Places records in rows as training does.

    Args:
      records: of a split; they say which records share their inputs.
      ids: integers [R], the records that are placed.
      input_lengths: integers [R], each in 1 .. `row_inputs`.
      target_lengths: integers [R], each in 1 .. `row_targets`.
      row_inputs: input tokens that a row holds.
      row_targets: target tokens that a row holds.
      packed: whether a row holds several records.
    """
    lengths = (input_lengths, target_lengths, row_inputs, row_targets)
    if records.source is not None:
        return share_inputs(records.source[ids], *lengths, packed)
    return pack(*lengths) if packed else one_per_row(ids.size)


def first_examples(records: Records, count: int) -> list[np.ndarray]:
    """Returns the ids of the records of each of the first `count` examples of an epoch.

    They are drawn as `TrainBatches` draws them with the seed 0: of a mixture as the rates say, and
    of an example's variants one, where `Records.draw` says so.
    """
    starts = records.example_starts
    order = _shuffled_examples(records, starts, 0, 0)[:count]
    ids = _drawn(records, starts, _records_of(starts, order), 0, 0)
    example = np.searchsorted(starts, ids, side="right")
    return np.split(ids, np.flatnonzero(np.diff(example)) + 1)


def row_lengths(feature_lengths: Mapping[str, int] | str) -> tuple[int, int]:
    """Returns the lengths of inputs and targets in ``TASK_FEATURE_LENGTHS``.

    Raises:
      UserError: one is missing or no positive whole number.
    """
    if not isinstance(feature_lengths, Mapping):
        raise UserError(
            "TASK_FEATURE_LENGTHS must be 'auto' or like {'inputs': 256, 'targets': 128}; it is "
            f"{feature_lengths!r}."
        )
    for key in ("inputs", "targets"):
        value = feature_lengths.get(key)
        if not isinstance(value, int | np.integer) or value < 1:
            raise UserError(
                f"TASK_FEATURE_LENGTHS must give a positive whole number for '{key}', as in "
                f"{{'inputs': 256, 'targets': 128}}; it gives {value!r}."
            )
    return int(feature_lengths["inputs"]), int(feature_lengths["targets"])


def array_shapes(
    feature_lengths: Mapping[str, int], rows: int, *, shared_inputs: bool
) -> dict[str, tuple[int, int]]:
    """Returns the shape of each int32 array of a batch.

    Args:
      feature_lengths: row lengths in tokens, of `inputs` and `targets`.
      rows: of the batch.
      shared_inputs: whether records share their inputs (`Records.source`).

    Raises:
      UserError: a length is missing or no positive whole number.
    """
    inputs, targets = row_lengths(feature_lengths)
    encoder = ("encoder_input_tokens", "encoder_segment_ids")
    decoder = (
        "decoder_input_tokens",
        "decoder_target_tokens",
        "decoder_target_parts",
        "decoder_segment_ids",
        *(("decoder_source_ids",) if shared_inputs else ()),
    )
    shapes = dict.fromkeys(encoder, (rows, inputs))
    return shapes | dict.fromkeys(decoder, (rows, targets))


class TrainBatches(Iterator[Batch]):
    """Endless batches of training records.

    In each epoch the examples are shuffled by (seed, epoch), the records of one example staying
    neighbours, and every record comes exactly once. Batch k depends on the arguments and k alone.
    With `Records.draw`, the records of one variant of each example come, drawn by (seed, epoch).

    An epoch of a mixture has as many examples as all its tasks together, of each task as its rate
    says: one task's examples come several times before another's have all come. Each task goes
    through its own examples in orders of its own, and on where the epoch before stopped.

    * With `batch_size`, a batch has that many rows. Packed, the shuffled examples are taken in
      windows of `WINDOW`; the records of a window are packed together and its rows shuffled. What
      is left over at the end of an epoch is filled up from the next one.
    * With `examples_per_batch`, a batch has exactly that many examples and as many rows as they
      need, rounded up to a multiple of `row_multiple` so that few shapes occur.

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
          records: of a training split.
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
        self._maker = _BatchMaker(records, batching.lengths)
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
        if records.draw and _count_variants(records, self._starts) is not None:
            self._identity.append("one rationale an epoch")
        if records.mixture:
            self._identity.append([list(task) for task in records.mixture])
        self._epoch = 0
        # Position in the epoch: an example, or else a window and a row of it.
        self._example = 0
        self._window = 0
        self._row = 0
        self._order = self._shuffled_examples()
        self._rows: _WindowRows | None = None

    @property
    def fill(self) -> Fill:
        """How full the batches were so far."""
        return self._maker.fill

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
                "examples, the vocabulary, TASK_FEATURE_LENGTHS, SEED or packing have changed): "
                "restore these, or start in a new MODEL_DIR."
            )
        self._epoch, self._example = int(state["epoch"]), int(state["example"])
        self._window, self._row = int(state["window"]), int(state["row"])
        self._order = self._shuffled_examples()
        self._rows = None

    def __next__(self) -> Batch:
        """Returns the next batch."""
        if self._examples_per_batch is not None:
            return self._next_examples(self._examples_per_batch)
        return self._next_rows(self._batch_size)

    def _shuffled_examples(self) -> np.ndarray:
        return _shuffled_examples(self._maker.records, self._starts, self._seed, self._epoch)

    def _drawn(self, ids: np.ndarray) -> np.ndarray:
        """Returns those of the records `ids` that the epoch trains."""
        return _drawn(self._maker.records, self._starts, ids, self._seed, self._epoch)

    def _next_epoch(self) -> None:
        self._epoch += 1
        self._example = self._window = self._row = 0
        self._order = self._shuffled_examples()

    def _next_examples(self, wanted: int) -> Batch:
        chosen = []
        while wanted:
            taken = self._order[self._example : self._example + wanted]
            chosen.append(self._drawn(_records_of(self._starts, taken)))
            wanted -= taken.size
            self._example += taken.size
            if self._example == self._order.size:
                self._next_epoch()
        ids = np.concatenate(chosen)
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

    @property
    def _windows(self) -> int:
        return -(-self._order.size // WINDOW)

    def _window_rows(self) -> _WindowRows:
        # Windows of equal size, so that none at the end is too small to pack well.
        bounds = np.linspace(0, self._order.size, self._windows + 1).astype(np.int64)
        examples = self._order[bounds[self._window] : bounds[self._window + 1]]
        ids = self._drawn(_records_of(self._starts, examples))
        placement = self._maker.place(ids, self._pack)
        if self._pack:
            # Packing opens rows for the longest records first; batches must not come in that order.
            rng = np.random.default_rng([self._seed, self._epoch, self._window + 1])
            new_number = rng.permutation(placement.rows)
            placement = dataclasses.replace(placement, row=new_number[placement.row])
        return _WindowRows(ids, placement)


class _WindowRows:
    """The placed records of one window, to be had by row."""

    def __init__(self, ids: np.ndarray, placement: Placement) -> None:
        by_row = np.argsort(placement.row, kind="stable")
        self.ids = ids[by_row]
        self.placement = placement.take(by_row)

    def slice(self, start: int, stop: int, to_row: int) -> tuple[np.ndarray, Placement]:
        """Returns the records of rows `start` .. `stop`, moved to row `to_row` and after."""
        first, last = np.searchsorted(self.placement.row, [start, stop])
        part = np.s_[first:last]
        return self.ids[part], self.placement.take(part).moved(to_row - start)


class EvalBatches:
    """The records of a split once, in their own order: see `eval_batches`.

    Attributes:
      fill: how full the batches are that were made so far.
    """

    def __init__(
        self,
        records: Records,
        batch_size: int,
        feature_lengths: Mapping[str, int],
        pack: bool,
    ) -> None:
        _check_positive("BATCH_SIZE", batch_size)
        self._maker = _BatchMaker(records, feature_lengths)
        self._batch_size = batch_size
        self._rows = _WindowRows(np.arange(len(records)), self._maker.place_all(pack))

    @property
    def fill(self) -> Fill:
        """How full the batches were so far."""
        return self._maker.fill

    def __len__(self) -> int:
        return -(-self._rows.placement.rows // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches; may be called again."""
        for start in range(0, self._rows.placement.rows, self._batch_size):
            ids, placement = self._rows.slice(start, start + self._batch_size, 0)
            yield self._maker.make(ids, placement, self._batch_size)


def eval_batches(
    records: Records, batch_size: int, feature_lengths: Mapping[str, int], pack: bool = True
) -> EvalBatches:
    """Returns the finite batches of all records, each of `batch_size` rows.

    The rows that the last batch lacks are empty.

    Args:
      records: of one split.
      batch_size: rows of a batch.
      feature_lengths: ``inputs`` and ``targets``, the lengths of a row.
      pack: whether rows hold several records.

    Returns:
      An iterable that can be gone through repeatedly, with a length.
    """
    return EvalBatches(records, batch_size, feature_lengths, pack)


def measure_fill(records: Records, feature_lengths: Mapping[str, int], pack: bool = True) -> Fill:
    """Returns how full the rows of one epoch are, without making any batch."""
    maker = _BatchMaker(records, feature_lengths)
    fill = maker.fill
    placement = maker.place_all(pack)
    fill.rows = placement.rows
    fill.records = len(records)
    # Inputs that several records share lie in one place.
    _, once = np.unique(np.stack([placement.row, placement.source]), axis=1, return_index=True)
    fill.input_tokens = int(records.input_lengths[once].sum())
    fill.target_tokens = records.target_tokens.size
    return fill


def _records_of(starts: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """Returns the ids of the records of `examples`, in their order."""
    first = starts[examples]
    counts = starts[examples + 1] - first
    before = np.cumsum(counts) - counts
    return np.repeat(first - before, counts) + np.arange(counts.sum())


def _shuffled_examples(records: Records, starts: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Returns the examples of an epoch in its order."""
    rng = np.random.default_rng([seed, epoch])
    if not records.mixture:
        return rng.permutation(starts.size - 1)
    return rng.permutation(np.concatenate(_mixed_examples(records.mixture, seed, epoch)))


def _drawn(
    records: Records, starts: np.ndarray, ids: np.ndarray, seed: int, epoch: int
) -> np.ndarray:
    """Returns those of the records `ids` that an epoch trains."""
    variants = _count_variants(records, starts) if records.draw else None
    if variants is None:
        return ids
    # Drawn for all examples, so that what is drawn does not depend on the order.
    rng = np.random.default_rng([seed, epoch, 0])
    chosen = (rng.random(variants.size) * variants).astype(np.int32)
    example = np.searchsorted(starts, ids, side="right") - 1
    assert records.variant is not None
    variant = records.variant[ids]
    return ids[(variant < 0) | (variant == chosen[example])]


def _count_variants(records: Records, starts: np.ndarray) -> np.ndarray | None:
    """Returns int [E], how many variants each example has; None if all have but one."""
    if records.variant is None or records.variant.max(initial=0) < 1:
        return None
    return np.maximum.reduceat(records.variant, starts[:-1]) + 1


def _mixed_examples(
    mixture: Sequence[tuple[int, float]], seed: int, epoch: int
) -> list[np.ndarray]:
    """Returns the examples of each task that an epoch of a mixture has."""
    total = sum(size for size, _ in mixture)
    rates = sum(rate for _, rate in mixture)
    chosen, offset = [], 0
    for number, (size, rate) in enumerate(mixture):
        count = max(1, round(total * rate / rates)) if size else 0
        first = epoch * count
        rounds = range(first // size, (first + count - 1) // size + 1) if size else range(0)
        orders = [np.random.default_rng([seed, number, own, 1]).permutation(size) for own in rounds]
        if orders:
            start = first - rounds[0] * size
            chosen.append(offset + np.concatenate(orders)[start : start + count])
        offset += size
    return chosen


def _check_positive(name: str, value: int | None) -> None:
    if not isinstance(value, int | np.integer) or value < 1:
        raise UserError(f"{name} must be a positive whole number, not {value!r}.")
