"""Few shapes: every number of rows and of tokens is rounded up to one of a short list."""

from __future__ import annotations

from collections.abc import Sequence

LENGTHS = 4
"""Of so many encoder lengths every program is compiled at most."""
_MULTIPLE = 16


def input_lengths(longest: int, count: int = LENGTHS) -> tuple[int, ...]:
    """The encoder lengths that inputs are padded to: halves of halves of the longest.

    >>> input_lengths(512), input_lengths(40)
    ((64, 128, 256, 512), (16, 32, 40))

    Args:
      longest: the most tokens of an input.
      count: how many lengths at most.
    """
    lengths = {longest}
    for halving in range(1, count):
        lengths.add(min(longest, round_up(-(-longest // 2**halving), _MULTIPLE)))
    return tuple(sorted(lengths))


def row_counts(largest: int, multiple: int, wanted: Sequence[int] | None = None) -> tuple[int, ...]:
    """The numbers of rows that a program is compiled for, each a multiple of `multiple`.

    >>> row_counts(32, 1, (1, 8)), row_counts(30, 8)
    ((1, 8, 32), (32,))
    """
    counts = {round_up(count, multiple) for count in (*(wanted or ()), largest)}
    return tuple(sorted(count for count in counts if count <= round_up(largest, multiple)))


def fit(value: int, sizes: Sequence[int]) -> int:
    """The least of the increasing `sizes` that holds `value`."""
    return next(size for size in sizes if size >= value)


def power_of(value: int, base: int = 8, factor: int = 2) -> int:
    """The least `base` · `factor`^k that holds `value`."""
    size = base
    while size < value:
        size *= factor
    return size


def round_up(value: int, multiple: int) -> int:
    """The least multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple
