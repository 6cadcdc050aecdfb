"""The losses of a batch under teacher forcing, as sums that a whole split can be added up from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sbs_jax import head_loss, losses
from sbs_jax.head_loss import Head
from sbs_jax.parts import NAMES


def make_loss_step(
    apply_fn: Callable[..., jax.Array],
    *,
    head: Head | None = None,
    loss_normalization: losses.Normalization | Mapping[str, losses.Normalization] = "token_mean",
    names: Sequence[str] = NAMES,
) -> Callable[[Any, Mapping[str, jax.Array]], dict[str, dict[str, jax.Array]]]:
    """Builds `step(params, batch) -> sums`, teacher-forced and without dropout, for validation.

    Args:
      apply_fn: the network, `apply(params, batch, dropout_rng) -> logits [B, T, V]`, or with `head`
        the network below its head.
      head: see `training.step.make_train_step`.
      loss_normalization: see `losses.part_weights`.
      names: the names of the parts, see `losses.part_weights`.

    Returns:
      A function that gives, by part name, the sums `loss`, `weight`, `correct` and `tokens`, all
      float32 []. A split's mean is the sum of `loss` over its batches, by the sum of `weight`.
    """

    def step(params: Any, batch: Mapping[str, jax.Array]) -> dict[str, dict[str, jax.Array]]:
        parts, segments = batch["decoder_target_parts"], batch["decoder_segment_ids"]
        raw = losses.raw_weights(
            parts,
            segments,
            loss_normalization,
            names=names,
            token_weights=batch.get("decoder_token_weights"),
        )
        outputs = apply_fn(params, batch, None)
        arrays = (batch["decoder_target_tokens"], parts, segments, raw)
        if head is None:
            sums = losses.sum_parts(outputs, *arrays, names=names)
        else:
            sums = head_loss.sum_parts(head, params, outputs, *arrays, names=names)[1]
        return {
            name: {
                "loss": sums[name].loss,
                "weight": jnp.where(parts == part, raw, 0.0).sum(),
                "correct": sums[name].correct,
                "tokens": sums[name].tokens,
            }
            for part, name in enumerate(names, start=1)
        }

    return step
