"""Lets an optimizer that looks at whole arrays see one layer at a time where they are stacked."""

from __future__ import annotations

from typing import Any

import jax
import optax

from sbs_jax.models import stacking

_REST = "rest"


def per_layer(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """Maps a transformation over the layers of stacked parameters (`T5Config.scan_layers`).

    Adafactor, for instance, scales a step by the root mean square of the parameter: of one layer's
    kernel, not of those of all layers together. Other parameters, and trees whose layers are not
    stacked, are treated as before.

    Args:
      transformation: sees each leaf by itself; nothing of it may depend on several leaves.

    Returns:
      A transformation; its state is the given one's for trees that are not stacked.
    """

    def init(params: Any) -> Any:
        if not stacking.is_stacked(params):
            return transformation.init(params)
        rest, stacks = _split(params)
        states = {name: jax.vmap(transformation.init)(stack) for name, stack in stacks.items()}
        return {_REST: transformation.init(rest), **states}

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if not stacking.is_stacked(gradients):
            return transformation.update(gradients, state, params)
        rest, stacks = _split(gradients)
        # Every transformation that has to be mapped wants the parameters, too.
        rest_params, stacked_params = _split(params)
        updates, rest_state = transformation.update(rest, state[_REST], rest_params)
        states = {_REST: rest_state}
        merged = dict(updates)
        for name, stack in stacks.items():
            mapped, states[name] = jax.vmap(transformation.update)(
                stack, state[name], stacked_params[name]
            )
            merged[name] = {**updates[name], **mapped[name]}
        return merged, states

    return optax.GradientTransformation(init, update)


def _split(tree: Any) -> tuple[Any, dict[str, Any]]:
    """What is not stacked, and by the name of each stack `{name: {'layers': …}}`."""
    rest, stacks = {}, {}
    for name, part in tree.items():
        if isinstance(part, dict) and stacking.STACKED in part:
            stacks[name] = {name: {stacking.STACKED: part[stacking.STACKED]}}
            rest[name] = {key: value for key, value in part.items() if key != stacking.STACKED}
        else:
            rest[name] = part
    return rest, stacks
