"""One training step, as a pure function of state and batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sbs_jax import head_loss, losses
from sbs_jax.errors import UserError
from sbs_jax.head_loss import Head
from sbs_jax.training.optimizers import Optimizer
from sbs_jax.training.schedules import Schedule
from sbs_jax.training.state import TrainState

Batch = Mapping[str, jax.Array]
"""int32 arrays: `encoder_input_tokens`, `encoder_segment_ids` [B, S]; `decoder_input_tokens`,
`decoder_target_tokens`, `decoder_target_parts`, `decoder_segment_ids` [B, T]; where targets share
encoder inputs also `decoder_source_ids` [B, T], else these are the `decoder_segment_ids`."""

Metrics = dict[str, jax.Array]

ApplyFn = Callable[..., jax.Array]
"""`apply(params, batch, dropout_rng) -> logits [B, T, V]`; `dropout_rng` None means no dropout."""


@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss, mean label loss + λ · mean rationale loss; gin/runs/train.gin binds the attributes.

    Attributes:
      rationale_weight: the paper's λ, a constant or a schedule of it.
      normalization: `token_mean` or `example_mean`; see `losses.part_weights`.
      label_smoothing: share of the probability that is spread over all tokens, in [0, 1); see
        `losses.token_cross_entropy`.
      z_loss: weight of log(Z)², at least 0; see `losses.token_cross_entropy`.

    Raises:
      UserError: a value is out of its range.
    """

    rationale_weight: float | Schedule = 1.0
    normalization: losses.Normalization = "token_mean"
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        losses.check_hyperparameters(
            loss_normalization=self.normalization,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
        )
        if not callable(self.rationale_weight) and not self.rationale_weight >= 0.0:
            raise UserError(f"RATIONALE_WEIGHT = {self.rationale_weight} must not be negative.")

    @property
    def constant_weight(self) -> float | None:
        """λ, or None if it follows a schedule."""
        return None if callable(self.rationale_weight) else self.rationale_weight

    def weight_at(self, step: Any) -> Any:
        """λ at a step, which may be traced."""
        weight = self.rationale_weight
        return weight(step) if callable(weight) else weight


DEFAULT_LOSS = Loss()


def make_train_step(
    apply_fn: ApplyFn,
    optimizer: Optimizer,
    loss: Loss = DEFAULT_LOSS,
    *,
    head: Head | None = None,
    num_microbatches: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Builds `step(state, batch) -> (state, metrics)`.

    The step is pure and not jitted: the caller jits it with the shardings of its mesh. The result
    does not depend on the mesh or on `num_microbatches` (dropout's masks aside), because both
    parts' weights are computed over the whole batch first.

    Args:
      apply_fn: the network, or with `head` the network below its head.
      optimizer: see `optimizers`.
      loss: its weights and regularisers.
      head: makes logits of what `apply_fn` returns, hidden states [B, T, D]. The loss then applies
        it to some tokens at a time, and logits of the whole batch never exist (`head_loss`).
      num_microbatches: how many equal slices of the batch are computed one after another.

    Raises:
      UserError: `num_microbatches` is out of its range; or, at the first call, the batch is not
        divisible by it.
    """
    if num_microbatches < 1:
        raise UserError(f"NUM_MICROBATCHES = {num_microbatches} must be at least 1.")

    def loss_fn(
        params: Any, microbatch: Batch, lambda_: jax.Array, dropout_rng: jax.Array
    ) -> tuple[jax.Array, dict[str, losses.PartSums]]:
        outputs = apply_fn(params, microbatch, dropout_rng)
        arrays = (
            microbatch["decoder_target_tokens"],
            microbatch["decoder_target_parts"],
            microbatch["decoder_segment_ids"],
            microbatch["loss_weights"],
        )
        options = {"label_smoothing": loss.label_smoothing, "z_loss": loss.z_loss}
        if head is not None:
            return head_loss.sum_parts(
                head, params, outputs, *arrays, rationale_weight=lambda_, **options
            )
        sums = losses.sum_parts(outputs, *arrays, **options)
        return losses.join(sums, lambda_), sums

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        lambda_ = jnp.asarray(loss.weight_at(state.step), jnp.float32)
        dropout_rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        batch = _with_weights(batch, loss.normalization)
        gradient_fn = jax.grad(loss_fn, has_aux=True)
        if num_microbatches == 1:
            gradients, sums = gradient_fn(state.params, batch, lambda_, dropout_rng)
        else:

            def accumulate(carry: Any, microbatch: Batch) -> tuple[Any, None]:
                index, total = carry
                key = jax.random.fold_in(dropout_rng, index)
                new = gradient_fn(state.params, microbatch, lambda_, key)
                return (index + 1, jax.tree.map(jnp.add, total, new)), None

            slices = _microbatches(batch, num_microbatches)
            first = jax.tree.map(lambda x: x[0], slices)
            shapes = jax.eval_shape(gradient_fn, state.params, first, lambda_, dropout_rng)
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            (_, (gradients, sums)), _ = jax.lax.scan(accumulate, (jnp.int32(0), zeros), slices)
        updates, opt_state = optimizer.transformation.update(
            gradients, state.opt_state, state.params
        )
        metrics = losses.summarize(sums, lambda_)
        metrics["rationale_weight"] = lambda_
        metrics["grad_norm"] = optax.global_norm(gradients)
        metrics["learning_rate"] = jnp.asarray(optimizer.learning_rate(state.step), jnp.float32)
        new_state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
        )
        return new_state, metrics

    return step


def _with_weights(batch: Batch, normalization: losses.Normalization) -> dict[str, jax.Array]:
    weights = losses.part_weights(
        batch["decoder_target_parts"], batch["decoder_segment_ids"], normalization
    )
    return {**batch, "loss_weights": weights}


def _microbatches(batch: Batch, count: int) -> dict[str, jax.Array]:
    """Cuts [B, ...] into [count, B / count, ...], taking every count-th row.

    Neighbouring rows go to different microbatches, so that a batch sharded over `data` is cut
    within each shard and no row moves between devices.
    """
    rows = batch["decoder_target_tokens"].shape[0]
    if rows % count:
        raise UserError(
            f"NUM_MICROBATCHES = {count} does not divide the {rows} rows of a batch; choose a "
            "divisor of BATCH_SIZE."
        )
    return jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(rows // count, count, *x.shape[1:]), 1, 0), dict(batch)
    )
