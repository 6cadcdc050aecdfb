"""Between our parameters and a state dict of Hugging Face, for any family of networks.

Each family says by `TensorName`s which tensor holds which parameter; finding, checking and naming
them is the same for all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from sbs_jax.checkpoints.safetensors_files import some
from sbs_jax.checkpoints.tensors import StoredTensor, Transposed
from sbs_jax.errors import UserError
from sbs_jax.models.interface import ModelConfig, network_of

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class TensorName:
    """Where a parameter lies in Hugging Face's state dict.

    Attributes:
      name: the name of the tensor.
      transposed: whether its axes are in the other order, as those of torch's Linear are.
    """

    name: str
    transposed: bool


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a network, by path in our tree."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    boxed = jax.eval_shape(network_of(config).init, jax.random.key(0), tokens, tokens)
    flat = traverse_util.flatten_dict(nn.unbox(boxed)["params"], sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}


def match(
    state_dict: Mapping[str, StoredTensor],
    sources: Mapping[str, TensorName],
    shapes: Shapes,
    *,
    weights: str,
    config: str,
    is_spare: Callable[[str], bool],
) -> dict[str, StoredTensor]:
    """Finds our parameters in a state dict, by path, in our layout; reads nothing.

    Args:
      state_dict: name → tensor.
      sources: path of a parameter → its tensor.
      shapes: path of a parameter → its shape.
      weights: what errors call the state dict.
      config: what errors call the configuration that asks for these parameters.
      is_spare: whether a tensor that is no parameter of ours may be there.

    Raises:
      UserError: tensors are missing, unknown or of another shape; names them.
    """
    names = {source.name for source in sources.values()}
    if missing := sorted(names - set(state_dict)):
        raise UserError(f"{weights} lack {some(missing)}.")
    if unknown := sorted(name for name in set(state_dict) - names if not is_spare(name)):
        raise UserError(f"{weights} hold what this {config} has not: {some(unknown)}.")
    found: dict[str, StoredTensor] = {}
    for path, source in sources.items():
        tensor = state_dict[source.name]
        wanted = shapes[path][::-1] if source.transposed else shapes[path]
        if tuple(tensor.shape) != wanted:
            raise UserError(
                f"{source.name} of {weights[0].lower()}{weights[1:]} has shape "
                f"{list(tensor.shape)}, but the {config} wants {list(wanted)} for {path}."
            )
        found[path] = Transposed(tensor) if source.transposed else tensor
    return found


def named(
    stored: Mapping[str, StoredTensor], sources: Mapping[str, TensorName]
) -> dict[str, StoredTensor]:
    """The tensors of a state dict by name, from our parameters by path; undoes `match`."""
    return {
        source.name: Transposed(stored[path]) if source.transposed else stored[path]
        for path, source in sources.items()
    }
