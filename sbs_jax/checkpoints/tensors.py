"""Tensors that lie in files, read piece by piece straight into the shards of a mesh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from flax import traverse_util

from sbs_jax.errors import UserError

Index = tuple[slice, ...]


class StoredTensor(Protocol):
    """A tensor in a file (a numpy array is one, too).

    Attributes:
      shape: the dimensions of the tensor.
      dtype: the dtype in which it is stored.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions of the tensor."""

    @property
    def dtype(self) -> np.dtype:
        """The dtype in which it is stored."""

    def __getitem__(self, index: Index) -> np.ndarray:
        """Reads a part: one slice with step 1 for each axis."""


def read_whole(tensor: StoredTensor) -> np.ndarray:
    """Reads all of a tensor."""
    return np.asarray(tensor[(slice(None),) * len(tensor.shape)])


class Transposed:
    """A stored matrix, seen with its axes in the other order; torch's Linear has them so."""

    def __init__(self, tensor: StoredTensor) -> None:
        self._tensor = tensor
        self.shape = tuple(tensor.shape)[::-1]
        self.dtype = tensor.dtype

    def __getitem__(self, index: Index) -> np.ndarray:
        """Reads a part."""
        return self._tensor[index[::-1]].T


class OneLayer:
    """One layer of a stored tensor that holds all layers of a stack along one of its axes."""

    def __init__(self, tensor: StoredTensor, axis: int, layer: int) -> None:
        self._tensor, self._axis, self._layer = tensor, axis, layer
        self.shape = tuple(size for at, size in enumerate(tensor.shape) if at != axis)
        self.dtype = tensor.dtype

    def __getitem__(self, index: Index) -> np.ndarray:
        """Reads a part."""
        whole = (*index[: self._axis], slice(self._layer, self._layer + 1), *index[self._axis :])
        return np.squeeze(self._tensor[whole], self._axis)


class Stacked:
    """Stored tensors of one shape, one for each layer, seen as one along a new first axis."""

    def __init__(self, layers: Sequence[StoredTensor]) -> None:
        self._layers = list(layers)
        self.shape = (len(self._layers), *self._layers[0].shape)
        self.dtype = self._layers[0].dtype

    def __getitem__(self, index: Index) -> np.ndarray:
        """Reads a part."""
        return np.stack([layer[index[1:]] for layer in self._layers[index[0]]])


def place_tree(
    stored: Mapping[str, StoredTensor], abstract: Any, *, where: str, advice: str
) -> Any:
    """Reads the parameters wanted, one after another, each into its own shards.

    Every process reads what its own devices hold. On the host there is never more than one tensor.

    Args:
      stored: the tensor of each parameter, by path: `encoder/layers_0/mlp/wi_0/kernel`.
      abstract: nested dict of `jax.ShapeDtypeStruct` with shardings; values are cast to its dtypes.
      where: begins messages; the file or folder.
      advice: ends the sentence on a tree that does not fit.

    Returns:
      `abstract` with arrays at its leaves.

    Raises:
      UserError: a parameter is missing, left over, or has another shape.
    """
    wanted = traverse_util.flatten_dict(abstract, sep="/")
    require_same_shapes(
        {name: tuple(tensor.shape) for name, tensor in stored.items()},
        {name: tuple(leaf.shape) for name, leaf in wanted.items()},
        where=where,
        advice=advice,
    )
    placed = {name: place(stored[name], leaf) for name, leaf in wanted.items()}
    return traverse_util.unflatten_dict(placed, sep="/")


def place(tensor: StoredTensor, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Reads one tensor into the shards of `leaf`'s sharding (the default device without one)."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    parts: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def read(index: Index | None) -> np.ndarray:
        assert index is not None
        # Several devices may hold the same part.
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, leaf.shape, strict=True))
        if bounds not in parts:
            values = tensor[tuple(slice(*part) for part in bounds)]
            parts[bounds] = np.ascontiguousarray(values, dtype=leaf.dtype)
        return parts[bounds]

    placed = jax.make_array_from_callback(leaf.shape, sharding, read)
    # Transfers run in the background: were they not waited for, the host would hold every tensor
    # that is still on its way to a device.
    return jax.block_until_ready(placed)


def require_same_shapes(
    found: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    *,
    where: str,
    advice: str,
) -> None:
    """Checks that a checkpoint holds what a run wants.

    Raises:
      UserError: it does not; names the first parameter that differs, its shapes, and how many more.
    """
    # In the order of the wanted tree; what only the checkpoint has comes last.
    names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    if not names:
        return
    name = names[0]
    more = f" ({len(names)} parameters differ)" if len(names) > 1 else ""
    if name in found and name in wanted:
        raise UserError(
            f"{where}: does not fit: the shape of parameter {name} is {list(found[name])} in this "
            f"checkpoint but {list(wanted[name])} in this run{more}; {advice}."
        )
    here = f"{list(found[name])} in this checkpoint" if name in found else "not in this checkpoint"
    there = f"{list(wanted[name])} in this run" if name in wanted else "not in this run"
    raise UserError(
        f"{where}: does not fit: parameter {name} is {here} but {there}{more}; {advice}."
    )


def same_values(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two stored tensors are equal, read by blocks of rows and no further than needed."""
    if tuple(one.shape) != tuple(other.shape):
        return False
    if not one.shape:
        return np.array_equal(one[()], other[()])
    rest = (slice(None),) * (len(one.shape) - 1)
    parts = ((slice(row, row + 1024), *rest) for row in range(0, one.shape[0], 1024))
    return all(np.array_equal(one[part], other[part]) for part in parts)
