"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864), in Hugging Face's half layout."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sbs_jax.models.decoder.config import LayerConfig


class Rotation(NamedTuple):
    """The rotation of each position: cosine and sine of its angles, [B, L, K], at least float32."""

    cos: Float[Array, "#B L K"]
    sin: Float[Array, "#B L K"]


def inverse_frequencies(config: LayerConfig, *, local: bool = False) -> np.ndarray:
    """Returns the K / 2 angles by which one position turns, as transformers computes them.

    They are rounded to float32 as there: at position 60 the difference to float64 is a few 1e-6 of
    a turn, which shows in the logits.

    Args:
      config: the network's.
      local: those of layers that see a sliding window.
    """
    separate = local and config.local_rope_theta is not None
    theta = config.local_rope_theta if separate else config.rope_theta
    powers = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    inverse = (np.float32(1.0) / np.float32(theta) ** powers).astype(np.float64)
    if separate:
        return inverse
    if config.rope_divisors is not None:
        return inverse / np.asarray(config.rope_divisors, np.float64)
    if config.rope_scaling == "linear":
        return inverse / config.rope_factor
    if config.rope_scaling == "llama3":
        low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
        wavelength = 2 * math.pi / inverse
        turns = config.rope_original_max_positions / wavelength
        smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return (1 - smooth) * inverse / config.rope_factor + smooth * inverse
    return inverse


def rotation(
    config: LayerConfig, positions: Int[Array, "#B L"], *, local: bool = False
) -> Rotation:
    """Returns the rotations of positions, which count from 0 within each text."""
    dtype = jnp.promote_types(jnp.float32, config.dtype)
    inverse = jnp.asarray(inverse_frequencies(config, local=local), dtype)
    angles = positions[..., None].astype(dtype) * inverse[None, None]
    angles = jnp.concatenate([angles, angles], -1)
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[Array, "B N L K"], by: Rotation) -> Float[Array, "B N L K"]:
    """Rotates heads [B, N, L, K]; the result has the dtype of `x`."""
    first, second = jnp.split(x, 2, -1)
    turned = jnp.concatenate([-second, first], -1)
    return (x * by.cos[:, None] + turned * by.sin[:, None]).astype(x.dtype)
