"""Chooses the next token of each row: greedy, by temperature, from the nucleus."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_BISECTIONS = 30


def choose(
    logits: Float[Array, "B V"],
    made: Int[Array, " B"],
    settings: Mapping[str, Array],
    *,
    sampled: bool,
    nucleus: bool,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Returns the next tokens and their log-probabilities (at temperature 1).

    A row's random numbers depend on its own seed and on how many tokens it has made, so they do not
    depend on which rows it shares a batch with.

    Args:
      logits: The logits of the next token.
      made: How many tokens each row has made.
      settings: `temperature`, `top_p` and `seed` of each row.
      sampled: Whether any row samples (static: a greedy batch computes no random numbers).
      nucleus: Whether any row has top_p below 1 (static).
    """
    token = logits.argmax(-1).astype(jnp.int32)
    if sampled:
        temperature = settings["temperature"]
        scaled = logits / jnp.maximum(temperature, 1e-6)[:, None]
        if nucleus:
            scaled = jnp.where(in_nucleus(scaled, settings["top_p"]), scaled, -jnp.inf)

        def noise(seed: Array, step: Array) -> Array:
            key = jax.random.fold_in(jax.random.key(seed), step)
            return jax.random.gumbel(key, logits.shape[1:], jnp.float32)

        drawn = (scaled + jax.vmap(noise)(settings["seed"], made)).argmax(-1)
        token = jnp.where(temperature > 0, drawn.astype(jnp.int32), token)
    chosen = jnp.take_along_axis(logits, token[:, None], -1)[:, 0]
    return token, chosen - jax.nn.logsumexp(logits, -1)


def in_nucleus(logits: Float[Array, "B V"], top_p: Float[Array, " B"]) -> Float[Array, "B V"]:
    """Tells which tokens belong to the smallest set whose probability reaches `top_p`.

    Finds the set's lowest probability by bisection, which over a vocabulary of 50,000 costs a
    fraction of sorting it; tokens of (almost) equal probability at the edge are all taken.
    """
    probabilities = jax.nn.softmax(logits, -1)
    low = jnp.zeros(logits.shape[0])
    high = probabilities.max(-1)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        inside = jnp.where(probabilities >= middle[:, None], probabilities, 0).sum(-1)
        enough = inside >= top_p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, (low, high))
    return probabilities >= low[:, None]
