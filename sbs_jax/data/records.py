"""Tokenized records of a task: what batches are made of. Pure numpy."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

UNCUT = (1 << 30, 1 << 30)
"""Lengths of inputs and targets that no record reaches."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """What became of the examples of one split.

    Attributes:
      examples: examples that were read, whether or not they give a record.
      label_records: records that train the label.
      rationale_records: records that train the rationale.
      blank_rationales: examples without a rationale, where the task trains rationales.
      blank_labels: examples without a label (the teacher's did not parse), where the task trains
        labels.
      cut_inputs: records whose inputs were longer than their feature length.
      cut_targets: records whose targets were longer than their feature length.
      other_records: records that train a further part, by its name.
    """

    examples: int
    label_records: int
    rationale_records: int
    blank_rationales: int = 0
    blank_labels: int = 0
    cut_inputs: int = 0
    cut_targets: int = 0
    other_records: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        parts = [
            f"{self.examples} examples",
            f"{self.label_records} label and {self.rationale_records} rationale records",
            *(f"{count} {name} records" for name, count in self.other_records.items()),
            f"{self.blank_rationales} blank rationales",
        ]
        if self.blank_labels:
            parts.append(f"{self.blank_labels} unparsed labels")
        parts.append(f"{self.cut_inputs} inputs and {self.cut_targets} targets cut")
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class Records:
    """R records of N examples, ragged: record r is ``tokens[offsets[r]:offsets[r + 1]]``.

    Attributes:
      input_tokens: int32 [sum of input lengths], EOS included, no padding.
      input_offsets: int64 [R + 1].
      target_tokens: int32 [sum of target lengths], EOS included.
      target_parts: int8 [sum of target lengths], the part of each target token.
      target_offsets: int64 [R + 1].
      example: int32 [R], nondecreasing: the records of one example are neighbours.
      counts: what became of the examples.
      target_weights: float32 [sum of target lengths], what each token counts within its part's mean
        (`token_weights`); None weighs all alike.
      variant: int32 [R], which of its example's rationales a record is about, -1 for a record that
        all share (a label); None where no example has several.
      draw: one variant of each example is trained in an epoch, instead of all.
      source: int32 [R], of each record the first one of its example with the same inputs, which are
        encoded once for all of these; None where each record's inputs are encoded for it alone.
      mixture: of a mixture of tasks, how many examples with records each has, one task's after the
        other's, and its rate; () of a single task.
      starts: int64 [E + 1], the `example_starts`, where they are known already.
      longest: the `longest_lengths`, where they are known already.
      checksum: the `fingerprint`, where it is known already.
    """

    input_tokens: np.ndarray
    input_offsets: np.ndarray
    target_tokens: np.ndarray
    target_parts: np.ndarray
    target_offsets: np.ndarray
    example: np.ndarray
    counts: Counts
    target_weights: np.ndarray | None = None
    variant: np.ndarray | None = None
    draw: bool = False
    source: np.ndarray | None = None
    mixture: tuple[tuple[int, float], ...] = ()
    starts: np.ndarray | None = None
    longest: tuple[int, int] | None = None
    checksum: int | None = None

    def __len__(self) -> int:
        return self.example.size

    @property
    def input_lengths(self) -> np.ndarray:
        """int64 [R]."""
        return np.diff(self.input_offsets)

    @property
    def target_lengths(self) -> np.ndarray:
        """int64 [R]."""
        return np.diff(self.target_offsets)

    @property
    def example_starts(self) -> np.ndarray:
        """int64 [E + 1]: where the records of each of the E examples that have any start."""
        return find_starts(self.example) if self.starts is None else self.starts

    @property
    def longest_lengths(self) -> tuple[int, int]:
        """The most input and the most target tokens of a record."""
        if self.longest is not None:
            return self.longest
        return _longest(self.input_offsets), _longest(self.target_offsets)

    def fits(self, lengths: tuple[int, int]) -> bool:
        """Whether no record has more input or target tokens than `lengths` allows."""
        inputs, targets = self.longest_lengths
        return inputs <= lengths[0] and targets <= lengths[1]

    def lengths_of(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 [R], int64 [R]: input and target tokens of some of the records."""
        inputs, targets = self.input_offsets, self.target_offsets
        return inputs[ids + 1] - inputs[ids], targets[ids + 1] - targets[ids]

    def fingerprint(self) -> int:
        """Returns a checksum of all tokens, by which a restored run knows its data again."""
        if self.checksum is not None:
            return self.checksum
        weights = () if self.target_weights is None else (self.target_weights,)
        checksum = 0
        for array in (
            self.input_tokens,
            self.input_offsets,
            self.target_tokens,
            self.target_parts,
            self.target_offsets,
            self.example,
            *weights,
        ):
            checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
        return checksum


def _longest(offsets: np.ndarray) -> int:
    """Returns the greatest difference of neighbours, without an array of all of them."""
    pieces = (offsets[start : start + PIECE + 1] for start in range(0, offsets.size, PIECE))
    return max((int(np.diff(piece).max(initial=0)) for piece in pieces), default=0)


def find_starts(example: np.ndarray) -> np.ndarray:
    """Returns `Records.example_starts` of `Records.example`."""
    return np.append(np.flatnonzero(np.diff(example, prepend=-1)), example.size)


def join_records(records: Sequence[Records], rates: Sequence[float]) -> Records:
    """Makes one of the records of several tasks, each drawn as often as its rate says."""
    pieces = joined_arrays(records)
    arrays: dict[str, Any] = {name: np.concatenate(list(pieces[name])) for name in pieces}
    return Records(
        **arrays,
        counts=joined_counts(records),
        draw=any(one.draw for one in records),
        mixture=mixture_of(records, rates),
    )


def mixture_of(records: Sequence[Records], rates: Sequence[float]) -> tuple[tuple[int, float], ...]:
    """Returns `Records.mixture` of the records of several tasks."""
    sizes = (one.example_starts.size - 1 for one in records)
    return tuple((size, float(rate)) for size, rate in zip(sizes, rates, strict=True))


def joined_counts(records: Sequence[Records]) -> Counts:
    """Returns the counts of the records of several tasks together."""
    counts = [dataclasses.asdict(one.counts) for one in records]
    others = [one.pop("other_records") for one in counts]
    return Counts(
        **{name: sum(one[name] for one in counts) for name in counts[0]},
        other_records={
            name: sum(other.get(name, 0) for other in others)
            for name in dict.fromkeys(name for other in others for name in other)
        },
    )


def joined_arrays(records: Sequence[Records]) -> dict[str, Iterator[np.ndarray]]:
    """Returns the arrays of the records of several tasks, each in pieces of some megabytes."""
    examples = [one.counts.examples for one in records]
    found = {
        "input_tokens": _joined([one.input_tokens for one in records]),
        "input_offsets": _joined_ends([one.input_offsets for one in records]),
        "target_tokens": _joined([one.target_tokens for one in records]),
        "target_parts": _joined([one.target_parts for one in records]),
        "target_offsets": _joined_ends([one.target_offsets for one in records]),
        "example": _joined([one.example for one in records], sizes=examples),
        "variant": _joined([_or(one.variant, len(one), 0, np.int32) for one in records]),
        "starts": _joined_ends([one.example_starts for one in records]),
    }
    if any(one.target_weights is not None for one in records):
        weights = (
            _or(one.target_weights, one.target_tokens.size, 1, np.float32) for one in records
        )
        found["target_weights"] = _joined(list(weights))
    if any(one.source is not None for one in records):
        lengths = [len(one) for one in records]
        own = [np.arange(len(one)) if one.source is None else one.source for one in records]
        found["source"] = _joined(own, sizes=lengths)
    return found


PIECE = 1 << 22


def _joined(arrays: Sequence[np.ndarray], sizes: Sequence[int] = ()) -> Iterator[np.ndarray]:
    """Yields arrays behind one another; with `sizes`, numbers that go on behind those before."""
    before = 0
    for number, array in enumerate(arrays):
        for start in range(0, array.size, PIECE):
            piece = array[start : start + PIECE]
            yield (piece + before).astype(np.int32) if sizes else piece
        before += sizes[number] if sizes else 0


def _joined_ends(arrays: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields int64 offsets behind one another; those of each array begin with 0."""
    before = 0
    yield np.zeros(1, np.int64)
    for array in arrays:
        for start in range(1, array.size, PIECE):
            yield array[start : start + PIECE].astype(np.int64) + before
        before += int(array[-1])


def _or(array: np.ndarray | None, size: int, value: float, dtype: Any) -> np.ndarray:
    """The array, or as many times the value, which takes no memory."""
    return np.broadcast_to(np.asarray(value, dtype), size) if array is None else array


def shared_sources(
    input_tokens: np.ndarray, input_offsets: np.ndarray, example: np.ndarray
) -> np.ndarray:
    """Finds which neighbouring records of an example have the same inputs.

    Args:
      input_tokens: see `Records`.
      input_offsets: see `Records`.
      example: see `Records`.

    Returns:
      `Records.source`.
    """
    source = np.arange(example.size, dtype=np.int32)
    lengths = np.diff(input_offsets)
    alike = (example[1:] == example[:-1]) & (lengths[1:] == lengths[:-1])
    for record in np.flatnonzero(alike) + 1:
        before, start, end = input_offsets[record - 1 : record + 2]
        if np.array_equal(input_tokens[before:start], input_tokens[start:end]):
            source[record] = source[record - 1]
    return source


@dataclasses.dataclass(frozen=True)
class Cut:
    """Sequences trimmed to a length.

    Attributes:
      tokens: int32, flat.
      offsets: int64 [R + 1].
      kept: bool, of each token before trimming, whether it is still there.
      count: how many sequences were cut.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    kept: np.ndarray
    count: int


def cut_sequences(tokens: np.ndarray, lengths: np.ndarray, limit: int) -> Cut:
    """Trims ragged sequences to `limit` tokens; the last token (EOS) of a cut one stays the last.

    Args:
      tokens: int32 [sum of `lengths`].
      lengths: integers [R].
      limit: the most tokens of a sequence, at least 1.

    Returns:
      The trimmed sequences.
    """
    lengths = lengths.astype(np.int64)
    ends = np.cumsum(lengths)
    if lengths.max(initial=0) <= limit:
        offsets = np.concatenate([[0], ends])
        return Cut(tokens.astype(np.int32, copy=False), offsets, np.ones(tokens.size, bool), 0)
    position = np.arange(tokens.size) - np.repeat(ends - lengths, lengths)
    kept = position < limit
    too_long = lengths > limit
    trimmed = np.minimum(lengths, limit)
    offsets = np.concatenate([[0], np.cumsum(trimmed)])
    result = tokens[kept].astype(np.int32)
    result[offsets[1:][too_long] - 1] = tokens[ends[too_long] - 1]
    return Cut(result, offsets, kept, int(too_long.sum()))


def holds_part(target_parts: np.ndarray, target_offsets: np.ndarray, code: int) -> np.ndarray:
    """Returns bool [R], whether each record holds tokens of a part."""
    if target_offsets.size < 2:
        return np.zeros(0, bool)
    return np.logical_or.reduceat(target_parts == code, target_offsets[:-1])


def count_parts(
    target_parts: np.ndarray, target_offsets: np.ndarray, parts: int = 2
) -> tuple[int, ...]:
    """Returns how many records hold label tokens, how many rationale tokens, and so on."""
    return tuple(
        int(holds_part(target_parts, target_offsets, code).sum()) for code in range(1, parts + 1)
    )
