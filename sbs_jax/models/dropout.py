"""Dropout whose masks are hashes: cheap to draw, the same on every mesh.

Every place that drops has a *seed* of two random 32-bit words; None stands for no dropout. Every
entry of a mask is a hash of its index and of the seed, so a mask is computed where it is used, is
never stored, and is the same however arrays are cut over devices.

`jax.random` promises more (Threefry is close to cryptographic) than masks need: drawing them from
it took a quarter of a small T5's training step on a CPU. It draws the seeds, all of a stack at
once: a key for each of some fifty places would double the time to compile a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, UInt32

from sbs_jax.models.config import T5Config
from sbs_jax.models.decoder.config import LayerConfig

Seed = UInt32[Array, "2"]
Seeds = Sequence[Seed | None]


def draw_seeds(key: jax.Array | None, count: int) -> Seeds:
    """Seeds for `count` places, from a key of `jax.random` of any kind; without a key, Nones."""
    if key is None:
        return [None] * count
    return list(jax.random.bits(key, (count, 2), jnp.uint32))


def seed_of_kind(seed: Seed | None, kind: int) -> Seed | None:
    """The seed of one of several arrays that one place drops; each gets masks of its own."""
    if seed is None or kind == 0:
        return seed
    return seed.at[1].add(jnp.uint32(kind * 0x9E3779B9 % 2**32))


def dropout(
    x: Float[Array, "*B L F"], seed: Seed | None, config: T5Config | LayerConfig
) -> Float[Array, "*B L F"]:
    """Zeroes entries at the config's rate and scales the others up, so that the mean stays.

    Args:
      x: activations; with `dropout_broadcast_length`, all of axis -2 share a mask.
      seed: None returns `x`.
      config: the network's.

    Returns:
      An array like `x`.
    """
    rate = config.dropout_rate
    if seed is None or rate == 0.0:
        return x
    shape = list(x.shape)
    if config.dropout_broadcast_length:
        shape[-2] = 1
    keep = random_mask(seed, 1.0 - rate, shape)
    return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros_like(x))


def random_mask(seed: Seed, probability: float, shape: Sequence[int]) -> Bool[Array, "*shape"]:
    """Booleans that are True with the given probability, independent for all that dropout sees.

    Args:
      seed: the seed of this place.
      probability: in [0, 1], rounded to a multiple of 2^-32.
      shape: the shape of the result.

    Returns:
      The mask.
    """
    index = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        index += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    hashed = _mix(_mix(index + seed[0]) ^ seed[1])
    threshold = round(probability * 2**32)
    if threshold >= 2**32:
        return jnp.ones(shape, bool)
    return hashed < jnp.uint32(threshold)


def _mix(x: UInt32[Array, "*B"]) -> UInt32[Array, "*B"]:
    """A bijection of 32-bit words in which every input bit flips every output bit half the time.

    The multipliers are Chris Wellons' `lowbias32` (nullprogram.com/blog/2018/07/31), public domain.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
