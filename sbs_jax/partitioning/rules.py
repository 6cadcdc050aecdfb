"""Which mesh axis each logical axis of the network lies along: one table, as T5X's partitioning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sbs_jax.partitioning.mesh import DATA_AXIS, MODEL_AXIS

Rules = tuple[tuple[str, str | None], ...]

# A logical axis that is not named here is replicated.
_MODEL_PARALLEL = {
    "vocab": MODEL_AXIS,
    "heads": MODEL_AXIS,
    "joined_kv": MODEL_AXIS,
    "mlp": MODEL_AXIS,
}


def logical_axis_rules(mesh: Mesh, axis_sizes: Mapping[str, int], *, fsdp: bool = False) -> Rules:
    """The rules for one network on one mesh.

    An axis whose size the mesh does not divide is replicated (T5-small has 6 heads, which 4 devices
    cannot share), so every mesh that divides the devices works for every size.

    Args:
      mesh: the mesh, from `make_mesh`.
      axis_sizes: sizes of the network's logical axes, `T5Config.axis_sizes`.
      fsdp: also cut parameters and optimizer state along `data` (their `embed` axis).

    Returns:
      Pairs of logical and mesh axis, for `flax.linen.logical_axis_rules`.
    """
    wanted: dict[str, str] = dict(_MODEL_PARALLEL)
    if fsdp:
        wanted["embed"] = DATA_AXIS
    rules: list[tuple[str, str | None]] = [("batch", DATA_AXIS)]
    for logical, size in axis_sizes.items():
        axis = wanted.get(logical)
        rules.append((logical, axis if axis and size % mesh.shape[axis] == 0 else None))
    return tuple(rules)


def param_shardings(boxed_params: Any, mesh: Mesh, rules: Rules) -> Any:
    """Shardings of a tree of (abstract) parameters boxed by `nn.with_logical_partitioning`.

    Returns:
      The tree of the unboxed parameters, with a `NamedSharding` at each leaf.
    """
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed_params), mesh, rules)


def like_params(tree: Any, shardings: Any, params: Any, mesh: Mesh) -> Any:
    """Shardings of a tree that holds copies of the parameters, such as an optimizer's state.

    A leaf whose path ends in a parameter's path and that has its shape is cut like the parameter;
    the rest (counters, Adafactor's row and column means) is small and replicated.

    Args:
      tree: abstract arrays.
      shardings: the shardings, from `param_shardings`.
      params: the abstract unboxed parameters.
      mesh: the mesh of `shardings`.
    """
    known = {
        _names(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    }
    replicated = NamedSharding(mesh, PartitionSpec())

    def choose(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = _names(path)
        for start in range(len(names)):
            shape, sharding = known.get(names[start:], (None, None))
            if shape == leaf.shape:
                return sharding
        return replicated

    return jax.tree_util.tree_map_with_path(choose, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch along `data`."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    )
