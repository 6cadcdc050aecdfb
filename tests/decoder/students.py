"""Tiny decoder-only students, and how they are trained here."""

import jax
from flax import traverse_util

from sbs_jax.checkpoints.loading import identify, load_params
from sbs_jax.data.batching import Batching
from sbs_jax.data.resolving import TaskChoice
from sbs_jax.data.settings import DataSettings
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.programs.train import train
from sbs_jax.programs.train_config import EvaluationSettings, Saving, TrainConfig
from sbs_jax.student import Student
from sbs_jax.training import optimizers
from tests.evaluation import toy
from tests.toy import DECODER as TINY


def one_device():
    return make_mesh(devices=jax.devices()[:1])


def run(folder, config=TINY, steps=2, initial=None):
    toy.register()
    train(
        TrainConfig(
            model_config=config,
            model_dir=str(folder),
            task=TaskChoice(toy.TASK),
            batching=Batching(toy.LENGTHS, batch_size=8),
            optimizer=optimizers.adamw(1e-3),
            train_steps=steps,
            data=DataSettings(vocabulary_size=500, prefix_side="decoder"),
            evaluation=EvaluationSettings(splits=()),
            saving=Saving(
                initial_checkpoint_path=None if initial is None else str(initial), log_period=1
            ),
        ),
        mesh=one_device(),
    )
    return folder


def params_of(path, config):
    placed = Student(config, one_device()).placed_params
    return traverse_util.flatten_dict(load_params(identify(path), placed), sep="/")
