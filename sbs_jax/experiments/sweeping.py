"""A sweep at work: finds what is missing, has it run, and says what came of it."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from rich.console import Console

from sbs_jax.errors import UserError
from sbs_jax.experiments import halving, hparams, local, slurm, table
from sbs_jax.experiments import runs as runs_lib
from sbs_jax.experiments.grid import Run
from sbs_jax.experiments.local import Ended, TrainingJob
from sbs_jax.experiments.planning import (
    SweepPlan,
    make_jobs,
    parse,
    read_plan,
    show_plan,
    sweep_folder,
)
from sbs_jax.experiments.runs import SweepFolder


class Sweeping:
    """A sweep at work: counts attempts, writes down failures, keeps the table."""

    def __init__(self, plan: SweepPlan, sweep: SweepFolder, shown: table.LiveTable) -> None:
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
            self.shown.rows[run.name] = table.RunRow(total=self.plan.steps(run.name))

    def pending(self) -> list[Run]:
        """The runs that are missing or broken; those that are done are shown so."""
        for run in self.plan.runs:
            if self.is_done(run.name):
                self.show_done(run.name, quietly=True)
        return [run for run in self.plan.runs if not self.is_done(run.name)]

    def is_done(self, name: str) -> bool:
        """Whether a run is done."""
        return self.sweep.is_done(name, self._prints[name])

    def on_start(self, job: TrainingJob) -> None:
        """A job was started."""
        for name in job.names:
            self._running.add(name)
            self.shown.change(name, table.RUNNING)

    def on_end(self, ended: Ended) -> list[TrainingJob]:
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
            TrainingJob(tuple(retried[start : start + size]), ended.job.until)
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
    console = console or Console(highlight=False, markup=False)
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


def make_engine(
    plan: SweepPlan, sweep: SweepFolder, note: Callable[[str], None] = print
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
                if run not in kept and accuracies[run.name] is not None:
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
