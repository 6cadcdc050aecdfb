"""What a sweep is to do: its command line and gin files, every run checked, and the costs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from sbs_jax.configuration import config as config_lib
from sbs_jax.configuration import flags as flags_lib
from sbs_jax.errors import UserError
from sbs_jax.experiments import cost, grid
from sbs_jax.experiments import runs as runs_lib
from sbs_jax.experiments import settings as settings_lib
from sbs_jax.experiments.grid import Axis, Run
from sbs_jax.experiments.local import TrainingJob
from sbs_jax.experiments.runs import Base, SweepFolder
from sbs_jax.experiments.settings import SweepSettings

LANE_MACROS = ("RATIONALE_WEIGHT", "LEARNING_RATE", "SEED", "TRAIN_FRACTION", "TRAIN_EXAMPLES")
"""Runs that differ in these alone can be trained in one program: λ, the learning rate, random keys,
and which of the data set's training examples come. Everything that has a shape is the same. So is
it with macros of one's own that stand for the weight of a part in PARTS, which are called
``NAME_WEIGHT``."""


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """A sweep, read and checked.

    Attributes:
      base: what all runs share.
      axes: the axes of the grid.
      runs: the runs of the grid, in its order.
      configs: the configuration of each run.
      settings: how it is run.
      command: the command that asked for it.
    """

    base: Base
    axes: list[Axis]
    runs: list[Run]
    configs: Mapping[str, config_lib.GinConfig]
    settings: SweepSettings
    command: str

    @property
    def fingerprints(self) -> dict[str, str]:
        """The checksum of each run's configuration."""
        return {name: runs_lib.fingerprint(config) for name, config in self.configs.items()}

    def steps(self, name: str) -> int:
        """TRAIN_STEPS of a run."""
        return runs_lib.macro(self.configs[name], "TRAIN_STEPS")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, flags_lib.Flags]:
    """Parses the command line: the flags of a sweep, and those that all mains share.

    Raises:
      UserError: a flag is unknown or malformed.
    """
    own, others = parser().parse_known_args(list(argv))
    return own, flags_lib.parse_flags(others)


def parser() -> argparse.ArgumentParser:
    """The flags of a sweep alone."""
    made = flags_lib.Parser(prog="python -m sbs_jax.sweep", add_help=False, allow_abbrev=False)
    add = made.add_argument
    add("--sweep", action="append", default=[], metavar="NAME=VALUES",
        help="an axis: NAME=v1,v2 or NAME=0:4 (0, 1, 2, 3); NAME is a macro, a parameter, or "
        "gin_file; may be repeated, and replaces an axis of that name in SWEEP.")  # fmt: skip
    add("--sweep_dir", metavar="FOLDER", help="where everything goes; the same one goes on.")
    add("--engine", metavar="NAME", help="who runs the runs (ENGINE).")
    for name, text in (
        ("parallel_runs", "processes at a time (PARALLEL_RUNS)."),
        ("devices_per_run", "accelerators of each process (DEVICES_PER_RUN)."),
        ("cpus_per_run", "CPUs of each process (CPUS_PER_RUN)."),
        ("retries", "how often a run that failed is started again (RETRIES)."),
    ):
        add(f"--{name}", type=int, metavar="N", help=text)
    add("--vectorize", type=int, nargs="?", const=1 << 10, metavar="N",
        help="train runs that differ in λ, learning rate, seed and training set alone in one "
        "program, at most N at a time (VECTORIZE).")  # fmt: skip
    return made


def sweep_folder(own: argparse.Namespace) -> SweepFolder:
    """The folder that --sweep_dir names.

    Raises:
      UserError: it is not given.
    """
    if own.sweep_dir is None:
        raise UserError("Give --sweep_dir=PATH, the folder of the sweep.")
    return SweepFolder(own.sweep_dir)


def read_plan(
    own: argparse.Namespace, flags: flags_lib.Flags, argv: Sequence[str], sweep: SweepFolder
) -> SweepPlan:
    """Reads the gin files, and checks the configuration of every run; imports nothing slow.

    Raises:
      UserError: something does not work; the sentence says what.
    """
    whole = config_lib.read(
        flags.gin_file, flags.gin_bindings, flags.gin, flags.gin_search_paths, target=runs_lib.TRAIN
    )
    settings = settings_lib.read(whole)
    given = {
        name: getattr(own, name)
        for name in (
            "engine", "parallel_runs", "devices_per_run", "cpus_per_run", "retries", "vectorize",
        )
        if getattr(own, name) is not None
    }  # fmt: skip
    settings = dataclasses.replace(settings, **given)
    sweeps_own = settings_lib.own_macros(whole)
    base = Base(
        gin_file=flags.gin_file,
        gin_bindings=flags.gin_bindings,
        flags=tuple((name, text) for name, text in flags.gin if name not in sweeps_own),
        gin_search_paths=flags.gin_search_paths,
        working_dir=str(Path.cwd()),
    )
    axes = grid.parse_axes(settings.axes, own.sweep)
    for axis in axes:
        if reserved := sweeps_own & set().union(*axis.points.values()):
            raise UserError(f"SWEEP: {min(reserved)} is the sweep's own; runs cannot differ in it.")
    runs = grid.expand(axes)
    configs = {run.name: base.config(run, sweep.folder(run.name)) for run in runs}
    for config in configs.values():
        runs_lib.check(config)
    command = " ".join(["python -m sbs_jax.sweep", *map(shlex.quote, argv)])
    return SweepPlan(base, axes, runs, configs, settings, command)


def show_plan(plan: SweepPlan, sweep: SweepFolder, console: Console) -> None:
    """Prints the runs and what each costs; trains nothing."""
    shown = Table(box=box.SIMPLE_HEAD)
    shown.add_column("run", overflow="fold")
    for name in ("state", "parameters", "steps", "tokens", "FLOPs"):
        shown.add_column(name, justify="right")
    costs = estimate_costs(plan, plan.runs, console)
    prints = plan.fingerprints
    left = 0
    for name, one in costs.items():
        done = sweep.is_done(name, prints[name])
        left += not done
        shown.add_row(
            name,
            "done" if done else "to run",
            cost.in_words(one.parameters),
            str(one.steps),
            cost.in_words(one.tokens),
            cost.in_words(one.flops),
        )
    console.print(shown)
    total = sum(one.flops or 0.0 for one in costs.values())
    console.print(
        f"{len(costs)} runs, {left} to run, {sum(one.steps for one in costs.values()):,} steps, "
        f"{cost.in_words(total or None)} FLOPs.",
        highlight=False,
    )
    measured = [sweep.record(name).get("seconds") for name in costs]
    seconds = [value for value in measured if value]
    if seconds and left:
        mean = sum(seconds) / len(seconds)
        console.print(
            f"Runs that are done took {mean:.0f} s on average: {mean * left / 60:.0f} minutes "
            "are left, one run at a time.",
            highlight=False,
        )
    jobs = make_jobs([run for run in plan.runs if not sweep.is_done(run.name, prints[run.name])],
                     plan.settings.vectorize)  # fmt: skip
    if plan.settings.vectorize > 1 and jobs:
        sizes = ", ".join(str(len(job.names)) for job in jobs)
        console.print(f"Trained together: {sizes}.", highlight=False)
    console.print("dry run: nothing was trained or written.")


def estimate_costs(plan: SweepPlan, runs: Sequence[Run], console: Console) -> dict[str, cost.Cost]:
    """The cost of each run; of runs with EXAMPLES_PER_BATCH, the first batches are made for it."""
    costs: dict[str, cost.Cost] = {}
    rows: dict[str, float | None] = {}
    for run in runs:
        config = plan.configs[run.name]
        key = lane_key(run)
        if not cost.has_fixed_rows(config) and key not in rows:
            from sbs_jax.experiments import measuring  # Loads TensorFlow.

            try:
                rows[key] = measuring.rows(config)
            except UserError as error:
                console.print(f"{run.name}: {error}", markup=False, soft_wrap=True)
                rows[key] = None
        costs[run.name] = cost.estimate(config, rows.get(key))
    return costs


def lane_key(run: Run) -> str:
    """What runs that can be trained in one program have in common."""
    others = {name: value for name, value in run.bindings.items() if not _is_of_lane(name)}
    return json.dumps(others, sort_keys=True)


def _is_of_lane(name: str) -> bool:
    return name in LANE_MACROS or name.endswith("_WEIGHT")


def make_jobs(runs: Sequence[Run], together: int, until: float = 1.0) -> list[TrainingJob]:
    """Groups runs that one program can train; in the grid's order.

    Args:
      runs: the runs to train.
      together: the most runs in one program.
      until: see `TrainingJob`.
    """
    groups: dict[str, list[str]] = {}
    for run in runs:
        own = (value for name, value in run.bindings.items() if _is_of_lane(name))
        plain = all(isinstance(value, int | float) for value in own)
        key = lane_key(run) if plain and together > 1 else run.name
        groups.setdefault(key, []).append(run.name)
    return [
        TrainingJob(tuple(names[start : start + together]), until)
        for names in groups.values()
        for start in range(0, len(names), together)
    ]
