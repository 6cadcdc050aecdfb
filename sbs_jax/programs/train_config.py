"""The configuration of a training run: dataclasses that gin/runs/train.gin builds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sbs_jax import remote
from sbs_jax.checkpoints import folders
from sbs_jax.checkpoints import lora as lora_lib
from sbs_jax.data.batching import Batching
from sbs_jax.data.resolving import TaskChoice
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import require_at_least
from sbs_jax.models.interface import ModelConfig
from sbs_jax.partitioning.mesh import MeshSettings
from sbs_jax.training import optimizers
from sbs_jax.training.optimizers import Optimizer
from sbs_jax.training.profiling import Profile
from sbs_jax.training.step import Loss


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
      model_dir: the folder of everything that is written; may be relative, or `gs://…`.
      task: the task that is trained.
      batching: how records become batches.
      optimizer: the optimizer, from `training.optimizers`.
      freeze: regular expressions; parameters whose path contains one are not trained, see
        `training.optimizers.freeze`.
      train_steps: the step to end at, counted from the beginning of the run.
      data: how data sets are read; None takes the settings in force.
      loss: the weights and regularisers of the loss.
      mesh: how devices are arranged.
      evaluation: when the student is evaluated, and on what.
      saving: the files of the run, and the place that its first parameters come from.
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
        # Here and not only where they are used: reading large data comes before that.
        require_at_least(
            1,
            TRAIN_STEPS=self.train_steps,
            BATCH_SIZE=self.batching.batch_size,
            EVAL_PERIOD=self.evaluation.period,
            EVAL_STEPS=self.evaluation.steps,
            EVAL_BATCH_SIZE=self.evaluation.batch_size,
            CHECKPOINT_PERIOD=self.saving.checkpoint_period,
            LOG_PERIOD=self.saving.log_period,
        )
        folders.require_retention(self.saving.keep_checkpoints, self.saving.best_mode)
        Profile(self.saving.profile_steps)

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
