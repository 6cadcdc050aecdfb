"""Trains a student on a task: `python -m sbs_jax.train` (gin/runs/train.gin)."""

from __future__ import annotations

from jax.sharding import Mesh

from sbs_jax.data import pipeline
from sbs_jax.data.batching import AUTO
from sbs_jax.data.dataset_vocabulary import removed_on_error
from sbs_jax.partitioning.stopping import StopRequest
from sbs_jax.programs import dry_run as dry_run_lib
from sbs_jax.programs import running
from sbs_jax.programs.assembly import assemble
from sbs_jax.programs.train_config import TrainConfig
from sbs_jax.progress import Progress
from sbs_jax.training.loop import Finished


def train(
    config: TrainConfig,
    *,
    mesh: Mesh | None = None,
    dry_run: bool = False,
    config_text: str | None = None,
) -> Finished | None:
    """Trains a student and evaluates it meanwhile; resumes a run that was stopped.

    Args:
      config: the whole configuration of the run.
      mesh: the mesh to use instead of the one that `config.mesh` makes of all devices.
      dry_run: build everything, print what would be trained, and train nothing.
      config_text: the configuration, written to `model_dir/config.gin`.

    Returns:
      How training ended; None after a dry run.

    Raises:
      UserError: something the user gave does not work; the sentence says what.
    """
    run = assemble(config, mesh=mesh, writes=not dry_run)
    step_fn = run.step_fn  # A mistake in the network or the mesh shows before the data is read.
    if dry_run:
        dry_run_lib.show(run, next(run.batches()))
        return None
    progress = Progress()
    student = run.student
    with running.accepted(run):
        with removed_on_error(config.folder):
            evaluate = run.evaluate  # First: what is wrong with small splits shows at once.
            batches = run.batches()
        progress.note(f"{run.task.name}: {run.records.counts}")
        batching = run.batching
        if config.batching.feature_lengths == AUTO:
            progress.note(f"TASK_FEATURE_LENGTHS = 'auto': {dict(batching.lengths)}")
        fill = batches.sizes or pipeline.measure_fill(run.records, batching.lengths, batching.pack)
        progress.note(f"batches: {fill}")
        mesh_text = dry_run_lib.describe_mesh(student.mesh)
        progress.note(f"{student.num_params:,} parameters on {mesh_text}")
        # A signal that comes while a checkpoint is read counts as well.
        with StopRequest() as stop:
            finished = running.fit(
                run,
                stop=stop,
                progress=progress,
                checkpoints=run.checkpoints(),
                config_text=config_text,
                batches=batches,
                evaluate=evaluate,
                step_fn=step_fn,
                to_device=run.to_device,
            )
    progress.note(f"Written to {config.folder}")
    return finished
