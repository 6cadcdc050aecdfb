"""Metrics of one part of the loss, for T5X's record (TensorBoard and log).

They add up over microbatches, steps and batches. What a part without tokens would give, 0 / 0 or
a row of zeros, is no measurement: its value is `NO_TOKENS`, which `part_trainer` does not write.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import clu.values
import flax.struct
import jax.numpy as jnp
import numpy as np
from clu import metric_writers
from clu import metrics as clu_metrics
from jaxtyping import Array, Float
from t5x import metrics as t5x_metrics

from sbs_jax.losses import PartSums

NO_TOKENS = np.float32("nan")
"""The value of a metric of a part that had no tokens; compared by identity with other NaNs."""


@flax.struct.dataclass
class PartMean(clu_metrics.Metric):
    """A mean over the tokens of a part.

    Attributes:
      total: Σ weight · value, float32 [].
      weight: Σ weight, float32 [].
    """

    total: Float[Array, ""]
    weight: Float[Array, ""]

    def merge(self, other: PartMean) -> PartMean:
        """Returns the metric of both."""
        return PartMean(total=self.total + other.total, weight=self.weight + other.weight)

    def compute(self) -> Float[Array, ""]:
        """Returns the mean; NaN without tokens."""
        return self.total / self.weight

    def compute_value(self) -> clu.values.Scalar:
        """Returns the mean as what a metric writer takes; `NO_TOKENS` without tokens."""
        return clu.values.Scalar(self.compute() if self.weight > 0 else NO_TOKENS)


@flax.struct.dataclass
class PartCount(t5x_metrics.AveragePerStep):
    """How many tokens (or targets) of a part a step has, on average over the steps."""

    def compute_value(self) -> clu.values.Scalar:
        """Returns the count as what a metric writer takes; `NO_TOKENS` for none."""
        return clu.values.Scalar(self.compute() if self.total > 0 else NO_TOKENS)


def of_parts(
    sums: Mapping[str, PartSums], weights: Mapping[str, Float[Array, ""]]
) -> dict[str, clu_metrics.Metric]:
    """Returns ``label_loss``, ``label_accuracy``, ``label_tokens`` and so on.

    Args:
      sums: the sums of each part, made with `losses.raw_weights`.
      weights: Σ of those weights, by part.
    """
    metrics: dict[str, clu_metrics.Metric] = {}
    for name, part in sums.items():
        metrics[f"{name}_loss"] = PartMean(total=part.loss, weight=weights[name])
        metrics[f"{name}_accuracy"] = PartMean(total=part.correct, weight=part.tokens)
        metrics[f"{name}_tokens"] = PartCount(total=part.tokens)
        metrics[f"{name}_targets"] = PartCount(total=part.targets)
    return metrics


class MeasuredWriter(metric_writers.MultiWriter):
    """Passes on what it is given, but for scalars that are `NO_TOKENS`."""

    def write_scalars(
        self, step: int, scalars: Mapping[str, float | np.ndarray | jnp.ndarray]
    ) -> None:
        """Writes the measured ones of `scalars`."""
        measured: dict[str, Any] = dict(scalars)
        measured = {name: value for name, value in measured.items() if value is not NO_TOKENS}
        if measured:
            super().write_scalars(step, measured)
