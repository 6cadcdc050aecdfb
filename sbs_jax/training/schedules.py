"""Learning-rate and λ schedules: functions of the step number, usable under jit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sbs_jax.errors import UserError

Schedule = Callable[[Any], Any]
"""Maps a step (from 0, an int or an int32 scalar array) to a value, a float or a scalar array."""


def constant(value: float) -> Schedule:
    """The same value at every step."""
    return optax.constant_schedule(value)


def linear_decay(peak: float, total_steps: int, warmup_steps: int = 0) -> Schedule:
    """Rises linearly from 0 to `peak` in `warmup_steps`, then falls linearly to 0 at `total_steps`.

    The published runs: peak 5e-5, no warm-up (Hugging Face's default `linear` schedule). A run that
    is shorter than its warm-up (a trial of some steps) only rises.

    Raises:
      UserError: `warmup_steps` is negative, or `total_steps` is below 1.
    """
    _check_steps("linear_decay", total_steps, warmup_steps)
    decay = optax.linear_schedule(peak, 0.0, max(total_steps - warmup_steps, 1))
    if not warmup_steps:
        return decay
    rise = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([rise, decay], [warmup_steps])


def cosine_decay(
    peak: float, total_steps: int, warmup_steps: int = 0, final: float = 0.0
) -> Schedule:
    """Rises linearly to `peak` in `warmup_steps`, then follows a half cosine down to `final`.

    A run that is shorter than its warm-up only rises.

    Raises:
      UserError: `warmup_steps` is negative, or `total_steps` is below 1.
    """
    _check_steps("cosine_decay", total_steps, warmup_steps)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else peak,
        peak_value=peak,
        warmup_steps=warmup_steps,
        decay_steps=max(total_steps, warmup_steps + 1),
        end_value=final,
    )


def rsqrt(peak: float, warmup_steps: int = 10_000) -> Schedule:
    """`peak` · sqrt(warmup_steps / max(step, warmup_steps)): T5's pre-training schedule.

    Raises:
      UserError: `warmup_steps` is below 1.
    """
    if warmup_steps < 1:
        raise UserError(
            f"rsqrt: warmup_steps = {warmup_steps} must be at least 1; WARMUP_STEPS sets it."
        )

    def schedule(step: int | jax.Array) -> jax.Array:
        return peak * jnp.sqrt(warmup_steps / jnp.maximum(step, warmup_steps))

    return schedule


def linear_ramp(start: float, end: float, steps: int) -> Schedule:
    """From `start` to `end` on a straight line in `steps` steps, then `end`: for λ.

    Raises:
      UserError: an argument is out of its range.
    """
    _check_ramp("linear_ramp", start, end, steps)
    return optax.linear_schedule(start, end, steps)


def cosine_ramp(start: float, end: float, steps: int) -> Schedule:
    """From `start` to `end` along a half cosine in `steps` steps, then `end`: for λ.

    Raises:
      UserError: an argument is out of its range.
    """
    _check_ramp("cosine_ramp", start, end, steps)

    def schedule(step: int | jax.Array) -> jax.Array:
        progress = jnp.clip(step / steps, 0.0, 1.0)
        return start + (end - start) * (1.0 - jnp.cos(jnp.pi * progress)) / 2.0

    return schedule


def _check_ramp(name: str, start: float, end: float, steps: int) -> None:
    if steps < 1:
        raise UserError(
            f"{name}: steps = {steps} must be at least 1; RATIONALE_WEIGHT_STEPS sets it."
        )
    if start < 0 or end < 0:
        raise UserError(
            f"{name}: start = {start} and end = {end} must not be negative; "
            "RATIONALE_WEIGHT_START and RATIONALE_WEIGHT_END set them."
        )


def _check_steps(name: str, total_steps: int, warmup_steps: int) -> None:
    if total_steps < 1:
        raise UserError(
            f"{name}: total_steps = {total_steps} must be at least 1; TRAIN_STEPS sets it."
        )
    if warmup_steps < 0:
        raise UserError(
            f"{name}: warmup_steps = {warmup_steps} must not be negative; WARMUP_STEPS sets it."
        )
