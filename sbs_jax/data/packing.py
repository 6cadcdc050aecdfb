"""Packs records into rows of fixed length: which record goes where.

A row has room for `row_inputs` input tokens and `row_targets` target tokens; a record needs both at
once, so this is bin packing in two dimensions. Pure numpy, deterministic, knows nothing of tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from sbs_jax.data.ragged import starts_of

_MIXING = 0.15
"""Standard deviation of the logarithm of what `balance` multiplies sizes by."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where each of R records lies. All arrays are int64 [R], in the records' order.

    Attributes:
      row: the row of the record, from 0; every row in 0 .. `rows` - 1 holds a record.
      segment: the number of the record within its row, from 1.
      source: the number of the segment of its inputs within the row, from 1. Records that share
        their inputs have the same one.
      input_start: where the inputs of the record start in the row.
      target_start: where the targets of the record start in the row.
      rows: the number of rows.
    """

    row: np.ndarray
    segment: np.ndarray
    source: np.ndarray
    input_start: np.ndarray
    target_start: np.ndarray
    rows: int

    def take(self, which: np.ndarray | slice) -> Placement:
        """Returns the placement of some of the records."""
        return Placement(
            self.row[which],
            self.segment[which],
            self.source[which],
            self.input_start[which],
            self.target_start[which],
            self.rows,
        )

    def moved(self, by: int) -> Placement:
        """Returns the same with `by` added to every row's number."""
        return dataclasses.replace(self, row=self.row + by)

    @staticmethod
    def joined(placements: Sequence[Placement], rows: int) -> Placement:
        """Returns the placement of the records of all `placements`, which share `rows` rows."""
        columns = ("row", "segment", "source", "input_start", "target_start")
        none = np.zeros(0, np.int64)
        joined = {
            name: np.concatenate([none, *(getattr(p, name) for p in placements)])
            for name in columns
        }
        return Placement(**joined, rows=rows)


def balance(tokens: np.ndarray, parts: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Divides items into parts of about the same size in both dimensions.

    Items are dealt out from large to small, each to the part whose larger load is then smallest.
    So every part gets large and small items, like every other.

    Args:
      tokens: integers [E, 2], the sizes of the items; no column is all 0.
      parts: how many there are to be.
      rng: mixes the order somewhat, so that items of one size do not always meet; None does not.

    Returns:
      int64 [E], the part of each item.
    """
    share = tokens * (parts / tokens.sum(axis=0))
    size = share.sum(axis=1)
    if rng is not None:
        size = size * np.exp(_MIXING * rng.standard_normal(size.size))
    load = np.zeros((parts, 2))
    part = np.zeros(size.size, np.int64)
    for item in np.argsort(-size, kind="stable").tolist():
        chosen = int((load + share[item]).max(axis=1).argmin())
        load[chosen] += share[item]
        part[item] = chosen
    return part


def one_per_row(count: int) -> Placement:
    """Returns the placement of `count` records that are not packed."""
    zeros = np.zeros(count, np.int64)
    return Placement(np.arange(count), zeros + 1, zeros + 1, zeros, zeros, count)


def share_inputs(
    sources: np.ndarray,
    input_lengths: np.ndarray,
    target_lengths: np.ndarray,
    row_inputs: int,
    row_targets: int,
    packed: bool,
) -> Placement:
    """Places records so that neighbours of one source share one copy of their inputs.

    They lie in one row, one behind the other. Those whose targets do not fit into one row together
    get further copies.

    Args:
      sources: integers [R]; neighbours with the same number have the same inputs.
      input_lengths: see `pack`.
      target_lengths: see `pack`.
      row_inputs: see `pack`.
      row_targets: see `pack`.
      packed: whether a row holds the inputs of several sources.

    Returns:
      The placement.
    """
    target_lengths = np.asarray(target_lengths, np.int64)
    first = np.flatnonzero(starts_unit(sources, target_lengths, row_targets))
    sizes = np.diff(np.append(first, sources.size))
    group = np.repeat(np.arange(first.size), sizes)
    before = starts_of(target_lengths)
    group_targets = np.add.reduceat(target_lengths, first) if first.size else target_lengths
    if packed:
        groups = pack(np.asarray(input_lengths)[first], group_targets, row_inputs, row_targets)
    else:
        groups = one_per_row(first.size)
    spread = groups.take(group)
    # Targets are numbered within their row: by the records of the groups in front, and their own.
    in_order = np.lexsort((groups.segment, groups.row))
    counted = starts_of(sizes[in_order])
    row_start = np.searchsorted(groups.row[in_order], groups.row[in_order])
    in_front = np.empty_like(sizes)
    in_front[in_order] = counted - counted[row_start]
    position = np.arange(sources.size) - first[group]
    return dataclasses.replace(
        spread,
        segment=in_front[group] + position + 1,
        target_start=spread.target_start + before - before[first][group],
    )


def starts_unit(sources: np.ndarray, target_lengths: np.ndarray, limit: int) -> np.ndarray:
    """Returns bool [R]: where neighbours of one source no longer share a copy of their inputs.

    Args:
      sources: see `share_inputs`.
      target_lengths: int64 [R].
      limit: target tokens of the records that share one copy.
    """
    starts = np.ones(sources.size, bool)
    starts[1:] = sources[1:] != sources[:-1]
    used = 0
    for record, (new, length) in enumerate(zip(starts, target_lengths.tolist(), strict=True)):
        if new or used + length > limit:
            starts[record] = True
            used = 0
        used += length
    return starts


def pack(
    input_lengths: np.ndarray, target_lengths: np.ndarray, row_inputs: int, row_targets: int
) -> Placement:
    """Packs records row by row, with the record that fits best of all that are left.

    Best is what brings the row furthest towards being full, while it uses inputs and targets in the
    proportion in which the remaining records need them. Without the latter the first rows take
    all long rationales, and leave the last rows to labels, whose targets are nearly empty (on
    SVAMP in rows of 256 and 192, 83 % of the encoder is full with best fit, 96 % so). It takes some
    10 microseconds a record with thousands of them: callers pack thousands at a time, not millions.

    Args:
      input_lengths: integers [R], each in 1 .. `row_inputs`.
      target_lengths: integers [R], each in 1 .. `row_targets`.
      row_inputs: input tokens that a row holds.
      row_targets: target tokens that a row holds.

    Returns:
      The placement; within a row, segments are contiguous and follow the records' own order.

    Raises:
      ValueError: a record is longer than a row, or of length 0.
    """
    lengths = np.stack([np.asarray(input_lengths), np.asarray(target_lengths)]).astype(np.int64)
    limits = row_inputs, row_targets
    if (lengths < 1).any() or (lengths[0] > row_inputs).any() or (lengths[1] > row_targets).any():
        raise ValueError("every record must have 1 to row-length tokens in its inputs and targets")
    row = _choose_rows(lengths, limits)
    return _lay_out(row, lengths)


_BALANCE = 0.6
"""What balance is worth against progress. Measured on SVAMP and CQA in rows of six shapes: 0.5 to 1
differ by a percent of the rows, less loses the proportion."""


def _choose_rows(lengths: np.ndarray, limits: tuple[int, int]) -> np.ndarray:
    """Returns the row of each record."""
    row = np.empty(lengths.shape[1], np.int64)
    if not row.size:
        return row
    # Records of the same two lengths are the same to a packer: one size, many records.
    sizes, size_of, counts = np.unique(lengths, axis=1, return_inverse=True, return_counts=True)
    ids_by_size = np.split(np.argsort(size_of.reshape(-1), kind="stable"), np.cumsum(counts)[:-1])
    waiting = [ids[::-1].tolist() for ids in ids_by_size if ids.size]  # popped in their order
    inputs, targets = np.array(sizes[0]), np.array(sizes[1])
    needed = [int(inputs @ counts), int(targets @ counts)]  # by all records that wait
    rows = 0
    while waiting:
        # Progress of the row, each side as important as the demand for it, less the deviation from
        # the proportion of the demands. Both change linearly with every record that is added.
        # (No matrix products: they may round differently on another machine.)
        demand = needed[0] / limits[0], needed[1] / limits[1]
        both, most = sum(demand), max(demand)
        progress = inputs * (demand[0] / both / limits[0]) + targets * (
            demand[1] / both / limits[1]
        )
        deviation = inputs * (_BALANCE * demand[1] / most / limits[0])
        deviation -= targets * (_BALANCE * demand[0] / most / limits[1])
        room = list(limits)
        deviated = 0.0
        while True:
            fits = (inputs <= room[0]) & (targets <= room[1])
            score = np.where(fits, progress - np.abs(deviation + deviated), -np.inf)
            best = int(score.argmax())
            if score[best] == -np.inf:
                break
            row[waiting[best].pop()] = rows
            for side, size in enumerate((inputs, targets)):
                room[side] -= int(size[best])
                needed[side] -= int(size[best])
            deviated += float(deviation[best])
            if not waiting[best]:
                progress[best] = -np.inf
        rows += 1
        if -np.inf in progress:
            inputs, targets = inputs[progress > -np.inf], targets[progress > -np.inf]
            waiting = [ids for ids in waiting if ids]
    return row


def _lay_out(row: np.ndarray, lengths: np.ndarray) -> Placement:
    """Puts the records of each row one behind the other, in their own order."""
    count = row.size
    by_row = np.argsort(row, kind="stable")
    sorted_rows = row[by_row]
    first = np.flatnonzero(np.diff(sorted_rows, prepend=-1))
    group = np.repeat(np.arange(first.size), np.diff(np.append(first, count)))
    position = np.arange(count) - first[group]
    starts = np.empty_like(lengths)
    for side in (0, 1):
        before = starts_of(lengths[side, by_row])
        starts[side, by_row] = before - before[first][group]
    segment = np.empty(count, np.int64)
    segment[by_row] = position + 1
    return Placement(row, segment, segment, starts[0], starts[1], int(first.size))
