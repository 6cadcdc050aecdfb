"""Cross-entropy straight from hidden states, in chunks of tokens.

The logits of a whole batch, [B, T, V] in float32, are often the largest array of a training step:
some 2 GB for 16,384 tokens and a vocabulary of 32,128. Here the head is applied to one chunk of
tokens after another. While a chunk's logits are there, its share of the gradients is computed, too,
so that nothing is computed twice: a loss is a weighted sum of the tokens' cross-entropies, and the
weights are known beforehand (`losses.part_weights`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sbs_jax import losses
from sbs_jax import parts as parts_lib

CHUNK_BYTES = 256 * 2**20
"""How large a chunk's logits may be on one device."""


@dataclasses.dataclass(frozen=True)
class Head:
    """A network's output head, apart from the rest of it.

    Attributes:
      params_of: takes the head's own parameters out of all of them, as a tree.
      logits: `logits(head_params, hidden [N, D]) -> [N, V]`, in float32.
      vocab_size: V on one device.
      groups: in how many parts the rows of a batch lie on the devices, one after another. Each part
        sums gradients for itself, so that devices exchange them once and not for every chunk.
      spread: lays a tree with a first axis of `groups` out, that axis along the mesh's `data`.
    """

    params_of: Callable[[Any], Any]
    logits: Callable[[Any, jax.Array], jax.Array]
    vocab_size: int
    groups: int = 1
    spread: Callable[[Any], Any] = lambda tree: tree


def sum_parts(
    head: Head,
    params: Any,
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    target_parts: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    names: Sequence[str] = parts_lib.NAMES,
    rationale_weight: losses.Weights = 1.0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Float[Array, ""], dict[str, losses.PartSums]]:
    """`losses.sum_parts` and `losses.join` from hidden states instead of logits.

    Args:
      head: the head of the network.
      params: all parameters.
      hidden: the head's input.
      targets: target token ids.
      target_parts: part codes.
      segment_ids: target number within the row.
      weights: the weights, from `losses.part_weights` on the *whole* batch.
      names: the names of the parts, see `losses.part_weights`.
      rationale_weight: the paper's λ, or the weights of all parts by name.
      label_smoothing: see `losses.token_cross_entropy`.
      z_loss: see `losses.token_cross_entropy`.
      chunk_bytes: see `CHUNK_BYTES`.

    Returns:
      The loss, which can be differentiated by `params` and `hidden`, and the sums by part, which
      are for the record.
    """
    scales = losses.join_weights(weights, target_parts, rationale_weight, names=names)
    rows, length = targets.shape
    groups = head.groups if rows % head.groups == 0 else 1
    per_group = rows // groups * length
    most = max(chunk_bytes // (4 * head.vocab_size), 1)
    chunks = -(-per_group // most)
    size = -(-per_group // chunks)

    def cut(x: jax.Array) -> jax.Array:
        """[B, T, …] as [chunks, groups, size, …]."""
        x = x.reshape(groups, per_group, *x.shape[2:])
        x = jnp.pad(x, [(0, 0), (0, chunks * size - per_group), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(groups, chunks, size, *x.shape[2:]), 1, 0)

    def join(x: jax.Array) -> jax.Array:
        """The inverse of `cut`."""
        x = jnp.moveaxis(x, 0, 1).reshape(groups, chunks * size)
        return x[:, :per_group].reshape(rows, length)

    options = _Options(head, groups, label_smoothing, z_loss)
    total, tokens = _weighted(
        options, head.params_of(params), cut(hidden), cut(targets), cut(scales)
    )
    cross_entropies, z_losses, correct = (join(jax.lax.stop_gradient(x)) for x in tokens)
    return total, losses.sum_tokens(
        cross_entropies, z_losses, correct, target_parts, segment_ids, weights, names=names
    )


@dataclasses.dataclass(frozen=True)
class _Options:
    head: Head
    groups: int
    label_smoothing: float
    z_loss: float


Tokens = tuple[jax.Array, jax.Array, jax.Array]
"""Each token's loss and z-loss, and whether its target has the largest logit; float32."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted(
    options: _Options, params: Any, hidden: jax.Array, targets: jax.Array, scales: jax.Array
) -> tuple[jax.Array, Tokens]:
    """Σ scale · CE, and what is known of each token; hidden [chunks, groups, size, D]."""
    spread = _spread(options, params)

    def chunk(inputs: tuple[jax.Array, jax.Array]) -> Tokens:
        return _each_group(functools.partial(_tokens, options), spread, *inputs)

    tokens = _over_chunks(chunk, (hidden, targets))
    return _sum(scales, tokens[0]), tokens


def _forward(
    options: _Options, params: Any, hidden: jax.Array, targets: jax.Array, scales: jax.Array
) -> tuple[tuple[jax.Array, Tokens], Any]:
    spread = _spread(options, params)

    def one(params: Any, hidden: jax.Array, targets: jax.Array, scales: jax.Array) -> Any:
        """A chunk of a group: its tokens, and its gradients."""

        def total(params: Any, hidden: jax.Array) -> tuple[jax.Array, Tokens]:
            tokens = _tokens(options, params, hidden, targets)
            return _sum(scales, tokens[0]), tokens

        gradients, tokens = jax.grad(total, argnums=(0, 1), has_aux=True)(params, hidden)
        return tokens, gradients

    def add(summed: Any, inputs: Any) -> tuple[Any, Any]:
        tokens, (of_params, of_hidden) = _each_group(one, spread, *inputs)
        return jax.tree.map(jnp.add, summed, of_params), (tokens, of_hidden)

    inputs = (hidden, targets, scales)
    # Sums of many chunks are kept in float32, whatever the head computes in.
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), spread)
    if hidden.shape[0] == 1:
        summed, outputs = add(zeros, jax.tree.map(lambda x: x[0], inputs))
        tokens, of_hidden = jax.tree.map(lambda x: x[None], outputs)
    else:
        summed, (tokens, of_hidden) = jax.lax.scan(add, zeros, inputs)
    # In the head's own dtype the groups exchange half as much, if that is bfloat16.
    of_params = jax.tree.map(lambda x, like: x.astype(like.dtype).sum(axis=0), summed, spread)
    return (_sum(scales, tokens[0]), tokens), (of_params, of_hidden)


def _backward(options: _Options, saved: Any, cotangents: Any) -> tuple[Any, Any, None, None]:
    del options
    scale = cotangents[0]
    of_params, of_hidden = jax.tree.map(lambda x: (x * scale).astype(x.dtype), saved)
    # Neither token ids nor weights are ever differentiated.
    return of_params, of_hidden, None, None


_weighted.defvjp(_forward, _backward)


def _sum(scales: jax.Array, of_tokens: jax.Array) -> jax.Array:
    # `where`, not a product: a padding position may hold inf, and inf · 0 is NaN.
    return jnp.sum(jnp.where(scales == 0, 0.0, scales * of_tokens))


def _tokens(
    options: _Options, params: Any, hidden: Float[Array, "N D"], targets: Int[Array, " N"]
) -> Tokens:
    logits = options.head.logits(params, hidden)
    of_token, z_term = losses.token_cross_entropy(
        logits, targets, options.label_smoothing, options.z_loss
    )
    return of_token, z_term, losses.is_largest(logits, targets)


def _spread(options: _Options, params: Any) -> Any:
    """A copy of the head's parameters for each group, each on its own devices."""
    copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (options.groups, *x.shape)), params)
    return options.head.spread(copies) if options.groups > 1 else copies


def _each_group(function: Callable[..., Any], *inputs: Any) -> Any:
    """`jax.vmap`; of one group without it, for its products of batches are not free everywhere."""
    if jax.tree.leaves(inputs)[0].shape[0] > 1:
        return jax.vmap(function)(*inputs)
    outputs = function(*jax.tree.map(lambda x: x[0], inputs))
    return jax.tree.map(lambda x: x[None], outputs)


def _over_chunks(function: Callable[[Any], Any], inputs: Any) -> Any:
    if jax.tree.leaves(inputs)[0].shape[0] == 1:
        outputs = function(jax.tree.map(lambda x: x[0], inputs))
        return jax.tree.map(lambda x: x[None], outputs)
    return jax.lax.map(function, inputs)
