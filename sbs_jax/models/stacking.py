"""Parameters of all layers of a stack in one array each, as `lax.scan` over layers wants them.

    encoder/layers_0/mlp/wi_0/kernel [D, F], encoder/layers_1/…   one by one, T5X's names
    encoder/layers/mlp/wi_0/kernel [N, D, F]                     stacked

Both forms are trees of nested dictionaries; checkpoints of others are read and written one by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

STACKED = "layers"
_ONE = re.compile(r"layers_(\d+)")


def is_stacked(params: Mapping[str, Any]) -> bool:
    """Whether a tree of parameters holds its layers stacked."""
    return any(STACKED in stack for stack in params.values() if isinstance(stack, Mapping))


def stack_layers(
    params: Mapping[str, Any], stack: Callable[[list[Any]], Any] = jnp.stack
) -> dict[str, Any]:
    """Stacks the layers of every stack; a tree that is stacked already stays as it is.

    Args:
      params: nested dictionaries with `layers_0`, `layers_1`, … one level down.
      stack: makes one leaf of those of all layers.

    Returns:
      The same tree with `layers` in their place.
    """
    result: dict[str, Any] = {}
    for name, part in params.items():
        if not isinstance(part, Mapping):
            result[name] = part
            continue
        layers = {int(match[1]): key for key in part if (match := _ONE.fullmatch(key))}
        others = {key: value for key, value in part.items() if not _ONE.fullmatch(key)}
        if layers:
            ordered = [part[layers[index]] for index in sorted(layers)]
            others[STACKED] = jax.tree.map(lambda *leaves: stack(list(leaves)), *ordered)
        result[name] = others
    return result


def unstack_layers(
    params: Mapping[str, Any], take: Callable[[Any, int], Any] = lambda leaf, index: leaf[index]
) -> dict[str, Any]:
    """The inverse of `stack_layers`.

    Args:
      params: nested dictionaries with `layers` one level down.
      take: makes a layer's leaf of the stacked one.

    Returns:
      The same tree with `layers_0`, `layers_1`, … in its place.
    """
    result: dict[str, Any] = {}
    for name, part in params.items():
        if not isinstance(part, Mapping) or STACKED not in part:
            result[name] = part
            continue
        others = {key: value for key, value in part.items() if key != STACKED}
        count = jax.tree.leaves(part[STACKED])[0].shape[0]
        for index in range(count):
            others[f"layers_{index}"] = jax.tree.map(
                lambda leaf, index=index: take(leaf, index), part[STACKED]
            )
        result[name] = others
    return result


def stack_abstract(leaves: list[Any]) -> jax.ShapeDtypeStruct:
    """`jnp.stack` of abstract arrays; the new axis is not cut over devices."""
    first = leaves[0]
    shape = (len(leaves), *first.shape)
    sharding = first.sharding
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
    return jax.ShapeDtypeStruct(shape, first.dtype, sharding=sharding)


def take_abstract(leaf: jax.ShapeDtypeStruct, index: int) -> jax.ShapeDtypeStruct:
    """A layer of a stacked abstract array."""
    del index  # All layers are alike.
    sharding = leaf.sharding
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=sharding)
