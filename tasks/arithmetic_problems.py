"""Multi-step arithmetic word problems and a scripted teacher that explains them. Pure Python.

    Ben has four pears. Ana has seven apples, buys two, drops three. How many does Ana have?

The scripted teacher writes ``Ana has 7. 7+2=9. 9-3=6.``; the label is ``6``. So a student has to
find out whose numbers count, what each verb does to them, and to carry the result from one step to
the next: an explanation says all of this, a label only what comes of it.

Everything follows from a seed, and no text of one split occurs in another.
"""

from __future__ import annotations

import dataclasses
import random
import zlib

SPLITS = ("train", "validation", "test")
TRAIN_TENTHS = 8
"""Tenths of all texts that belong to the training split; validation and test have one each."""

LARGEST = 9
"""Every number and every result lies in 0 .. 9, one token each."""
LARGEST_CHANGE = 4

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAMES = ("Ana", "Ben", "Cara", "Dan", "Eva", "Finn", "Gus", "Ida", "Jon", "Kim", "Lea", "Max")
THINGS = (
    "apples", "books", "cards", "coins", "marbles", "nuts", "pears", "pens", "rings", "shells",
    "stamps", "stones",
)  # fmt: skip
GAINS = ("buys", "collects", "earns", "finds", "gets", "makes", "picks", "wins")
LOSSES = ("breaks", "drops", "eats", "gives", "lends", "loses", "sells", "uses")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem, its answer, and the scripted teacher's explanation.

    Attributes:
      input: the story and the question.
      label: the answer, a whole number.
      rationale: the scripted teacher's: the first number, then an equation a step.
      second_rationale: another scripted teacher's rationale: the results alone, in their order.
      expression: arithmetic that gives the answer.
      backward_question: the story with its first number left out and its answer given; it asks for
        that number.
      backward_rationale: the scripted teacher's for it, from the answer to the first number.
      candidate: a rationale that is to be judged; half of them end in a wrong result.
      evaluation: ``right`` or ``wrong``, what `candidate` is.
    """

    input: str
    label: str
    rationale: str
    second_rationale: str
    expression: str
    backward_question: str
    backward_rationale: str
    candidate: str
    evaluation: str


def make_problems(
    split: str,
    count: int,
    *,
    seed: int = 0,
    min_steps: int = 2,
    max_steps: int = 2,
    bystander_share: float = 0.3,
) -> list[Problem]:
    """Makes the problems of a split.

    The first `count` problems of a larger count are the same.

    Args:
      split: ``train``, ``validation`` or ``test``.
      count: number of problems; no two have the same text.
      seed: seed of all random choices.
      min_steps: least number of changes of the number that is asked for.
      max_steps: largest number of changes; all numbers of changes are equally frequent.
      bystander_share: share of the problems that also give another person's numbers.

    Returns:
      The problems.

    Raises:
      ValueError: an argument is out of its range.
    """
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}; there are {', '.join(SPLITS)}")
    if not 1 <= min_steps <= max_steps or not 0 <= bystander_share <= 1 or count < 0:
        raise ValueError("1 <= min_steps <= max_steps, 0 <= bystander_share <= 1 and count >= 0")
    rng = random.Random(f"{seed} {split}")
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        steps = rng.randint(min_steps, max_steps)
        problem = _tell(rng, *_numbers(rng, steps), rng.random() < bystander_share)
        if split_of(problem.input) == split:
            problems.setdefault(problem.input, problem)
    return list(problems.values())


def split_of(text: str) -> str:
    """Returns the split that a problem of this text belongs to, the same for every seed."""
    tenth = zlib.crc32(text.encode()) % 10
    if tenth < TRAIN_TENTHS:
        return "train"
    return "validation" if tenth == TRAIN_TENTHS else "test"


def explain(name: str, start: int, changes: list[int]) -> str:
    """Returns the scripted teacher's rationale: every step with its result."""
    sentences = [f"{name} has {start}."]
    total = start
    for change in changes:
        sentences.append(f"{total}{change:+}={total + change}.")
        total += change
    return " ".join(sentences)


def _numbers(rng: random.Random, steps: int) -> tuple[int, list[int]]:
    """Returns a first number and changes that never leave 0 .. `LARGEST`."""
    start = total = rng.randint(2, LARGEST)  # never "one apples"
    changes = []
    for _ in range(steps):
        possible = [
            change
            for change in range(-LARGEST_CHANGE, LARGEST_CHANGE + 1)
            if change and 0 <= total + change <= LARGEST
        ]
        changes.append(rng.choice(possible))
        total += changes[-1]
    return start, changes


def _tell(rng: random.Random, start: int, changes: list[int], bystander: bool) -> Problem:
    name, other = rng.sample(NAMES, 2)
    things, other_things = rng.sample(THINGS, 2)
    own = _sentence(rng, name, things, start, changes)
    sentences = [own]
    if bystander:
        sentences.append(_sentence(rng, other, other_things, *_numbers(rng, steps=0)))
        rng.shuffle(sentences)
    text = " ".join([*sentences, f"How many does {name} have?"])
    results = [start + sum(changes[:done]) for done in range(len(changes) + 1)]
    rationale = explain(name, start, changes)
    # No further random numbers: problems are what they were before they had further fields.
    is_wrong = zlib.crc32(rationale.encode() + text.encode()) % 2 == 1
    wrong = results[-1] + (1 if results[-1] < LARGEST else -1)
    return Problem(
        input=text,
        label=str(results[-1]),
        rationale=rationale,
        second_rationale=", then ".join(map(str, results)) + ".",
        expression=f"{start}" + "".join(f"{change:+}" for change in changes),
        backward_question=(
            f"{own.replace(NUMBERS[start], 'some', 1)} Now {name} has {results[-1]}. "
            f"How many did {name} have?"
        ),
        backward_rationale=explain(name, results[-1], [-change for change in reversed(changes)]),
        candidate=f"{rationale.removesuffix(f'{results[-1]}.')}{wrong}." if is_wrong else rationale,
        evaluation="wrong" if is_wrong else "right",
    )


def _sentence(rng: random.Random, name: str, things: str, start: int, changes: list[int]) -> str:
    clauses = [f"{name} has {NUMBERS[start]} {things}"]
    for change in changes:
        clauses.append(f"{rng.choice(GAINS if change > 0 else LOSSES)} {NUMBERS[abs(change)]}")
    return ", ".join(clauses) + "."
