"""Sequences of different lengths that lie one behind another in a flat array. Pure numpy."""

from __future__ import annotations

import numpy as np


def starts_of(lengths: np.ndarray) -> np.ndarray:
    """Returns where each sequence starts, given their lengths [N]."""
    return np.cumsum(lengths) - lengths


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the indices of the elements of sequences, one sequence behind another.

    >>> spans(np.array([7, 2]), np.array([2, 3])).tolist()
    [7, 8, 2, 3, 4]

    Args:
      starts: integers [N], the index of the first element of each sequence.
      lengths: integers [N].

    Returns:
      Integers [sum of `lengths`].
    """
    return np.arange(lengths.sum()) + np.repeat(starts - starts_of(lengths), lengths)
