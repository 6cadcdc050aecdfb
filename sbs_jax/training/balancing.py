"""Weights of the parts that find themselves while the student is trained.

Both rules multiply the weight that the loss gives a part (λ, or PARTS) by a factor that starts at
1. What they carry from step to step lies in the optimizer's state, so that checkpoints hold it and
a run resumes to the bit. Without a rule nothing here is in the program.

* ``uncertainty`` (Kendall et al. 2018, arXiv 1705.07115, Eq. 10): the factor of part p is
  exp(−s_p), and s_p follows the gradient of exp(−s_p) · mean_p + s_p / 2 by plain descent. At rest
  the factor is 1 / (2 · mean_p).
* ``gradient_norm``, after GradNorm (Chen et al. 2018, arXiv 1711.02257): factors are moved so that
  each part's gradient norm G_p comes to the mean norm times r_p^alpha, r_p being how much of its
  first loss the part still has, relative to the mean of all parts. GradNorm takes gradients with
  respect to the last layer that the tasks share; here they are those with respect to the outputs of
  the network below its head. A token belongs to one part alone, so one backward pass gives all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from sbs_jax.errors import UserError
from sbs_jax.training.optimizers import Optimizer, remade_within

UNCERTAINTY, GRADIENT_NORM = RULES = ("uncertainty", "gradient_norm")
_LEAST = 1e-4


@dataclasses.dataclass(frozen=True)
class Balancing:
    """A rule that finds the weights of the parts; gin/runs/train.gin binds the attributes.

    Attributes:
      rule: `uncertainty` or `gradient_norm`; None leaves the weights as they are given.
      rate: step size of the rule, above 0.
      alpha: of `gradient_norm`: how strongly parts that have learned less are favoured, at least 0.

    Raises:
      UserError: a value is out of its range.
    """

    rule: str | None = None
    rate: float = 0.01
    alpha: float = 1.5

    def __post_init__(self) -> None:
        if self.rule is not None and self.rule not in RULES:
            raise UserError(f"BALANCING = {self.rule!r} must be None, {' or '.join(RULES)}.")
        if not self.rate > 0:
            raise UserError(f"BALANCING_RATE = {self.rate!r} must be above 0.")
        if not self.alpha >= 0:
            raise UserError(f"BALANCING_ALPHA = {self.alpha!r} must not be negative.")

    def wrap(self, optimizer: Optimizer, names: Sequence[str]) -> Optimizer:
        """Returns the optimizer whose state also holds that of the rule; as it is without a rule.

        Args:
          optimizer: see `optimizers`.
          names: the names of all parts, see `losses.part_weights`.
        """
        if self.rule is None:
            return optimizer
        inner = optimizer.transformation

        def init(params: Any) -> Balanced:
            return Balanced(inner.init(params), start(self, len(names)))

        def update(updates: Any, state: Balanced, params: Any = None) -> tuple[Any, Balanced]:
            updates, changed = inner.update(updates, state.optimizer, params)
            return updates, Balanced(changed, state.balance)

        return dataclasses.replace(
            optimizer,
            transformation=optax.GradientTransformation(init, update),
            remake=remade_within(optimizer, lambda inner: self.wrap(inner, names)),
        )


class BalanceState(NamedTuple):
    """What a rule carries from step to step.

    Attributes:
      values: float32 [P]: s_p of `uncertainty`, the factors of `gradient_norm`.
      first_losses: float32 [P]: the mean of each part when it first occurred, 0 before.
    """

    values: Float[Array, " P"]
    first_losses: Float[Array, " P"]


class Balanced(NamedTuple):
    """An optimizer's state beside that of a rule."""

    optimizer: Any
    balance: BalanceState


def start(balancing: Balancing, count: int) -> BalanceState:
    """Returns the state before the first step; all factors are 1."""
    zeros = jnp.zeros(count, jnp.float32)
    return BalanceState(zeros if balancing.rule == UNCERTAINTY else zeros + 1.0, zeros)


def factors(balancing: Balancing, state: BalanceState) -> Float[Array, " P"]:
    """Returns what the weight of each part is multiplied by in the next step."""
    return jnp.exp(-state.values) if balancing.rule == UNCERTAINTY else state.values


def weights(
    balancing: Balancing, state: BalanceState, names: Sequence[str], given: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Returns the weight of every part: the given one, which is 1 by default, times its factor."""
    found = factors(balancing, state)
    return {
        name: jnp.asarray(given.get(name, 1.0), jnp.float32) * found[place]
        for place, name in enumerate(names)
    }


def advance(
    balancing: Balancing,
    state: BalanceState,
    means: Float[Array, " P"],
    present: Float[Array, " P"],
    norms: Float[Array, " P"] | None = None,
) -> BalanceState:
    """Returns the state after a step.

    Args:
      balancing: the rule.
      state: before the step.
      means: the mean of each part over the global batch, without the part's weight.
      present: 1 where the batch holds tokens of the part and its weight is not 0, else 0; the
        others are left as they are.
      norms: the norms of each part's weighted gradient; `gradient_norm` alone needs them.
    """
    if balancing.rule == UNCERTAINTY:
        slope = 0.5 - jnp.exp(-state.values) * means
        return state._replace(values=state.values - balancing.rate * present * slope)
    assert norms is not None
    first = jnp.where((state.first_losses == 0) & (present > 0), means, state.first_losses)
    count = jnp.maximum(present.sum(), 1.0)
    left = means / jnp.maximum(first, _LEAST) * present
    relative = left / jnp.maximum(left.sum() / count, _LEAST)
    target = (norms * present).sum() / count * relative**balancing.alpha
    # d|G_p − target| / d factor_p, the target held fixed; G_p is proportional to the factor.
    slope = jnp.sign(norms - target) * norms / jnp.maximum(state.values, _LEAST)
    moved = jnp.maximum(state.values - balancing.rate * present * slope, _LEAST)
    # As in the paper, the factors of the parts keep their sum.
    before = (state.values * present).sum()
    scale = before / jnp.maximum((moved * present).sum(), _LEAST)
    return BalanceState(jnp.where(present > 0, moved * scale, state.values), first)


def squared_norms(
    output_gradients: Float[Array, "B T D"], target_parts: Int[Array, "B T"], count: int
) -> Float[Array, " P"]:
    """Returns the squared norm of the gradient with respect to the outputs, by part.

    Squares add up over microbatches, as each token is in one of them.
    """
    by_token = jnp.square(output_gradients.astype(jnp.float32)).sum(-1)
    return jnp.stack(
        [jnp.where(target_parts == code, by_token, 0.0).sum() for code in range(1, count + 1)]
    )
