"""T5X and ours around one tiny network; import it inside tests that are marked `t5x`."""

import flax.core
import jax
import numpy as np
import optax
from t5x import optimizers, partitioning, utils
from t5x.examples.t5 import network

from sbs_jax.models.config import T5Config
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.student import Student
from sbs_jax.t5x.model import TwoPartModel
from sbs_jax.t5x.part_trainer import PartTrainer

DIMENSIONS = {
    "vocab_size": 64,
    "emb_dim": 16,
    "num_heads": 2,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "head_dim": 8,
    "mlp_dim": 32,
    "mlp_activations": ("gelu", "linear"),
    "dropout_rate": 0.0,
    "logits_via_embedding": False,
}
LEARNING_RATE = 0.1
ROWS, INPUTS, TARGETS = 32, 24, 20


class Vocabulary:
    """What T5X's model asks of one."""

    eos_id = 1
    vocab_size = DIMENSIONS["vocab_size"]


def student(**mesh):
    return Student(T5Config(**DIMENSIONS), make_mesh(**mesh))


def model(optimizer=None, **options):
    module = network.Transformer(network.T5Config(**DIMENSIONS))
    optimizer = optimizer or optimizers.OptaxWrapper(optax.sgd(LEARNING_RATE))
    return TwoPartModel(module, Vocabulary(), Vocabulary(), optimizer, **options)


def initializer(of_model, partitioner, cls=utils.TrainStateInitializer, optimizer=True, **options):
    return cls(
        optimizer_def=of_model.optimizer_def if optimizer else None,
        init_fn=of_model.get_initial_variables,
        input_shapes={
            "encoder_input_tokens": (ROWS, INPUTS),
            "decoder_input_tokens": (ROWS, TARGETS),
        },
        partitioner=partitioner,
        **options,
    )


def partitioner(*, num_partitions=None, model_parallel_submesh=(1, 1, 1, 1)):
    """Without arguments, data alone is cut."""
    return partitioning.PjitPartitioner(
        num_partitions=num_partitions,
        model_parallel_submesh=model_parallel_submesh,
        logical_axis_rules=partitioning.standard_logical_axis_rules(),
    )


def trainer(of_model, params, partitioner, cls=PartTrainer, summary_dir=None, **options):
    """T5X's trainer, at step 0 with these parameters."""
    init = initializer(of_model, partitioner)
    state = init.from_scratch(jax.random.PRNGKey(0))
    frozen = isinstance(state.params, flax.core.FrozenDict)
    specs = init.train_state_axes.params
    placed = jax.tree.map(
        lambda value, spec: jax.device_put(
            np.asarray(value), jax.sharding.NamedSharding(partitioner.mesh, spec)
        ),
        flax.core.freeze(params) if frozen else params,
        specs,
    )
    return cls(
        model=of_model,
        train_state=state.replace_params(placed),
        partitioner=partitioner,
        eval_names=["split"],
        summary_dir=summary_dir,
        train_state_axes=init.train_state_axes,
        rng=jax.random.PRNGKey(1),
        learning_rate_fn=lambda step: LEARNING_RATE,
        num_microbatches=options.pop("num_microbatches", None),
        **options,
    )


def plain(params):
    """As numpy arrays in dicts."""
    return jax.tree.map(np.asarray, flax.core.unfreeze(params))
