"""Trees of arrays in a checkpoint: their names, shapes and digests.

A digest is the sum modulo 2^32 of a hash of each value and its place. It is computed on the devices
while the state is there anyway, does not depend on how the array is cut over a mesh (the addition
of integers is associative), and tells after a restore whether what was read is what was saved:
Orbax notices a file that is cut short, but not a flipped bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import lax

from sbs_jax.checkpoints import store
from sbs_jax.errors import UserError

SMALL = 1 << 18
"""Values of an array that numpy looks at where it lies in the host's memory anyway."""


class UnreadableError(Exception):
    """A checkpoint's files are damaged or missing."""


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves by path, `encoder/layers_0/mlp/wi_0/kernel`, in the tree's own order."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@dataclasses.dataclass(frozen=True)
class Inspected:
    """What was found in an array.

    Attributes:
      digest: see the module.
      has_nan: whether it holds NaN.
      has_infinity: whether it holds an infinity.
    """

    digest: int
    has_nan: bool
    has_infinity: bool


def inspect(tree: Any) -> dict[str, Inspected]:
    """Looks at every array, by path; all processes of a run call this together."""
    # One array at a time: on CPU, programs that communicate and do not wait for one another can
    # take each other's threads and stand still for ever.
    jax.block_until_ready(tree)
    found = {
        name: _inspect_here(np.asarray(leaf)) if _is_small(leaf) else np.asarray(_inspect(leaf))
        for name, leaf in named_leaves(tree).items()
    }
    return {
        name: Inspected(int(digest), bool(has_nan), bool(has_infinity))
        for name, (digest, has_nan, has_infinity) in found.items()
    }


def read_tree(folder: epath.Path, abstract: Any, *, what: str, advice: str) -> tuple[Any, set[str]]:
    """Reads a tree that Orbax saved, straight onto the devices of `abstract`'s shardings.

    Processes do not talk to each other here: one may fail, and they agree afterwards.

    Args:
      folder: the folder of this tree.
      abstract: the tree wanted, of `jax.ShapeDtypeStruct` with sharding (the default device where
        there is none).
      what: what a leaf is called in messages: `parameter`.
      advice: ends the sentence on an incompatible tree.

    Returns:
      The tree with arrays at its leaves, and the paths of those that have the dtype they were saved
      with; the others were cast, so their digests are not the saved ones.

    Raises:
      UserError: a leaf is missing, left over, or has another shape.
      UnreadableError: the files are damaged or missing.
    """
    targets = jax.tree.map(_placed, abstract)
    with store.Reader() as reader:
        with _unreadable(folder):
            saved = named_leaves(reader.shapes(folder))
        _check_compatible(saved, named_leaves(abstract), folder.parent, what, advice)
        with _unreadable(folder):
            restored = reader.read(folder, targets)
    leaves = named_leaves(restored)
    uncast = {name for name in leaves if np.dtype(saved[name].dtype) == leaves[name].dtype}
    return restored, uncast


def _check_compatible(
    saved: Mapping[str, Any],
    wanted: Mapping[str, Any],
    folder: epath.Path,
    what: str,
    advice: str,
) -> None:
    # In the order of the wanted tree; what only the checkpoint has comes last.
    for name in [*wanted, *saved]:
        old = list(saved[name].shape) if name in saved else None
        new = list(wanted[name].shape) if name in wanted else None
        if old == new:
            continue
        in_checkpoint = "missing in this checkpoint" if old is None else f"{old} in this checkpoint"
        in_run = "missing in this run" if new is None else f"{new} in this run"
        raise UserError(
            f"{folder}: does not fit: the shape of {what} {name} is {in_checkpoint} but {in_run}; "
            f"{advice}."
            if old is not None and new is not None
            else f"{folder}: does not fit: {what} {name} is {in_checkpoint} but {in_run}; {advice}."
        )


@contextlib.contextmanager
def _unreadable(folder: epath.Path) -> Iterator[None]:
    """Turns what Orbax and TensorStore raise on damaged files into `UnreadableError`."""
    # The reads of the other arrays, given up halfway, would report themselves on stderr at length.
    hooks = sys.unraisablehook, sys.excepthook
    failed = False
    sys.unraisablehook = lambda _: None
    sys.excepthook = lambda *_: None
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # The machine's trouble, not the checkpoint's.
    except Exception as error:  # Orbax raises bare `Exception`, too.
        reason = str(error).partition("\n")[0].partition(": <")[0][:200]
        failed = True
        # Without `from error`: its traceback would keep the reads that were given up alive.
        raise UnreadableError(f"{folder}: {reason}") from None
    finally:
        if failed:
            gc.collect()  # While they are silent. It looks at all objects: not after every read.
        sys.unraisablehook, sys.excepthook = hooks


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sharding.shard_shape(leaf.shape)  # Raises where the mesh does not divide the shape.
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _name(path: tuple[Any, ...]) -> str:
    # A dictionary's key, an attribute's name or an index: Orbax gives back named tuples as
    # dictionaries.
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    )


@jax.jit
def _inspect(x: jax.Array) -> jax.Array:
    """Digest, NaNs and infinities, uint32 [3]."""
    inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    no = jnp.zeros((), jnp.bool_)
    has_nan = jnp.isnan(x).any() if inexact else no
    has_infinity = jnp.isinf(x).any() if inexact else no
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[min(x.dtype.itemsize, 4)]
    bits = lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    # A number for each place, from one multiplier for each axis: no reshape, so nothing moves
    # between devices.
    for axis in range(bits.ndim):
        bits += lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * _multiplier(axis)
    digest = jnp.sum(_mixed(bits), dtype=jnp.uint32)
    return jnp.stack([digest, has_nan.astype(jnp.uint32), has_infinity.astype(jnp.uint32)])


def _is_small(leaf: Any) -> bool:
    """Whether looking at a leaf takes numpy less time than compiling a program for its shape."""
    if leaf.size > SMALL or leaf.dtype.itemsize > 4 or not isinstance(leaf, jax.Array):
        return False
    return [device.platform for device in leaf.devices()] == ["cpu"]


def _inspect_here(x: np.ndarray) -> np.ndarray:
    """`_inspect` of an array on the host."""
    inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    has_nan, has_infinity = (inexact and bool(of(x).any()) for of in (np.isnan, np.isinf))
    bits: np.ndarray = x.view(f"u{x.dtype.itemsize}").astype(np.uint32)
    for axis, length in enumerate(x.shape):
        places = np.arange(length, dtype=np.uint32) * _multiplier(axis)
        bits += places.reshape(-1, *[1] * (x.ndim - axis - 1))
    # Flat, because of a single value numpy would warn that it overflows.
    digest = np.sum(_mixed(bits.reshape(-1)), dtype=np.uint32)
    return np.array([digest, has_nan, has_infinity], np.uint32)


def _multiplier(axis: int) -> np.uint32:
    """What the index along an axis is multiplied by, in the number of a value's place."""
    return np.uint32((0x9E3779B1 * (2 * axis + 1)) % 2**32)


def _mixed(bits: Any) -> Any:
    """MurmurHash3's finalizer: a bijection, so one changed value always shows in the sum."""
    bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
