"""T5X's programs start from our checkpoints and from Hugging Face's, besides T5X's own.

T5X's network and ours have the same parameters under the same names, so only the files differ.
T5X wants one class of checkpoint manager for reading a start and for writing and resuming; so
`t5x.train` is handed foreign weights as its initial values, `t5x.eval` and `t5x.infer` by a
checkpoint manager. In gin files INITIAL_CHECKPOINT_PATH and CHECKPOINT_PATH name them all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from t5x import checkpoints, optimizers, partitioning, utils
from t5x import train_state as train_state_lib

from sbs_jax.checkpoints import loading
from sbs_jax.errors import UserError

_LOG = logging.getLogger(__name__)

_ADVICE = (
    "bind T5X's network to these dimensions (network.T5Config.emb_dim, .mlp_dim, .vocab_size, …, "
    "the same for train, eval and infer), or choose another checkpoint"
)


def t5x_checkpoint(checkpoint_path: str | None) -> str | None:
    """Returns the path if it is for T5X itself to restore; None if `TrainStateInitializer` does."""
    return None if _foreign(checkpoint_path) else checkpoint_path


class TrainStateInitializer(utils.TrainStateInitializer):
    """T5X's initializer, whose first parameters may come from weights of others.

    The optimizer then starts afresh, and so does the count of steps.
    """

    def __init__(
        self,
        optimizer_def: optimizers.OptimizerDefType | None,
        init_fn: Callable[..., Any],
        input_shapes: Mapping[str, Any],
        partitioner: partitioning.BasePartitioner,
        input_types: Mapping[str, Any] | None = None,
        weights_path: str | None = None,
    ) -> None:
        """Takes the arguments of T5X's class.

        Args:
          optimizer_def: see T5X.
          init_fn: see T5X.
          input_shapes: see T5X.
          partitioner: see T5X.
          input_types: see T5X.
          weights_path: a MODEL_DIR of `sbs_jax.train`, or a checkpoint in it; or a folder of
            Hugging Face's. Nothing else changes anything.
        """
        super().__init__(optimizer_def, init_fn, input_shapes, partitioner, input_types)
        self._source = _foreign(weights_path)

    def from_scratch(self, init_rng: jax.Array) -> train_state_lib.TrainState:
        """Returns the state to start from.

        Raises:
          UserError: the weights do not fit the model; names the first parameter that differs.
        """
        if self._source is None:
            return super().from_scratch(init_rng)
        return _fresh_state(self._source, self.global_train_state_shape, self._partitioner)


class CheckpointManager(checkpoints.OrbaxCheckpointManagerInterface):
    """T5X's checkpoint manager for `t5x.eval` and `t5x.infer`, which reads weights of others."""

    def restore(
        self,
        step: int | None = None,
        path: str | None = None,
        fallback_state: Mapping[str, Any] | None = None,
        state_transformation_fns: Sequence[checkpoints.RestoreStateTransformationFn] = (),
        lazy_parameters: bool | None = False,
    ) -> train_state_lib.TrainState:
        """Restores a state.

        Args:
          step: see T5X.
          path: a checkpoint of T5X's; a MODEL_DIR of ours, or a checkpoint in it; or a folder of
            Hugging Face's.
          fallback_state: see T5X.
          state_transformation_fns: see T5X; for T5X's checkpoints alone.
          lazy_parameters: see T5X.

        Raises:
          UserError: the weights do not fit the model.
        """
        source = _foreign(path)
        if source is None:
            return super().restore(
                step=step,
                path=path,
                fallback_state=fallback_state,
                state_transformation_fns=state_transformation_fns,
                lazy_parameters=lazy_parameters,
            )
        if state_transformation_fns:
            raise UserError(f"{path}: T5X's state_transformation_fns are for its own checkpoints.")
        return _fresh_state(source, self._train_state, self._partitioner)


def _foreign(path: str | None) -> loading.Source | None:
    """The weights at `path`; None where there are none, or T5X shall look for them itself."""
    if not isinstance(path, str):
        return None
    try:
        source = loading.identify(path)
    except UserError:
        return None  # A TensorFlow checkpoint, which T5X reads, or nothing, which T5X will say.
    return source if source.kind in ("sbs_jax", "huggingface") else None


def _fresh_state(
    source: loading.Source,
    state_shape: train_state_lib.TrainState,
    partitioner: partitioning.BasePartitioner,
) -> train_state_lib.TrainState:
    """The state of step 0 with parameters from `source`, in the shards of T5X's mesh."""
    axes = partitioner.get_mesh_axes(state_shape)
    flat: tuple[list[Any], Any] = jax.tree.flatten(state_shape.params)
    shapes, structure = flat
    abstract = [
        jax.ShapeDtypeStruct(
            shape.shape,
            shape.dtype,
            sharding=jax.sharding.NamedSharding(partitioner.mesh, spec),
        )
        for shape, spec in zip(shapes, structure.flatten_up_to(axes.params), strict=True)
    ]
    # Our trees are plain dicts; T5X may freeze its own.
    plain = jax.tree.structure(state_shape.state_dict()["target"])
    wanted = jax.tree.unflatten(plain, abstract)
    read = loading.load_params(source, wanted, advice=_ADVICE)
    params = jax.tree.unflatten(structure, jax.tree.leaves(read))
    _LOG.info("Read the parameters of %s; everything else starts afresh.", source.folder)

    def fresh(params: Any) -> train_state_lib.TrainState:
        if isinstance(state_shape, train_state_lib.InferenceState):
            return state_shape.replace(params=params, step=jnp.array(0))
        optimizer_def = state_shape._optimizer.optimizer_def
        return state_shape.replace(_optimizer=optimizer_def.create(params))

    return partitioner.partition(fresh, in_axis_resources=(axes.params,), out_axis_resources=axes)(
        params
    )
