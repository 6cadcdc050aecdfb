"""One training step, as a pure function of state and batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from sbs_jax import head_loss, losses
from sbs_jax import parts as parts_lib
from sbs_jax.errors import UserError, require_at_least
from sbs_jax.head_loss import Head
from sbs_jax.models.attention_rows import BothRows
from sbs_jax.parts import Part
from sbs_jax.training import balancing as balancing_lib
from sbs_jax.training.balancing import Balancing
from sbs_jax.training.optimizers import Optimizer
from sbs_jax.training.schedules import Schedule
from sbs_jax.training.state import TrainState

Batch = Mapping[str, jax.Array]
"""int32 arrays: `encoder_input_tokens`, `encoder_segment_ids` [B, S]; `decoder_input_tokens`,
`decoder_target_tokens`, `decoder_target_parts`, `decoder_segment_ids` [B, T]; where targets share
encoder inputs also `decoder_source_ids` [B, T], else these are the `decoder_segment_ids`; where the
data weighs tokens also `decoder_token_weights` [B, T], float32."""

Metrics = dict[str, jax.Array]

ApplyFn = Callable[..., jax.Array]
"""`apply(params, batch, dropout_rng) -> logits [B, T, V]`; `dropout_rng` None means no dropout."""


@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss, a weighted sum of the parts' means; gin/runs/train.gin binds the attributes.

    Of the methods with two parts it is mean label loss + λ · mean rationale loss.

    Attributes:
      rationale_weight: the paper's λ, a constant or a schedule of it.
      normalization: `token_mean` or `example_mean`; see `losses.part_weights`.
      label_smoothing: share of the probability that is spread over all tokens, in [0, 1); see
        `losses.token_cross_entropy`.
      z_loss: weight of log(Z)², at least 0; see `losses.token_cross_entropy`.
      balancing: a rule that finds the weights of the parts; by default there is none.

    Raises:
      UserError: a value is out of its range.
    """

    rationale_weight: float | Schedule = 1.0
    normalization: losses.Normalization = "token_mean"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    balancing: Balancing = dataclasses.field(default_factory=Balancing)
    parts: ClassVar[tuple[Part, ...]] = ()

    def __post_init__(self) -> None:
        losses.check_hyperparameters(
            loss_normalization=self.normalization,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
        )
        if not callable(self.rationale_weight) and not self.rationale_weight >= 0.0:
            raise UserError(f"RATIONALE_WEIGHT = {self.rationale_weight} must not be negative.")

    def of(self, method: parts_lib.Method) -> Loss:
        """Returns the loss of a method's parts, which may have weights and normalisations."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(Loss)}
        return MethodLoss(**values, parts=method.parts)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parts; the part with code c is entry c - 1."""
        return parts_lib.names_of(self.parts)

    @property
    def weights(self) -> dict[str, float | Schedule]:
        """The weights that are not fixed to 1, by part; λ always, whether or not it is trained."""
        own = {part.name: part.weight for part in self.parts if part.weight is not None}
        return {"rationale": self.rationale_weight, **own}

    @property
    def normalizations(self) -> losses.Normalization | dict[str, losses.Normalization]:
        """The normalisation of all parts, or of each by name if they differ."""
        own: dict[str, Any] = {p.name: p.normalization for p in self.parts if p.normalization}
        return (
            {name: own.get(name, self.normalization) for name in self.names}
            if own
            else (self.normalization)
        )

    @property
    def constant_weights(self) -> dict[str, float | None]:
        """`weights`; None in the place of a schedule."""
        return {name: None if callable(w) else w for name, w in self.weights.items()}

    @property
    def constant_weight(self) -> float | None:
        """λ, or None if it follows a schedule."""
        return self.constant_weights["rationale"]

    def with_weights(self, weights: Mapping[str, float | Schedule]) -> Loss:
        """Returns the loss with other weights of parts that have one (see `weights`)."""
        rest = dict(weights)
        parts = tuple(
            dataclasses.replace(part, weight=rest.pop(part.name))
            if part.weight is not None and part.name in rest
            else part
            for part in self.parts
        )
        lambda_ = rest.pop("rationale", self.rationale_weight)
        changed: dict[str, Any] = {
            "rationale_weight": lambda_,
            **({"parts": parts} if parts else {}),
        }
        return dataclasses.replace(self, **changed)

    def weights_at(self, step: Any) -> dict[str, Any]:
        """`weights` at a step, which may be traced."""
        return {name: w(step) if callable(w) else w for name, w in self.weights.items()}


@dataclasses.dataclass(frozen=True)
class MethodLoss(Loss):
    """The loss of a method, from `Loss.of`.

    Attributes:
      parts: the parts of the method.
    """

    parts: tuple[Part, ...] = ()  # type: ignore[misc]


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
    does not depend on the mesh or on `num_microbatches` (dropout's masks aside), because all
    parts' weights are computed over the whole batch first.

    Args:
      apply_fn: the network, or with `head` the network below its head.
      optimizer: see `optimizers`; wrapped by `Balancing.wrap`, if the loss has such a rule.
      loss: the weights and regularisers of the loss.
      head: makes logits of what `apply_fn` returns, hidden states [B, T, D]. The loss then applies
        it to some tokens at a time, and logits of the whole batch never exist (`head_loss`).
      num_microbatches: how many equal slices of the batch are computed one after another.

    Raises:
      UserError: `num_microbatches` is out of its range; or, at the first call, the batch is not
        divisible by it.
    """
    require_at_least(1, NUM_MICROBATCHES=num_microbatches)

    rule, count = loss.balancing.rule, len(loss.names)

    def loss_fn(
        params: Any,
        microbatch: Batch,
        weights: dict[str, jax.Array],
        dropout_rng: jax.Array,
        probe: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, losses.PartSums]]:
        if optimizer.frozen is not None:
            # No gradient is computed that nothing is made of.
            params = jax.tree.map(
                lambda leaf, frozen: jax.lax.stop_gradient(leaf) if frozen else leaf,
                params,
                optimizer.frozen(params),
            )
        outputs = apply_fn(params, microbatch, dropout_rng)
        if probe is not None:
            outputs = outputs + probe
        arrays = (
            microbatch["decoder_target_tokens"],
            microbatch["decoder_target_parts"],
            microbatch["decoder_segment_ids"],
            microbatch["loss_weights"],
        )
        options: dict[str, Any] = {
            "names": loss.names,
            "label_smoothing": loss.label_smoothing,
            "z_loss": loss.z_loss,
        }
        if head is not None:
            return head_loss.sum_parts(
                head, params, outputs, *arrays, rationale_weight=weights, **options
            )
        sums = losses.sum_parts(outputs, *arrays, **options)
        return losses.join(sums, weights), sums

    def gradient_fn(
        params: Any, microbatch: Batch, weights: dict[str, jax.Array], dropout_rng: jax.Array
    ) -> tuple[Any, dict[str, losses.PartSums]]:
        """Gradients and sums; with `gradient_norm` (gradients, squared norms by part) and sums."""
        if rule != balancing_lib.GRADIENT_NORM:
            return jax.grad(loss_fn, has_aux=True)(params, microbatch, weights, dropout_rng)
        shape = jax.eval_shape(apply_fn, params, microbatch, dropout_rng)
        # The gradient with respect to zeros that are added to the outputs is that of the outputs.
        (gradients, by_output), sums = jax.grad(loss_fn, argnums=(0, 4), has_aux=True)(
            params, microbatch, weights, dropout_rng, jnp.zeros(shape.shape, shape.dtype)
        )
        parts = microbatch["decoder_target_parts"]
        return (gradients, balancing_lib.squared_norms(by_output, parts, count)), sums

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        weights = {
            name: jnp.asarray(weight, jnp.float32)
            for name, weight in loss.weights_at(state.step).items()
        }
        if rule is not None:
            weights = balancing_lib.weights(
                loss.balancing, state.opt_state.balance, loss.names, weights
            )
        dropout_rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        batch = _with_weights(batch, loss)
        if num_microbatches == 1:
            gradients, sums = gradient_fn(state.params, batch, weights, dropout_rng)
        else:

            def accumulate(carry: Any, microbatch: Batch) -> tuple[Any, None]:
                index, total = carry
                key = jax.random.fold_in(dropout_rng, index)
                new = gradient_fn(state.params, microbatch, weights, key)
                return (index + 1, jax.tree.map(jnp.add, total, new)), None

            slices = _microbatches(batch, num_microbatches)
            first = jax.tree.map(lambda x: x[0], slices)
            shapes = jax.eval_shape(gradient_fn, state.params, first, weights, dropout_rng)
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            (_, (gradients, sums)), _ = jax.lax.scan(accumulate, (jnp.int32(0), zeros), slices)
        norms = None
        if rule == balancing_lib.GRADIENT_NORM:
            gradients, squares = gradients
            norms = jnp.sqrt(squares)
        updates, opt_state = optimizer.transformation.update(
            gradients, state.opt_state, state.params
        )
        metrics = losses.summarize(sums, weights)
        metrics |= {f"{name}_weight": weight for name, weight in weights.items()}
        if rule is not None:
            balance = _balanced(loss, state.opt_state.balance, sums, weights, norms)
            opt_state = opt_state._replace(balance=balance)
        if norms is not None:
            named = zip(loss.names, norms, strict=True)
            metrics |= {f"{name}_gradient_norm": norm for name, norm in named}
        metrics["grad_norm"] = optax.global_norm(gradients)
        metrics["learning_rate"] = jnp.asarray(optimizer.learning_rate(state.step), jnp.float32)
        new_state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
        )
        return new_state, metrics

    return step


def _balanced(
    loss: Loss,
    balance: balancing_lib.BalanceState,
    sums: Mapping[str, losses.PartSums],
    weights: Mapping[str, jax.Array],
    norms: jax.Array | None,
) -> balancing_lib.BalanceState:
    """The state of the loss's rule after a step."""
    means = jnp.stack([sums[name].loss for name in loss.names])
    present = jnp.stack(
        [(sums[name].tokens > 0) & (weights[name] > 0) for name in loss.names]
    ).astype(jnp.float32)
    return balancing_lib.advance(loss.balancing, balance, means, present, norms)


def _with_weights(batch: Batch, loss: Loss) -> dict[str, jax.Array]:
    parts, token_weights = batch["decoder_target_parts"], batch.get("decoder_token_weights")
    options: dict[str, Any] = {"names": loss.names}
    rows = BothRows.of(batch)
    if rows is None:
        ids = batch["decoder_segment_ids"]
        raw = losses.raw_weights(
            parts, ids, loss.normalizations, token_weights=token_weights, **options
        )
    else:
        # Example means compare all tokens of a row with one another, so the rows are short ones.
        spread = rows.targets.spread
        weighed: Sequence[jax.Array | None] = [None] * len(rows.targets.tables)
        if token_weights is not None:
            weighed = spread(token_weights)
        columns = zip(spread(parts), spread(batch["decoder_segment_ids"]), weighed, strict=True)
        raw = rows.targets.gather(
            [
                losses.raw_weights(own, ids, loss.normalizations, token_weights=some, **options)
                for own, ids, some in columns
            ]
        )
    return {**batch, "loss_weights": losses.normalized(raw, parts, **options)}


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
