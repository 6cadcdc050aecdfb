"""The records that an epoch trains, and the order of its examples, by seed and epoch alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sbs_jax.data.records import Records


def first_examples(records: Records, count: int) -> list[np.ndarray]:
    """Returns the ids of the records of each of the first `count` examples of an epoch.

    They are drawn as `TrainBatches` draws them with the seed 0: of a mixture as the rates say, and
    of an example's variants one, where `Records.draw` says so.
    """
    starts = records.example_starts
    order = shuffled_examples(records, starts, 0, 0)[:count]
    ids = drawn(records, starts, records_of(starts, order), 0, 0)
    example = np.searchsorted(starts, ids, side="right")
    return np.split(ids, np.flatnonzero(np.diff(example)) + 1)


def records_of(starts: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """Returns the ids of the records of `examples`, in their order."""
    first = starts[examples]
    counts = starts[examples + 1] - first
    before = np.cumsum(counts) - counts
    return np.repeat(first - before, counts) + np.arange(counts.sum())


def shuffled_examples(records: Records, starts: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Returns the examples of an epoch in its order."""
    rng = np.random.default_rng([seed, epoch])
    if not records.mixture:
        return rng.permutation(starts.size - 1)
    return rng.permutation(np.concatenate(_mixed_examples(records.mixture, seed, epoch)))


def drawn(
    records: Records, starts: np.ndarray, ids: np.ndarray, seed: int, epoch: int
) -> np.ndarray:
    """Returns those of the records `ids` that an epoch trains."""
    variants = count_variants(records, starts) if records.draw else None
    if variants is None:
        return ids
    # Drawn for all examples, so that what is drawn does not depend on the order.
    rng = np.random.default_rng([seed, epoch, 0])
    chosen = (rng.random(variants.size) * variants).astype(np.int32)
    example = np.searchsorted(starts, ids, side="right") - 1
    assert records.variant is not None
    variant = records.variant[ids]
    return ids[(variant < 0) | (variant == chosen[example])]


def count_variants(records: Records, starts: np.ndarray) -> np.ndarray | None:
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
