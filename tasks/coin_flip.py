"""Coin flips (Wei et al. 2022): generated, with a scripted teacher, at any length.

    A coin is heads up. Ida flips the coin. Jonas does not flip the coin. Is the coin still heads
    up?   ->   no

`coin_flip` has `length` people in all its splits. `coin_flip_ood` has `ood_length` people in its
test split, on which a student of `coin_flip` is evaluated. No DATA_DIR is needed.
"""

from __future__ import annotations

import random

import gin

from sbs_jax.data.release import Example

from . import puzzles
from .names import FIRST

LABELS = ("yes", "no")


@gin.configurable
class Sizes(puzzles.Sizes):
    """The sizes that gin has bound (gin/tasks/coin_flip.gin)."""


def _make(people: int, rng: random.Random) -> tuple[str, list[tuple[str, bool]]]:
    flips = [(name, rng.random() < 0.5) for name in rng.sample(FIRST, people)]
    return repr(flips), flips


def _example(identity: str, flips: list[tuple[str, bool]]) -> Example:
    sentences = [f"{name} {'flips' if flip else 'does not flip'} the coin." for name, flip in flips]
    flippers = [name for name, flip in flips if flip]
    even = len(flippers) % 2 == 0
    if flippers:
        who = flippers[0] if len(flippers) == 1 else ", ".join(flippers[:-1])
        who += f" and {flippers[-1]}" if len(flippers) > 1 else ""
        times = f"{len(flippers)} time{'s' if len(flippers) > 1 else ''}"
        how = f"The coin was flipped by {who}. So it was flipped {times}, which is an "
        how += f"{'even' if even else 'odd'} number."
    else:
        how = "The coin was flipped by nobody. So it was flipped 0 times, which is an even number."
    label = "yes" if even else "no"
    ending = "still heads up" if even else "tails up"
    return {
        "id": identity,
        "input": " ".join(["A coin is heads up.", *sentences, "Is the coin still heads up?"]),
        "label": label,
        "rationale": "",
        "llm_label": label,
        "llm_rationale": f"{how} The coin started heads up, so it is {ending}.",
    }


load = puzzles.register_puzzles(
    "coin_flip", sizes=Sizes, make=_make, example=_example, labels=LABELS, longest=len(FIRST)
)
