"""Trains runs of one shape in one program, each with its own λ, seed and training examples.

Each run's folder ends as if it had been trained alone: the same batches in the same order, the same
checkpoints and records, parameters equal up to the order of sums. So a run that was begun here can
go on alone, and the other way round; see `lanes`.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sbs_jax.checkpoints import folders, loading, record
from sbs_jax.checkpoints.manager import CheckpointManager, restore_params
from sbs_jax.configuration import dump, lookup
from sbs_jax.data import pipeline, registration
from sbs_jax.data import settings as data_settings
from sbs_jax.data.vocabulary import require_fit
from sbs_jax.errors import UserError
from sbs_jax.evaluation.evaluator import Evaluator
from sbs_jax.experiments import runs as runs_lib
from sbs_jax.experiments import single
from sbs_jax.experiments.grid import Run
from sbs_jax.experiments.lanes import Lanes, LaneState, make_lane_step
from sbs_jax.experiments.runs import SweepFolder
from sbs_jax.files import atomic_write_text
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.partitioning.stopping import StopRequest
from sbs_jax.programs.train import fitted_settings, run_metadata, wandb_log
from sbs_jax.progress import Progress
from sbs_jax.student import Student
from sbs_jax.training import placement
from sbs_jax.training.loop import fit
from sbs_jax.training.start import starting_state
from sbs_jax.training.writers import MetricsWriter


@dataclasses.dataclass
class Lane:
    """One run of the group.

    Attributes:
      run: of the grid.
      folder: its MODEL_DIR.
      arguments: of `trainer.train`.
      data: its data settings.
      config_text: its final configuration.
      step: how far it came.
      error: what ended it before its time.
    """

    run: Run
    folder: Path
    arguments: dict[str, Any]
    data: data_settings.DataSettings
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
    lanes = [_read(sweep, base, run) for run in runs]
    with Group(lanes) as group:
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
            if not isinstance(lane.error, UserError):
                traceback.print_exception(lane.error)
            print(f"{lane.run.name}: {lookup.unglue(lane.error)}", flush=True)
        raise UserError(f"{len(failed)} of {len(lanes)} runs that were trained together failed.")


def _judge(sweep: SweepFolder, base: runs_lib.Base, group: Group, lane: Lane) -> None:
    begun = time.monotonic()
    scores = group.judge(lane)
    single.record(
        sweep,
        lane.run.name,
        base.config(lane.run, lane.folder),
        lane.arguments,
        scores,
        sweep.record(lane.run.name)["seconds"] + time.monotonic() - begun,
        data=lane.data,
    )


class Group:
    """Runs that are trained together: what they share, and the program."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        """Reads the data.

        Raises:
          UserError: it cannot be read, or the runs do not fit one program.
        """
        self.lanes = list(lanes)
        first = lanes[0].arguments
        self.task = single.task_name(first)
        mesh = make_mesh(first.get("data_parallel", -1), first.get("model_parallel", 1))
        self.student = Student(first["model_config"], mesh, fsdp=first.get("fsdp", False))
        self._serial = threading.Lock()
        self._scratch = Path(tempfile.mkdtemp(prefix="sbs_jax_group_"))
        self._share_vocabulary()
        self._batches = self._load()
        self._evaluators: dict[tuple[str, ...], Evaluator] = {}

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *exception: object) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)

    def train(self, stop: StopRequest, until: float = 1.0) -> None:
        """Trains all lanes, each in a thread; `Lane.error` says which failed."""
        first = self.lanes[0].arguments
        weights = [lane.arguments.get("rationale_weight", 1.0) for lane in self.lanes]
        schedule = weights[0] if callable(weights[0]) else None
        for weight in weights:
            if schedule is None and not weight >= 0.0:
                raise UserError(f"RATIONALE_WEIGHT = {weight} must not be negative.")
        lane_step = make_lane_step(
            self.student,
            first["optimizer"],
            rationale_weight=schedule,
            loss_normalization=first.get("loss_normalization", "token_mean"),
            label_smoothing=first.get("label_smoothing", 0.0),
            z_loss=first.get("z_loss", 0.0),
            num_microbatches=first.get("num_microbatches", 1),
        )
        abstract = placement.abstract_state(self.student, first["optimizer"], first.get("seed", 0))
        meeting = Lanes(
            self.student,
            lane_step,
            abstract,
            [0.0] * len(weights) if schedule else weights,
            stopping=lambda: stop.signal is not None,
        )
        if first.get("eval_splits", ("validation",)):
            self._evaluator(first["eval_splits"])
        threads = [
            threading.Thread(
                target=self._train_lane,
                args=(number, abstract, meeting, _LaneStop(stop, meeting), until),
                name=f"lane-{number}",
            )
            for number in range(len(self.lanes))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(timeout=0.5)  # Signals are handled in between.

    def judge(self, lane: Lane) -> dict[str, dict[str, Any]]:
        """See `single.judge`."""
        selected = lane.folder / "best" if lane.arguments.get("best_metric") else lane.folder
        checkpoint = folders.find_checkpoint(selected)
        step = int(folders.read_info(checkpoint)["step"])
        info = registration.task_info(self.task)
        rationales = info is not None and info.method in single.WITH_RATIONALES
        abstract = placement.abstract_state(self.student, lane.arguments["optimizer"], 0)
        params = restore_params(checkpoint, abstract.params)
        results = self._evaluator(runs_lib.SPLITS, with_rationales=rationales)(params, step)
        for split in runs_lib.SPLITS:
            self._move(split, step, lane.folder / "predictions" / f"{split}.jsonl")
        with data_settings.override(lane.data):
            single.write_teacher(lane.folder.parent.parent, info, lane.arguments)
        return {**results, "selected": {"step": step}}

    def _train_lane(
        self, number: int, abstract: Any, meeting: Lanes, stop: StopRequest, until: float
    ) -> None:
        lane = self.lanes[number]
        given = lane.arguments
        total = given["train_steps"]
        try:
            with (
                data_settings.override(lane.data),
                _LaneCheckpoints(
                    lane.folder,
                    keep=given.get("keep_checkpoints", 3),
                    best_metric=given.get("best_metric", "validation/accuracy"),
                    best_mode=given.get("best_mode", "max"),
                ) as checkpoints,
                MetricsWriter(
                    lane.folder,
                    wandb=wandb_log(
                        given.get("wandb_project"),
                        self.task,
                        given.get("rationale_weight", 1.0),
                        total,
                        given.get("seed", 0),
                    ),
                ) as writer,
            ):
                checkpoints.serial = self._serial
                with self._serial:
                    start = starting_state(
                        abstract_state=abstract,
                        fresh=lambda: self._fresh_state(lane),
                        checkpoints=checkpoints,
                        initial_checkpoint_path=given.get("initial_checkpoint_path"),
                        load_params=loading.load_params_of,
                    )
                metadata = run_metadata(
                    given["model_config"],
                    self.task,
                    mixture_or_task_module=given.get("mixture_or_task_module"),
                    feature_lengths=given["feature_lengths"],
                    rationale_weight=given.get("rationale_weight", 1.0),
                    loss_normalization=given.get("loss_normalization", "token_mean"),
                    initial_checkpoint=start.initial_checkpoint,
                )
                record.write(lane.folder, given["model_config"], metadata)
                if lane.data.vocabulary_path is not None:
                    record.keep_vocabulary(lane.folder, lane.data.vocabulary_path)
                atomic_write_text(lane.folder / "config.gin", lane.config_text)
                finished = fit(
                    start=start,
                    step_fn=lambda state, batch: meeting.step(number, state, batch),
                    batches=self._batches[number],
                    train_steps=single.steps_until(total, until),
                    # All lanes' batches go to the devices together.
                    to_device=lambda batch: batch,
                    evaluate=lambda state, step: self._evaluate(lane, state, step),
                    eval_period=given.get("eval_period"),
                    checkpoints=checkpoints,
                    checkpoint_period=given.get("checkpoint_period"),
                    metadata=metadata,
                    writer=writer,
                    log_period=given.get("log_period", 10),
                    progress=Progress(enabled=number == 0),
                    stop=stop,
                )
                lane.step = finished.step
        except BaseException as error:
            lane.error = error
        finally:
            meeting.leave(number)

    def _fresh_state(self, lane: Lane) -> Any:
        seed = lane.arguments.get("seed", 0)
        return placement.create_state(
            self.student, self.student.init_params(seed), lane.arguments["optimizer"], seed
        )

    def _evaluate(self, lane: Lane, state: LaneState, step: int) -> dict[str, Any]:
        splits = tuple(lane.arguments.get("eval_splits", ("validation",)))
        with self._serial:
            evaluator = self._evaluator(splits)
            results = evaluator(state.params, step)
            for split in evaluator.num_examples:
                name = f"{split}-{step}.jsonl"
                self._move(split, step, lane.folder / "predictions" / name)
        return results

    def _evaluator(self, splits: Sequence[str], *, with_rationales: bool = False) -> Evaluator:
        """The evaluator of all lanes: their validation and test sets are the same."""
        key = (*splits, str(with_rationales))
        if key not in self._evaluators:
            first = self.lanes[0].arguments
            with data_settings.override(self.lanes[0].data):
                self._evaluators[key] = Evaluator(
                    self.student,
                    self.task,
                    first["feature_lengths"],
                    splits=splits,
                    batch_size=first.get("eval_batch_size") or first["batch_size"],
                    eval_steps=None if splits == runs_lib.SPLITS else first.get("eval_steps"),
                    output_dir=self._scratch,
                    loss_normalization=first.get("loss_normalization", "token_mean"),
                    with_rationales=with_rationales,
                )
        return self._evaluators[key]

    def _move(self, split: str, step: int, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        source = self._scratch / f"{split}-{step}.jsonl"
        if source.exists():
            atomic_write_text(target, source.read_text(encoding="utf-8"))
            source.unlink()

    def _share_vocabulary(self) -> None:
        """Trains the vocabulary once; it does not depend on what the lanes differ in."""
        first = self.lanes[0]
        with data_settings.override(first.data):
            vocabulary = pipeline.load_vocabulary(self.task)
            require_fit(vocabulary, first.arguments["model_config"].vocab_size)
        source = first.folder / "vocabulary"
        for lane in self.lanes[1:]:
            target = lane.folder / "vocabulary"
            if source.is_dir() and not (target / "spiece.model").is_file():
                shutil.copytree(source, target, dirs_exist_ok=True)

    def _load(self) -> list[pipeline.TrainBatches]:
        loaded: dict[data_settings.DataSettings, pipeline.Records] = {}
        batches = []
        for lane in self.lanes:
            given, data = lane.arguments, lane.data
            drawn = data.train_fraction != 1 or data.train_examples is not None
            key = dataclasses.replace(data, model_dir=None, seed=data.seed if drawn else 0)
            if key not in loaded:
                with data_settings.override(data):
                    loaded[key] = pipeline.load_records(
                        self.task, "train", given["feature_lengths"]
                    )
                print(f"{self.task}: {loaded[key].counts}", flush=True)
            batches.append(
                pipeline.TrainBatches(
                    loaded[key],
                    batch_size=given["batch_size"],
                    feature_lengths=given["feature_lengths"],
                    seed=given.get("seed", 0),
                    pack=given.get("pack", True),
                    examples_per_batch=given.get("examples_per_batch"),
                    row_multiple=self.student.mesh.shape["data"] * given.get("num_microbatches", 1),
                )
            )
        return batches


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


def _read(sweep: SweepFolder, base: runs_lib.Base, run: Run) -> Lane:
    folder = sweep.folder(run.name)
    arguments = single.apply(base, run, folder)
    path = arguments.get("initial_checkpoint_path")
    known = path is None or folders.complete_checkpoints(folder)
    source = None if known else loading.identify(path)
    if source is not None:
        loading.require_same_network(source, arguments["model_config"])
    data = fitted_settings(arguments["model_config"], folder, source)
    text = f"# {run.name}\n\n{dump.config_text()}"
    return Lane(run, folder, arguments, data, text)
