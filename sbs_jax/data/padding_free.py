"""Padding-free batches: tokens of many examples behind one another, and rows for attention alone.

A batch has G groups (for devices that batches are cut along, and for microbatches), each of N
input and M target tokens, of which the last one is padding always and few others are. Segments are
numbered within their group. Besides the arrays of `batch_arrays`, of shapes [G, N] and [G, M],

    encoder_rows_0   [G, R, S]  the token at each place of the rows of kind 0, N - 1 at empty places
    decoder_rows_0   [G, R, T]  the same of targets; rows of one number hold the same records

and so on for each kind of row. Rows are as long as sequences are, and not longer: attention is
computed between all places of a row. `sbs_jax.models.attention_rows` is their use.

Everything about the sizes of batches follows from the records, so a resumed run has the same ones.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from sbs_jax.data.batch_arrays import WEIGHTS, Batch, array_shapes, place_records, write_records
from sbs_jax.data.packing import Placement, balance, pack, starts_unit
from sbs_jax.data.records import Records
from sbs_jax.row_tables import MULTIPLE, table_name

SAMPLE = 1024
"""Examples whose lengths decide on the sizes of batches."""

MOST_KINDS = 3
"""Kinds of rows; each is a product more in every attention, and is compiled."""

WORTH = 0.95
"""One kind more must make the cost of attention so many times as high, at most."""

BATCHES_OF_WINDOW = 16
"""Batches that a window has at least, so that they mix."""

COMPARED = 512
"""Units that are packed to compare kinds of rows, at least; or those of all groups."""

SPARE_ROWS = 1
"""Rows of each kind that no group of the sample needs, so that hardly a batch has no room."""

FEW = 32
"""Batches of fewer examples differ so much that their sizes are rounded more coarsely."""

PARTS = 16
"""A batch that has no room in the usual sizes, or could do with smaller ones, has a multiple of one
in so many parts of them, so that few sizes are compiled."""


@dataclasses.dataclass(frozen=True)
class RowKind:
    """Rows of one length.

    Attributes:
      rows: how many of them a group has.
      inputs: places for input tokens.
      targets: places for target tokens.
    """

    rows: int
    inputs: int
    targets: int


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of a group of a batch.

    Attributes:
      inputs: input tokens, one of padding among them.
      targets: target tokens, one of padding among them.
      kinds: kinds of rows, the shortest one first; the last one takes every record.
    """

    inputs: int
    targets: int
    kinds: tuple[RowKind, ...]

    def scaled(self, parts: int) -> Sizes:
        """So many `PARTS` of these sizes."""
        kinds = (
            dataclasses.replace(kind, rows=-(-kind.rows * parts // PARTS)) for kind in self.kinds
        )
        return Sizes(
            round_up(self.inputs * parts / PARTS),
            round_up(self.targets * parts / PARTS),
            tuple(kinds),
        )

    def __str__(self) -> str:
        rows = ", ".join(f"{kind.rows} × ({kind.inputs} + {kind.targets})" for kind in self.kinds)
        return f"{self.inputs} input and {self.targets} target tokens, attention in {rows}"


def round_up(tokens: float) -> int:
    """The next multiple of `MULTIPLE`."""
    return int(-(-tokens // MULTIPLE)) * MULTIPLE


def batch_shapes(sizes: Sizes, groups: int, *, shared_inputs: bool) -> dict[str, tuple[int, ...]]:
    """The shape of each int32 array of a batch."""
    shapes: dict[str, tuple[int, ...]] = {
        **array_shapes((sizes.inputs, sizes.targets), groups, shared_inputs=shared_inputs)
    }
    for number, kind in enumerate(sizes.kinds):
        shapes[table_name("encoder", number)] = (groups, kind.rows, kind.inputs)
        shapes[table_name("decoder", number)] = (groups, kind.rows, kind.targets)
    return shapes


def row_shapes(batch: Mapping[str, np.ndarray]) -> list[tuple[int, int, int]]:
    """How many rows of each kind a batch has, and their lengths S and T; [] if it is of rows."""
    shapes: list[tuple[int, int, int]] = []
    while (name := table_name("encoder", len(shapes))) in batch:
        groups, rows, inputs = batch[name].shape
        targets = batch[table_name("decoder", len(shapes))].shape[2]
        shapes.append((groups * rows, inputs, targets))
    return shapes


@dataclasses.dataclass(frozen=True)
class Group:
    """The records of a group and their places.

    Attributes:
      ids: integers [R].
      kind: integers [R], the kind of the row of each.
      placement: within the rows of that kind.
      copies: integers [C], the record that each copy of inputs belongs to first.
      copy: integers [R], the copy of the inputs of each record.
      rows: how many rows of each kind are used.
      inputs: input tokens.
      targets: target tokens.
    """

    ids: np.ndarray
    kind: np.ndarray
    placement: Placement
    copies: np.ndarray
    copy: np.ndarray
    rows: tuple[int, ...]
    inputs: int
    targets: int

    def parts_needed(self, sizes: Sizes) -> int:
        """The least number of `PARTS` of `sizes` in which the group has room."""
        share = max((self.inputs + 1) / sizes.inputs, (self.targets + 1) / sizes.targets)
        needed = max(1, int(share * PARTS))
        while not self.fits(sizes.scaled(needed)):
            needed += 1
        return needed

    def fits(self, sizes: Sizes) -> bool:
        """Whether the group has room in these sizes."""
        return (
            self.inputs < sizes.inputs
            and self.targets < sizes.targets
            and all(used <= kind.rows for used, kind in zip(self.rows, sizes.kinds, strict=True))
        )


@dataclasses.dataclass
class GroupFill:
    """How full batches are; see `batch_arrays.Fill`.

    Attributes:
      records: the number of records so far.
      input_tokens: input tokens that are not padding.
      target_tokens: target tokens that are not padding.
      input_places: input tokens, padding included.
      target_places: target tokens, padding included.
    """

    records: int = 0
    input_tokens: int = 0
    target_tokens: int = 0
    input_places: int = 0
    target_places: int = 0

    def count(self, group: Group, sizes: Sizes) -> None:
        """Counts a group."""
        self.records += group.ids.size
        self.input_tokens += group.inputs
        self.target_tokens += group.targets
        self.input_places += sizes.inputs
        self.target_places += sizes.targets

    @property
    def inputs(self) -> float:
        """Share of the encoder's tokens that are not padding, 0 to 1."""
        return self.input_tokens / max(1, self.input_places)

    @property
    def targets(self) -> float:
        """Share of the decoder's tokens that are not padding, 0 to 1."""
        return self.target_tokens / max(1, self.target_places)


class GroupMaker:
    """Places records in groups, and turns groups into arrays.

    Attributes:
      records: the records of a split.
      kinds: the row lengths of inputs and targets of each kind.
      fill: how full the batches were that this object has made.
    """

    def __init__(self, records: Records, kinds: Sequence[tuple[int, int]]) -> None:
        """Takes the row lengths of inputs and targets of each kind, the shortest first."""
        self.records, self.kinds = records, kinds
        self.fill = GroupFill()

    def place(self, ids: np.ndarray) -> Group:
        """Returns the group of the records `ids` [R], of which there may be none."""
        records = self.records
        if not ids.size:
            nowhere = Placement(ids, ids, ids, ids, ids, 0)
            return Group(ids, ids, nowhere, ids, ids, (0,) * len(self.kinds), 0, 0)
        inputs, targets = records.lengths_of(ids)
        first, unit = units_of(records, ids, targets, self.kinds[-1][1])
        sums = np.add.reduceat(targets, first)
        unit_kind = np.full(first.size, len(self.kinds) - 1)
        for number in reversed(range(len(self.kinds))):
            row_inputs, row_targets = self.kinds[number]
            unit_kind[(inputs[first] <= row_inputs) & (sums <= row_targets)] = number
        kind = unit_kind[unit]
        columns = np.zeros((5, ids.size), np.int64)
        rows = []
        for number, lengths in enumerate(self.kinds):
            mine = np.flatnonzero(kind == number)
            placed = place_records(records, ids[mine], inputs[mine], targets[mine], *lengths, True)
            columns[:, mine] = (
                placed.row,
                placed.segment,
                placed.source,
                placed.input_start,
                placed.target_start,
            )
            rows.append(placed.rows if mine.size else 0)
        row, segment, source, input_start, target_start = columns
        placement = Placement(row, segment, source, input_start, target_start, sum(rows))
        # Records share a copy of their inputs where they lie in one row and have one source there.
        key = np.stack([kind, placement.row, placement.source])
        _, copies, copy = np.unique(key, axis=1, return_index=True, return_inverse=True)
        order = np.argsort(copies)
        copies, copy = copies[order], np.argsort(order)[copy.reshape(-1)]
        return Group(
            ids, kind, placement, copies, copy, tuple(rows),
            int(inputs[copies].sum()), int(targets.sum()),
        )  # fmt: skip

    def make(self, groups: Sequence[Group], sizes: Sizes) -> Batch:
        """Returns the batch of groups that fit into `sizes`."""
        records = self.records
        shapes = batch_shapes(sizes, len(groups), shared_inputs=records.source is not None)
        batch = {name: np.zeros(shape, np.int32) for name, shape in shapes.items()}
        if records.target_weights is not None:
            batch[WEIGHTS] = np.zeros((len(groups), sizes.targets), np.float32)
        for number, group in enumerate(groups):
            self._write({name: array[number] for name, array in batch.items()}, group)
            self.fill.count(group, sizes)
        return batch

    def _write(self, arrays: Batch, group: Group) -> None:
        inputs, targets = self.records.lengths_of(group.ids)
        lengths = inputs[group.copies]
        input_starts = np.cumsum(lengths) - lengths
        target_starts = np.cumsum(targets) - targets
        write_records(
            self.records,
            arrays,
            group.ids,
            group.copies,
            input_starts,
            target_starts,
            group.copy + 1,
            np.arange(group.ids.size) + 1,
        )
        for side, records, starts, places, sizes in (
            ("encoder", group.copies, input_starts, group.placement.input_start, lengths),
            ("decoder", np.s_[:], target_starts, group.placement.target_start, targets),
        ):
            kind, row, place = group.kind[records], group.placement.row[records], places[records]
            for number in range(len(self.kinds)):
                table = arrays[table_name(side, number)]
                table[...] = arrays[f"{side}_segment_ids"].size - 1
                mine = kind == number
                count = sizes[mine]
                step = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
                goal = np.repeat(row[mine] * table.shape[1] + place[mine], count) + step
                table.reshape(-1)[goal] = np.repeat(starts[mine], count) + step


def units_of(
    records: Records, ids: np.ndarray, target_lengths: np.ndarray, most_targets: int
) -> tuple[np.ndarray, np.ndarray]:
    """What is placed as one: a record, or neighbours that share their inputs.

    Args:
      records: the records of a split.
      ids: integers [R], at least one.
      target_lengths: integers [R].
      most_targets: target tokens of one unit.

    Returns:
      The first record of each unit, and the unit of each record [R].
    """
    if records.source is None:
        each = np.arange(ids.size)
        return each, each
    starts = starts_unit(records.source[ids], target_lengths, most_targets)
    return np.flatnonzero(starts), np.cumsum(starts) - 1


def examples_of(
    records: Records,
    sample: Sequence[np.ndarray],
    row_lengths: tuple[int, int],
    batch_size: int,
) -> float:
    """About how many examples `batch_size` rows hold that are full of inputs or of targets.

    Args:
      records: the records of a training split.
      sample: the ids of the records of some examples.
      row_lengths: input and target tokens of a row.
      batch_size: rows.

    Returns:
      At least 1, and no more than an epoch has.
    """
    units = [_unit_lengths(records, ids, row_lengths[1]) for ids in sample]
    mean = np.mean([own.sum(axis=0) for own in units], axis=0)
    wanted = float((batch_size * np.array(row_lengths) / mean).min())
    return max(1.0, min(wanted, records.example_starts.size - 1))


def propose(
    records: Records, most_targets: int, batches: Sequence[Sequence[np.ndarray]], groups: int
) -> Sizes:
    """Finds the sizes of batches.

    Args:
      records: the records of a training split.
      most_targets: target tokens that may share a copy of their inputs.
      batches: some batches; of each, the ids of the records of its examples.
      groups: the number of groups of a batch.

    Returns:
      The sizes of a group in which these batches have room.
    """
    parts = [ids for batch in batches for ids in split(records, batch, groups) if ids.size]
    units = [_unit_lengths(records, ids, most_targets) for ids in parts]
    longest = np.maximum(records.longest_lengths, np.concatenate(units).max(axis=0))
    kinds = choose_kinds(units, (round_up(longest[0]), round_up(longest[1])))
    placed = [GroupMaker(records, kinds).place(ids) for ids in parts]
    rows = np.max([group.rows for group in placed], axis=0) + SPARE_ROWS
    return Sizes(
        round_up(max(group.inputs for group in placed) + 1),
        round_up(max(group.targets for group in placed) + 1),
        tuple(RowKind(int(most), *kind) for most, kind in zip(rows, kinds, strict=True)),
    )


def split(records: Records, examples: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """Divides examples into parts with about equally many tokens, on both sides.

    Args:
      records: the records of a split.
      examples: the ids of the records of each example.
      count: the number of parts.

    Returns:
      The ids of the records of each part; the examples of a part keep their order. Parts are empty
      where there are fewer examples than parts.
    """
    none = np.zeros(0, np.int64)
    return [np.concatenate([none, *part]) for part in divide(records, examples, count)]


def divide(
    records: Records,
    examples: Sequence[np.ndarray],
    count: int,
    rng: np.random.Generator | None = None,
) -> list[list[np.ndarray]]:
    """`split`, by example; `rng` mixes them."""
    if count == 1:
        return [list(examples)]
    part = balance(_tokens(records, examples), count, rng)
    return [
        [examples[at] for at in np.flatnonzero(part == number).tolist()] for number in range(count)
    ]


def _tokens(records: Records, examples: Sequence[np.ndarray]) -> np.ndarray:
    """The input and target tokens [E, 2] of examples, shared inputs counted once."""
    sizes = np.array([ids.size for ids in examples], np.int64)
    first = np.cumsum(sizes) - sizes
    ids = np.concatenate(list(examples))
    inputs, targets = records.lengths_of(ids)
    if records.source is not None:
        again = np.diff(records.source[ids], prepend=-1) == 0
        again[first] = False
        inputs = np.where(again, 0, inputs)
    return np.stack([np.add.reduceat(inputs, first), np.add.reduceat(targets, first)], axis=1)


def _unit_lengths(records: Records, ids: np.ndarray, most_targets: int) -> np.ndarray:
    """The input and target tokens [U, 2] of the units of an example."""
    inputs, targets = records.lengths_of(ids)
    first, _ = units_of(records, ids, targets, most_targets)
    return np.stack([inputs[first], np.add.reduceat(targets, first)], axis=1)


def choose_kinds(
    batches: Sequence[np.ndarray], longest: tuple[int, int]
) -> tuple[tuple[int, int], ...]:
    """Chooses the lengths of rows: those whose attention costs least, S² + S · T + T² a row.

    All groups have as many rows of a kind as the one that needs most of them, and spare ones.

    Args:
      batches: the input and target tokens [U, 2] of the units of some groups.
      longest: row lengths that every unit fits into, multiples of `MULTIPLE`.

    Returns:
      Pairs of lengths, the cheapest row first; `longest` is the last.
    """
    before = np.cumsum([0, *map(len, batches)])
    compared = [units for units, count in zip(batches, before, strict=False) if count < COMPARED]

    @functools.cache
    def cost(kinds: tuple[tuple[int, int], ...]) -> int:
        used = np.array([_rows_of(units, kinds) for units in compared])
        return int((used.max(axis=0) + SPARE_ROWS) @ [_row_cost(kind) for kind in kinds])

    chosen: tuple[tuple[int, int], ...] = (longest,)
    while len(chosen) < MOST_KINDS:
        better = min(
            (_sorted(*chosen, pair) for pair in _coarse(longest) if pair not in chosen),
            key=cost,
            default=chosen,
        )
        better = _descend(better, longest, cost)
        if cost(better) > WORTH * cost(chosen):
            break
        chosen = better
    return chosen


def _rows_of(units: np.ndarray, kinds: Sequence[tuple[int, int]]) -> list[int]:
    """How many rows of each kind hold the units [U, 2] of a group."""
    rows, left = [], units
    for row_inputs, row_targets in kinds:
        fit = (left[:, 0] <= row_inputs) & (left[:, 1] <= row_targets)
        mine, left = left[fit], left[~fit]
        rows.append(pack(mine[:, 0], mine[:, 1], row_inputs, row_targets).rows if len(mine) else 0)
    return rows


def _descend(
    kinds: tuple[tuple[int, int], ...],
    longest: tuple[int, int],
    cost: Callable[[tuple[tuple[int, int], ...]], int],
) -> tuple[tuple[int, int], ...]:
    """Changes one length at a time as long as that lowers the cost."""
    while True:
        changed = [
            _sorted(*kinds[:number], (inputs, targets), *kinds[number + 1 :])
            for number, kind in enumerate(kinds)
            if kind != longest
            for inputs, targets in _neighbours(kind)
            if MULTIPLE <= inputs <= longest[0] and MULTIPLE <= targets <= longest[1]
        ]
        best = min(changed, key=cost, default=kinds)
        if cost(best) >= cost(kinds):
            return kinds
        kinds = best


def _neighbours(kind: tuple[int, int]) -> Iterator[tuple[int, int]]:
    for inputs, targets in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1)):
        yield kind[0] + MULTIPLE * inputs, kind[1] + MULTIPLE * targets


def _coarse(longest: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """A few pairs of lengths up to the longest ones, to start from."""
    for share_of_inputs in (0.25, 0.5, 0.75, 1.0):
        for share_of_targets in (0.25, 0.5, 0.75, 1.0):
            yield round_up(longest[0] * share_of_inputs), round_up(longest[1] * share_of_targets)


def _row_cost(kind: tuple[int, int]) -> int:
    return kind[0] ** 2 + kind[0] * kind[1] + kind[1] ** 2


def _sorted(*kinds: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    return tuple(sorted(kinds, key=lambda kind: (_row_cost(kind), kind)))
