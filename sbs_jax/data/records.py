"""Tokenized records of a task: what batches are made of. Pure numpy."""

from __future__ import annotations

import collections
import dataclasses
import zlib
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Counts:
    """What became of the examples of one split.

    Attributes:
      examples: read, whether or not they give a record.
      label_records: records that train the label.
      rationale_records: records that train the rationale.
      blank_rationales: examples without a rationale, where the task trains rationales.
      blank_labels: examples without a label (the teacher's did not parse), likewise.
      cut_inputs: records whose inputs were longer than their feature length.
      cut_targets: likewise their targets.
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
        return np.append(np.flatnonzero(np.diff(self.example, prepend=-1)), len(self))

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


def join_records(records: Sequence[Records], rates: Sequence[float]) -> Records:
    """Makes one of the records of several tasks, each drawn as often as its rate says."""
    counts = [dataclasses.asdict(one.counts) for one in records]
    others = [one.pop("other_records") for one in counts]
    starts = np.cumsum([0, *(one.counts.examples for one in records)])

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(one, name) for one in records])

    def offsets(name: str) -> np.ndarray:
        lengths = [np.diff(getattr(one, name)) for one in records]
        return np.concatenate([[0], np.cumsum(np.concatenate(lengths))])

    variants = [
        np.zeros(len(one), np.int32) if one.variant is None else one.variant for one in records
    ]
    return Records(
        input_tokens=joined("input_tokens"),
        input_offsets=offsets("input_offsets"),
        target_tokens=joined("target_tokens"),
        target_parts=joined("target_parts"),
        target_offsets=offsets("target_offsets"),
        example=np.concatenate(
            [one.example + start for one, start in zip(records, starts[:-1], strict=True)]
        ).astype(np.int32),
        counts=Counts(
            **{name: sum(one[name] for one in counts) for name in counts[0]},
            other_records=dict(sum(map(collections.Counter, others), collections.Counter())),
        ),
        target_weights=_joined_weights(records),
        variant=np.concatenate(variants),
        draw=any(one.draw for one in records),
        source=_joined_sources(records),
        mixture=tuple(
            (one.example_starts.size - 1, float(rate))
            for one, rate in zip(records, rates, strict=True)
        ),
    )


def _joined_weights(records: Sequence[Records]) -> np.ndarray | None:
    if all(one.target_weights is None for one in records):
        return None
    ones = (np.ones(one.target_tokens.size, np.float32) for one in records)
    return np.concatenate(
        [
            alike if one.target_weights is None else one.target_weights
            for one, alike in zip(records, ones, strict=True)
        ]
    )


def _joined_sources(records: Sequence[Records]) -> np.ndarray | None:
    if all(one.source is None for one in records):
        return None
    sources, before = [], 0
    for one in records:
        own = np.arange(len(one), dtype=np.int32) if one.source is None else one.source
        sources.append(own + before)
        before += len(one)
    return np.concatenate(sources)


def shared_sources(
    input_tokens: np.ndarray, input_offsets: np.ndarray, example: np.ndarray
) -> np.ndarray:
    """Finds which neighbouring records of an example have the same inputs.

    Args:
      input_tokens: as in `Records`.
      input_offsets: likewise.
      example: likewise.

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
