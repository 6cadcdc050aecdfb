"""Successive halving (Jamieson and Talwalkar 2016): hopeless configurations end early. Pure Python.

All runs train to a first share of their steps; of the configurations (runs that differ in the seed
alone) the better ones by validation go on to the next rung, and so on. Learning-rate schedules are
those of the whole run throughout, so a run that gets to the end is the run without halving.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from sbs_jax.experiments.grid import Run


def shares(factor: int, first: float) -> list[float]:
    """The shares of all steps at which rungs judge, and 1 at the end.

    >>> shares(2, 0.25)
    [0.25, 0.5, 1.0]

    Args:
      factor: each rung has so many times the steps of the one before.
      first: the first share, in (0, 1).
    """
    found = []
    share = first
    while share < 1.0:
        found.append(share)
        share *= factor
    return [*found, 1.0]


def configuration(run: Run) -> str:
    """What a run shares with those that differ from it in the seed alone."""
    others = {name: value for name, value in run.bindings.items() if name != "SEED"}
    return json.dumps(others, sort_keys=True)


def survivors(
    runs: Sequence[Run], accuracies: Mapping[str, float | None], factor: int
) -> list[Run]:
    """The runs that go on: those of the best configurations, one in `factor`, rounded up.

    Args:
      runs: the runs that reached the rung.
      accuracies: the accuracy on validation by run's name; a run without one counts as 0.
      factor: see `shares`.

    Returns:
      In the order of `runs`. Of configurations that are equally good, earlier ones go on.
    """
    scores: dict[str, list[float]] = {}
    for run in runs:
        scores.setdefault(configuration(run), []).append(accuracies.get(run.name) or 0.0)
    means = {name: sum(values) / len(values) for name, values in scores.items()}
    ranked = sorted(means, key=lambda name: -means[name])
    kept = set(ranked[: math.ceil(len(ranked) / factor)])
    return [run for run in runs if configuration(run) in kept]
