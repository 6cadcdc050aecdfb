"""The losses of a batch under teacher forcing, as sums that a whole split can be added up from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sbs_jax import losses
from sbs_jax.parts import PART_NAMES


def make_loss_step(
    apply_fn: Callable[..., jax.Array], *, loss_normalization: losses.Normalization = "token_mean"
) -> Callable[[Any, Mapping[str, jax.Array]], dict[str, dict[str, jax.Array]]]:
    """Builds `step(params, batch) -> sums`, teacher-forced and without dropout, for validation.

    Args:
      apply_fn: the network, `apply(params, batch, dropout_rng) -> logits [B, T, V]`.
      loss_normalization: see `losses.part_weights`.

    Returns:
      A function that gives, by part name, the sums `loss`, `weight`, `correct` and `tokens`, all
      float32 []. A split's mean is the sum of `loss` over its batches, by the sum of `weight`.
    """

    def step(params: Any, batch: Mapping[str, jax.Array]) -> dict[str, dict[str, jax.Array]]:
        parts, segments = batch["decoder_target_parts"], batch["decoder_segment_ids"]
        raw = losses.raw_weights(parts, segments, loss_normalization)
        logits = apply_fn(params, batch, None)
        sums = losses.sum_parts(logits, batch["decoder_target_tokens"], parts, segments, raw)
        return {
            name: {
                "loss": sums[name].loss,
                "weight": jnp.where(parts == part, raw, 0.0).sum(),
                "correct": sums[name].correct,
                "tokens": sums[name].tokens,
            }
            for part, name in PART_NAMES.items()
        }

    return step
