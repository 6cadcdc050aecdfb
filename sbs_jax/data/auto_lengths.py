"""Row lengths from the data: what ``TASK_FEATURE_LENGTHS = 'auto'`` stands for. Pure numpy.

The rule. A row is at least as long as all but `MAX_CUT` of the sequences of its side (under
STRICT_LENGTHS as all of them), so that hardly anything is cut. Among longer rows, in multiples of
`MULTIPLE`, those are taken whose estimated cost for one epoch is least:

    cost(S, T) = rows(S, T) · (S + DECODER_WEIGHT · T + (S² + S·T + T²) / ATTENTION_LENGTH)

`rows` is counted by packing a sample of the examples as training packs them, so padding counts. The
square terms are attention, which is computed between all tokens of a row. No network enters the
rule: students of all sizes get the same rows, and the same batches, of the same data.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from sbs_jax.data.batch_arrays import place_records
from sbs_jax.data.batching import Batching
from sbs_jax.data.epochs import first_examples
from sbs_jax.data.records import Records
from sbs_jax.errors import UserError

MAX_CUT = 0.001
"""Share of the sequences of a side that may be longer than its rows."""

MULTIPLE = 16
"""Row lengths are multiples of it: vector units and tiles of matrix products like round numbers."""

LONGEST = 4
"""Rows up to so many times the least length that `MAX_CUT` allows are considered."""

DECODER_WEIGHT = 2.0
"""Cost of a target position in those of an input position: it attends twice and has the head."""

ATTENTION_LENGTH = 1024
"""Tokens of a row at which attention costs as much as all else. An estimate: by docs/benchmarks.md
attention takes some 20 % of a step of `cpu_small` in rows of 256 tokens on CPUs."""

SAMPLE = 1024
"""Examples that are packed to count rows."""


@dataclasses.dataclass(frozen=True)
class Proposal:
    """Row lengths, and what they cost.

    Attributes:
      lengths: `inputs` and `targets`, in tokens.
      inputs_fill: share of the encoder's tokens that are not padding in the sample, 0 to 1.
      targets_fill: share of the decoder's tokens that are not padding in the sample, 0 to 1.
      cut_inputs: records of the whole split whose inputs are longer than a row.
      cut_targets: records of the whole split whose targets are longer than a row.
    """

    lengths: dict[str, int]
    inputs_fill: float
    targets_fill: float
    cut_inputs: int
    cut_targets: int

    def __str__(self) -> str:
        return (
            f"{self.lengths}: inputs {self.inputs_fill:.1%} and targets {self.targets_fill:.1%} "
            f"full, {self.cut_inputs} inputs and {self.cut_targets} targets cut"
        )


def propose(records: Records, batching: Batching, *, cut_nothing: bool = False) -> Proposal:
    """Chooses row lengths by the rule of this module.

    Args:
      records: the records of a training split, uncut.
      batching: whether rows are packed, and how many examples a batch has; its
        `feature_lengths` are not looked at.
      cut_nothing: rows are as long as the longest sequence at least.

    Returns:
      The same for the same records in every process.

    Raises:
      UserError: there are no records.
    """
    if not len(records):
        raise UserError(f"TASK_FEATURE_LENGTHS = 'auto' found no records: {records.counts}.")
    share = 0.0 if cut_nothing else MAX_CUT
    least = tuple(
        _least(lengths, share) for lengths in (records.input_lengths, records.target_lengths)
    )
    sample = first_examples(records, SAMPLE)
    inputs = np.minimum(records.input_lengths, least[0])
    targets = np.minimum(records.target_lengths, least[1])
    tokens = np.array([_encoded(records, sample, inputs), targets[np.concatenate(sample)].sum()])

    @functools.cache
    def rows_of(row_inputs: int, row_targets: int) -> int:
        return sum(
            place_records(
                records, ids, inputs[ids], targets[ids], row_inputs, row_targets, batching.pack
            ).rows
            for ids in _groups(sample, batching.examples_per_batch)
        )

    # Rows without padding bound the cost from below, so that most lengths need not be packed.
    bounded = sorted(
        (_cost(float((tokens / pair).max()), *pair), pair) for pair in _candidates(least, batching)
    )
    best: tuple[float, tuple[int, int]] | None = None
    for bound, pair in bounded:
        if best is not None and bound >= best[0]:
            break
        found = (_cost(rows_of(*pair), *pair), pair)
        best = found if best is None else min(best, found)
    assert best is not None
    row_inputs, row_targets = best[1]
    fill = tokens / (rows_of(row_inputs, row_targets) * np.array([row_inputs, row_targets]))
    return Proposal(
        {"inputs": row_inputs, "targets": row_targets},
        float(fill[0]),
        float(fill[1]),
        int((records.input_lengths > row_inputs).sum()),
        int((records.target_lengths > row_targets).sum()),
    )


def _least(lengths: np.ndarray, share: float) -> int:
    """The least multiple of `MULTIPLE` that at most `share` of the lengths exceed."""
    longest = np.sort(lengths)[lengths.size - 1 - int(share * lengths.size)]
    return -(-int(longest) // MULTIPLE) * MULTIPLE


def _candidates(least: tuple[int, ...], batching: Batching) -> Iterator[tuple[int, int]]:
    """Yields pairs of row lengths; unpacked rows have no use for more inputs than the longest."""
    inputs, targets = (range(one, LONGEST * one + 1, MULTIPLE) for one in least)
    for row_inputs in inputs if batching.pack else inputs[:1]:
        for row_targets in targets:
            yield row_inputs, row_targets


def _groups(sample: list[np.ndarray], size: int | None) -> Iterator[np.ndarray]:
    """Yields the records that are packed together: those of a batch of examples, or all."""
    step = size or len(sample)
    whole = len(sample) // step * step or len(sample)
    for start in range(0, whole, step):
        yield np.concatenate(sample[start : start + step])


def _cost(rows: float, inputs: int, targets: int) -> float:
    """The cost of an epoch in input positions; see the module."""
    attention = (inputs**2 + inputs * targets + targets**2) / ATTENTION_LENGTH
    return rows * (inputs + DECODER_WEIGHT * targets + attention)


def _encoded(records: Records, sample: list[np.ndarray], lengths: np.ndarray) -> int:
    """Input tokens of the sample; inputs that an example's records share count once."""
    ids = np.concatenate(sample)
    if records.source is not None:
        ids = np.unique(records.source[ids])
    return int(lengths[ids].sum())
