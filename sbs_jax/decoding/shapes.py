"""The few shapes that programs are compiled for, and rows of tokens in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sbs_jax.token_ids import EOS_ID, PAD_ID

LENGTHS = 4
"""The number of encoder lengths that a program is compiled for, at most."""
MANY_BATCHES = 16
"""With so many batches, further programs that pad less pay off."""
_MULTIPLE = 16


def input_lengths(longest: int) -> tuple[int, ...]:
    """Returns the encoder lengths that inputs are padded to: the longest, halved repeatedly.

    >>> input_lengths(512), input_lengths(40)
    ((64, 128, 256, 512), (16, 32, 40))
    """
    lengths = {longest}
    for halving in range(1, LENGTHS):
        lengths.add(min(longest, round_up(-(-longest // 2**halving), _MULTIPLE)))
    return tuple(sorted(lengths))


def finer(lengths: Sequence[int], multiple: int = _MULTIPLE) -> tuple[int, ...]:
    """Returns more lengths, so that padding is less: up to 64 / `multiple` between neighbours.

    >>> finer((16, 64, 128)), finer((64, 96), 8)
    ((16, 32, 48, 64, 80, 96, 112, 128), (8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96))
    """
    found = set(lengths)
    parts = 4 * _MULTIPLE // multiple
    for shorter, longer in zip((0, *lengths), lengths, strict=False):
        step = round_up(-(-(longer - shorter) // parts), multiple)
        found.update(range(shorter + step, longer, step))
    return tuple(sorted(found))


def some(sizes: Sequence[int], count: int) -> tuple[int, ...]:
    """Returns `count` of the increasing `sizes`, at least the largest, evenly chosen.

    >>> some((16, 32, 64, 128), 2), some((16, 32), 0), some((16, 32), 3)
    ((32, 128), (32,), (16, 32))
    """
    count = min(max(count, 1), len(sizes))
    chosen = {sizes[-1 - place * len(sizes) // count] for place in range(count)}
    return tuple(sorted(chosen))


def row_counts(largest: int, multiple: int, wanted: Sequence[int] | None = None) -> tuple[int, ...]:
    """Returns the numbers of rows that a program is compiled for, each a multiple of `multiple`.

    >>> row_counts(32, 1, (1, 8)), row_counts(30, 8)
    ((1, 8, 32), (32,))
    """
    counts = {round_up(count, multiple) for count in (*(wanted or ()), largest)}
    return tuple(sorted(count for count in counts if count <= round_up(largest, multiple)))


def fit(value: int, sizes: Sequence[int]) -> int:
    """Returns the smallest of the increasing `sizes` that is at least `value`."""
    return next(size for size in sizes if size >= value)


def power_of(value: int, base: int = 8) -> int:
    """Returns the smallest `base` · 2^k that is at least `value`."""
    size = base
    while size < value:
        size *= 2
    return size


def round_up(value: int, multiple: int) -> int:
    """Returns the smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def padded_rows(sequences: Sequence[Sequence[int]], rows: int, length: int) -> np.ndarray:
    """Returns int32 [rows, length]: the sequences, padded with 0, the last one repeated.

    Rows beyond the sequences repeat a real one, because an empty input might never end, and the
    loop of a batch runs until its last row has ended.
    """
    padded = np.full((rows, length), PAD_ID, np.int32)
    for row in range(rows):
        ids = sequences[min(row, len(sequences) - 1)]
        padded[row, : len(ids)] = ids
    return padded


def until_end(tokens: Sequence[int] | np.ndarray, *, keep_eos: bool = False) -> list[int]:
    """Returns the tokens before the first EOS or padding; with `keep_eos` that EOS as well.

    >>> until_end([5, 6, 1, 0]), until_end([5, 6, 1, 0], keep_eos=True)
    ([5, 6], [5, 6, 1])
    """
    tokens = np.asarray(tokens)
    ends = np.flatnonzero((tokens == EOS_ID) | (tokens == PAD_ID))
    end = ends[0] if ends.size else tokens.size
    if keep_eos and ends.size and tokens[end] == EOS_ID:
        end += 1
    return tokens[:end].tolist()
