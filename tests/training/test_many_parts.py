"""Five parts at once, one of them inside another's target: numpy, packed, sharded, microbatched."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from sbs_jax.data.batching import eval_batches
from sbs_jax.data.records import Counts, Records
from sbs_jax.evaluation.loss_step import make_loss_step
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


@pytest.fixture(scope="module")
def records():
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


@pytest.fixture(scope="module")
def params():
    student = Student(CONFIG, make_mesh(devices=jax.devices()[:1]))
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
    (batch,) = eval_batches(records, ROWS, LENGTHS, pack)
    state = placement.create_state(student, placed, optimizer, seed=0)
    state, metrics = step(state, to_global(batch, mesh))
    return jax.device_get((metrics, state.params))


@pytest.fixture(scope="module")
def plain(records, params):
    return train(records, params, make_mesh(devices=jax.devices()[:1]), pack=False)


def in_numpy(logits, batch):
    """Each part's mean: of its tokens, or of each target first; weighted by the data's weights."""
    top = logits.max(-1, keepdims=True)
    log_z = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
    targets = batch["decoder_target_tokens"]
    ce = log_z - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    parts, weights = batch["decoder_target_parts"], batch["decoder_token_weights"].astype(float)
    means = {}
    for code, part in enumerate(METHOD.parts, start=1):
        mine = parts == code
        if part.normalization == "example_mean":  # a row holds one target here
            rows = [r for r in range(len(parts)) if weights[r][mine[r]].sum() > 0]
            each = [np.average(ce[r][mine[r]], weights=weights[r][mine[r]]) for r in rows]
            means[part.name] = np.mean(each)
        else:
            means[part.name] = np.average(ce[mine], weights=weights[mine])
    return means


def test_equals_the_formula(records, params, plain):
    (batch,) = eval_batches(records, ROWS, LENGTHS, pack=False)
    student = Student(CONFIG, make_mesh(devices=jax.devices()[:1]))
    logits = np.asarray(jax.jit(lambda p: student.apply(p, batch, None))(params), np.float64)
    expected = in_numpy(logits, batch)
    metrics, _ = plain
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[f"{name}_loss"], value, rtol=1e-5, err_msg=name)
        assert metrics[f"{name}_targets"] == EXAMPLES
        assert (
            metrics[f"{name}_tokens"]
            == (records.target_parts == 1 + list(WEIGHTS).index(name)).sum()
        )
    total = sum(WEIGHTS[name] * value for name, value in expected.items())
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)
    assert metrics["program_weight"] == 2.0 and "label_weight" not in metrics
    # The loss of evaluation is the same mean, from sums of batches.
    step = make_loss_step(
        student.hidden, head=student.head, loss_normalization=LOSS.normalizations, names=LOSS.names
    )
    sums = jax.device_get(jax.jit(step)(params, batch))
    for name, value in expected.items():
        np.testing.assert_allclose(sums[name]["loss"] / sums[name]["weight"], value, rtol=1e-5)


@pytest.mark.parametrize(
    ("mesh", "microbatches"), [((1, 1), 1), ((1, 1), 4), ((4, 2), 1), ((2, 4), 4)]
)
def test_packed_sharded_and_microbatched_equal_plain(records, params, plain, mesh, microbatches):
    """Losses to 1e-5 relative, as for two parts; parameters after a step, that is gradients."""
    devices = jax.devices()[: mesh[0] * mesh[1]]
    metrics, after = train(
        records, params, make_mesh(*mesh, devices=devices), microbatches=microbatches
    )
    expected, expected_after = plain
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
