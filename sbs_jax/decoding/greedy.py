"""Greedy decoding: the most likely token at each step, with a KV cache."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sbs_jax.decoding.begin import begin
from sbs_jax.models.interface import Network
from sbs_jax.token_ids import PAD_ID


@functools.partial(jax.jit, static_argnames=("model", "max_decode_len"))
def greedy_decode(
    model: Network,
    params: Any,
    encoder_input_tokens: Int[Array, "B S"],
    *,
    max_decode_len: int,
    eos_id: int = 1,
    decoder_prompt: Int[Array, " P"] | None = None,
) -> Int[Array, "B T"]:
    """Decodes every row until it has an EOS, or has `max_decode_len` tokens.

    The loop ends when the last row does, so an easy batch costs few steps. Parameters may be cut
    over a mesh and rows over its `data` axis; call it within the mesh then.

    Args:
      model: the network.
      params: the parameters of the model.
      encoder_input_tokens: int32 ids, padded with 0, one sequence a row. A row without any token is
        padding, and takes no step.
      max_decode_len: T, at least 1.
      eos_id: the token that ends a row.
      decoder_prompt: int32 ids that the decoder is fed after its start token and before it
        generates, the same for all rows; not part of the result.

    Returns:
      int32 ids without the start token, EOS included, then 0.
    """
    variables = {"params": params}
    memory, cache, token, offset = begin(
        model, params, encoder_input_tokens, max_decode_len, decoder_prompt
    )
    batch_size = encoder_input_tokens.shape[0]
    start = jnp.full((batch_size,), token)
    # Positions run first here, so that a step writes one contiguous row.
    decoded = jnp.full((max_decode_len, batch_size), PAD_ID, jnp.int32)

    def unfinished(state: tuple[Any, ...]) -> Bool[Array, ""]:
        step, _, _, finished, _ = state
        return (step < max_decode_len) & ~jnp.all(finished)

    def decode(state: tuple[Any, ...]) -> tuple[Any, ...]:
        step, tokens, decoded, finished, cache = state
        logits, cache = model.apply(
            variables, tokens, offset + step, memory, cache, method="decode_step"
        )
        tokens = jnp.where(finished, PAD_ID, most_likely(logits))
        decoded = lax.dynamic_update_index_in_dim(decoded, tokens, step, axis=0)
        return step + 1, tokens, decoded, finished | (tokens == eos_id), cache

    padding_rows = ~jnp.any(encoder_input_tokens > 0, axis=1)
    state = (jnp.int32(0), start, decoded, padding_rows, cache)
    _, _, decoded, _, _ = lax.while_loop(unfinished, decode, state)
    return decoded.T


def most_likely(logits: Float[Array, "*B V"]) -> Int[Array, "*B"]:
    """The first index of the largest logit.

    This is `jnp.argmax`, written as two plain reductions: XLA:CPU vectorises those, but not the
    reduction over pairs of value and index, which takes longer than the rest of the head.
    """
    ids = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    largest = jnp.max(logits, axis=-1, keepdims=True)
    # NaN equals nothing; the last id then keeps the result within the vocabulary.
    return jnp.min(jnp.where(logits == largest, ids, logits.shape[-1] - 1), axis=-1)
