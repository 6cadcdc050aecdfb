"""Last-letter concatenation (Wei et al. 2022): generated, with a scripted teacher, at any length.

    Take the last letters of the words in "Maria Kent" and concatenate them.   ->   at

`last_letters` has names of `length` words in all its splits. `last_letters_ood` has names of
`ood_length` words in its test split, on which a student of `last_letters` is evaluated. No DATA_DIR
is needed.
"""

from __future__ import annotations

import random

import gin

from sbs_jax.data.release import Example

from . import puzzles
from .names import FIRST, LAST


@gin.configurable
class Sizes(puzzles.Sizes):
    """The sizes that gin has bound (gin/tasks/last_letters.gin)."""


def _make(words: int, rng: random.Random) -> tuple[str, list[str]]:
    # First names, and a last name at the end.
    name = [rng.choice(FIRST) for _ in range(words - 1)] + [rng.choice(LAST)]
    return " ".join(name), name


def _example(identity: str, name: list[str]) -> Example:
    label = "".join(word[-1] for word in name)
    steps = [f'The last letter of "{word}" is "{word[-1]}".' for word in name]
    return {
        "id": identity,
        "input": f'Take the last letters of the words in "{" ".join(name)}" and concatenate them.',
        "label": label,
        "rationale": "",
        "llm_label": label,
        "llm_rationale": " ".join([*steps, f'Concatenated they are "{label}".']),
    }


load = puzzles.register_puzzles("last_letters", sizes=Sizes, make=_make, example=_example)
