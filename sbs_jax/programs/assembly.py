"""Where a training run is put together, once: student, step, data, evaluator and what it writes.

`assemble` takes a `TrainConfig`, which gin builds from gin/runs/train.gin. The train program, its
dry run, runs that are trained together in one program (`experiments.vectorized`) and the measuring
of batches (`experiments.measuring`) all use what it returns, so they cannot differ.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from sbs_jax import files, remote
from sbs_jax.checkpoints import folders, loading, networks, record
from sbs_jax.checkpoints import lora as lora_lib
from sbs_jax.checkpoints.manager import CheckpointManager
from sbs_jax.data import auto_lengths, pipeline
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.batch_arrays import array_shapes
from sbs_jax.data.batching import AUTO, Batching, TrainBatches
from sbs_jax.data.resolving import ResolvedTask, TaskChoice, resolve_task
from sbs_jax.data.settings import DataSettings
from sbs_jax.data.vocabulary import require_fit
from sbs_jax.errors import UserError
from sbs_jax.evaluation.evaluator import Evaluator, write_predictions
from sbs_jax.models import costs
from sbs_jax.models.decoder.config import DecoderConfig
from sbs_jax.models.interface import ModelConfig, config_to_json, default_prefix_side
from sbs_jax.partitioning.distributed import to_global
from sbs_jax.partitioning.mesh import MeshSettings, check_batch_size
from sbs_jax.partitioning.stopping import StopRequest
from sbs_jax.programs import resuming
from sbs_jax.progress import Progress
from sbs_jax.student import Student
from sbs_jax.text_tokenizer import default_frame
from sbs_jax.training import optimizers, placement
from sbs_jax.training.loop import FLOPS, EvaluateFn, Finished, StepFn, batch_counts, fit
from sbs_jax.training.mlflow_log import MlflowLog
from sbs_jax.training.optimizers import Optimizer
from sbs_jax.training.profiling import Profile
from sbs_jax.training.start import Start, starting_state
from sbs_jax.training.state import TrainState
from sbs_jax.training.step import Loss, make_train_step
from sbs_jax.training.wandb_log import WandbLog
from sbs_jax.training.writers import MetricsWriter, Tracker


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """When a student is evaluated during training, and on what.

    Attributes:
      period: steps between evaluations; None evaluates after the last step alone.
      steps: number of batches of each split, at most; None takes all.
      splits: the splits that are evaluated; () evaluates none.
      batch_size: rows that are decoded at a time; None takes `Batching.batch_size`.
    """

    period: int | None = 1000
    steps: int | None = None
    splits: Sequence[str] = ("validation",)
    batch_size: int | None = None


@dataclasses.dataclass(frozen=True)
class Saving:
    """What a run writes into MODEL_DIR, how often, and where its first parameters come from.

    Attributes:
      initial_checkpoint_path: where the first parameters come from, and the vocabulary if none is
        named; see `checkpoints.loading.identify`. None initialises them from the seed. A resumed
        run needs its MODEL_DIR alone.
      checkpoint_period: steps between checkpoints; None saves after the last step alone (and the
        best).
      keep_checkpoints: how many of the latest checkpoints are kept; None keeps all.
      best_metric: the checkpoint with the best value of this metric is kept, too; None keeps none.
      best_mode: whether `best_metric` should be large (`max`) or small (`min`).
      log_period: steps in a line of metrics.jsonl.
      wandb_project: the project of Weights & Biases that is sent the metrics; None disables it.
      mlflow_experiment: the experiment of MLflow that is sent the metrics; None disables it.
      profile_steps: the steps that are profiled, `10:15` for steps 10 to 14; the trace lies in
        `MODEL_DIR/profile`. None profiles none.
    """

    initial_checkpoint_path: str | None = None
    checkpoint_period: int | None = 1000
    keep_checkpoints: int | None = 3
    best_metric: str | None = "validation/accuracy"
    best_mode: Literal["max", "min"] = "max"
    log_period: int = 10
    wandb_project: str | None = None
    mlflow_experiment: str | None = None
    profile_steps: str | None = None


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The configuration of a training run; every attribute has a gin macro (gin/runs/train.gin).

    Attributes:
      model_config: the student's dimensions.
      model_dir: where everything is written; may be relative, or `gs://…`.
      task: what is trained.
      batching: how records become batches.
      optimizer: from `training.optimizers`.
      freeze: regular expressions; parameters whose path contains one are not trained, see
        `training.optimizers.freeze`.
      train_steps: the step to end at, counted from the beginning of the run.
      data: how data sets are read; None takes the settings in force.
      loss: the weights and regularisers of the loss.
      mesh: how devices are arranged.
      evaluation: when the student is evaluated, and on what.
      saving: what the run writes, and where its first parameters come from.
      seed: the seed of parameters, dropout and the order of the data.

    Raises:
      UserError: a value is out of its range.
    """

    model_config: ModelConfig
    model_dir: str
    task: TaskChoice
    batching: Batching
    optimizer: Optimizer
    train_steps: int
    data: DataSettings | None = None
    loss: Loss = dataclasses.field(default_factory=Loss)
    mesh: MeshSettings = dataclasses.field(default_factory=MeshSettings)
    evaluation: EvaluationSettings = dataclasses.field(default_factory=EvaluationSettings)
    saving: Saving = dataclasses.field(default_factory=Saving)
    freeze: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name, number in (
            ("TRAIN_STEPS", self.train_steps),
            ("BATCH_SIZE", self.batching.batch_size),
        ):
            if number < 1:
                raise UserError(f"{name} = {number} must be at least 1.")

    @property
    def optimizer_in_use(self) -> Optimizer:
        """`optimizer`, which leaves the parameters of `freeze`, or all but adapters, alone."""
        adapted = () if self.lora is None else (lora_lib.FROZEN,)
        return optimizers.freeze(self.optimizer, (*self.freeze, *adapted))

    @property
    def lora(self) -> lora_lib.Lora | None:
        """The adapters that are trained; None where the weights themselves are."""
        return lora_lib.of_config(self.model_config)

    @property
    def folder(self) -> Path:
        """MODEL_DIR, absolute, or the place that its URL names (`remote.place`)."""
        return remote.place(self.model_dir)

    @property
    def best_metric(self) -> str | None:
        """The metric that selects a checkpoint; None where nothing is evaluated."""
        return self.saving.best_metric if self.evaluation.splits else None


def assemble(
    config: TrainConfig,
    *,
    mesh: Mesh | None = None,
    student: Student | None = None,
    writes: bool = True,
) -> Assembly:
    """Puts a run together; nothing is allocated, read or written before it is asked for.

    Args:
      config: the configuration of the run.
      mesh: the mesh to use instead of one over all devices, for example of a named TPU that is
        compiled for ahead of time.
      student: the student to use instead of a new one, where several runs share one program.
      writes: whether MODEL_DIR is written to. If not (a dry run), a vocabulary that has to be
        trained goes to the user's cache folder.

    Raises:
      UserError: the task is unknown, or there are no weights that adapters could adapt.
    """
    fresh = config.saving.initial_checkpoint_path is None
    if config.lora is not None and fresh and not folders.complete_checkpoints(config.folder):
        raise UserError(
            "LORA_RANK adapts pretrained weights; name them by INITIAL_CHECKPOINT_PATH."
        )
    settings = config.data or settings_lib.current()
    if settings.prefix_side is None:
        saved = resuming.saved_data_settings(config.folder).get("prefix_side")
        side = saved or default_prefix_side(config.model_config)
        settings = dataclasses.replace(settings, prefix_side=side)
    return Assembly(config, resolve_task(config.task, settings), mesh, student, writes)


class Assembly:
    """The parts of a run, each made when it is first asked for; see `assemble`.

    Attributes:
      config: the configuration of the run.
    """

    def __init__(
        self,
        config: TrainConfig,
        task: ResolvedTask,
        mesh: Mesh | None,
        student: Student | None,
        writes: bool,
    ) -> None:
        self.config = config
        self._choice, self._mesh, self._student, self._writes = task, mesh, student, writes

    @functools.cached_property
    def student(self) -> Student:
        """The network on its mesh.

        Raises:
          UserError: the mesh is impossible, or does not divide the batch.
        """
        if self._student is not None:
            return self._student
        batching, mesh = self.config.batching, self._mesh or self.config.mesh.make()
        if batching.examples_per_batch is None:
            check_batch_size(batching.batch_size, mesh, batching.num_microbatches)
        return Student(self.config.model_config, mesh, fsdp=self.config.mesh.fsdp)

    @functools.cached_property
    def loss(self) -> Loss:
        """The loss of the task's parts.

        Raises:
          UserError: the tasks of a mixture have different parts.
        """
        return self.config.loss.of(self._choice.method)

    @functools.cached_property
    def optimizer(self) -> Optimizer:
        """The optimizer in use, whose state also holds that of the loss's balancing."""
        return self.loss.balancing.wrap(self.config.optimizer_in_use, self.loss.names)

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the training state; nothing is allocated."""
        return placement.abstract_state(self.student, self.optimizer, self.config.seed)

    @functools.cached_property
    def step_fn(self) -> StepFn:
        """The jitted training step; `step_fn.lower(abstract_state, abstract_batch())` compiles it.

        Raises:
          UserError: a hyperparameter is out of its range.
        """
        step = make_train_step(
            self.student.hidden,
            self.optimizer,
            self.loss,
            head=self.student.head,
            num_microbatches=self.config.batching.num_microbatches,
        )
        return placement.jit_train_step(self.student, step, self.abstract_state)

    def abstract_batch(self, rows: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a batch; no data is read, unless row lengths are left to it.

        Args:
          rows: the rows of the batch; by default BATCH_SIZE.

        Raises:
          UserError: `rows` is not given, and EXAMPLES_PER_BATCH leaves the number of rows to the
            data.
        """
        batching = self.batching
        if rows is None and batching.examples_per_batch is not None:
            raise UserError(
                f"EXAMPLES_PER_BATCH = {batching.examples_per_batch} leaves the number of rows of "
                "a batch to the data; set BATCH_SIZE instead."
            )
        shapes = array_shapes(
            batching.lengths,
            batching.batch_size if rows is None else rows,
            shared_inputs=self._choice.settings.prefix_side == "decoder",
        )
        return {name: jax.ShapeDtypeStruct(shape, np.int32) for name, shape in shapes.items()}

    @functools.cached_property
    def initial_source(self) -> loading.Source | None:
        """The weights that the run begins with; None if it draws them, or resumes.

        Raises:
          UserError: they cannot be read, or are of another network.
        """
        path = self.config.saving.initial_checkpoint_path
        if path is None or folders.complete_checkpoints(self.config.folder):
            return None
        source = loading.identify(path)
        networks.require_same_network(source, self.config.model_config)
        return source

    @functools.cached_property
    def task(self) -> ResolvedTask:
        """The task, with the data settings fitted to this run.

        Raises:
          UserError: the vocabulary of the initial weights is not known.
        """
        settings = self._choice.settings
        folder = self.config.folder if self._writes else None
        own = folder is not None and record.kept_vocabulary(folder).is_file()
        source = self.initial_source
        # Trained weights mean nothing with another vocabulary than their own.
        if source is not None and settings.vocabulary_path is None and not own:
            path = str(source.require_vocabulary())
            settings = dataclasses.replace(settings, vocabulary_path=path)
        settings = dataclasses.replace(
            settings,
            # A vocabulary that is trained for a student is never larger than its embedding.
            vocabulary_size=min(settings.vocabulary_size, self.config.model_config.vocab_size),
            model_dir=None if folder is None else str(folder),
        )
        if settings.input_frame is None:
            settings = dataclasses.replace(settings, input_frame=self._input_frame(settings))
        return self._choice.with_settings(settings)

    def _input_frame(self, settings: DataSettings) -> Sequence[str] | None:
        """What stands around every input, where INPUT_FRAME does not say it."""
        if not isinstance(self.config.model_config, DecoderConfig):
            if settings.chat:
                raise UserError("CHAT = True is for decoder-only students; a T5 knows no chats.")
            return None
        # What a run began with, it goes on with, also where it began before there were frames.
        if saved := resuming.saved_data_settings(self.config.folder):
            return saved.get("input_frame") or ("", "")
        if settings.vocabulary_path is None:
            return default_frame(record.kept_vocabulary(self.config.folder), chat=settings.chat)
        return default_frame(settings.vocabulary_path, chat=settings.chat)

    @functools.cached_property
    def batching(self) -> Batching:
        """How records become batches; row lengths that are left to the data are numbers here.

        A run that goes on has those that it began with, whatever the data say now.

        Raises:
          UserError: the data, which have to be read for it, cannot be read.
        """
        batching = self.config.batching
        if batching.feature_lengths != AUTO:
            return batching
        saved = resuming.saved_feature_lengths(self.config.folder)
        lengths = saved or self.proposed_lengths.lengths
        return dataclasses.replace(batching, feature_lengths=lengths)

    @functools.cached_property
    def proposed_lengths(self) -> auto_lengths.Proposal:
        """The row lengths that the training records propose.

        Raises:
          UserError: the data cannot be read.
        """
        require_fit(self.task.vocabulary, self.config.model_config.vocab_size)
        strict = self.task.settings.strict_lengths
        records = pipeline.load_whole_records(self.task, "train")
        return auto_lengths.propose(records, self.config.batching, cut_nothing=strict)

    @functools.cached_property
    def records(self) -> pipeline.Records:
        """The training records; the vocabulary is read, or trained, before.

        Raises:
          UserError: the data cannot be read, or the vocabulary is larger than the embedding.
        """
        require_fit(self.task.vocabulary, self.config.model_config.vocab_size)
        return pipeline.load_records(self.task, "train", self.batching.lengths)

    def batches(
        self, records: pipeline.Records | None = None, row_multiple: int | None = None
    ) -> TrainBatches:
        """Returns the batches from the first one on.

        Args:
          records: the training records, if they have been read already.
          row_multiple: the number of rows is rounded up to a multiple of it; by default that of
            the mesh and the microbatches.

        Raises:
          UserError: there are no records, or an argument is out of its range.
        """
        batching = self.batching
        if row_multiple is None:
            row_multiple = self.student.mesh.shape["data"] * batching.num_microbatches
        return TrainBatches(
            self.records if records is None else records,
            batching,
            seed=self.config.seed,
            row_multiple=row_multiple,
        )

    def evaluator(
        self, splits: Sequence[str] | None = None, *, whole: bool = False, **options: Any
    ) -> Evaluator:
        """Reads what is evaluated.

        Args:
          splits: by default those of `config.evaluation`.
          whole: take all examples of the splits, whatever `config.evaluation` says.
          **options: of `Evaluator`.

        Raises:
          UserError: a split cannot be read, or a setting is out of its range.
        """
        own = self.config.evaluation
        return Evaluator(
            self.student,
            self.task,
            self.batching.lengths,
            splits=own.splits if splits is None else splits,
            batch_size=own.batch_size or self.config.batching.batch_size,
            eval_steps=None if whole else own.steps,
            loss_normalization=self.loss.normalizations,
            **options,
        )

    @functools.cached_property
    def evaluate(self) -> EvaluateFn | None:
        """`evaluate(state, step) -> {split: metrics}`; None where nothing is to be evaluated."""
        if not self.config.evaluation.splits:
            return None
        evaluator = self.evaluator()
        return lambda state, step: self.evaluate_with(evaluator, state.params, step)

    def to_device(self, batch: Mapping[str, np.ndarray]) -> Any:
        """Puts a numpy batch on the mesh."""
        return to_global(batch, self.student.mesh)

    def evaluate_with(
        self, evaluator: Evaluator, params: Any, step: int
    ) -> Mapping[str, Mapping[str, Any]]:
        """Evaluates parameters, and writes the predictions into `MODEL_DIR/predictions`."""
        results, predictions = evaluator(params)
        write_predictions(self.config.folder / "predictions", predictions, step)
        return results

    def checkpoints(self, kind: type[CheckpointManager] = CheckpointManager) -> CheckpointManager:
        """Opens the run's checkpoints.

        Raises:
          UserError: MODEL_DIR cannot be written to, or a setting is out of its range.
        """
        saving = self.config.saving
        return kind(
            self.config.folder,
            keep=saving.keep_checkpoints,
            best_metric=self.config.best_metric,
            best_mode=saving.best_mode,
            saved_params=None if self.config.lora is None else lora_lib.adapters_of,
        )

    def fresh_state(self) -> TrainState:
        """Creates the state of a run that begins, with parameters drawn from the seed."""
        seed = self.config.seed
        params = self.student.init_params(seed)
        return placement.create_state(self.student, params, self.optimizer, seed)

    def initial_params(self, path: str | os.PathLike[str], abstract: Any) -> Any:
        """Reads the first parameters; adapters are drawn from the seed."""
        if self.config.lora is None:
            return loading.load_params_of(path, abstract)
        adapters = lora_lib.adapters_of(self.student.init_params(self.config.seed))
        base = loading.load_params_of(path, lora_lib.split(abstract)[0])
        return lora_lib.join(base, adapters)

    def _adapted(self, adapters: Any, checkpoints: CheckpointManager, step: int) -> Any:
        """All parameters of a run that goes on, whose checkpoints hold adapters alone."""
        source = loading.identify(checkpoints.path_of(step))
        base = loading.load_base(source, lora_lib.split(self.student.placed_params)[0])
        return lora_lib.join(base, adapters)

    def metadata(self, initial_checkpoint: str | None) -> dict[str, Any]:
        """What is saved beside a run's weights, as JSON.

        Args:
          initial_checkpoint: where the run's first parameters came from; None for random ones.
        """
        config = self.config
        return {
            "model_config": config_to_json(config.model_config),
            **self.task.record(),
            "mixture_or_task_module": self.task.module,
            "feature_lengths": dict(self.batching.lengths),
            "data_settings": self.task.settings.record(),
            "rationale_weight": self.loss.constant_weight,
            **self._loss_of_parts(),
            "loss_normalization": config.loss.normalization,
            "label_smoothing": config.loss.label_smoothing,
            "z_loss": config.loss.z_loss,
            "seed": config.seed,
            "initial_checkpoint": initial_checkpoint,
        }

    def _loss_of_parts(self) -> dict[str, Any]:
        """What a record says of the loss besides λ; nothing where the method says nothing."""
        found: dict[str, Any] = {}
        weights = {name: w for name, w in self.loss.constant_weights.items() if name != "rationale"}
        if weights:
            found["part_weights"] = weights
        if isinstance(self.loss.normalizations, dict):
            found["part_normalizations"] = self.loss.normalizations
        return found

    @contextlib.contextmanager
    def accepted(self) -> Iterator[None]:
        """Holds MODEL_DIR for this process, after it was checked that the run may go on there.

        Nothing of the run is written before this.

        Raises:
          UserError: another process trains there, or MODEL_DIR holds a run that this start would
            change; see `resuming.check`.
        """
        folder = self.config.folder
        main = jax.process_index() == 0
        with files.locked(folder / "train.lock") if main else contextlib.nullcontext():
            if main:
                files.remove_temporary(folder)
            if folders.complete_checkpoints(folder):
                resuming.check(folder, self.metadata(None))
            if self.task.settings.vocabulary_path is not None:
                record.require_same_vocabulary(folder, self.task.settings.vocabulary_path)
            yield

    def fit(
        self,
        *,
        stop: StopRequest,
        progress: Progress,
        checkpoints: CheckpointManager,
        config_text: str | None,
        batches: TrainBatches,
        evaluate: EvaluateFn | None,
        step_fn: StepFn,
        to_device: Callable[[Mapping[str, np.ndarray]], Any],
        train_steps: int | None = None,
        restoring: contextlib.AbstractContextManager[Any] | None = None,
    ) -> Finished:
        """Finds the state to start from, writes the run's records, and trains.

        Call it within `accepted`. A run that has nothing left to train writes nothing.

        Args:
          stop: the request to stop.
          progress: what the terminal shows.
          checkpoints: from `checkpoints`, opened.
          config_text: the configuration, written to `MODEL_DIR/config.gin`; None writes none.
          batches: from `batches`.
          evaluate: see `training.loop.fit`.
          step_fn: see `training.loop.fit`.
          to_device: see `training.loop.fit`.
          train_steps: the step to stop at for now; by default that of the configuration.
          restoring: held while the state is restored or created.

        Returns:
          How training ended.

        Raises:
          UserError: see `training.start.starting_state` and `training.loop.fit`.
        """
        config, saving = self.config, self.config.saving
        profile = Profile(saving.profile_steps, config.folder / "profile")
        with checkpoints, MetricsWriter(config.folder, trackers=self._trackers()) as writer:
            with restoring or contextlib.nullcontext():
                start = starting_state(
                    abstract_state=self.abstract_state,
                    fresh=self.fresh_state,
                    checkpoints=checkpoints,
                    initial_checkpoint_path=saving.initial_checkpoint_path,
                    load_params=self.initial_params,
                    complete=None if config.lora is None else self._adapted,
                )
            if start.position is not None:
                batches.restore(start.position["data"])  # It refuses other data, before we write.
            metadata = self.metadata(start.initial_checkpoint)
            if config.lora is not None:
                metadata["lora_base_digest"] = self._base_digest(start)
            train_steps = train_steps or config.train_steps
            if start.step < train_steps:
                self._write_records(start, metadata, config_text, progress)
            return fit(
                start=start,
                step_fn=step_fn,
                batches=batches,
                train_steps=train_steps,
                to_device=to_device,
                count=self.count,
                evaluate=evaluate,
                eval_period=config.evaluation.period,
                checkpoints=checkpoints,
                checkpoint_period=saving.checkpoint_period,
                metadata=metadata,
                writer=writer,
                log_period=saving.log_period,
                profile=profile,
                progress=progress,
                stop=stop,
            )

    def _base_digest(self, start: Start) -> str:
        """The digest of the weights that this run adapts."""
        if start.step:
            saved = loading.identify(self.config.folder).settings
            return saved["lora_base_digest"]
        assert start.initial_checkpoint is not None  # Adapters need one.
        return loading.weights_digest(loading.identify(start.initial_checkpoint))

    def _write_records(
        self,
        start: Start,
        metadata: Mapping[str, Any],
        config_text: str | None,
        progress: Progress,
    ) -> None:
        if jax.process_index() != 0:
            return
        folder = self.config.folder
        if self.task.settings.vocabulary_path is not None:
            record.keep_vocabulary(folder, self.task.settings.vocabulary_path)
        if start.step and (changed := resuming.changes(folder, config_text)):
            progress.note(f"Resumed with other settings: {'; '.join(changed)}.")
        record.write(folder, self.config.model_config, metadata)
        if config_text is not None:
            if self.config.batching.feature_lengths == AUTO:
                lengths = dict(self.batching.lengths)
                config_text += f"\n# TASK_FEATURE_LENGTHS = 'auto' of this run: {lengths}\n"
            resuming.write_config(folder, config_text, start.step)

    def count(self, batch: Mapping[str, np.ndarray]) -> dict[str, float]:
        """What the record says of a numpy batch; see `training.loop.batch_counts`."""
        rows, targets = batch["decoder_target_tokens"].shape
        inputs = batch["encoder_input_tokens"].shape[1]
        flops = costs.step_flops(self.config.model_config, rows, inputs, targets)
        return batch_counts(batch) | {FLOPS: flops}

    def _trackers(self) -> list[Tracker]:
        """The services that are sent the metrics."""
        saving = self.config.saving
        if jax.process_index() != 0:
            return []
        settings = {
            **self.task.record(),
            "rationale_weight": self.loss.constant_weight,
            **self._loss_of_parts(),
            "train_steps": self.config.train_steps,
            "seed": self.config.seed,
            "data_settings": self.task.settings.record(),
        }
        trackers: list[Tracker] = []
        if saving.wandb_project is not None:
            trackers.append(WandbLog(saving.wandb_project, settings))
        if saving.mlflow_experiment is not None:
            trackers.append(MlflowLog(saving.mlflow_experiment, settings))
        return trackers
