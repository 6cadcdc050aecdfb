"""Batches as arrays: which there are, how records are placed in rows, and how the rows are filled.

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
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from sbs_jax.data.packing import Placement, one_per_row, pack, share_inputs
from sbs_jax.data.ragged import spans, starts_of
from sbs_jax.data.records import Records
from sbs_jax.errors import UserError

HostBatch = dict[str, np.ndarray]

WEIGHTS = "decoder_token_weights"

WINDOW = 2048
"""Examples that are shuffled first and then packed together. Large enough for full rows, small
enough that a window is packed in some tens of milliseconds."""

SAMPLED_ABOVE = 1 << 16
"""If there are more records than this, `measure_fill` looks at a part of them."""
_SAMPLES = 16  # of 2 · WINDOW records, some tenths of a second each


@dataclasses.dataclass
class Fill:
    """How full batches are.

    Attributes:
      rows: the number of rows so far, empty ones included; of groups where batches have no rows.
      records: the number of records in them.
      input_tokens: the number of input tokens in them that are not padding.
      target_tokens: the number of target tokens in them that are not padding.
      input_places: the number of input tokens, padding included.
      target_places: the number of target tokens, padding included.
    """

    rows: int = 0
    records: int = 0
    input_tokens: int = 0
    target_tokens: int = 0
    input_places: int = 0
    target_places: int = 0

    def count(
        self, rows: int, records: int, tokens: tuple[int, int], row_lengths: tuple[int, int]
    ) -> None:
        """Counts some more rows; the pairs are of inputs and targets."""
        self.rows += rows
        self.records += records
        self.input_tokens += tokens[0]
        self.target_tokens += tokens[1]
        self.input_places += rows * row_lengths[0]
        self.target_places += rows * row_lengths[1]

    @property
    def inputs(self) -> float:
        """Share of the encoder's tokens that are not padding, 0 to 1."""
        return self.input_tokens / max(1, self.input_places)

    @property
    def targets(self) -> float:
        """Share of the decoder's tokens that are not padding, 0 to 1."""
        return self.target_tokens / max(1, self.target_places)

    def __str__(self) -> str:
        return (
            f"inputs {self.inputs:.1%} and targets {self.targets:.1%} full, "
            f"{self.records / max(1, self.rows):.2f} records a row"
        )


class BatchMaker:
    """Turns placed records into arrays, and counts in `fill` how full these are."""

    def __init__(self, records: Records, feature_lengths: Mapping[str, int]) -> None:
        self.records = records
        self.row_inputs, self.row_targets = row_lengths(feature_lengths)
        if not records.fits((self.row_inputs, self.row_targets)):
            raise ValueError("records are longer than these feature lengths: load them with these")
        self.fill = Fill()

    def place(self, ids: np.ndarray, packed: bool) -> Placement:
        """Returns the placement of the records `ids` [R]."""
        lengths = self.records.lengths_of(ids)
        return place_records(self.records, ids, *lengths, self.row_inputs, self.row_targets, packed)

    def place_all(self, packed: bool) -> Placement:
        """Returns the placement of all records in their own order, some thousands at a time."""
        return self.place_pieces(range(0, len(self.records), 2 * WINDOW), packed)

    def place_pieces(self, starts: Iterable[int], packed: bool) -> Placement:
        """Returns the placement of the records of the `piece` at each of `starts`."""
        pieces, rows = [], 0
        for start in starts:
            ids = self.piece(start)
            pieces.append(self.place(ids, packed).moved(rows))
            rows += pieces[-1].rows
        return Placement.joined(pieces, rows)

    def piece(self, start: int) -> np.ndarray:
        """Returns the ids of some thousand neighbouring records."""
        return np.arange(start, min(start + 2 * WINDOW, len(self.records)))

    def make(self, ids: np.ndarray, placement: Placement, rows: int) -> HostBatch:
        """Returns the batch of `rows` rows with the records `ids` [R], placed so."""
        records = self.records
        lengths = (self.row_inputs, self.row_targets)
        shapes = array_shapes(lengths, rows, shared_inputs=records.source is not None)
        batch = empty_batch(records, shapes)
        start = placement.row * self.row_inputs + placement.input_start
        # Several records of a row may have the same inputs in the same place.
        shared = records.source is not None
        once = np.unique(start, return_index=True)[1] if shared else np.s_[:]
        written = write_arrays(
            records,
            batch,
            ids,
            once,
            start[once],
            placement.row * self.row_targets + placement.target_start,
            placement.source,
            placement.segment,
        )
        self.fill.count(rows, ids.size, written, lengths)
        return batch


def empty_batch(records: Records, shapes: Mapping[str, tuple[int, ...]]) -> HostBatch:
    """Returns a batch that holds no record yet: all arrays of `shapes`, and weights if need be."""
    batch = {name: np.zeros(shape, np.int32) for name, shape in shapes.items()}
    if records.target_weights is not None:
        batch[WEIGHTS] = np.zeros(shapes["decoder_target_tokens"], np.float32)
    return batch


def write_arrays(
    records: Records,
    batch: HostBatch,
    ids: np.ndarray,
    once: np.ndarray | slice,
    input_starts: np.ndarray,
    target_starts: np.ndarray,
    source: np.ndarray,
    segment: np.ndarray,
) -> tuple[int, int]:
    """Writes records into the arrays of a batch, which hold zeros.

    Args:
      records: the records of a split.
      batch: arrays of any shape; positions are counted through all of an array.
      ids: integers [R], the records that are written.
      once: which of them bring inputs along; the others share theirs.
      input_starts: integers, where the inputs of each of these start.
      target_starts: integers [R], where the targets of each start.
      source: integers [R], the number of the segment of each record's inputs.
      segment: integers [R], the number of the segment of its targets.

    Returns:
      The number of input tokens and of target tokens that were written.
    """
    flat = {name: array.reshape(-1) for name, array in batch.items()}
    lengths, sizes = records.lengths_of(ids)
    lengths = lengths[once]
    goal = spans(input_starts, lengths)
    found = spans(records.input_offsets[ids[once]], lengths)
    flat["encoder_input_tokens"][goal] = records.input_tokens[found]
    flat["encoder_segment_ids"][goal] = np.repeat(source[once], lengths)

    goal = spans(target_starts, sizes)
    found = spans(records.target_offsets[ids], sizes)
    targets = records.target_tokens[found]
    flat["decoder_target_tokens"][goal] = targets
    flat["decoder_target_parts"][goal] = records.target_parts[found]
    flat["decoder_segment_ids"][goal] = np.repeat(segment, sizes)
    if records.target_weights is not None:
        flat[WEIGHTS][goal] = records.target_weights[found]
    if records.source is not None:
        flat["decoder_source_ids"][goal] = np.repeat(source, sizes)
    shifted = np.empty_like(targets)
    shifted[1:] = targets[:-1]
    shifted[starts_of(sizes)] = 0
    flat["decoder_input_tokens"][goal] = shifted
    return int(lengths.sum()), targets.size


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
      records: the records of a split; they say which records share their inputs.
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
    lengths: tuple[int, int], rows: int, *, shared_inputs: bool
) -> dict[str, tuple[int, int]]:
    """Returns the shape of each int32 array of a batch.

    Args:
      lengths: the lengths of rows of inputs and of targets, from `row_lengths`.
      rows: the number of rows of the batch.
      shared_inputs: whether records share their inputs (`Records.source`).
    """
    inputs, targets = lengths
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


class WindowRows:
    """Placed records in the order of their rows; the length is the number of rows."""

    def __init__(self, ids: np.ndarray, placement: Placement) -> None:
        by_row = np.argsort(placement.row, kind="stable")
        self.ids = ids[by_row]
        self.placement = placement.take(by_row)

    def __len__(self) -> int:
        return self.placement.rows

    def slice(self, start: int, stop: int, to_row: int) -> tuple[np.ndarray, Placement]:
        """Returns the records of rows `start` .. `stop`, moved to row `to_row` and after."""
        first, last = np.searchsorted(self.placement.row, [start, stop])
        part = np.s_[first:last]
        return self.ids[part], self.placement.take(part).moved(to_row - start)


def measure_fill(records: Records, feature_lengths: Mapping[str, int], pack: bool = True) -> Fill:
    """Returns how full the rows of one epoch are, without making any batch.

    Of more than `SAMPLED_ABOVE` records, a part is looked at that is spread over all of them.
    """
    maker = BatchMaker(records, feature_lengths)
    starts = np.arange(0, len(records), 2 * WINDOW)
    if len(records) > SAMPLED_ABOVE:
        starts = starts[np.linspace(0, starts.size - 1, _SAMPLES).astype(np.int64)]
    placement = maker.place_pieces(starts.tolist(), pack)
    ids = np.concatenate([np.zeros(0, np.int64), *map(maker.piece, starts.tolist())])
    inputs, targets = records.lengths_of(ids)
    # Inputs that several records share lie in one place.
    _, once = np.unique(np.stack([placement.row, placement.source]), axis=1, return_index=True)
    tokens = int(inputs[once].sum()), int(targets.sum())
    maker.fill.count(placement.rows, ids.size, tokens, (maker.row_inputs, maker.row_targets))
    return maker.fill
