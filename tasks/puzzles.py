"""Sizes of the procedural data sets, and their registration with a second set of longer puzzles."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Sequence
from typing import Any

from sbs_jax import DataSettings, Example, register_dataset
from sbs_jax.errors import UserError

from .names import make_distinct

LoadFn = Callable[..., list[Example]]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How many puzzles there are, and how long they are.

    Attributes:
      train: number of puzzles in the split ``train``.
      validation: number of puzzles in the split ``validation``.
      test: number of puzzles in the split ``test``.
      length: number of names or words in a puzzle.
      ood_length: the same in the test split of the data set ``_ood``.
      puzzle_seed: seed of all puzzles. It is independent of the run's SEED, so that all students
        have the same examples.

    Raises:
      UserError: a value is out of its range.
    """

    train: int = 1000
    validation: int = 200
    test: int = 500
    length: int = 2
    ood_length: int = 4
    puzzle_seed: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            least = 0 if field.name == "puzzle_seed" else 1
            if getattr(self, field.name) < least:
                value = getattr(self, field.name)
                raise UserError(f"sizes: {field.name} = {value} is below {least}.")


def register_puzzles(
    name: str,
    *,
    sizes: Callable[[], Sizes],
    make: Callable[[int, random.Random], tuple[str, Any]],
    example: Callable[[str, Any], Example],
    labels: Sequence[str] = (),
    longest: int | None = None,
) -> LoadFn:
    """Registers ``name``, and ``name_ood`` whose test puzzles are longer.

    Args:
      name: name of the data set.
      sizes: returns the sizes when the data set is read.
      make: draws a puzzle of a given length. Returns a text that identifies it, and the puzzle.
      example: makes an example of an id and a puzzle.
      labels: see `register_dataset`.
      longest: largest length for which puzzles can be made; None if there is none.

    Returns:
      The function that generates the examples of a split.
    """

    def load(split: str, settings: DataSettings, *, longer: bool = False) -> list[Example]:
        del settings
        chosen = sizes()
        length = chosen.ood_length if longer and split == "test" else chosen.length
        if longest is not None and length > longest:
            raise UserError(f"{name}.sizes: a length of {length} is above {longest}.")
        draw = functools.partial(make, length)
        puzzles = make_distinct(draw, split, getattr(chosen, split), chosen.puzzle_seed)
        return [example(f"{name}-{split}-{i}", puzzle) for i, puzzle in enumerate(puzzles)]

    for suffix, longer in (("", False), ("_ood", True)):
        register_dataset(
            name + suffix,
            load=functools.partial(load, longer=longer),
            own_validation=True,
            labels=labels,
        )
    return load
