"""Training from a task's name: the roof where data, network, training and evaluation meet.

`train` is the whole configuration of a run; gin files bind its arguments (gin/runs/train.gin).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from sbs_jax import files
from sbs_jax.checkpoints import folders, loading, record
from sbs_jax.checkpoints.manager import CheckpointManager
from sbs_jax.data import pipeline, registration, settings
from sbs_jax.data.vocabulary import decode_tokens, require_fit
from sbs_jax.errors import UserError
from sbs_jax.evaluation.evaluator import Evaluator
from sbs_jax.losses import Normalization
from sbs_jax.models.config import T5Config
from sbs_jax.partitioning.distributed import to_global
from sbs_jax.partitioning.mesh import check_batch_size, make_mesh
from sbs_jax.partitioning.stopping import StopRequest
from sbs_jax.programs import dry_run as dry_run_lib
from sbs_jax.progress import Progress
from sbs_jax.student import Student
from sbs_jax.training import placement
from sbs_jax.training.loop import Finished, fit
from sbs_jax.training.optimizers import Optimizer
from sbs_jax.training.schedules import Schedule
from sbs_jax.training.start import starting_state
from sbs_jax.training.step import make_train_step
from sbs_jax.training.wandb_log import WandbLog
from sbs_jax.training.writers import MetricsWriter


def train(
    *,
    model_config: T5Config,
    model_dir: str,
    mixture_or_task_name: str,
    feature_lengths: Mapping[str, int],
    train_steps: int,
    batch_size: int,
    optimizer: Optimizer,
    mixture_or_task_module: str | None = None,
    method: str | None = None,
    label_source: str | None = None,
    rationale_source: str | None = None,
    rationale_weight: float | Schedule = 1.0,
    loss_normalization: Normalization = "token_mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    num_microbatches: int = 1,
    data_parallel: int = -1,
    model_parallel: int = 1,
    fsdp: bool = False,
    pack: bool = True,
    examples_per_batch: int | None = None,
    eval_period: int | None = None,
    eval_steps: int | None = None,
    eval_splits: Sequence[str] = ("validation",),
    eval_batch_size: int | None = None,
    checkpoint_period: int | None = None,
    keep_checkpoints: int | None = 3,
    best_metric: str | None = "validation/accuracy",
    best_mode: Literal["max", "min"] = "max",
    initial_checkpoint_path: str | None = None,
    log_period: int = 10,
    wandb_project: str | None = None,
    seed: int = 0,
    dry_run: bool = False,
    config_text: str | None = None,
) -> Finished | None:
    """Trains a student, and evaluates it as it goes; goes on where an earlier call was stopped.

    Args:
      model_config: the student's dimensions.
      model_dir: where everything is written; may be relative.
      mixture_or_task_name: a registered task, `svamp_sbs`, or a data set, `svamp`.
      feature_lengths: row lengths in tokens, of `inputs` and `targets`.
      train_steps: the step to end at, counted from the beginning of the run.
      batch_size: rows in a batch (packed rows, if `pack`).
      optimizer: from `training.optimizers`.
      mixture_or_task_module: a module that registers it, imported first.
      method: `standard`, `sbs`, `joint` or `rationale_input`, for a data set; None is `sbs`.
      label_source: whose labels are trained, `gold` (or None) or `teacher`.
      rationale_source: whose rationales, `teacher` (or None) or `human`.
      rationale_weight: the paper's λ, or a schedule of it.
      loss_normalization: `token_mean` or `example_mean`; see `losses.part_weights`.
      label_smoothing: see `losses.token_cross_entropy`.
      z_loss: see `losses.token_cross_entropy`.
      num_microbatches: slices of a batch that are computed one after another, to save memory.
      data_parallel: devices along the mesh's `data` axis; -1 takes what is left.
      model_parallel: devices along the mesh's `model` axis.
      fsdp: also cut parameters and optimizer state along `data`.
      pack: put several sequences into a row.
      examples_per_batch: examples (each with all its records) in every batch, in as few rows as
        they fit into; `batch_size` is not used then.
      eval_period: steps between evaluations; None evaluates at the end alone.
      eval_steps: at most so many batches of a split are evaluated; None takes all.
      eval_splits: splits evaluated during training; () evaluates none.
      eval_batch_size: rows decoded at a time; `batch_size` by default.
      checkpoint_period: steps between checkpoints; None saves at the end (and the best).
      keep_checkpoints: how many of the latest checkpoints are kept; None keeps all.
      best_metric: the checkpoint with the best value of it is kept, too; None keeps none.
      best_mode: whether `best_metric` should be large (`max`) or small (`min`).
      initial_checkpoint_path: where the first parameters come from, and the vocabulary if none is
        named; see `checkpoints.loading.identify`. None draws them.
      log_period: steps in a line of metrics.jsonl.
      wandb_project: of Weights & Biases, which is told the same; None tells nobody.
      seed: of parameters, dropout and the order of the data.
      dry_run: build everything, print what would be trained, train nothing.
      config_text: the configuration, written to `model_dir/config.gin`.

    Returns:
      How training ended; None after a dry run.

    Raises:
      UserError: something the user gave does not work; the sentence says what.
    """
    for name, number in (("TRAIN_STEPS", train_steps), ("BATCH_SIZE", batch_size)):
        if number < 1:
            raise UserError(f"{name} = {number} must be at least 1.")
    registration.import_tasks(mixture_or_task_module)
    mixture_or_task_name = registration.choose_task(
        mixture_or_task_name, method, label_source, rationale_source
    )
    mesh = make_mesh(data_parallel, model_parallel)
    if examples_per_batch is None:
        check_batch_size(batch_size, mesh, num_microbatches)
    student = Student(model_config, mesh, fsdp=fsdp)
    step = make_train_step(
        student.apply,
        optimizer,
        rationale_weight=rationale_weight,
        loss_normalization=loss_normalization,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        num_microbatches=num_microbatches,
    )
    abstract_state = placement.abstract_state(student, optimizer, seed)
    step_fn = placement.jit_train_step(student, step, abstract_state)

    folder = Path(model_dir).expanduser().absolute()
    source = None
    # A run that goes on needs no more than its MODEL_DIR.
    if initial_checkpoint_path is not None and not folders.complete_checkpoints(folder):
        source = loading.identify(initial_checkpoint_path)
        loading.require_same_network(source, model_config)
    data_settings = fitted_settings(model_config, None if dry_run else folder, source)
    with settings.override(data_settings):
        vocabulary = pipeline.load_vocabulary(mixture_or_task_name)
        require_fit(vocabulary, model_config.vocab_size)
        records = pipeline.load_records(mixture_or_task_name, "train", feature_lengths)
        batches = pipeline.TrainBatches(
            records,
            batch_size=batch_size,
            feature_lengths=feature_lengths,
            seed=seed,
            pack=pack,
            examples_per_batch=examples_per_batch,
            row_multiple=mesh.shape["data"] * num_microbatches,
        )
        progress = Progress()
        if dry_run:
            decode = functools.partial(decode_tokens, vocabulary)
            dry_run_lib.show(student, abstract_state, step_fn, next(batches), decode)
            return None

        progress.note(f"{mixture_or_task_name}: {records.counts}")
        progress.note(f"batches: {pipeline.measure_fill(records, feature_lengths, pack)}")
        progress.note(f"{student.num_params:,} parameters on {dry_run_lib.describe_mesh(mesh)}")
        evaluator = _evaluator(
            student,
            mixture_or_task_name,
            feature_lengths,
            eval_splits,
            batch_size=eval_batch_size or batch_size,
            eval_steps=eval_steps,
            output_dir=folder / "predictions",
            loss_normalization=loss_normalization,
        )
        with (
            # A signal that comes while a checkpoint is read counts as well.
            StopRequest() as stop,
            CheckpointManager(
                folder,
                keep=keep_checkpoints,
                best_metric=best_metric if evaluator else None,
                best_mode=best_mode,
            ) as checkpoints,
            MetricsWriter(
                folder,
                wandb=wandb_log(
                    wandb_project, mixture_or_task_name, rationale_weight, train_steps, seed
                ),
            ) as writer,
        ):
            start = starting_state(
                abstract_state=abstract_state,
                fresh=lambda: placement.create_state(
                    student, student.init_params(seed), optimizer, seed
                ),
                checkpoints=checkpoints,
                initial_checkpoint_path=initial_checkpoint_path,
                load_params=loading.load_params_of,
            )
            metadata = run_metadata(
                model_config,
                mixture_or_task_name,
                mixture_or_task_module=mixture_or_task_module,
                feature_lengths=feature_lengths,
                rationale_weight=rationale_weight,
                loss_normalization=loss_normalization,
                initial_checkpoint=start.initial_checkpoint,
            )
            if jax.process_index() == 0:
                record.write(folder, model_config, metadata)
                if data_settings.vocabulary_path is not None:
                    record.keep_vocabulary(folder, data_settings.vocabulary_path)
                if config_text is not None:
                    files.atomic_write_text(folder / "config.gin", config_text)
            finished = fit(
                start=start,
                step_fn=step_fn,
                batches=batches,
                train_steps=train_steps,
                to_device=lambda batch: to_global(batch, mesh),
                evaluate=evaluator,
                eval_period=eval_period,
                checkpoints=checkpoints,
                checkpoint_period=checkpoint_period,
                metadata=metadata,
                writer=writer,
                log_period=log_period,
                progress=progress,
                stop=stop,
            )
        progress.note(f"Written to {folder}")
        return finished


def wandb_log(
    project: str | None,
    task: str,
    rationale_weight: float | Schedule,
    train_steps: int,
    seed: int,
) -> WandbLog | None:
    """The run's log at Weights & Biases; None without a project.

    Raises:
      UserError: wandb is not installed.
    """
    if project is None or jax.process_index() != 0:
        return None
    config = _student_settings(task) | {
        "rationale_weight": None if callable(rationale_weight) else rationale_weight,
        "train_steps": train_steps,
        "seed": seed,
        "data_settings": dataclasses.asdict(settings.current()),
    }
    return WandbLog(project, config)


def run_metadata(
    model_config: T5Config,
    task: str,
    *,
    mixture_or_task_module: str | None,
    feature_lengths: Mapping[str, int],
    rationale_weight: float | Schedule,
    loss_normalization: Normalization,
    initial_checkpoint: str | None,
) -> dict[str, Any]:
    """What is saved beside a run's weights, as JSON; with the data settings in force."""
    return {
        "model_config": dataclasses.asdict(model_config),
        **_student_settings(task),
        "mixture_or_task_module": mixture_or_task_module,
        "feature_lengths": dict(feature_lengths),
        "data_settings": dataclasses.asdict(settings.current()),
        "rationale_weight": None if callable(rationale_weight) else rationale_weight,
        "loss_normalization": loss_normalization,
        "initial_checkpoint": initial_checkpoint,
    }


def _student_settings(task: str) -> dict[str, Any]:
    """What is learned of a data set, as far as the task was registered through this project."""
    info = registration.task_info(task)
    known = ("method", "label_source", "rationale_source")
    return {"mixture_or_task_name": task} | {name: getattr(info, name, None) for name in known}


def fitted_settings(
    model_config: T5Config, model_dir: Path | None, source: loading.Source | None
) -> settings.DataSettings:
    """The data settings in force, fitted to this run; no `model_dir` for a run that writes none.

    Weights that were trained already mean nothing in another vocabulary than their own.
    """
    current = settings.current()
    own = model_dir is not None and (model_dir / record.VOCABULARY).is_file()
    if source is not None and current.vocabulary_path is None and not own:
        current = dataclasses.replace(current, vocabulary_path=str(source.require_vocabulary()))
    return dataclasses.replace(
        current,
        # A vocabulary that is trained for a student is never larger than the student's embedding.
        vocabulary_size=min(current.vocabulary_size, model_config.vocab_size),
        model_dir=None if model_dir is None else str(model_dir),
    )


def _evaluator(
    student: Student,
    task: str,
    feature_lengths: Mapping[str, int],
    splits: Sequence[str],
    **options: Any,
) -> Callable[[Any, int], dict[str, dict[str, float]]] | None:
    """`evaluate(state, step) -> {split: metrics}`; None where nothing is to be evaluated."""
    if not splits:
        return None
    evaluator = Evaluator(student, task, feature_lengths, splits=splits, **options)
    return lambda state, step: evaluator(state.params, step)
