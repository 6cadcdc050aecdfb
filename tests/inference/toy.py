"""A small student with random weights and a vocabulary of its own, in a MODEL_DIR."""

import dataclasses
import functools

import jax

from sbs_jax.checkpoints import record
from sbs_jax.checkpoints.manager import CheckpointManager
from sbs_jax.inference.predictor import Predictor
from sbs_jax.inference.prompting import Prompting
from sbs_jax.inference.tokenizer import SentencePieceTokenizer
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.student import Student
from sbs_jax.training import optimizers, placement
from tests import sentencepiece_models
from tests.toy import CONFIG

INPUT_LENGTH, DECODE_LENGTH = 32, 8
LENGTHS = {"inputs": INPUT_LENGTH, "targets": DECODE_LENGTH}
LABELS = ("yes", "no", "perhaps")


def texts(count):
    """Inputs of different lengths, some longer than `INPUT_LENGTH` tokens."""
    return [
        f"Anna has {n} apples" + f" and buys {n % 7} pears" * (n % 4) + "?" for n in range(count)
    ]


@functools.cache
def student():
    """A network on a mesh of two devices, and random parameters."""
    made = Student(CONFIG, make_mesh(devices=jax.devices()[:2]))
    return made, made.init_params(0)


@functools.cache
def predictor(method="sbs", prefix_side="encoder", parts=None, **options):
    """A `Predictor` of `student`; `options` must be hashable."""
    network, params = student()
    defaults = {
        "input_length": INPUT_LENGTH,
        "max_decode_len": DECODE_LENGTH,
        "batch_size": 8,
        "engine": "jax",
    }
    return Predictor(
        network,
        params,
        SentencePieceTokenizer(sentencepiece_models.with_bytes()),
        prompting=Prompting(method=method, prefix_side=prefix_side, parts=parts),
        **(defaults | options),
    )


def write_model_dir(folder, *, seed=0, **settings):
    """Writes what training leaves: a checkpoint, the vocabulary and student.json."""
    network, _ = student()
    optimizer = optimizers.adamw(1e-3)
    state = placement.create_state(network, network.init_params(seed), optimizer, seed)
    with CheckpointManager(folder) as checkpoints:
        checkpoints.save(0, state, extra={})
    (folder / "vocabulary").mkdir()
    (folder / record.VOCABULARY).write_bytes(sentencepiece_models.with_bytes().read_bytes())
    record.write(
        folder,
        dataclasses.replace(CONFIG),
        {"method": "sbs", "feature_lengths": LENGTHS, "data_settings": {}} | settings,
    )
    return folder
