"""Keeps an optimizer's moments in bfloat16, and loses nothing on average."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax


def keep_in_bfloat16(
    transformation: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Has a transformation keep its floating-point state, scalars aside, in bfloat16.

    It computes in float32 as before. What it keeps is rounded up or down at random, with the
    probabilities that leave the mean unchanged: an Adam with a decay of 0.999 changes its second
    moment by a thousandth at a time, and bfloat16, whose numbers are 0.4 to 0.8 percent apart,
    would round all of that away.

    Args:
      transformation: its state may be any tree of arrays.

    Returns:
      A transformation whose state has the same structure.
    """

    def init(params: Any) -> Any:
        return jax.tree.map(
            lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 and x.ndim else x,
            transformation.init(params),
        )

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        leaves, structure = jax.tree.flatten(state)
        wide = [leaf.astype(jnp.float32) if _is_narrow(leaf) else leaf for leaf in leaves]
        # Without the step, an entry that no gradient reaches might be rounded back for ever.
        counts = [leaf for leaf in leaves if leaf.ndim == 0 and leaf.dtype == jnp.int32]
        step = sum(counts, jnp.zeros((), jnp.int32)).astype(jnp.uint32)
        widened = jax.tree.unflatten(structure, wide)
        updates, new = transformation.update(gradients, widened, params)
        rounded = [
            round_at_random(value, step, place) if _is_narrow(old) else value
            for place, (value, old) in enumerate(zip(jax.tree.leaves(new), leaves, strict=True))
        ]
        return updates, jax.tree.unflatten(structure, rounded)

    return optax.GradientTransformation(init, update)


def round_at_random(x: jax.Array, step: jax.Array, place: int) -> jax.Array:
    """Rounds float32 to one of the two neighbouring bfloat16 numbers, unbiased.

    The random bits are a hash of the values, of where they stand, of `step` and of `place`, so the
    result needs no key and is the same on every mesh.

    Args:
      x: float32 of any shape; NaN and infinities stay what they are.
      step: uint32 [], another one at every call.
      place: a number of this array, which sets it apart from others.
    """
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    noise = bits + step * jnp.uint32(0x27D4EB2F)
    noise += jnp.uint32((0x9E3779B1 * (place + 1)) % 2**32)
    for axis in range(x.ndim):
        multiplier = jnp.uint32((0x85EBCA6B * (2 * axis + 1)) % 2**32)
        noise += lax.broadcasted_iota(jnp.uint32, x.shape, axis) * multiplier
    # MurmurHash3's finalizer: every bit depends on all bits.
    noise = (noise ^ (noise >> 16)) * jnp.uint32(0x85EBCA6B)
    noise = (noise ^ (noise >> 13)) * jnp.uint32(0xC2B2AE35)
    noise ^= noise >> 16
    # bfloat16 is the upper half of float32: a carry out of the lower half rounds away from zero.
    raised = (bits + (noise & 0xFFFF)) & jnp.uint32(0xFFFF0000)
    kept = jnp.where(jnp.isfinite(x), raised, bits & jnp.uint32(0xFFFF0000))
    return lax.bitcast_convert_type(kept, jnp.float32).astype(jnp.bfloat16)


def _is_narrow(leaf: Any) -> bool:
    return getattr(leaf, "dtype", None) == jnp.bfloat16
