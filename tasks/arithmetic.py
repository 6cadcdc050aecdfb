"""Generated word problems with a scripted teacher: runs offline, learned in a minute on a CPU.

See `sbs_jax.tasks.arithmetic_problems` for what they look like. The label is the final number. The
scripted teacher is always right, so its labels are the gold ones. There are no human rationales.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import cast

import gin

from sbs_jax import DataSettings, Example, register_dataset
from sbs_jax.errors import UserError

from .arithmetic_problems import SPLITS, Problem, make_problems

FURTHER_FIELDS = (
    "second_rationale",
    "expression",
    "backward_question",
    "backward_rationale",
    "candidate",
    "evaluation",
)
"""What else the scripted teachers write of each problem, for methods with further parts."""

MOST_STEPS = 8
"""The most steps of a problem; each lengthens its texts by some ten tokens."""


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Difficulty:
    """How many problems there are, and how hard they are.

    Attributes:
      train_examples: number of examples in the split ``train``.
      validation_examples: number of examples in the split ``validation``.
      test_examples: number of examples in the split ``test``.
      min_steps: least number of changes of the number that is asked for.
      max_steps: largest number of changes, at most `MOST_STEPS`.
      bystander_share: share of the problems that also give another person's numbers, in [0, 1].
      problem_seed: seed of all problems. It is independent of the run's seed, so that runs with
        other seeds have the same problems.

    Raises:
      UserError: a value is out of its range.
    """

    train_examples: int = 4000
    validation_examples: int = 200
    test_examples: int = 500
    min_steps: int = 2
    max_steps: int = 2
    bystander_share: float = 0.3
    problem_seed: int = 0

    def __post_init__(self) -> None:
        for name in ("train_examples", "validation_examples", "test_examples"):
            self._require(name, getattr(self, name) >= 1, "must be at least 1")
        self._require("problem_seed", self.problem_seed >= 0, "must be a whole number from 0")
        self._require(
            "max_steps",
            1 <= self.min_steps <= self.max_steps <= MOST_STEPS,
            f"must lie between min_steps = {self.min_steps}, itself at least 1, and {MOST_STEPS}",
        )
        self._require("bystander_share", 0 <= self.bystander_share <= 1, "must lie in [0, 1]")

    def _require(self, name: str, condition: bool, what: str) -> None:
        if not condition:
            raise UserError(f"arithmetic.Difficulty: {name} = {getattr(self, name)!r} {what}.")


def load(split: str, settings: DataSettings) -> list[Example]:
    """Generates the problems of a split; needs no DATA_DIR."""
    del settings
    examples: list[dict[str, str]] = [
        {
            "id": f"arithmetic-{split}-{number}",
            "input": problem.input,
            "label": problem.label,
            "rationale": "",
            "llm_label": problem.label,
            "llm_rationale": problem.rationale,
            **{name: getattr(problem, name) for name in FURTHER_FIELDS},
        }
        for number, problem in enumerate(_problems(split, Difficulty()))
    ]
    return cast(list[Example], examples)


@functools.lru_cache(maxsize=len(SPLITS))  # The vocabulary is trained on what is learned later.
def _problems(split: str, chosen: Difficulty) -> Sequence[Problem]:
    return make_problems(
        split,
        getattr(chosen, f"{split}_examples"),
        seed=chosen.problem_seed,
        min_steps=chosen.min_steps,
        max_steps=chosen.max_steps,
        bystander_share=chosen.bystander_share,
    )


register_dataset("arithmetic", load=load, scorer="exact_match", own_validation=True)
