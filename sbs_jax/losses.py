"""The loss of several parts: L = Σ weight · mean of the part.

Of two parts it is mean_label + λ · mean_rationale (Hsieh et al. 2023, Eq. 3 and 4). The means run
over the whole global batch. They are folded into one weight per target token (`part_weights`),
computed before the batch is cut into microbatches or shards; all that follows is a plain sum of
weight × cross-entropy, which no cut can change. T5X (`t5x/losses.py`) normalises what each
microbatch sees and sums the results, which is why this is not borrowed from there.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sbs_jax import parts as parts_lib
from sbs_jax.errors import UserError

Normalization = Literal["token_mean", "example_mean"]

Weights = float | Float[Array, ""] | Mapping[str, float | Float[Array, ""]]
"""What each part's mean counts in the loss, by name; a part that is not named counts 1. A number
alone is the paper's λ, the weight of the part ``rationale``."""


class PartSums(NamedTuple):
    """What one part contributes; sums of microbatches add up to the sums of the batch.

    Attributes:
      loss: Σ weight · CE, float32 []; with `part_weights`' weights this is the part's mean.
      z_loss: the share of `loss` that is the z-loss, float32 [].
      correct: number of target tokens with the largest logit, float32 [].
      tokens: number of target tokens (EOS counts), float32 [].
      targets: number of target sequences, float32 [].
    """

    loss: Float[Array, ""]
    z_loss: Float[Array, ""]
    correct: Float[Array, ""]
    tokens: Float[Array, ""]
    targets: Float[Array, ""]


def check_hyperparameters(
    *, loss_normalization: str, label_smoothing: float, z_loss: float
) -> None:
    """Rejects hyperparameters outside their range.

    >>> check_hyperparameters(loss_normalization="token_mean", label_smoothing=1.0, z_loss=0.0)
    Traceback (most recent call last):
    sbs_jax.errors.UserError: LABEL_SMOOTHING = 1.0 must lie in [0, 1).

    Raises:
      UserError: names the parameter and its range.
    """
    if loss_normalization not in get_args(Normalization):
        raise UserError(
            f"LOSS_NORMALIZATION = {loss_normalization!r} is unknown; choose one of "
            f"{', '.join(get_args(Normalization))}."
        )
    if not 0.0 <= label_smoothing < 1.0:
        raise UserError(f"LABEL_SMOOTHING = {label_smoothing} must lie in [0, 1).")
    if not z_loss >= 0.0:
        raise UserError(f"Z_LOSS = {z_loss} must not be negative.")


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def token_cross_entropy(
    logits: Float[Array, "*B V"],
    targets: Int[Array, "*B"],
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """Cross-entropy of each token, with T5's label smoothing and z-loss.

    As `t5x/losses.py`: smoothing puts 1 - ε on the target and ε / (V - 1) on every other token and
    subtracts the entropy of that distribution, so that the least possible loss is 0; the z-loss
    adds z_loss · log(Z)², Z the softmax normaliser.

    Args:
      logits: any float dtype; computed in float32.
      targets: token ids in [0, V).
      label_smoothing: ε in [0, 1).
      z_loss: coefficient, at least 0.

    Returns:
      The loss of each token (z-loss included) and its z-loss alone, float32. Only the first is
      differentiable; the second is for the record.
    """
    return _cross_entropy_forward(logits, targets, label_smoothing, z_loss)[0]


def _smoothing(vocab_size: int, label_smoothing: float) -> tuple[float, float]:
    """The probability that smoothing leaves on the target, and on each other token."""
    return 1.0 - label_smoothing, label_smoothing / max(vocab_size - 1, 1)


def _cross_entropy_forward(
    logits: Float[Array, "*B V"], targets: Int[Array, "*B"], label_smoothing: float, z_loss: float
) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
    vocab_size = logits.shape[-1]
    floats = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(floats, axis=-1)
    target_logits = jnp.take_along_axis(floats, targets[..., None], axis=-1)[..., 0]
    loss = log_z - target_logits
    if label_smoothing:
        on, off = _smoothing(vocab_size, label_smoothing)
        everywhere = vocab_size * log_z - floats.sum(axis=-1)  # -Σ_v log p(v)
        entropy = -(on * jnp.log(on) + (vocab_size - 1) * off * jnp.log(off + 1e-20))
        loss = (on - off) * loss + off * everywhere - entropy
    z_term = z_loss * jnp.square(log_z)
    return (loss + z_term, z_term), (logits, targets, log_z)


def _cross_entropy_backward(
    label_smoothing: float,
    z_loss: float,
    saved: tuple[Array, Array, Array],
    cotangents: tuple[Array, Array],
) -> tuple[Array, None]:
    # softmax - soft target, written without a scatter or a one-hot matrix: one fused pass.
    logits, targets, log_z = saved
    on, off = _smoothing(logits.shape[-1], label_smoothing)
    probabilities = jnp.exp(logits.astype(jnp.float32) - log_z[..., None])
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    soft_targets = jnp.where(ids == targets[..., None], on, off)
    scale = (1.0 + 2.0 * z_loss * log_z)[..., None]
    gradient = cotangents[0][..., None] * (scale * probabilities - soft_targets)
    return gradient.astype(logits.dtype), None


token_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def part_weights(
    target_parts: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    normalization: Normalization | Mapping[str, Normalization] = "token_mean",
    *,
    names: Sequence[str] = parts_lib.NAMES,
    token_weights: Float[Array, "B T"] | None = None,
) -> Float[Array, "B T"]:
    """The weight of each target token in its part's mean, over the whole batch.

    The weights of each part sum to 1, or are all 0 where the batch holds none of it. Call this on
    the global batch, before it is cut into microbatches.

    One row with a label of one token, a rationale of two, and padding:

    >>> part_weights(jnp.array([[1, 2, 2, 0]]), jnp.array([[1, 2, 2, 0]])).tolist()
    [[1.0, 0.5, 0.5, 0.0]]

    Args:
      target_parts: the part code of each target token; `parts.PADDING` where there is none.
      segment_ids: which target of the row a token belongs to, from 1; 0 is padding.
      normalization: `token_mean` weighs every token alike (the published code); `example_mean`
        takes the mean of each target first and then of the targets (the paper's 1/N Σ). A mapping
        gives the normalisation of each part by name.
      names: the names of the parts; the part with code c is entry c - 1.
      token_weights: what each token counts within its part's mean; None weighs all alike.

    Returns:
      float32 weights; 0 on padding.
    """
    raw = raw_weights(
        target_parts, segment_ids, normalization, names=names, token_weights=token_weights
    )
    return normalized(raw, target_parts, names=names)


def normalized(
    raw: Float[Array, "B T"],
    target_parts: Int[Array, "B T"],
    *,
    names: Sequence[str] = parts_lib.NAMES,
) -> Float[Array, "B T"]:
    """`raw_weights` of the whole batch, scaled so that those of each part sum to 1."""
    weights = jnp.zeros_like(raw)
    for part in range(1, len(names) + 1):
        mine = jnp.where(target_parts == part, raw, 0.0)
        total = mine.sum()
        weights += mine / jnp.where(total > 0, total, 1.0)
    return weights


def raw_weights(
    target_parts: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    normalization: Normalization | Mapping[str, Normalization] = "token_mean",
    *,
    names: Sequence[str] = parts_lib.NAMES,
    token_weights: Float[Array, "B T"] | None = None,
) -> Float[Array, "B T"]:
    """The weights of `part_weights` before they are made to sum to 1.

    1 for each target token (`token_mean`), or 1 / how many tokens of its target are of its part
    (`example_mean`); 0 on padding. With `token_weights` w it is w, or w / Σ w of these tokens. For
    means over several batches: sum both the weighted losses and these weights.
    """
    real = (target_parts != parts_lib.PADDING).astype(jnp.float32)
    if token_weights is not None:
        real = jnp.where(real > 0, token_weights, 0.0)
    by_name = dict.fromkeys(names, normalization)
    if isinstance(normalization, Mapping):
        by_name = {name: normalization.get(name, "token_mean") for name in names}
    if set(by_name.values()) == {"token_mean"}:
        return real
    same = (segment_ids[:, :, None] == segment_ids[:, None, :]) & (
        target_parts[:, :, None] == target_parts[:, None, :]
    )
    lengths = jnp.einsum("bts,bs->bt", same.astype(jnp.float32), real)
    if token_weights is None:
        by_example = real / jnp.maximum(lengths, 1.0)
    else:
        by_example = real / jnp.where(lengths > 0, lengths, 1.0)
    for code, name in enumerate(names, start=1):
        if by_name[name] == "token_mean":
            by_example = jnp.where(target_parts == code, real, by_example)
    return by_example


def count_targets(
    target_parts: Int[Array, "B T"], segment_ids: Int[Array, "B T"]
) -> Int[Array, "B T"]:
    """1 at the last token of each part of each target, 0 elsewhere.

    (The first ones may be a prompt, which is of no part: `data.record_texts.decoder_prompt`.)
    """

    def changes(codes: Int[Array, "B T"]) -> Array:
        return codes != jnp.pad(codes, ((0, 0), (0, 1)))[:, 1:]

    last = changes(segment_ids) | changes(target_parts)
    return (last & (target_parts != parts_lib.PADDING)).astype(jnp.int32)


def sum_parts(
    logits: Float[Array, "B T V"],
    targets: Int[Array, "B T"],
    target_parts: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    names: Sequence[str] = parts_lib.NAMES,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> dict[str, PartSums]:
    """Sums each part of a batch or a microbatch.

    Args:
      logits: the logits of the decoder, any float dtype.
      targets: target token ids.
      target_parts: part codes.
      segment_ids: target number within the row.
      weights: the weights, from `part_weights` on the *whole* batch.
      names: the names of the parts, see `part_weights`.
      label_smoothing: see `token_cross_entropy`.
      z_loss: see `token_cross_entropy`.

    Returns:
      The sums by part name, in the order of `names`.
    """
    losses, z_losses = token_cross_entropy(logits, targets, label_smoothing, z_loss)
    correct = is_largest(logits, targets)
    return sum_tokens(losses, z_losses, correct, target_parts, segment_ids, weights, names=names)


def is_largest(logits: Float[Array, "*B V"], targets: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Returns 1 where the target has the largest logit, else 0; float32."""
    # The largest logit is known from the softmax already; an argmax would be another pass.
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return (target_logits == logits.max(axis=-1)).astype(jnp.float32)


def sum_tokens(
    losses: Float[Array, "B T"],
    z_losses: Float[Array, "B T"],
    correct: Float[Array, "B T"],
    target_parts: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    names: Sequence[str] = parts_lib.NAMES,
) -> dict[str, PartSums]:
    """`sum_parts` from what is known of each token.

    Args:
      losses: cross-entropies, z-loss included, from `token_cross_entropy`.
      z_losses: the z-loss alone.
      correct: whether each target is the most likely token, from `is_largest`.
      target_parts: part codes.
      segment_ids: target number within the row.
      weights: the weights, from `part_weights` on the *whole* batch.
      names: the names of the parts, see `part_weights`.

    Returns:
      The sums by part name, in the order of `names`.
    """
    ends = count_targets(target_parts, segment_ids).astype(jnp.float32)
    sums = {}
    for part, name in enumerate(names, start=1):
        mine = target_parts == part

        def over(values: Array, mine: Array = mine) -> Array:
            # `where`, not a product: a padding position may hold inf, and inf · 0 is NaN.
            return jnp.where(mine, values, 0.0).sum()

        sums[name] = PartSums(
            loss=over(weights * losses),
            z_loss=over(weights * z_losses),
            correct=over(correct),
            tokens=over(jnp.ones_like(weights)),
            targets=over(ends),
        )
    return sums


def join_weights(
    weights: Float[Array, "B T"],
    target_parts: Int[Array, "B T"],
    of_parts: Weights,
    *,
    names: Sequence[str] = parts_lib.NAMES,
) -> Float[Array, "B T"]:
    """The weight of each token's loss in `join`: `weights`, times the weight of its part."""
    of_token: float | Array = _weight(of_parts, names[0])
    for code, name in enumerate(names[1:], start=2):
        of_token = jnp.where(target_parts == code, _weight(of_parts, name), of_token)
    return jnp.where(target_parts == parts_lib.PADDING, 0.0, weights * of_token)


def join(sums: Mapping[str, PartSums], of_parts: Weights) -> Float[Array, ""]:
    """L = Σ weight · mean of the part; of two parts mean_label + λ · mean_rationale (Eq. 3)."""
    return _join({name: part.loss for name, part in sums.items()}, of_parts)


def _join(values: Mapping[str, Float[Array, ""]], of_parts: Weights) -> Float[Array, ""]:
    weighted = []
    for name, value in values.items():
        weight = _weight(of_parts, name)
        is_one = isinstance(weight, float) and weight == 1.0
        weighted.append(value if is_one else weight * value)
    return reduce(operator.add, weighted)


def _weight(of_parts: Weights, name: str) -> float | Float[Array, ""]:
    if isinstance(of_parts, Mapping):
        return of_parts.get(name, 1.0)
    return of_parts if name == parts_lib.PART_NAMES[parts_lib.RATIONALE] else 1.0


def summarize(sums: Mapping[str, PartSums], of_parts: Weights) -> dict[str, Float[Array, ""]]:
    """Metrics of a whole batch: `loss`, and of each part loss, accuracy, tokens and targets.

    An empty part has loss 0 and accuracy 0, never NaN; whoever records it sees `*_tokens` = 0.
    """
    metrics = {"loss": join(sums, of_parts)}
    for name, part in sums.items():
        metrics[f"{name}_loss"] = part.loss
        metrics[f"{name}_accuracy"] = part.correct / jnp.maximum(part.tokens, 1.0)
        metrics[f"{name}_tokens"] = part.tokens
        metrics[f"{name}_targets"] = part.targets
    metrics["z_loss"] = _join({name: part.z_loss for name, part in sums.items()}, of_parts)
    return metrics
