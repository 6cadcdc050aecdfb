"""First and last names for the procedural data sets, and which split a puzzle belongs to."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from typing import TypeVar

from sbs_jax.errors import UserError

FIRST = (
    "Aaron", "Abigail", "Adam", "Alice", "Amina", "Andrea", "Anna", "Arthur", "Beatriz", "Bella",
    "Boris", "Bruno", "Carla", "Carlos", "Cecilia", "Chloe", "Daniel", "Daria", "David", "Diego",
    "Edith", "Elena", "Emil", "Erik", "Esther", "Fatima", "Felix", "Fiona", "Frank", "Gita",
    "Grace", "Greta", "Hana", "Hector", "Helen", "Hugo", "Ida", "Igor", "Ingrid", "Isaac", "Ivan",
    "Jack", "Jana", "Jing", "Jonas", "Julia", "Kamal", "Karim", "Katrin", "Kenji", "Laila",
    "Lars", "Laura", "Leon", "Lucia", "Lukas", "Maria", "Martin", "Maya", "Mehmet", "Mila",
    "Nadia", "Naomi", "Niels", "Nina", "Olga", "Oliver", "Omar", "Oscar", "Paolo", "Paula",
    "Pedro", "Petra", "Quinn", "Rachel", "Rafael", "Rosa", "Ruth", "Samir", "Sara", "Selma",
    "Simon", "Sofia", "Sven", "Tamar", "Theo", "Tomas", "Ulla", "Uma", "Vera", "Victor", "Wanda",
    "Xavier", "Yara", "Yusuf", "Zahra", "Zoe",
)  # fmt: skip
LAST = (
    "Adler", "Ahmed", "Alvarez", "Baker", "Becker", "Bianchi", "Bishop", "Carter", "Castro",
    "Chen", "Cohen", "Costa", "Dahl", "Diaz", "Dubois", "Ericson", "Evans", "Farah", "Fischer",
    "Ford", "Garcia", "Gomez", "Grant", "Gruber", "Haas", "Hansen", "Hassan", "Hill", "Ivanov",
    "Jensen", "Kaya", "Keller", "Khan", "Kim", "Klein", "Kovacs", "Lang", "Larsen", "Lee",
    "Lopez", "Martin", "Meyer", "Moreau", "Nakamura", "Novak", "Nunez", "Okoro", "Olsen", "Ortiz",
    "Park", "Patel", "Peters", "Popov", "Quist", "Ramos", "Reyes", "Rossi", "Sato", "Schmidt",
    "Silva", "Singh", "Smith", "Tanaka", "Torres", "Usman", "Vargas", "Vogel", "Wagner", "Weber",
    "Wong", "Xu", "Yilmaz", "Young", "Ziegler",
)  # fmt: skip

Puzzle = TypeVar("Puzzle")


def make_distinct(
    make: Callable[[random.Random], tuple[str, Puzzle]], split: str, count: int, seed: int
) -> list[Puzzle]:
    """Makes `count` different puzzles of a split; those of fewer are the first of more.

    No two splits share a puzzle, whatever their seeds.

    Args:
      make: draws a puzzle's text and the puzzle.
      split: ``train``, ``validation`` or ``test``.
      count: how many.
      seed: the seed of everything.

    Raises:
      UserError: there are not so many.
    """
    rng = random.Random(f"{seed} {split}")
    found: dict[str, Puzzle] = {}
    misses = 0
    while len(found) < count:
        text, puzzle = make(rng)
        if _split_of(text) != split or text in found:
            misses += 1
            if misses > 1000 * (count + 1):
                raise UserError(f"There are not {count} different puzzles of so small a length.")
            continue
        found[text] = puzzle
    return list(found.values())


def _split_of(text: str) -> str:
    tenth = zlib.crc32(text.encode()) % 10
    return "train" if tenth < 8 else "validation" if tenth == 8 else "test"
