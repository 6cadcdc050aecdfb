"""Searches for the smallest student and the least data that beat a target: real runs, few of them.

The grid is that of a sweep, with an axis of sizes (`SIZE`, `gin_file` or `MODEL`) and one of data
(`TRAIN_FRACTION` or `TRAIN_EXAMPLES`); all seeds of a point are trained, and their mean accuracy on
validation decides where the search goes on. Each combination of the other axes has a search of its
own. See `staircase`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from sbs_jax.configuration import flags as flags_lib
from sbs_jax.errors import UserError
from sbs_jax.experiments import cost, planning, staircase, sweeping, table
from sbs_jax.experiments.grid import Axis, Run
from sbs_jax.experiments.planning import SweepPlan
from sbs_jax.experiments.sweeping import AtWork, Sweeping
from sbs_jax.files import atomic_write_text

SIZE_AXES = ("SIZE", "MODEL", "gin_file")
DATA_AXES = ("TRAIN_FRACTION", "TRAIN_EXAMPLES")


@dataclasses.dataclass(frozen=True)
class Space:
    """What is searched.

    Attributes:
      sizes: labels of the axis of sizes, those with the fewest parameters first.
      shares: labels of the axis of data, the least first.
      others: the combinations of the other axes, the seed aside.
      runs: the runs of all seeds, by combination, size and share.
    """

    sizes: list[str]
    shares: list[str]
    others: list[str]
    runs: dict[tuple[str, str, str], list[Run]]

    @property
    def seeds(self) -> int:
        """Runs of a point."""
        return max(len(runs) for runs in self.runs.values())

    @property
    def budget(self) -> int:
        """The most runs that are trained."""
        points = staircase.budget(len(self.sizes), len(self.shares))
        return points * self.seeds * len(self.others)


def run(argv: Sequence[str], console: Console | None = None) -> int:
    """Searches as the command line says; returns the exit code, as `sweeping.run`.

    Raises:
      UserError: something the user gave does not work.
    """
    console = console or Console(highlight=False, markup=False)
    mine, others = parser().parse_known_args(list(argv))
    if mine.target is None or not 0.0 < mine.target < 1.0:
        raise UserError("Give --target=ACCURACY, between 0 and 1: what the student is to reach.")
    own, flags = planning.parse(others)
    sweep = planning.sweep_folder(own)
    plan = planning.read_plan(own, flags, argv, sweep)
    plan = dataclasses.replace(plan, command=plan.command.replace(".sweep ", ".frontier ", 1))
    space = make_space(plan)
    tell_budget(plan, space, console)
    if flags.dry_run:
        console.print("dry run: nothing was trained or written.")
        return 0
    with sweep.locked("sweep"):
        shown = table.LiveTable([], console)
        state = Sweeping(dataclasses.replace(plan, runs=[]), sweep, shown)
        with shown, AtWork(state, sweeping.make_engine(plan, sweep)) as work:
            found = {}
            for other in space.others:
                try:
                    found[other] = _search(work, state, plan, space, other, mine.target)
                except InterruptedError:
                    console.print("Stopped; the same command goes on.")
                    return 130
    atomic_write_text(
        sweep.path / "frontier.json",
        json.dumps(
            {
                "target": mine.target,
                "budget": space.budget,
                "searches": {
                    other: {
                        "visits": [dataclasses.asdict(visit) for visit in visits],
                        "frontier": [
                            dataclasses.asdict(visit) for visit in staircase.frontier(visits)
                        ],
                    }
                    for other, visits in found.items()
                },
            },
            indent=1,
        )
        + "\n",
    )
    show(found, mine.target, console)
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags of the search alone; it has those of a sweep, too."""
    made = flags_lib.Parser(prog="python -m sbs_jax.frontier", add_help=False, allow_abbrev=False)
    made.add_argument(
        "--target",
        type=float,
        metavar="ACCURACY",
        help="what is to be reached on validation, 0 to 1: the teacher's accuracy, say.",
    )
    return made


def make_space(plan: SweepPlan) -> Space:
    """Finds the axes to search among those of a plan, and orders them.

    Raises:
      UserError: there is no axis of sizes or of data, or more than one.
    """
    sizes = _only(plan.axes, SIZE_AXES, "students, from small to large")
    data = _only(plan.axes, DATA_AXES, "training data")
    numbers: dict[str, float] = {}
    params: dict[str, int] = {}
    runs: dict[tuple[str, str, str], list[Run]] = {}
    for one, labels in zip(plan.runs, _labels(plan.axes), strict=True):
        size, share = labels.pop(sizes.name), labels.pop(data.name)
        labels.pop("SEED", None)
        other = ",".join(f"{name.lower()}={label}" for name, label in labels.items())
        student = cost.read_student(plan.configs[one.name])
        params[size] = 0 if student is None else cost.num_params(student)
        numbers[share] = float(data.points[share][data.name])
        runs.setdefault((other, size, share), []).append(one)
    return Space(
        sizes=sorted(params, key=lambda label: params[label]),
        shares=sorted(numbers, key=lambda label: numbers[label]),
        others=list(dict.fromkeys(other for other, _, _ in runs)),
        runs=runs,
    )


def tell_budget(plan: SweepPlan, space: Space, console: Console) -> None:
    """Prints what a search may cost at most, before anything is trained."""
    grid = len(plan.runs)
    console.print(
        f"At most {space.budget} runs ({staircase.budget(len(space.sizes), len(space.shares))} "
        f"points × {space.seeds} seeds × {len(space.others)} searches) instead of the grid's "
        f"{grid}.",
        soft_wrap=True,
    )
    single = planning.estimate_costs(plan, plan.runs, console)
    costs = {
        key: sum(single[one.name].flops or 0.0 for one in runs) for key, runs in space.runs.items()
    }
    if all(costs.values()):
        # Whichever way the stairs go, no path is dearer than the largest points that fit.
        most = 0.0
        for other in space.others:
            mine = sorted((c for (o, _, _), c in costs.items() if o == other), reverse=True)
            most += sum(mine[: staircase.budget(len(space.sizes), len(space.shares))])
        console.print(
            f"At most {cost.in_words(most)} FLOPs instead of {cost.in_words(sum(costs.values()))}.",
            soft_wrap=True,
        )


def show(
    found: dict[str, list[staircase.Visit[str, str]]], target: float, console: Console
) -> None:
    """Prints the points visited and the border."""
    for other, visits in found.items():
        title = f"target {target:.1%} on validation" + (f", {other}" if other else "")
        shown = Table("student", "data", "validation", "beats the target", title=title,
                      box=box.SIMPLE_HEAD)  # fmt: skip
        border = staircase.frontier(visits)
        for visit in visits:
            marks = "yes" if visit.beats else "no"
            shown.add_row(
                visit.size,
                visit.share,
                f"{visit.accuracy:.1%}",
                f"{marks}, with the least data" if visit in border else marks,
            )
        console.print(shown)
        if border:
            least = min(border, key=lambda visit: float(visit.share))
            console.print(
                f"Smallest student: {border[0].size}, with {border[0].share} of the data. Least "
                f"data: {least.share}, with {least.size}.",
                soft_wrap=True,
            )
        else:
            console.print("No student reaches the target.")


def _search(
    work: AtWork, state: Sweeping, plan: SweepPlan, space: Space, other: str, target: float
) -> list[staircase.Visit[str, str]]:
    def accuracy(size: str, share: str) -> float:
        runs = space.runs[other, size, share]
        state.add(runs)
        state.sweep.write(plan.base, plan.axes, state.plan.runs, command=plan.command)
        work.train(runs)
        if work.stopped:
            raise InterruptedError
        scores: list[Any] = [
            (state.sweep.record(one.name).get("validation") or {}).get("accuracy")
            for one in runs
            if state.is_done(one.name)
        ]
        if not scores:
            raise UserError(
                f"All runs of {size} with {share} of the data failed; the search cannot go on."
            )
        return sum(scores) / len(scores)

    return staircase.walk(space.sizes, space.shares, accuracy, target)


def _only(axes: Sequence[Axis], names: Sequence[str], what: str) -> Axis:
    found = [axis for axis in axes if axis.name in names]
    if len(found) != 1:
        raise UserError(
            f"The search needs one axis of {what} ({', '.join(names)}), and the sweep has "
            f"{len(found) or 'none'}."
        )
    return found[0]


def _labels(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """The labels of the point of each run of the grid, in its order."""
    points: list[dict[str, Any]] = [{}]
    for axis in axes:
        points = [{**point, axis.name: label} for point in points for label in axis.points]
    return points
