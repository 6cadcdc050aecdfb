"""Draws the parameters of a network, one by one.

A program that draws them all at once has the code of every parameter in it: to compile it took 33
CPU seconds for 12 + 12 small layers, more than the training step, and most of that were the keys.
Parameters of one shape and one initializer are drawn by one program here, each with its own key,
and the keys are folded one after another by one program, so that depth adds no code.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

Initializer = Callable[..., jax.Array]
"""`(key, shape, dtype) -> array`."""


class _Drawn(NamedTuple):
    """A parameter that was asked for while keys are recorded.

    Attributes:
      stand_in: what the network got in its place.
      key: the key of its random numbers.
      draw: draws it, from a key.
    """

    stand_in: jax.Array
    key: jax.Array
    draw: Callable[[jax.Array], jax.Array]


class Jit(Protocol):
    """`jax.jit`, or that of a student, within its mesh."""

    def __call__(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """Compiles a function."""


_RECORDED: contextvars.ContextVar[list[_Drawn] | None] = contextvars.ContextVar(
    "_RECORDED", default=None
)


def recorded(initializer: Initializer) -> Initializer:
    """Returns an initializer that `draw_params` can call by itself; a network's all are such."""

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        records = _RECORDED.get()
        if records is None:
            return initializer(key, shape, dtype)
        stand_in = jnp.zeros(shape, dtype)
        records.append(_Drawn(stand_in, key, lambda key: initializer(key, shape, dtype)))
        return stand_in

    return draw


def draw_params(
    init: Callable[[jax.Array], Any],
    key: jax.Array,
    shardings: Any,
    *,
    jit: Jit,
    context: Callable[[], contextlib.AbstractContextManager[None]],
) -> Any:
    """Returns `init(key)`, bit for bit, with each leaf in its own shards.

    Args:
      init: a network's parameters as a tree, from a key.
      key: a key of `jax.random`.
      shardings: the sharding of each leaf.
      jit: see `Jit`.
      context: the mesh that `init` is traced within.
    """
    draws: list[Callable[[jax.Array], jax.Array]] = []

    def keys_of(key: jax.Array) -> list[jax.Array]:
        with _recording() as records:
            leaves = jax.tree.leaves(init(key))
        by_stand_in = {id(one.stand_in): one for one in records}
        if any(id(leaf) not in by_stand_in for leaf in leaves):
            return []
        drawn = [by_stand_in[id(leaf)] for leaf in leaves]
        draws.extend(one.draw for one in drawn)
        return [one.key for one in drawn]

    with context():
        traced_keys = jax.make_jaxpr(keys_of)(key)
    if not draws:
        # Scanned layers stack what they draw. Such a network has few parameters, all of them large.
        return jit(init, out_shardings=shardings)(key)
    programs: dict[Any, Callable[..., Any]] = {}
    places, structure = jax.tree.flatten(shardings)
    leaves = []
    for draw, own, place in zip(draws, _outputs(traced_keys, key), places, strict=True):
        traced = jax.make_jaxpr(draw)(own)
        same = id(draw) if traced.consts else (str(traced), place)
        if same not in programs:
            programs[same] = jit(draw, out_shardings=place)
        leaves.append(programs[same](own))
    return jax.tree.unflatten(structure, leaves)


def _outputs(traced: ClosedJaxpr, *args: jax.Array) -> list[jax.Array]:
    """Computes what was traced, one operation after another, without what no output needs."""
    needed = {var for var in traced.jaxpr.outvars if not isinstance(var, Literal)}
    equations = []
    for equation in reversed(traced.jaxpr.eqns):
        if needed.intersection(equation.outvars):
            equations.append(equation)
            needed.update(var for var in equation.invars if not isinstance(var, Literal))
    jaxpr = traced.jaxpr.replace(eqns=equations[::-1])
    return jaxpr_as_fun(ClosedJaxpr(jaxpr, traced.consts))(*args)


@contextlib.contextmanager
def _recording() -> Iterator[list[_Drawn]]:
    """Within it, `recorded` initializers draw nothing, and note what they were asked for."""
    records: list[_Drawn] = []
    token = _RECORDED.set(records)
    try:
        yield records
    finally:
        _RECORDED.reset(token)
