"""A method of five parts, one of them inside another's target, and a step of training with it."""

import dataclasses

import jax
import numpy as np
import optax

from sbs_jax.data.batching import EvalBatches
from sbs_jax.data.records import Counts, Records
from sbs_jax.partitioning.distributed import to_global
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.parts import Method, Part
from sbs_jax.student import Student
from sbs_jax.training import placement
from sbs_jax.training.optimizers import Optimizer
from sbs_jax.training.step import Loss, make_train_step
from tests import toy

CONFIG = dataclasses.replace(toy.CONFIG, vocab_size=64, dropout_rate=0.0)
METHOD = Method(
    "five",
    (
        Part("label"),
        Part("rationale", normalization="example_mean"),
        Part("hint", weight=0.3),
        Part("plan", weight=0.7, normalization="example_mean"),
        Part("program", weight=lambda step: 2.0 + step, after="plan"),
    ),
)
LOSS = Loss(rationale_weight=0.5).of(METHOD)
WEIGHTS = {"label": 1.0, "rationale": 0.5, "hint": 0.3, "plan": 0.7, "program": 2.0}
EXAMPLES, ROWS = 10, 40
LENGTHS = {"inputs": 16, "targets": 24}


def make_records():
    """Of each example four records, in the last of which a program follows the plan."""
    rng = np.random.default_rng(4)
    inputs, targets, parts = [], [], []
    for _ in range(EXAMPLES):
        question = [*rng.integers(2, 64, rng.integers(2, 8)), 1]
        for codes in ([1], [2], [3], [4, 5]):
            own = np.concatenate([np.full(rng.integers(1, 7), code) for code in codes])
            parts.append(np.append(own, codes[-1]))
            targets.append([*rng.integers(2, 64, own.size), 1])
            inputs.append(question)
    offsets = [np.cumsum([0, *map(len, one)]).astype(np.int64) for one in (inputs, targets)]
    return Records(
        input_tokens=np.concatenate(inputs).astype(np.int32),
        input_offsets=offsets[0],
        target_tokens=np.concatenate(targets).astype(np.int32),
        target_parts=np.concatenate(parts).astype(np.int8),
        target_offsets=offsets[1],
        target_weights=rng.choice([0.0, 0.5, 1.0, 3.0], offsets[1][-1]).astype(np.float32),
        example=np.repeat(np.arange(EXAMPLES), 4).astype(np.int32),
        counts=Counts(EXAMPLES, EXAMPLES, EXAMPLES),
    )


def make_params():
    student = Student(CONFIG, make_mesh(devices=jax.local_devices()[:1]))
    return jax.device_get(student.init_params(seed=0))


def train(records, params, mesh, *, pack=True, microbatches=1):
    """The metrics of one step of SGD, and the parameters after it."""
    optimizer = Optimizer(optax.sgd(1.0), lambda step: 1.0)
    student = Student(CONFIG, mesh)
    placed = jax.device_put(params, student.param_shardings)
    step = placement.jit_train_step(
        student,
        make_train_step(
            student.hidden, optimizer, LOSS, head=student.head, num_microbatches=microbatches
        ),
        placement.abstract_state(student, optimizer, seed=0),
    )
    (batch,) = EvalBatches(records, ROWS, LENGTHS, pack)
    state = placement.create_state(student, placed, optimizer, seed=0)
    state, metrics = step(state, to_global(batch, mesh))
    whole = jax.jit(lambda params: params, out_shardings=student.replicated)  # of all processes
    return jax.device_get((metrics, whole(state.params)))


def assert_equal(found, expected):
    """Losses to 1e-5 relative, as for two parts; parameters after a step, that is gradients."""
    (metrics, after), (expected, expected_after) = found, expected
    for name in ("loss", *(f"{name}_loss" for name in WEIGHTS)):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, err_msg=name)
    for name in WEIGHTS:
        for count in ("tokens", "targets", "accuracy"):
            assert metrics[f"{name}_{count}"] == expected[f"{name}_{count}"]
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6),
        after,
        expected_after,
    )
