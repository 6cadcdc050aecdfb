"""Permutations of more numbers than memory holds: each entry is computed when it is asked for.

A Feistel network on pairs (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002): the
numbers below ``a * b``, with a and b near the square root of n, are pairs of which each round moves
one half by a function of the other half, which is one-to-one whatever the function is. What lands
on n or above goes through the network again, until it lands below. Not for secrets.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

_ROUNDS = 8
_STEP = np.uint64(0x9E3779B97F4A7C15)


def mixed(values: np.ndarray) -> np.ndarray:
    """Returns uint64 hashes of uint64 values: the finalizer of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def key_of(*numbers: int) -> np.uint64:
    """Returns the key of a seed, an epoch and whatever else tells permutations apart."""
    return np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)[0]


def permuted(index: np.ndarray, size: int, key: np.uint64 | np.ndarray) -> np.ndarray:
    """Returns entries of a permutation of 0 .. `size` - 1.

    Args:
      index: integers [N] in 0 .. `size` - 1, the places that are looked at.
      size: the length of the permutation, at least 1.
      key: the key of the permutation; or uint64 [N], one for each entry.

    Returns:
      int64 [N], what stands at these places.
    """
    result = np.asarray(index, np.uint64).copy()
    keys = np.broadcast_to(np.asarray(key, np.uint64), result.shape)
    open_ = np.ones(result.shape, bool)
    while open_.any():
        result[open_] = _network(result[open_], size, keys[open_])
        open_ = result >= size
    return result.astype(np.int64)


def _network(values: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    left: Any
    right: Any
    side = math.isqrt(size - 1) + 1
    a, b = np.uint64(side), np.uint64(-(-size // side))
    left, right = values % a, values // a
    for number in range(_ROUNDS):
        keys = keys + _STEP
        if number % 2:
            right = (right + mixed(left * _STEP ^ keys) % b) % b
        else:
            left = (left + mixed(right * _STEP ^ keys) % a) % a
    return right * a + left
