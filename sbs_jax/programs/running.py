"""Trains a run that was put together: holds its folder, finds its first state, keeps its record."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from sbs_jax import files
from sbs_jax.checkpoints import folders, loading, record
from sbs_jax.checkpoints.manager import CheckpointManager
from sbs_jax.data.batching import AUTO, TrainBatches
from sbs_jax.models import costs
from sbs_jax.models.interface import config_to_json
from sbs_jax.partitioning.stopping import StopRequest
from sbs_jax.programs import resuming
from sbs_jax.programs.assembly import Assembly
from sbs_jax.progress import Progress
from sbs_jax.row_tables import row_shapes
from sbs_jax.training import loop
from sbs_jax.training.loop import FLOPS, EvaluateFn, Finished, StepFn, batch_counts
from sbs_jax.training.mlflow_log import MlflowLog
from sbs_jax.training.profiling import Profile
from sbs_jax.training.start import Start, starting_state
from sbs_jax.training.wandb_log import WandbLog
from sbs_jax.training.writers import MetricsWriter, Tracker


@contextlib.contextmanager
def accepted(run: Assembly) -> Iterator[None]:
    """Holds MODEL_DIR for this process, after it was checked that the run may go on there.

    Nothing of the run is written before this.

    Raises:
      UserError: another process trains there, or MODEL_DIR holds a run that this start would
        change; see `resuming.check`.
    """
    folder = run.config.folder
    main = jax.process_index() == 0
    with files.locked(folder / "train.lock") if main else contextlib.nullcontext():
        if main:
            files.remove_temporary(folder)
        if folders.complete_checkpoints(folder):
            resuming.check(folder, metadata(run, None))
        if run.task.settings.vocabulary_path is not None:
            record.require_same_vocabulary(folder, run.task.settings.vocabulary_path)
        yield


def fit(
    run: Assembly,
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
      run: the run, from `assembly.assemble`.
      stop: the request to stop.
      progress: the display in the terminal.
      checkpoints: the checkpoints, from `Assembly.checkpoints`.
      config_text: the configuration, written to `MODEL_DIR/config.gin`; None writes none.
      batches: the batches, from `Assembly.batches`.
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
    config, saving = run.config, run.config.saving
    profile = Profile(saving.profile_steps, config.folder / "profile")
    with checkpoints, MetricsWriter(config.folder, trackers=_trackers(run)) as writer:
        with restoring or contextlib.nullcontext():
            start = starting_state(
                abstract_state=run.abstract_state,
                fresh=run.fresh_state,
                checkpoints=checkpoints,
                initial_checkpoint_path=saving.initial_checkpoint_path,
                load_params=run.initial_params,
                complete=None if config.lora is None else run.adapted,
            )
        if start.position is not None:
            batches.restore(start.position["data"])  # It refuses other data, before we write.
        saved = metadata(run, start.initial_checkpoint)
        if config.lora is not None:
            saved["lora_base_digest"] = _base_digest(run, start)
        train_steps = train_steps or config.train_steps
        if start.step < train_steps:
            _write_records(run, start, saved, config_text, progress)
        return loop.fit(
            start=start,
            step_fn=step_fn,
            batches=batches,
            train_steps=train_steps,
            to_device=to_device,
            count=functools.partial(_count, run),
            evaluate=evaluate,
            eval_period=config.evaluation.period,
            checkpoints=checkpoints,
            checkpoint_period=saving.checkpoint_period,
            metadata=saved,
            writer=writer,
            log_period=saving.log_period,
            profile=profile,
            progress=progress,
            stop=stop,
        )


def metadata(run: Assembly, initial_checkpoint: str | None) -> dict[str, Any]:
    """What is saved beside a run's weights, as JSON.

    Args:
      run: the run, from `assembly.assemble`.
      initial_checkpoint: where the run's first parameters came from; None for random ones.
    """
    config = run.config
    return {
        "model_config": config_to_json(config.model_config),
        **run.task.record(),
        "mixture_or_task_module": run.task.module,
        "feature_lengths": dict(run.batching.lengths),
        "data_settings": run.task.settings.record(),
        "rationale_weight": run.loss.constant_weight,
        **_loss_of_parts(run),
        "loss_normalization": config.loss.normalization,
        "label_smoothing": config.loss.label_smoothing,
        "z_loss": config.loss.z_loss,
        "seed": config.seed,
        "initial_checkpoint": initial_checkpoint,
    }


def _loss_of_parts(run: Assembly) -> dict[str, Any]:
    """What a record says of the loss besides λ; nothing where the method says nothing."""
    found: dict[str, Any] = {}
    weights = {name: w for name, w in run.loss.constant_weights.items() if name != "rationale"}
    if weights:
        found["part_weights"] = weights
    if isinstance(run.loss.normalizations, dict):
        found["part_normalizations"] = run.loss.normalizations
    return found


def _base_digest(run: Assembly, start: Start) -> str:
    """The digest of the weights that this run adapts."""
    if start.step:
        saved = loading.identify(run.config.folder).settings
        return saved["lora_base_digest"]
    assert start.initial_checkpoint is not None  # Adapters need one.
    return loading.weights_digest(loading.identify(start.initial_checkpoint))


def _write_records(
    run: Assembly,
    start: Start,
    saved: Mapping[str, Any],
    config_text: str | None,
    progress: Progress,
) -> None:
    if jax.process_index() != 0:
        return
    folder = run.config.folder
    if run.task.settings.vocabulary_path is not None:
        record.keep_vocabulary(folder, run.task.settings.vocabulary_path)
    if start.step and (changed := resuming.changes(folder, config_text)):
        progress.note(f"Resumed with other settings: {'; '.join(changed)}.")
    record.write(folder, run.config.model_config, saved)
    if config_text is not None:
        if run.config.batching.feature_lengths == AUTO:
            lengths = dict(run.batching.lengths)
            config_text += f"\n# TASK_FEATURE_LENGTHS = 'auto' of this run: {lengths}\n"
        resuming.write_config(folder, config_text, start.step)


def _count(run: Assembly, batch: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What the record says of a numpy batch; see `training.loop.batch_counts`."""
    rows, targets = batch["decoder_target_tokens"].shape
    inputs = batch["encoder_input_tokens"].shape[1]
    config, kinds = run.config.model_config, row_shapes(batch)
    flops = (
        costs.padding_free_flops(config, rows, inputs, targets, kinds)
        if kinds
        else costs.step_flops(config, rows, inputs, targets)
    )
    return batch_counts(batch) | {FLOPS: flops}


def _trackers(run: Assembly) -> list[Tracker]:
    """The services that are sent the metrics."""
    saving = run.config.saving
    if jax.process_index() != 0:
        return []
    settings = {
        **run.task.record(),
        "rationale_weight": run.loss.constant_weight,
        **_loss_of_parts(run),
        "train_steps": run.config.train_steps,
        "seed": run.config.seed,
        "data_settings": run.task.settings.record(),
    }
    trackers: list[Tracker] = []
    if saving.wandb_project is not None:
        trackers.append(WandbLog(saving.wandb_project, settings))
    if saving.mlflow_experiment is not None:
        trackers.append(MlflowLog(saving.mlflow_experiment, settings))
    return trackers
