"""The parameters of a network: each asked for by `parameter`, and fresh ones drawn one by one.

A program that draws them all at once has the code of every parameter in it: to compile it took 33
CPU seconds for 12 + 12 small layers, more than the training step, and most of that were the keys.
Parameters of one shape and one initializer are drawn by one program here, each with its own key,
and one program makes the keys of all, so that depth adds no code.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Hashable, Iterator
from types import FunctionType
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.extend.core import ClosedJaxpr, Literal

Initializer = Callable[..., jax.Array]
"""`(key, shape, dtype) -> array`."""

_SALT = 0x1217
"""What the key of the parameters is folded by: dropout is folded from the run's own key."""


class _Draw(NamedTuple):
    """How one parameter is drawn."""

    initializer: Initializer
    shape: tuple[int, ...]
    dtype: Any

    def __call__(self, key: jax.Array) -> jax.Array:
        return self.initializer(key, self.shape, self.dtype)


class _Drawn(NamedTuple):
    """A parameter that was asked for while keys are recorded.

    Attributes:
      stand_in: what the network got in its place.
      key: the key of its random numbers.
      draw: draws it, from a key.
    """

    stand_in: jax.Array
    key: jax.Array
    draw: _Draw


class Jit(Protocol):
    """`jax.jit`, or that of a student, within its mesh."""

    def __call__(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """Compiles a function."""


_RECORDED: contextvars.ContextVar[list[_Drawn] | None] = contextvars.ContextVar(
    "_RECORDED", default=None
)


def parameter(
    module: nn.Module,
    name: str,
    initializer: Initializer,
    axes: tuple[str | None, ...],
    shape: tuple[int, ...],
) -> jax.Array:
    """Returns a float32 parameter of a module; a network asks for all of its own by this.

    It is `module.param` without one habit: Flax compares the shape of a parameter that is there
    with the shape that its initializer gives, and to trace the initializer of every parameter is a
    seventh of the time that a training step takes to be traced.

    Args:
      module: the module, within its `setup` or its `nn.compact` method.
      name: the name of the parameter within the module.
      initializer: draws it.
      axes: the logical name of each axis. Flax boxes the array while it initialises; here and from
        `Module.param` comes the array itself, which Flax's types do not say.
      shape: its shape.

    Raises:
      flax.errors.ScopeParamShapeError: the parameter that is there has another shape.
    """
    held = module.get_variable("params", name) if module.has_variable("params", name) else None
    if isinstance(held, jax.Array | np.ndarray) and held.shape == shape:
        return held
    boxed = nn.with_logical_partitioning(_recorded(initializer), axes)
    return cast(jax.Array, module.param(name, boxed, shape, jnp.float32))


def _recorded(initializer: Initializer) -> Initializer:
    """An initializer that notes what it is asked for while keys are recorded."""

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        records = _RECORDED.get()
        if records is None:
            return initializer(key, shape, dtype)
        stand_in = jnp.zeros(shape, dtype)
        records.append(_Drawn(stand_in, key, _Draw(initializer, shape, dtype)))
        return stand_in

    return draw


class Drawing:
    """How the parameters of a network are drawn.

    Attributes:
      boxed: shapes and dtypes of the parameters, in the boxes that name their logical axes.
    """

    def __init__(self, init: Callable[[jax.Array], Any]) -> None:
        """Traces a network once; draws nothing.

        Args:
          init: the network's boxed parameters, from a key of `jax.random`.
        """
        self._init = init
        draws: list[_Draw] = []

        def keys_of(key: jax.Array) -> tuple[list[jax.Array], Any]:
            with _recording() as records:
                boxed = init(key)
            by_stand_in = {id(one.stand_in): one for one in records}
            leaves = jax.tree.leaves(boxed)
            if any(id(leaf) not in by_stand_in for leaf in leaves):
                # Scanned layers stack what they draw; layers with `remat` draw within a function.
                return [], boxed
            drawn = [by_stand_in[id(leaf)] for leaf in leaves]
            draws.extend(one.draw for one in drawn)
            return [one.key for one in drawn], boxed

        key = jax.eval_shape(jax.random.key, 0)
        traced, (_, self.boxed) = jax.make_jaxpr(keys_of, return_shape=True)(key)
        self._folded = _folded(traced, len(draws))
        self._draws = [] if self._folded is None else draws

    def __call__(self, seed: int, shardings: Any, jit: Jit) -> Any:
        """Draws them, bit for bit those of `init`, each in its own shards.

        Args:
          seed: of the key that `init` gets, folded by a number of its own.
          shardings: the sharding of each leaf.
          jit: see `Jit`.
        """
        wide = np.int64(seed)  # As `jax.random.key` reads a Python number.
        if not self._draws:
            whole = jit(lambda seed: nn.unbox(self._init(_root(seed))), out_shardings=shardings)
            return whole(wide)
        keys = jax.device_get(jax.jit(_keys)(wide, self._folded))
        programs: dict[Any, Callable[..., Any]] = {}
        places, structure = jax.tree.flatten(shardings)
        leaves = []
        for draw, key, place in zip(self._draws, keys, places, strict=True):
            same = _identity(draw.initializer), draw.shape, draw.dtype, place
            if same not in programs:
                programs[same] = jit(functools.partial(_drawn, draw), out_shardings=place)
            leaves.append(programs[same](key))
        return jax.tree.unflatten(structure, leaves)


def _root(seed: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.key(seed), _SALT)


def _keys(seed: jax.Array, folded: jax.Array) -> jax.Array:
    """The data of the keys that are folded from the root by each of some numbers."""
    return jax.random.key_data(jax.vmap(functools.partial(jax.random.fold_in, _root(seed)))(folded))


def _drawn(draw: _Draw, key: jax.Array) -> jax.Array:
    return draw(jax.random.wrap_key_data(key))


def _folded(traced: ClosedJaxpr, count: int) -> np.ndarray | None:
    """By which number the key of each parameter is folded from the one key that Flax is given.

    Args:
      traced: a function of that key whose first `count` results are the keys of the parameters.
      count: the number of parameters.

    Returns:
      uint32 [`count`], or None if a key is made in another way.
    """
    makers = {var: equation for equation in traced.jaxpr.eqns for var in equation.outvars}
    numbers = []
    for var in traced.jaxpr.outvars[:count]:
        maker = None if isinstance(var, Literal) else makers.get(var)
        if maker is None or maker.primitive.name != "random_fold_in":
            return None
        key, number = maker.invars
        if key is not traced.jaxpr.invars[0] or not isinstance(number, Literal):
            return None
        numbers.append(number.val)
    return np.asarray(numbers, np.uint32)


def _identity(function: Any) -> Hashable:
    """Equal for functions of the same code around equal values, so that one program serves both."""
    if not isinstance(function, FunctionType):
        return function
    around = [cell.cell_contents for cell in function.__closure__ or ()]
    own = (function.__code__, function.__defaults__, *map(_identity, around))
    try:
        hash(own)
    except TypeError:
        return function
    return own


@contextlib.contextmanager
def _recording() -> Iterator[list[_Drawn]]:
    """Within it, `parameter` draws nothing, and notes what it was asked for."""
    records: list[_Drawn] = []
    token = _RECORDED.set(records)
    try:
        yield records
    finally:
        _RECORDED.reset(token)
