"""T5X's trainer, for `model.TwoPartModel`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import clu.metrics
import jax
import jax.numpy as jnp
from t5x import partitioning
from t5x import train_state as train_state_lib
from t5x import trainer as trainer_lib

from sbs_jax.t5x.model import TwoPartModel
from sbs_jax.t5x.part_metrics import MeasuredWriter


class PartTrainer(trainer_lib.Trainer):
    """T5X's trainer; it tells each microbatch what the whole batch holds.

    So the gradient does not depend on the number of microbatches, nor on the mesh. Besides, what a
    part without tokens would give is not written to the record.
    """

    def __init__(
        self,
        model: TwoPartModel,
        train_state: train_state_lib.TrainState,
        partitioner: partitioning.BasePartitioner,
        eval_names: Sequence[str],
        summary_dir: str | None,
        train_state_axes: Any,
        rng: jax.Array,
        learning_rate_fn: trainer_lib.LearningRateCallable,
        num_microbatches: int | None = None,
        weight_metrics_computer: trainer_lib.WeightMetricsComputer | None = None,
    ) -> None:
        """Takes the arguments of `t5x.trainer.Trainer`."""
        super().__init__(
            model=model,
            train_state=train_state,
            partitioner=partitioner,
            eval_names=eval_names,
            summary_dir=summary_dir,
            train_state_axes=train_state_axes,
            rng=rng,
            learning_rate_fn=learning_rate_fn,
            num_microbatches=num_microbatches,
            weight_metrics_computer=weight_metrics_computer,
        )
        for manager in (self.train_metrics_manager, *self.eval_metrics_managers.values()):
            manager._writer = MeasuredWriter([manager.summary_writer])

    @functools.cached_property
    def _partitioned_train_step(self) -> trainer_lib.PartitionedTrainCallable:
        model = self._model

        def train_step(train_state: Any, batch: trainer_lib.BatchType) -> tuple[Any, Any]:
            step = train_state.step
            new_state, metrics = trainer_lib.train_with_lr(
                train_state,
                model.add_scales(batch, step),
                learning_rate=self._learning_rate_fn(step),
                dropout_rng=self._get_step_rng(step),
                model=model,
                num_microbatches=self._num_microbatches,
                weight_metrics_computer=self._weight_metrics_computer,
                data_partition_spec=self._partitioner.data_partition_spec,
            )
            for name, weight in model.weights_at(step).items():
                metrics[f"{name}_weight"] = clu.metrics.LastValue.from_model_output(
                    jnp.asarray([weight])
                )
            return new_state, metrics

        return self._partitioner.partition(
            train_step,
            in_axis_resources=(self._train_state_axes, self._partitioner.data_partition_spec),
            out_axis_resources=(self._train_state_axes, None),
            donate_argnums=(0,),
        )

    @functools.cached_property
    def _partitioned_eval_step(self) -> trainer_lib.PartitionedEvalCallable:
        model = self._model

        def eval_step(train_state: Any, batch: trainer_lib.BatchType) -> Any:
            with_scales = model.add_scales(batch, train_state.step)
            return trainer_lib.eval_step(model, train_state, with_scales)

        return self._partitioner.partition(
            eval_step,
            in_axis_resources=(self._train_state_axes, self._partitioner.data_partition_spec),
            out_axis_resources=None,
        )
