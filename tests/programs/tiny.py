"""A training run that takes a second: two steps of a network of two layers."""

import jax

from sbs_jax.data.batching import Batching
from sbs_jax.data.resolving import TaskChoice
from sbs_jax.data.settings import DataSettings
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.programs.train_config import TrainConfig
from sbs_jax.training import optimizers
from tests.evaluation import toy
from tests.toy import CONFIG


def config_of(folder, *, batching=None, data=None, **changes):
    toy.register()
    values = {
        "model_config": CONFIG,
        "model_dir": str(folder),
        "task": TaskChoice(toy.TASK),
        "batching": batching or Batching(toy.LENGTHS, batch_size=8),
        "optimizer": optimizers.adamw(1e-3),
        "train_steps": 2,
        "data": data or DataSettings(vocabulary_size=500),
    }
    return TrainConfig(**(values | changes))


def one_device():
    return make_mesh(devices=jax.devices()[:1])
