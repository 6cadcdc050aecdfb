"""The search for the smallest student and the least data that beat a target. Pure Python.

The paper's Section 4.3 asks for it by a coarse search over sizes and shares of the training data.
Where more data never hurt a student and a larger student is never worse, the points that beat the
target have a border in the form of stairs, and walking along it finds all of it: from the smallest
student with all data, one step towards less data after a success, one towards a larger student
after a failure. That takes at most sizes + shares − 1 points, a grid sizes × shares.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Size = TypeVar("Size")
Share = TypeVar("Share")


@dataclasses.dataclass(frozen=True)
class Visit(Generic[Size, Share]):
    """A point of the search.

    Attributes:
      size: the size of the student.
      share: the share of the training data.
      accuracy: the accuracy on validation.
      beats: whether it is at least the target.
    """

    size: Size
    share: Share
    accuracy: float
    beats: bool


def budget(sizes: int, shares: int) -> int:
    """The most points that a search visits."""
    return sizes + shares - 1


def walk(
    sizes: Sequence[Size],
    shares: Sequence[Share],
    accuracy: Callable[[Size, Share], float],
    target: float,
) -> list[Visit[Size, Share]]:
    """Walks along the border.

    Args:
      sizes: students, smallest first.
      shares: the shares of the training data, smallest first.
      accuracy: the accuracy of a student trained on a share, on validation, 0 to 1; expensive.
      target: the accuracy that is to be reached.

    Returns:
      The points visited, in their order.
    """
    visits: list[Visit[Size, Share]] = []
    size, share = 0, len(shares) - 1
    while size < len(sizes) and share >= 0:
        found = accuracy(sizes[size], shares[share])
        beats = found >= target
        visits.append(Visit(sizes[size], shares[share], found, beats))
        if beats:
            share -= 1
        else:
            size += 1
    return visits


def frontier(visits: Sequence[Visit[Size, Share]]) -> list[Visit[Size, Share]]:
    """The point with the least data of each student that beats the target; smallest first."""
    last = {visit.size: visit for visit in visits if visit.beats}
    return list(last.values())
