"""Trains runs of one shape in one program, each with its own λ, learning rate, seed and examples.

Each run's folder ends as if it had been trained alone: the same batches in the same order, the same
checkpoints and records, parameters equal up to the order of sums. So a run that was begun here can
go on alone, and the other way round; see `lanes`. Runs that train adapters (LoRA) of the same
weights read and hold these weights once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any

from sbs_jax.checkpoints import record
from sbs_jax.checkpoints.manager import CheckpointManager
from sbs_jax.configuration import dump
from sbs_jax.data import pipeline
from sbs_jax.data.settings import DataSettings
from sbs_jax.data.vocabulary import require_fit
from sbs_jax.errors import UserError, unglue
from sbs_jax.evaluation.evaluator import Evaluator
from sbs_jax.experiments import runs as runs_lib
from sbs_jax.experiments import single
from sbs_jax.experiments.grid import Run
from sbs_jax.experiments.lanes import Lanes, LaneState, make_lane_step
from sbs_jax.experiments.runs import SweepFolder
from sbs_jax.partitioning.stopping import StopRequest
from sbs_jax.programs import running
from sbs_jax.programs.assembly import Assembly, assemble
from sbs_jax.progress import Progress
from sbs_jax.student import Student


@dataclasses.dataclass
class Lane:
    """One run of the group.

    Attributes:
      run: the run of the grid.
      assembly: the run, put together as it is when it is trained alone; the student is shared.
      config_text: the final configuration of the run.
      step: the number of steps done.
      error: the exception that ended it before its last step.
    """

    run: Run
    assembly: Assembly
    config_text: str
    step: int = 0
    error: BaseException | None = None


def train_and_judge(
    sweep: SweepFolder, base: runs_lib.Base, runs: Sequence[Run], *, until: float = 1.0
) -> None:
    """Trains runs together up to a share of their steps; at the end of all, judges them.

    Raises:
      UserError: runs cannot be trained, or some of them failed; the others are done then.
      InterruptedError: a signal asked to stop.
    """
    started = time.monotonic()
    lanes: list[Lane] = []
    bases: dict[str, Any] = {}
    for run in runs:
        lanes.append(
            read_lane(sweep, base, run, lanes[0].assembly.student if lanes else None, bases)
        )
    if len(apart := _by_learning_rate(lanes)) > 1:
        failures = []
        for some in apart:
            try:
                train_and_judge(sweep, base, some, until=until)
            except UserError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return
    with contextlib.ExitStack() as accepted:
        for lane in lanes:
            accepted.enter_context(running.accepted(lane.assembly))
        group = RunGroup(lanes)
        with StopRequest() as stop:
            group.train(stop, until)
    seconds = (time.monotonic() - started) / len(lanes)
    for lane in lanes:
        spent = seconds + sweep.record(lane.run.name).get("seconds", 0.0)
        sweep.write_record(lane.run.name, seconds=round(spent, 2))
    if stop.signal is not None:
        raise InterruptedError
    for lane in lanes:
        if lane.error is None and until < 1.0:
            sweep.write_rung(lane.run.name, until)
        elif lane.error is None:
            _judge(sweep, base, group, lane)
    if failed := [lane for lane in lanes if lane.error is not None]:
        for lane in failed:
            assert lane.error is not None
            if not isinstance(lane.error, UserError):
                traceback.print_exception(lane.error)
            print(f"{lane.run.name}: {unglue(lane.error)}", flush=True)
        raise UserError(f"{len(failed)} of {len(lanes)} runs that were trained together failed.")


def _by_learning_rate(lanes: Sequence[Lane]) -> list[list[Run]]:
    """The runs, apart by learning rate where an optimizer of the user's own cannot be given one."""
    groups: dict[Any, list[Run]] = {}
    for lane in lanes:
        remakes = lane.assembly.optimizer.remake is not None
        rate = None if remakes else lane.run.bindings.get("LEARNING_RATE")
        groups.setdefault(rate, []).append(lane.run)
    return list(groups.values())


def _judge(sweep: SweepFolder, base: runs_lib.Base, group: RunGroup, lane: Lane) -> None:
    begun = time.monotonic()
    scores = single.judge(lane.assembly, group.judge)
    single.record(
        sweep,
        lane.run.name,
        base.config(lane.run, lane.assembly.config.folder),
        lane.assembly,
        scores,
        sweep.record(lane.run.name)["seconds"] + time.monotonic() - begun,
    )


class RunGroup:
    """Runs that are trained together: what they share, and the program.

    Attributes:
      lanes: the runs.
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        """Reads the data.

        Raises:
          UserError: it cannot be read, or the runs do not fit one program.
        """
        self.lanes = list(lanes)
        self._first = lanes[0].assembly
        for lane in self.lanes[1:]:
            _check_alike(self._first, lane)
        self._serial = threading.Lock()
        self._share_vocabulary()
        self._batches = self._load()
        self._evaluator: Evaluator | None = None

    @functools.cached_property
    def judge(self) -> Evaluator:
        """Evaluates a selected checkpoint; validation and test are the same for all lanes."""
        return single.judging_evaluator(self._first)

    def train(self, stop: StopRequest, until: float = 1.0) -> None:
        """Trains all lanes, each in a thread; `Lane.error` says which failed."""
        first = self._first
        optimizers = [lane.assembly.optimizer for lane in self.lanes]
        differ = len({lane.run.bindings.get("LEARNING_RATE") for lane in self.lanes}) > 1
        lane_step = make_lane_step(
            first.student,
            first.optimizer,
            first.loss,
            learning_rates=[own.learning_rate for own in optimizers] if differ else None,
            num_microbatches=first.config.batching.num_microbatches,
        )
        meeting = Lanes(
            first.student,
            lane_step,
            first.abstract_state,
            # Lanes share a schedule of a weight, which leaves nothing to tell them apart by.
            [
                {
                    name: weight or 0.0
                    for name, weight in lane.assembly.loss.constant_weights.items()
                }
                for lane in self.lanes
            ],
            stopping=lambda: stop.signal is not None,
            adapters=first.config.lora is not None,
        )
        if first.config.evaluation.splits:
            self._evaluator = first.evaluator()
        threads = [
            threading.Thread(
                target=self._train_lane,
                args=(number, meeting, _LaneStop(stop, meeting), until),
                name=f"lane-{number}",
            )
            for number in range(len(self.lanes))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(timeout=0.5)  # Signals are handled in between.

    def _train_lane(self, number: int, meeting: Lanes, stop: StopRequest, until: float) -> None:
        lane = self.lanes[number]
        run = lane.assembly
        try:
            checkpoints = run.checkpoints(_LaneCheckpoints)
            assert isinstance(checkpoints, _LaneCheckpoints)
            checkpoints.serial = self._serial
            finished = running.fit(
                run,
                stop=stop,
                progress=Progress(enabled=number == 0),
                checkpoints=checkpoints,
                config_text=lane.config_text,
                batches=self._batches[number],
                evaluate=None
                if self._evaluator is None
                else functools.partial(self._evaluate, run),
                step_fn=lambda state, batch: meeting.step(number, state, batch),
                # All lanes' batches go to the devices together.
                to_device=lambda batch: batch,
                train_steps=single.steps_until(run.config.train_steps, until),
                restoring=self._serial,
            )
            lane.step = finished.step
        except BaseException as error:
            lane.error = error
        finally:
            meeting.leave(number)

    def _evaluate(self, run: Assembly, state: LaneState, step: int) -> Any:
        assert self._evaluator is not None
        with self._serial:
            return run.evaluate_with(self._evaluator, state.params, step)

    def _share_vocabulary(self) -> None:
        """Trains the vocabulary once; it does not depend on what the lanes differ in."""
        first = self._first
        require_fit(first.task.vocabulary, first.config.model_config.vocab_size)
        source = first.config.folder / "vocabulary"
        for lane in self.lanes[1:]:
            target = lane.assembly.config.folder / "vocabulary"
            if source.is_dir() and not record.kept_vocabulary(target.parent).is_file():
                shutil.copytree(source, target, dirs_exist_ok=True)

    def _load(self) -> list[pipeline.TrainBatches]:
        loaded: dict[DataSettings, pipeline.Records] = {}
        batches = []
        for lane in self.lanes:
            run = lane.assembly
            data = run.task.settings
            drawn = data.train_fraction != 1 or data.train_examples is not None
            key = dataclasses.replace(data, model_dir=None, seed=data.seed if drawn else 0)
            if key not in loaded:
                loaded[key] = run.records
                print(f"{run.task.name}: {loaded[key].counts}", flush=True)
            batches.append(run.batches(loaded[key]))
        return batches


def _check_alike(first: Assembly, lane: Lane) -> None:
    """Refuses a run that differs in more than a lane may; a macro NAME_WEIGHT may mean anything."""
    other = lane.assembly

    def shared(run: Assembly) -> dict[str, Any]:
        constant = {name: 1.0 for name, w in run.loss.constant_weights.items() if w is not None}
        remake = run.optimizer.remake
        return {
            "MODEL": run.config.model_config,
            "TASK_FEATURE_LENGTHS, BATCH_SIZE and the like": run.batching,
            "the task": run.task.name,
            "PARTS": (run.loss.names, run.loss.normalizations, sorted(constant)),
            "LABEL_SMOOTHING or Z_LOSS": (run.loss.label_smoothing, run.loss.z_loss),
            "FREEZE": run.config.freeze,
            "the optimizer": remake and (remake.func.__name__, remake.keywords),
        }

    if other.config.batching.padding_free:
        raise UserError(
            f"{lane.run.name}: PADDING_FREE = True gives runs batches of different sizes, where "
            "one program needs equal ones; leave it or --vectorize out."
        )
    for (name, ours), theirs in zip(shared(first).items(), shared(other).values(), strict=True):
        if ours != theirs:
            raise UserError(
                f"{lane.run.name}: differs from the runs that it is to be trained together with in "
                f"{name}, where one program allows weights, learning rates, seeds and training "
                "examples; leave --vectorize out."
            )


class _LaneCheckpoints(CheckpointManager):
    """Cuts a lane's state out of the stack when it is saved, one lane at a time."""

    serial: threading.Lock

    def save(self, step: int, state: Any, **options: Any) -> None:
        with self.serial:
            super().save(step, state.materialize(), **options)


class _LaneStop(StopRequest):
    """A lane's view of the request that the main thread handles."""

    def __init__(self, shared: StopRequest, lanes: Lanes) -> None:
        super().__init__()
        self._shared, self._lanes = shared, lanes

    def agreed(self, after: Any = None) -> bool:
        return self._lanes.stops

    @property
    def name(self) -> str:
        return self._shared.name

    def __enter__(self) -> _LaneStop:
        return self

    def __exit__(self, *exception: object) -> None:
        """The main thread puts the signals' handlers back."""


def read_lane(
    sweep: SweepFolder,
    base: runs_lib.Base,
    run: Run,
    student: Student | None,
    bases: dict[str, Any],
) -> Lane:
    """Reads a run's configuration, and puts the run together.

    Args:
      sweep: the folder of the sweep.
      base: what all runs of it share.
      run: the run.
      student: the student of the runs that it is trained with; None for the first of them.
      bases: weights that several runs adapt, by digest.
    """
    config = single.apply(base, run, sweep.folder(run.name))
    text = f"# {run.name}\n\n{dump.config_text()}"
    return Lane(run, assemble(config, student=student, bases=bases), text)
