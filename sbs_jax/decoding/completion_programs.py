"""The compiled programs of `completions`: prompts go in, tokens are chosen and fed back."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from sbs_jax.decoding.choice import choose
from sbs_jax.models.decoder.network import DecoderOnly
from sbs_jax.models.decoder.stack import Memory
from sbs_jax.models.stacks import DecoderCache

STEPS = 8  # decoded between two looks at stop strings


@functools.partial(jax.jit, static_argnums=1, donate_argnums=5)
def prefill(
    params: Any,
    network: DecoderOnly,
    tokens: jax.Array,
    column: jax.Array,
    padding: jax.Array,
    cache: DecoderCache,
    prefix: Memory | None,
) -> tuple[jax.Array, DecoderCache]:
    """Sends tokens [B, N] through the network; returns the last logits [B, V] and the cache."""
    made: Any = network.apply(
        {"params": params},
        tokens,
        column,
        padding,
        cache,
        prefix,
        last_only=True,
        method="continue_texts",
    )
    logits, cache = made
    return logits[:, -1], cache


@functools.partial(jax.jit, static_argnums=(1, 11, 12), donate_argnums=(2, 5))
def decode(
    params: Any,
    network: DecoderOnly,
    logits: jax.Array,
    column: jax.Array,
    padding: jax.Array,
    store: DecoderCache,
    prefix: Memory | None,
    ended: jax.Array,
    made: jax.Array,
    settings: dict[str, jax.Array],
    ends: jax.Array,
    sampled: bool,
    nucleus: bool,
) -> dict[str, Any]:
    """Chooses and feeds back `STEPS` tokens a row; ends early when all rows have ended."""
    rows = logits.shape[0]
    state = {
        "step": jnp.int32(0),
        "logits": logits,
        "store": store,
        "ended": ended,
        "made": made,
        "eos": jnp.zeros(rows, bool),
        "tokens": jnp.zeros((rows, STEPS), jnp.int32),
        "valid": jnp.zeros((rows, STEPS), bool),
        "logprobs": jnp.zeros((rows, STEPS), jnp.float32),
    }

    def more(state: dict[str, Any]) -> jax.Array:
        return (state["step"] < STEPS) & ~state["ended"].all()

    def step(state: dict[str, Any]) -> dict[str, Any]:
        token, logprob = choose(
            state["logits"], state["made"], settings, sampled=sampled, nucleus=nucleus
        )
        live = ~state["ended"]
        is_end = (token[:, None] == ends[None]).any(-1)
        valid = live & ~is_end
        place = state["step"]
        made = state["made"] + valid
        eos = state["eos"] | (live & is_end)
        after, grown = network.apply(
            {"params": params},
            jnp.where(valid, token, 0)[:, None],
            column + place,
            padding,
            state["store"],
            prefix,
            last_only=True,
            method="continue_texts",
        )
        return {
            "step": place + 1,
            "logits": after[:, -1],
            "store": grown,
            "ended": state["ended"] | is_end | (made >= settings["limit"]),
            "made": made,
            "eos": eos,
            "tokens": state["tokens"].at[:, place].set(token),
            "valid": state["valid"].at[:, place].set(valid),
            "logprobs": state["logprobs"].at[:, place].set(logprob),
        }

    return jax.lax.while_loop(more, step, state)


def empty_cache(network: DecoderOnly, rows: int, columns: int) -> DecoderCache:
    """Returns a cache of zeros for `rows` rows of `columns` tokens."""

    def make(module: DecoderOnly) -> DecoderCache:
        return module.decoder.empty_cache(rows, columns)

    # The cache is donated to each step: every layer needs buffers of its own.
    return jax.tree.map(jnp.copy, network.apply({}, method=make))
