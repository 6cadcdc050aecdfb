"""The records that an epoch trains, and the order of its examples, by seed and epoch alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from sbs_jax.data import permutations
from sbs_jax.data.ragged import spans
from sbs_jax.data.records import Records

COMPUTED_ABOVE = 1 << 24
"""An epoch of more examples than these has no array of their order: it is computed piece by piece.
(Both orders depend on seed and epoch alone, but they are not the same one.)"""


def first_examples(records: Records, count: int) -> list[np.ndarray]:
    """Returns the ids of the records of each of the first `count` examples of an epoch.

    They are drawn as `TrainBatches` draws them with the seed 0: of a mixture as the rates say, and
    of an example's variants one, where `Records.draw` says so.
    """
    starts = records.example_starts
    epoch = Epoch(records, starts, 0, 0)
    return by_example(starts, epoch.drawn(records_of(starts, epoch.examples(0, count))))


def by_example(starts: np.ndarray, ids: np.ndarray) -> list[np.ndarray]:
    """Splits ids of records where another example begins.

    Args:
      starts: the `Records.example_starts`.
      ids: integers [R], the records of an example side by side.
    """
    example = np.searchsorted(starts, ids, side="right")
    return np.split(ids, np.flatnonzero(np.diff(example)) + 1)


def records_of(starts: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """Returns the ids of the records of `examples`, in their order."""
    first = starts[examples]
    return spans(first, starts[examples + 1] - first)


def draws(records: Records) -> bool:
    """Whether an epoch trains one of several variants of an example."""
    return records.draw and records.variant is not None and records.variant.max(initial=0) >= 1


class Epoch:
    """The examples of one epoch in its order.

    Attributes:
      size: how many they are.
      computed: whether there is no array of their order; see `COMPUTED_ABOVE`.
    """

    def __init__(self, records: Records, starts: np.ndarray, seed: int, epoch: int) -> None:
        """Shuffles them.

        Args:
          records: the records of a training split.
          starts: their `Records.example_starts`.
          seed: decides the order, together with the epoch.
          epoch: from 0.
        """
        self._records, self._starts = records, starts
        self._seed, self._epoch = seed, epoch
        self._counts = _mixed_counts(records.mixture)
        self.size = sum(self._counts) if records.mixture else starts.size - 1
        self.computed = self.size > COMPUTED_ABOVE
        self._order = None if self.computed else self._shuffled()

    def examples(self, start: int, stop: int) -> np.ndarray:
        """Returns the examples at the places `start` .. `stop` - 1, as far as there are such."""
        if self._order is not None:
            return self._order[start:stop]
        places = np.arange(start, min(stop, self.size))
        key = permutations.key_of(self._seed, self._epoch)
        places = permutations.permuted(places, self.size, key)
        return self._mixed_at(places) if self._records.mixture else places

    def drawn(self, ids: np.ndarray) -> np.ndarray:
        """Returns those of the records `ids` that the epoch trains.

        Args:
          ids: integers [R], all records of some examples, those of an example side by side.
        """
        records = self._records
        if not draws(records):
            return ids
        assert records.variant is not None
        example = np.searchsorted(self._starts, ids, side="right") - 1
        variant = records.variant[ids]
        if self._order is not None:
            chosen = self._chosen[example]
        else:
            first = np.flatnonzero(np.diff(example, prepend=-1))
            variants = np.maximum.reduceat(variant, first) + 1
            key = permutations.key_of(self._seed, self._epoch, 0)
            hashes = permutations.mixed(permutations.mixed(example[first].astype(np.uint64)) ^ key)
            each = ((hashes >> np.uint64(11)) * 2.0**-53 * variants).astype(np.int32)
            chosen = np.repeat(each, np.diff(np.append(first, ids.size)))
        return ids[(variant < 0) | (variant == chosen)]

    @functools.cached_property
    def _chosen(self) -> np.ndarray:
        """int32 [E]: the variant of each example that is trained."""
        # Drawn for all examples, so that what is drawn does not depend on the order.
        rng = np.random.default_rng([self._seed, self._epoch, 0])
        assert self._records.variant is not None
        variants = np.maximum.reduceat(self._records.variant, self._starts[:-1]) + 1
        return (rng.random(variants.size) * variants).astype(np.int32)

    def _shuffled(self) -> np.ndarray:
        rng = np.random.default_rng([self._seed, self._epoch])
        if not self._records.mixture:
            return rng.permutation(self.size)
        mixture = self._records.mixture
        return rng.permutation(
            np.concatenate(_mixed_examples(mixture, self._counts, self._seed, self._epoch))
        )

    def _mixed_at(self, places: np.ndarray) -> np.ndarray:
        """Returns the examples of a mixture at places of an epoch that is not shuffled yet."""
        ends = np.cumsum(self._counts)
        number = np.searchsorted(ends, places, side="right")
        examples, offset = np.empty_like(places), 0
        for task, (size, _) in enumerate(self._records.mixture):
            own = np.flatnonzero(number == task)
            if own.size:
                count = self._counts[task]
                along = self._epoch * count + places[own] - (ends[task] - count)
                key = permutations.key_of(self._seed, task, 1)
                keys = permutations.mixed((along // size).astype(np.uint64)) ^ key
                examples[own] = offset + permutations.permuted(along % size, size, keys)
            offset += size
        return examples


def _mixed_counts(mixture: Sequence[tuple[int, float]]) -> list[int]:
    """Returns how many examples of each task an epoch of a mixture has."""
    total = sum(size for size, _ in mixture)
    rates = sum(rate for _, rate in mixture)
    return [max(1, round(total * rate / rates)) if size else 0 for size, rate in mixture]


def _mixed_examples(
    mixture: Sequence[tuple[int, float]], counts: Sequence[int], seed: int, epoch: int
) -> list[np.ndarray]:
    """Returns the examples of each task that an epoch of a mixture has."""
    chosen, offset = [], 0
    for number, ((size, _), count) in enumerate(zip(mixture, counts, strict=True)):
        first = epoch * count
        rounds = range(first // size, (first + count - 1) // size + 1) if size else range(0)
        orders = [np.random.default_rng([seed, number, own, 1]).permutation(size) for own in rounds]
        if orders:
            start = first - rounds[0] * size
            chosen.append(offset + np.concatenate(orders)[start : start + count])
        offset += size
    return chosen
