"""Counts the products of matrices that a function asks for, whatever a compiler makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax


def count_flops(function: Callable[..., Any], *arguments: Any, turns: int = 1) -> float:
    """Operations of all matrix products of one call, a multiplication and an addition being two.

    Loops count as often as they turn, recomputation as often as it happens.

    Args:
      function: the function that is traced; nothing is computed.
      *arguments: arrays or `jax.ShapeDtypeStruct`s.
      turns: how often a loop counts whose end depends on data.

    >>> import jax.numpy as jnp
    >>> x = jax.ShapeDtypeStruct((8, 16), jnp.float32)
    >>> count_flops(lambda a: a @ a.T, x)
    2048.0
    """
    return of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr, turns)


def of_jaxpr(jaxpr: Any, turns: int = 1) -> float:
    """The same of a function that was traced already."""
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = math.prod(left[axis] for axis in contracted)
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * depth
            continue
        times = {"scan": equation.params.get("length", 1), "while": turns}.get(name, 1)
        branches = equation.params.get("branches") if name == "cond" else None
        if branches is not None:
            total += max(of_jaxpr(branch.jaxpr, turns) for branch in branches)
            continue
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            if hasattr(inner, "eqns"):
                total += times * of_jaxpr(inner, turns)
            elif hasattr(inner, "jaxpr"):
                total += times * of_jaxpr(inner.jaxpr, turns)
    return total
