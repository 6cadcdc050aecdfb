"""The same networks on a GPU as on the CPU; skipped where there is none.

    JAX_PLATFORMS=cuda,cpu XLA_FLAGS= python -m pytest tests/test_gpu.py

The rest of the suite runs on virtual CPU devices, also where there is a GPU.
"""

import dataclasses

import jax
import numpy as np
import pytest

from sbs_jax.decoding.greedy import greedy_decode
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.student import Student
from sbs_jax.training import optimizers, placement
from sbs_jax.training.step import Loss, make_train_step
from tests.batches import random_batch
from tests.toy import CONFIG, DECODER

try:
    GPU = jax.devices("gpu")[0]
except RuntimeError:
    GPU = None
pytestmark = pytest.mark.skipif(GPU is None, reason="there is no GPU")

CPU = jax.devices("cpu")[0]
WIDE = dataclasses.replace(
    CONFIG, emb_dim=128, num_heads=2, head_dim=64, mlp_dim=128, dropout_rate=0.0
)


@pytest.fixture(autouse=True)
def whole_products():
    """By default a GPU rounds the operands of float32 products to TF32."""
    with jax.default_matmul_precision("highest"):
        yield


def batch(config):
    found = random_batch(rows=8, inputs=64, targets=64, vocab_size=config.vocab_size)
    if config is not DECODER:
        return found
    return {**found, "decoder_source_ids": found["decoder_segment_ids"]}


def drawn_params(config, student):
    """The same parameters on every device: drawn on the CPU, which has no cuDNN."""
    plain = config if config is DECODER else dataclasses.replace(config, attention="xla")
    with jax.default_device(CPU):
        drawn = jax.device_get(Student(plain, make_mesh(devices=[CPU])).init_params(0))
    return jax.tree.map(jax.device_put, drawn, student.param_shardings)


def three_steps(config, device):
    """Losses, gradient norms and parameters after three steps."""
    student = Student(config, make_mesh(devices=[device]))
    optimizer = optimizers.adamw(1e-3)
    abstract = placement.abstract_state(student, optimizer, 0)
    step = placement.jit_train_step(
        student, make_train_step(student.hidden, optimizer, Loss(), head=student.head), abstract
    )
    params = drawn_params(config, student)
    state = placement.create_state(student, params, optimizer, 0)
    found = []
    for _ in range(3):
        state, metrics = step(state, batch(config))
        found.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.array(found), jax.device_get(state.params)


@pytest.mark.parametrize("config", [WIDE, DECODER], ids=["t5", "decoder"])
def test_float32_steps_are_those_of_the_cpu(config):
    ours, params = three_steps(config, GPU)
    theirs, expected = three_steps(config, CPU)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), params, expected)


def test_dropout_masks_are_those_of_the_cpu():
    config = dataclasses.replace(WIDE, dropout_rate=0.2)
    np.testing.assert_allclose(three_steps(config, GPU)[0], three_steps(config, CPU)[0], rtol=2e-5)


def test_cudnn_attention_is_the_plain_one():
    """In bfloat16, whose relative spacing is 2^-8; both are also compared with float32."""
    losses = {
        name: three_steps(dataclasses.replace(WIDE, **options), GPU)[0]
        for name, options in {
            "cudnn": {"dtype": "bfloat16", "attention": "cudnn"},
            "xla": {"dtype": "bfloat16", "attention": "xla"},
            "float32": {"attention": "xla"},
        }.items()
    }
    np.testing.assert_allclose(losses["cudnn"][:, 0], losses["xla"][:, 0], rtol=2e-3)
    np.testing.assert_allclose(losses["cudnn"][:, 1], losses["xla"][:, 1], rtol=2e-2)
    np.testing.assert_allclose(losses["cudnn"][:, 0], losses["float32"][:, 0], rtol=5e-3)


@pytest.mark.parametrize("config", [WIDE, DECODER], ids=["t5", "decoder"])
def test_greedy_tokens_are_those_of_the_cpu(config):
    inputs = batch(config)["encoder_input_tokens"] * (np.arange(64) < 20)
    found = {}
    for device in (GPU, CPU):
        student = Student(config, make_mesh(devices=[device]))
        params = drawn_params(config, student)
        run = student.jit(
            lambda params, inputs, student=student: greedy_decode(
                student.model, params, inputs, max_decode_len=12
            )
        )
        found[device.platform] = np.asarray(run(params, jax.device_put(inputs, device)))
    np.testing.assert_array_equal(found[GPU.platform], found["cpu"])
