"""A small student with random weights and a vocabulary of its own, in a MODEL_DIR."""

import dataclasses
import functools
import io
import tempfile
from pathlib import Path

import jax
from sentencepiece import SentencePieceTrainer

from sbs_jax.checkpoints import record
from sbs_jax.checkpoints.manager import CheckpointManager
from sbs_jax.inference.predictor import Predictor
from sbs_jax.inference.prompting import Prompting
from sbs_jax.inference.tokenizer import Tokenizer
from sbs_jax.models.config import T5Config
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.student import Student
from sbs_jax.training import optimizers, placement

CONFIG = T5Config(
    vocab_size=512,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    num_encoder_layers=1,
    num_decoder_layers=1,
)
INPUT_LENGTH, DECODE_LENGTH = 32, 8
LENGTHS = {"inputs": INPUT_LENGTH, "targets": DECODE_LENGTH}
LABELS = ("yes", "no", "perhaps")
SENTENCES = [
    "predict: Anna has 3 apples and buys 4 pears. How many are there?",
    "explain: She had 3 and then 4 more, so the sum is 3 + 4. Answer: 7",
    "Where would you go? Answer Choices: (a) zoo (b) sea (c) park",
    "yes no perhaps",
]


def texts(count):
    """Inputs of different lengths, some longer than `INPUT_LENGTH` tokens."""
    return [
        f"Anna has {n} apples" + f" and buys {n % 7} pears" * (n % 4) + "?" for n in range(count)
    ]


@functools.cache
def vocabulary():
    """The path of a SentencePiece model."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 5),
        model_writer=model,
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    path = Path(tempfile.mkdtemp()) / "spiece.model"
    path.write_bytes(model.getvalue())
    return path


@functools.cache
def student():
    """A network on a mesh of two devices, and random parameters."""
    made = Student(CONFIG, make_mesh(devices=jax.devices()[:2]))
    return made, made.init_params(0)


@functools.cache
def predictor(method="sbs", prefix_side="encoder", **options):
    """A `Predictor` of `student`; `options` must be hashable."""
    network, params = student()
    defaults = {
        "input_length": INPUT_LENGTH,
        "max_decode_len": DECODE_LENGTH,
        "batch_size": 8,
    }
    return Predictor(
        network,
        params,
        Tokenizer(vocabulary()),
        prompting=Prompting(method=method, prefix_side=prefix_side),
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
    (folder / record.VOCABULARY).write_bytes(vocabulary().read_bytes())
    record.write(
        folder,
        dataclasses.replace(CONFIG),
        {"method": "sbs", "feature_lengths": LENGTHS, "data_settings": {}} | settings,
    )
    return folder
