"""Chooses the sizes of padding-free batches from the records of a training split."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sbs_jax.data.packing import pack
from sbs_jax.data.padding_free.groups import GroupMaker, split, units_of
from sbs_jax.data.padding_free.sizes import RowKind, Sizes, group_tokens, round_up
from sbs_jax.data.records import Records
from sbs_jax.row_tables import MULTIPLE

MOST_KINDS = 3
"""The most kinds of rows. Each adds a matrix product to every attention, which is compiled."""

WORTH = 0.95
"""A further kind of rows is added if it multiplies the cost of attention by this or by less."""

COMPARED = 512
"""The least number of units that are packed to compare kinds of rows, if there are as many."""

SPARE_ROWS = 1
"""Rows of each kind beyond those that the sample needs, so that few batches lack room."""


def examples_of(
    records: Records,
    sample: Sequence[np.ndarray],
    row_lengths: tuple[int, int],
    batch_size: int,
) -> float:
    """Returns about how many examples `batch_size` rows hold that are full on one side.

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
        group_tokens(max(group.inputs for group in placed) + 1),
        group_tokens(max(group.targets for group in placed) + 1),
        tuple(RowKind(int(most), *kind) for most, kind in zip(rows, kinds, strict=True)),
    )


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
    """Returns how many rows of each kind hold the units [U, 2] of a group."""
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
    """Yields a few pairs of lengths up to the longest ones, to start from."""
    for share_of_inputs in (0.25, 0.5, 0.75, 1.0):
        for share_of_targets in (0.25, 0.5, 0.75, 1.0):
            yield round_up(longest[0] * share_of_inputs), round_up(longest[1] * share_of_targets)


def _row_cost(kind: tuple[int, int]) -> int:
    return kind[0] ** 2 + kind[0] * kind[1] + kind[1] ** 2


def _sorted(*kinds: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    return tuple(sorted(kinds, key=lambda kind: (_row_cost(kind), kind)))


def _unit_lengths(records: Records, ids: np.ndarray, most_targets: int) -> np.ndarray:
    """Returns the input and target tokens [U, 2] of the units of an example."""
    inputs, targets = records.lengths_of(ids)
    first, _ = units_of(records, ids, targets, most_targets)
    return np.stack([inputs[first], np.add.reduceat(targets, first)], axis=1)
