"""What all ways of decoding begin with: the encoder, an empty cache, and a prompt."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from sbs_jax.models.interface import Network
from sbs_jax.models.stacks import DecoderCache, EncoderMemory

FEW_QUERIES = 16
"""An input of which at most so many tokens are decoded gets no keys and values."""


class Beginning(NamedTuple):
    """A decoder that is ready to generate.

    Attributes:
      memory: the memory of the encoder, one row an input.
      cache: holds what comes before `token`.
      token: int32 [], the decoder's next input: the prompt's last token, or the start token.
      position: the position of `token`: the length of the prompt.
    """

    memory: EncoderMemory
    cache: DecoderCache
    token: Int[Array, ""]
    position: int


def begin(
    model: Network,
    params: Any,
    encoder_input_tokens: Int[Array, "B S"],
    num_slots: int,
    decoder_prompt: Int[Array, " P"] | None,
    *,
    outputs: int = 1,
) -> Beginning:
    """Encodes, and feeds the decoder all of its prompt but the last token.

    Args:
      model: the network.
      params: the parameters of the model.
      encoder_input_tokens: int32 ids, padded with 0.
      num_slots: tokens of a row that the cache shall have room for, beside the prompt.
      decoder_prompt: what all rows are fed after the start token; None for nothing.
      outputs: how many are decoded of each input.

    Returns:
      The decoder before its first free token.
    """
    variables = {"params": params}
    prompt = () if decoder_prompt is None else decoder_prompt
    fed = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.asarray(prompt, jnp.int32)])
    length = fed.shape[0] - 1
    memory, cache = model.apply(
        variables,
        encoder_input_tokens,
        length + num_slots,
        few_queries=length + num_slots * outputs <= FEW_QUERIES,
        method="start_decoding",
    )
    if length:
        slots = np.arange(length + num_slots)
        _, cache = model.apply(
            variables,
            jnp.broadcast_to(fed[:-1], (encoder_input_tokens.shape[0], length)),
            0,
            slots[None, :length],
            slots[None],
            slots[None, None] <= slots[None, :length, None],
            memory,
            cache,
            method="extend",
        )
    return Beginning(memory, cache, fed[-1], length)
