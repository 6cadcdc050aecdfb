"""Optimizers: optax transformations together with the learning rate that they follow."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from flax import traverse_util

from sbs_jax.errors import UserError
from sbs_jax.training import low_precision, per_layer, schedules


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optax transformation, and its learning rate for the record.

    Attributes:
      transformation: maps gradients to updates; clipping included.
      learning_rate: the schedule that `transformation` follows, by step from 0.
      frozen: maps parameters to a tree of bools, True where no gradient is wanted; None where all
        are trained.
      remake: makes the same optimizer with another learning rate; its `keywords` are the other
        hyperparameters. None where that is not known.
    """

    transformation: optax.GradientTransformation
    learning_rate: schedules.Schedule
    frozen: Callable[[Any], Any] | None = None
    remake: functools.partial[Optimizer] | None = None


def adamw(
    learning_rate: float | schedules.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    max_grad_norm: float | None = 1.0,
    moment_dtype: str = "float32",
) -> Optimizer:
    """AdamW as the published runs use it: no weight decay, gradients clipped to norm 1.

    Args:
      learning_rate: a constant or a schedule.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root of the second moment.
      weight_decay: decoupled decay, times the learning rate.
      max_grad_norm: global norm to clip to; None clips nothing.
      moment_dtype: in which both moments are kept, `float32` or `bfloat16`: 4 bytes a parameter
        instead of 8. Sums are computed in float32 and rounded up or down at random, so that many
        small changes count on average (`low_precision`).

    Raises:
      UserError: a hyperparameter is out of its range.
    """
    for name, value in (("b1", b1), ("b2", b2)):
        if not 0.0 <= value < 1.0:
            raise UserError(f"adamw: {name} = {value} must lie in [0, 1).")
    if not eps > 0.0:
        raise UserError(f"adamw: eps = {eps} must be positive.")
    if not weight_decay >= 0.0:
        raise UserError(f"adamw: weight_decay = {weight_decay} must not be negative.")
    schedule = _as_schedule("adamw", learning_rate)
    if moment_dtype not in ("float32", "bfloat16"):
        raise UserError(
            f"adamw: moment_dtype = {moment_dtype!r} must be one of 'float32', 'bfloat16'."
        )
    transformation = optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    if moment_dtype == "bfloat16":
        transformation = low_precision.keep_in_bfloat16(transformation)
    remake = functools.partial(
        adamw,
        b1=b1,
        b2=b2,
        eps=eps,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        moment_dtype=moment_dtype,
    )
    return Optimizer(_clipped("adamw", transformation, max_grad_norm), schedule, remake=remake)


def adafactor(
    learning_rate: float | schedules.Schedule,
    *,
    decay_rate: float = 0.8,
    clipping_threshold: float | None = 1.0,
    multiply_by_parameter_scale: bool = True,
    min_dim_size_to_factor: int = 128,
    momentum: float | None = None,
    weight_decay: float | None = None,
    max_grad_norm: float | None = None,
) -> Optimizer:
    """Adafactor (Shazeer and Stern 2018) with the settings that T5 was trained with.

    Args:
      learning_rate: a constant (T5 finetuning: 1e-3) or a schedule.
      decay_rate: exponent of the second moment's decay, 1 - step^-decay_rate; in (0, 1).
      clipping_threshold: root mean square that an update is clipped to; None clips nothing.
      multiply_by_parameter_scale: whether steps are relative to each parameter's own scale.
      min_dim_size_to_factor: smaller matrices keep a full second moment.
      momentum: decay of the first moment; None keeps none.
      weight_decay: decoupled decay per step; None decays nothing.
      max_grad_norm: global norm to clip gradients to; None clips nothing.

    Raises:
      UserError: a hyperparameter is out of its range.
    """
    if not 0.0 < decay_rate < 1.0:
        raise UserError(f"adafactor: decay_rate = {decay_rate} must lie in (0, 1).")
    schedule = _as_schedule("adafactor", learning_rate)
    own: dict[str, Any] = {
        "decay_rate": decay_rate,
        "clipping_threshold": clipping_threshold,
        "multiply_by_parameter_scale": multiply_by_parameter_scale,
        "min_dim_size_to_factor": min_dim_size_to_factor,
        "momentum": momentum,
    }
    transformation = optax.adafactor(schedule, weight_decay_rate=weight_decay, **own)
    transformation = per_layer.per_layer(transformation)
    remake = functools.partial(
        adafactor, weight_decay=weight_decay, max_grad_norm=max_grad_norm, **own
    )
    return Optimizer(_clipped("adafactor", transformation, max_grad_norm), schedule, remake=remake)


def sgd(
    learning_rate: float | schedules.Schedule,
    *,
    momentum: float | None = None,
    max_grad_norm: float | None = None,
) -> Optimizer:
    """Plain gradient descent: for comparing trainers to the digit."""
    schedule = _as_schedule("sgd", learning_rate)
    return Optimizer(
        _clipped("sgd", optax.sgd(schedule, momentum=momentum), max_grad_norm),
        schedule,
        remake=functools.partial(sgd, momentum=momentum, max_grad_norm=max_grad_norm),
    )


def freeze(optimizer: Optimizer, patterns: Sequence[str]) -> Optimizer:
    """Leaves parameters as they are, without moments, and updates the others.

    Args:
      optimizer: what updates the others; it clips by the norm of their gradients alone.
      patterns: regular expressions; a parameter is frozen where one of them is found in its path,
        for example `token_embedder` or `decoder/layers_[0-9]/` (`re.search`). With none, the
        optimizer is returned.

    Raises:
      UserError: a pattern is no regular expression; or, when the state is made, it fits no
        parameter, or nothing is left to train.
    """
    if not patterns:
        return optimizer
    try:
        compiled = [re.compile(pattern) for pattern in patterns]
    except (re.error, TypeError) as error:
        raise UserError(f"FREEZE = {list(patterns)}: is no regular expression ({error}).") from None

    def label(params: Any) -> Any:
        paths = traverse_util.flatten_dict(params, sep="/")
        for pattern in compiled:
            if not any(pattern.search(path) for path in paths):
                raise UserError(
                    f"FREEZE: {pattern.pattern!r} fits no parameter, such as {min(paths)}."
                )
        labels = {
            path: "frozen" if any(pattern.search(path) for pattern in compiled) else "trained"
            for path in paths
        }
        if "trained" not in labels.values():
            raise UserError(f"FREEZE = {list(patterns)} leaves nothing to train.")
        return traverse_util.unflatten_dict(labels, sep="/")

    parts = {"trained": optimizer.transformation, "frozen": optax.set_to_zero()}
    return dataclasses.replace(
        optimizer,
        transformation=optax.partition(parts, label),
        frozen=lambda params: jax.tree.map(lambda kind: kind == "frozen", label(params)),
        remake=remade_within(optimizer, lambda inner: freeze(inner, patterns)),
    )


def remade_within(
    optimizer: Optimizer, wrap: Callable[[Optimizer], Optimizer]
) -> functools.partial[Optimizer] | None:
    """The `Optimizer.remake` of `wrap(optimizer)`; it has the hyperparameters of `optimizer`."""
    if (remake := optimizer.remake) is None:
        return None

    def remade(learning_rate: schedules.Schedule, **hyperparameters: Any) -> Optimizer:
        return wrap(remake.func(learning_rate, **hyperparameters))

    return functools.partial(remade, **remake.keywords)


def _as_schedule(owner: str, learning_rate: float | schedules.Schedule) -> schedules.Schedule:
    if callable(learning_rate):
        return learning_rate
    if not learning_rate >= 0.0:
        raise UserError(f"{owner}: learning_rate = {learning_rate} must not be negative.")
    return schedules.constant(learning_rate)


def _clipped(
    owner: str, transformation: optax.GradientTransformation, max_grad_norm: float | None
) -> optax.GradientTransformation:
    if max_grad_norm is None:
        return transformation
    if not max_grad_norm > 0.0:
        raise UserError(f"{owner}: max_grad_norm = {max_grad_norm} must be positive or None.")
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), transformation)
