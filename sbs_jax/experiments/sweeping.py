"""Runs a sweep: reads the grid, finds what is missing, has it run, and says what came of it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from sbs_jax import gin_utils
from sbs_jax.configuration import config as config_lib
from sbs_jax.errors import UserError
from sbs_jax.experiments import cost, grid, halving, hparams, local, slurm, table
from sbs_jax.experiments import runs as runs_lib
from sbs_jax.experiments import settings as settings_lib
from sbs_jax.experiments.grid import Axis, Run
from sbs_jax.experiments.local import Ended, Job
from sbs_jax.experiments.runs import Base, SweepFolder
from sbs_jax.experiments.settings import SweepSettings

LANE_MACROS = ("RATIONALE_WEIGHT", "SEED", "TRAIN_FRACTION", "TRAIN_EXAMPLES")
"""Runs that differ in these alone can be trained in one program: λ, random keys, and which of the
data set's training examples come. Everything that has a shape is the same."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep, read and checked.

    Attributes:
      base: what all runs share.
      axes: of the grid.
      runs: of the grid, in its order.
      configs: by run, its configuration.
      settings: how it is run.
      command: that asked for it.
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


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, gin_utils.Flags]:
    """Parses the command line: the flags of a sweep, and those that all mains share.

    Raises:
      UserError: a flag is unknown or malformed.
    """
    own, others = parser().parse_known_args(list(argv))
    return own, gin_utils.parse_flags(others)


def parser() -> argparse.ArgumentParser:
    """The flags of a sweep alone."""

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> None:  # type: ignore[override]
            raise UserError(f"{message}; see --help.")

    made = Parser(prog="python -m sbs_jax.sweep", add_help=False, allow_abbrev=False)
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
        help="train runs that differ in λ, seed and training set alone in one program, at most N "
        "at a time (VECTORIZE).")  # fmt: skip
    return made


def read_plan(
    own: argparse.Namespace, flags: gin_utils.Flags, argv: Sequence[str], sweep: SweepFolder
) -> Plan:
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
    return Plan(base, axes, runs, configs, settings, command)


def show_plan(plan: Plan, sweep: SweepFolder, console: Console) -> None:
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


def estimate_costs(plan: Plan, runs: Sequence[Run], console: Console) -> dict[str, cost.Cost]:
    """The cost of each run; of runs with EXAMPLES_PER_BATCH, the first batches are made for it."""
    costs, rows = {}, {}
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
    others = {name: value for name, value in run.bindings.items() if name not in LANE_MACROS}
    return json.dumps(others, sort_keys=True)


def make_jobs(runs: Sequence[Run], together: int, until: float = 1.0) -> list[Job]:
    """Groups runs that one program can train; in the grid's order.

    Args:
      runs: to train.
      together: the most runs in one program.
      until: see `Job`.
    """
    groups: dict[str, list[str]] = {}
    for run in runs:
        plain = all(isinstance(run.bindings.get(k, 0), int | float) for k in LANE_MACROS)
        key = lane_key(run) if plain and together > 1 else run.name
        groups.setdefault(key, []).append(run.name)
    return [
        Job(tuple(names[start : start + together]), until)
        for names in groups.values()
        for start in range(0, len(names), together)
    ]


class Sweeping:
    """A sweep at work: counts attempts, writes down failures, keeps the table."""

    def __init__(self, plan: Plan, sweep: SweepFolder, shown: table.LiveTable) -> None:
        self.plan, self.sweep, self.shown = plan, sweep, shown
        self._prints = plan.fingerprints
        self._attempts: dict[str, int] = {}
        self._running: set[str] = set()
        self._read_at = 0.0
        for name, row in shown.rows.items():
            row.total = plan.steps(name)

    def add(self, runs: Sequence[Run]) -> None:
        """Adds runs that the sweep's configurations know, but that it did not have so far."""
        known = {run.name for run in self.plan.runs}
        new = [run for run in runs if run.name not in known]
        self.plan = dataclasses.replace(self.plan, runs=[*self.plan.runs, *new])
        for run in new:
            self.shown.rows[run.name] = table.Row(total=self.plan.steps(run.name))

    def pending(self) -> list[Run]:
        """The runs that are missing or broken; those that are done are shown so."""
        for run in self.plan.runs:
            if self.is_done(run.name):
                self.show_done(run.name, quietly=True)
        return [run for run in self.plan.runs if not self.is_done(run.name)]

    def is_done(self, name: str) -> bool:
        """Whether a run is done."""
        return self.sweep.is_done(name, self._prints[name])

    def on_start(self, job: Job) -> None:
        """A job was started."""
        for name in job.names:
            self._running.add(name)
            self.shown.change(name, table.RUNNING)

    def on_end(self, ended: Ended) -> list[Job]:
        """A job has ended; returns what is to be tried again."""
        self._running -= set(ended.job.names)
        self.shown.refresh({name: self.sweep.progress(name) for name in ended.job.names})
        left = []
        for name in ended.job.names:
            if self.is_done(name):
                self.show_done(name)
            elif self._waits(name, ended):
                self.shown.change(name, table.WAITING)
            else:
                left.append(name)
        retried = []
        for name in left:
            self._attempts[name] = self._attempts.get(name, 0) + 1
            if self._attempts[name] <= self.plan.settings.retries:
                retried.append(name)
            else:
                self._fail(name, ended.code)
        if retried:
            self.shown.note(f"{', '.join(retried)}: {_code(ended.code)}; trying again.")
        # A group that failed as a whole may have been too large for the memory.
        parts = 2 if len(retried) > 1 and len(retried) == len(ended.job.names) else 1
        size = -(-len(retried) // parts)
        return [
            Job(tuple(retried[start : start + size]), ended.job.until)
            for start in range(0, len(retried), size or 1)
        ]

    def on_tick(self) -> None:
        """Refreshes the table, but not more than once a second."""
        if time.monotonic() - self._read_at > 1.0:
            self.shown.refresh({name: self.sweep.progress(name) for name in self._running})
            self._read_at = time.monotonic()

    def stop_early(self, run: Run, share: float) -> None:
        """Writes down that halving has ended a run."""
        accuracy = self.sweep.rung(run.name, share)
        self.sweep.write_record(
            run.name, status=runs_lib.STOPPED, validation={"accuracy": accuracy}, stopped_at=share
        )
        self.show_done(run.name)

    def show_done(self, name: str, *, quietly: bool = False) -> None:
        """Puts a run's end into the table; prints no line if `quietly`."""
        record = self.sweep.record(name)
        score = (record.get("validation") or {}).get("accuracy")
        status = table.STOPPED if record.get("status") == runs_lib.STOPPED else table.DONE
        if quietly:
            self.shown.rows[name].status, self.shown.rows[name].score = status, score
        else:
            self.shown.change(name, status, score=score)

    def _waits(self, name: str, ended: Ended) -> bool:
        """Whether nothing went wrong with a run that is not done."""
        if ended.job.until < 1.0 and self.sweep.rung(name, ended.job.until) is not None:
            return True
        return ended.interrupted and ended.code != 1

    def _fail(self, name: str, code: int) -> None:
        lines = self.sweep.log_lines(name)
        self.sweep.write_record(
            name, status=runs_lib.FAILED, fingerprint=self._prints[name], error=lines
        )
        self.shown.change(name, table.FAILED)
        self.shown.note(f"{name}: {_code(code)}. The last lines of its train.log:")
        for line in lines:
            self.shown.note(f"    {line}")


def run(argv: Sequence[str], console: Console | None = None) -> int:
    """Runs a sweep as the command line says; returns the exit code.

    Returns:
      0 when all runs are done, 1 when some failed, 130 when a signal stopped the sweep.

    Raises:
      UserError: something the user gave does not work.
    """
    console = console or Console(highlight=False)
    own, flags = parse(argv)
    sweep = sweep_folder(own)
    plan = read_plan(own, flags, argv, sweep)
    if flags.dry_run:
        show_plan(plan, sweep, console)
        return 0
    with sweep.locked("sweep"):
        shown = table.LiveTable([run.name for run in plan.runs], console)
        sweeping = Sweeping(plan, sweep, shown)
        pending = sweeping.pending()
        sweep.write(plan.base, plan.axes, plan.runs, command=plan.command)
        done = len(plan.runs) - len(pending)
        console.print(f"{len(plan.runs)} runs, {done} done already; {sweep.path}", soft_wrap=True)
        with shown, AtWork(sweeping, make_engine(plan, sweep, shown.note)) as work:
            if plan.settings.halving_factor is None:
                work.train(pending)
            else:
                work.halve(plan.settings.halving_factor, plan.settings.halving_first)
    if work.stopped:
        console.print("Stopped; the same command goes on.")
        return 130
    hparams.write(sweep, [run.name for run in plan.runs])
    failed = [name for name, row in shown.rows.items() if row.status == table.FAILED]
    early = sum(row.status == table.STOPPED for row in shown.rows.values())
    console.print(
        f"{len(plan.runs) - len(failed)} of {len(plan.runs)} runs are done"
        + (f" ({early} ended early)" if early else "")
        + (f"; failed: {', '.join(failed)}." if failed else ".")
        + f" python -m sbs_jax.report {sweep.path} shows them.",
        soft_wrap=True,
    )
    return 1 if failed else 0


def sweep_folder(own: argparse.Namespace) -> SweepFolder:
    """The folder that --sweep_dir names.

    Raises:
      UserError: it is not given.
    """
    if own.sweep_dir is None:
        raise UserError("Give --sweep_dir=PATH, the folder of the sweep.")
    return SweepFolder(own.sweep_dir)


def make_engine(
    plan: Plan, sweep: SweepFolder, note: Callable[[str], None] = print
) -> local.LocalEngine | slurm.SlurmEngine:
    """The engine that the settings name.

    Raises:
      UserError: there is none of that name, or it cannot work here.
    """
    if plan.settings.engine == "slurm":
        return slurm.SlurmEngine(
            sweep,
            plan.settings.slurm or {},
            parallel_runs=plan.settings.parallel_runs,
            note=note,
        )
    if plan.settings.engine != "local":
        raise UserError(f"ENGINE = {plan.settings.engine!r} must be 'local' or 'slurm'.")
    slots = local.plan_slots(
        plan.settings, cpus=local.find_cpus(), accelerators=local.find_accelerators()
    )
    return local.LocalEngine(sweep, slots)


class AtWork:
    """An engine at work on a sweep.

    While it is open, the first SIGINT or SIGTERM asks all runs to save and stop, the second ends
    them at once.
    """

    def __init__(self, sweeping: Sweeping, engine: Any) -> None:
        self._sweeping, self._engine = sweeping, engine
        self._signals = 0
        self._previous: dict[int, Any] = {}

    @property
    def stopped(self) -> bool:
        """Whether a signal came."""
        return self._signals > 0

    def train(self, runs: Sequence[Run], until: float = 1.0) -> None:
        """Has runs trained to a share of their steps, as far as they are not."""
        sweeping = self._sweeping
        missing = []
        for run in runs:
            if sweeping.is_done(run.name):
                sweeping.show_done(run.name)
            elif until >= 1.0 or sweeping.sweep.rung(run.name, until) is None:
                missing.append(run)
        self._engine.run(
            make_jobs(missing, sweeping.plan.settings.vectorize, until),
            on_start=sweeping.on_start,
            on_end=sweeping.on_end,
            on_tick=sweeping.on_tick,
        )

    def halve(self, factor: int, first: float) -> None:
        """Trains all runs by successive halving; see `halving`.

        A sweep that was stopped comes to the same decisions again: they are made from what
        run.json says of each rung.
        """
        sweeping = self._sweeping
        runs = list(sweeping.plan.runs)
        for share in halving.shares(factor, first):
            self.train(runs, share)
            if self.stopped or share >= 1.0:
                break
            accuracies = {run.name: sweeping.sweep.rung(run.name, share) for run in runs}
            kept = halving.survivors(runs, accuracies, factor)
            for run in runs:
                if run not in kept:
                    sweeping.stop_early(run, share)
            configurations = {halving.configuration(run) for run in kept}
            sweeping.shown.note(
                f"After {share:.0%} of the steps, {len(configurations)} configurations go on "
                f"({len(kept)} of {len(runs)} runs)."
            )
            runs = kept

    def __enter__(self) -> AtWork:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals == 1:
            self._engine.stop()
        else:
            self._engine.kill()


def _code(code: int) -> str:
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"failed with exit code {code}"
