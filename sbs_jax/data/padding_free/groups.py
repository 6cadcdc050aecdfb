"""Groups of padding-free batches: divides examples among them, places records, writes arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from sbs_jax.data.batch_arrays import Fill, HostBatch, empty_batch, place_records, write_arrays
from sbs_jax.data.packing import Placement, balance, starts_unit
from sbs_jax.data.padding_free.sizes import PARTS, Sizes, batch_shapes
from sbs_jax.data.ragged import spans, starts_of
from sbs_jax.data.records import Records
from sbs_jax.row_tables import table_name


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
        """Returns the least `parts` for which the group fits into `sizes.scaled(parts)`."""
        share = max((self.inputs + 1) / sizes.inputs, (self.targets + 1) / sizes.targets)
        needed = max(1, int(share * PARTS))
        while not self.fits(sizes.scaled(needed)):
            needed += 1
        return needed

    def fits(self, sizes: Sizes) -> bool:
        """Returns whether the group fits into these sizes."""
        return (
            self.inputs < sizes.inputs
            and self.targets < sizes.targets
            and all(used <= kind.rows for used, kind in zip(self.rows, sizes.kinds, strict=True))
        )


class GroupMaker:
    """Places records in groups, and turns groups into arrays.

    Attributes:
      records: the records of a split.
      kinds: the row lengths of inputs and targets of each kind.
      fill: how full the batches were that this object has made.
    """

    def __init__(self, records: Records, kinds: Sequence[tuple[int, int]]) -> None:
        """Makes no group yet; `kinds` are the row lengths of each kind, shortest first."""
        self.records, self.kinds = records, kinds
        self.fill = Fill()

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
        by_kind = [np.flatnonzero(kind == number) for number in range(len(self.kinds))]
        placed = [
            place_records(records, ids[mine], inputs[mine], targets[mine], *lengths, True)
            for mine, lengths in zip(by_kind, self.kinds, strict=True)
        ]
        rows = tuple(one.rows for one in placed)
        order = np.argsort(np.concatenate(by_kind))
        placement = Placement.joined(placed, sum(rows)).take(order)
        # Records share a copy of their inputs where they lie in one row and have one source there.
        key = np.stack([kind, placement.row, placement.source])
        _, copies, copy = np.unique(key, axis=1, return_index=True, return_inverse=True)
        order = np.argsort(copies)
        copies, copy = copies[order], np.argsort(order)[copy.reshape(-1)]
        tokens = int(inputs[copies].sum()), int(targets.sum())
        return Group(ids, kind, placement, copies, copy, rows, *tokens)

    def make(self, groups: Sequence[Group], sizes: Sizes) -> HostBatch:
        """Returns the batch of groups that fit into `sizes`."""
        records = self.records
        shapes = batch_shapes(sizes, len(groups), shared_inputs=records.source is not None)
        batch = empty_batch(records, shapes)
        for number, group in enumerate(groups):
            self._write({name: array[number] for name, array in batch.items()}, group)
            tokens = (group.inputs, group.targets)
            self.fill.count(1, group.ids.size, tokens, (sizes.inputs, sizes.targets))
        return batch

    def _write(self, arrays: HostBatch, group: Group) -> None:
        inputs, targets = self.records.lengths_of(group.ids)
        lengths = inputs[group.copies]
        input_starts, target_starts = starts_of(lengths), starts_of(targets)
        write_arrays(
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
                goal = spans(row[mine] * table.shape[1] + place[mine], sizes[mine])
                table.reshape(-1)[goal] = spans(starts[mine], sizes[mine])


def units_of(
    records: Records, ids: np.ndarray, target_lengths: np.ndarray, most_targets: int
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the units that are placed whole: records, or neighbours that share their inputs.

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
    """Does what `split` does, but keeps examples apart; `rng` mixes them as in `balance`."""
    if count == 1:
        return [list(examples)]
    part = balance(_tokens(records, examples), count, rng)
    return [
        [examples[at] for at in np.flatnonzero(part == number).tolist()] for number in range(count)
    ]


def _tokens(records: Records, examples: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the input and target tokens [E, 2] of examples; shared inputs count once."""
    sizes = np.array([ids.size for ids in examples], np.int64)
    first = starts_of(sizes)
    ids = np.concatenate(list(examples))
    inputs, targets = records.lengths_of(ids)
    if records.source is not None:
        again = np.diff(records.source[ids], prepend=-1) == 0
        again[first] = False
        inputs = np.where(again, 0, inputs)
    return np.stack([np.add.reduceat(inputs, first), np.add.reduceat(targets, first)], axis=1)
