"""Five parts at once, one of them inside another's target: numpy, packed, sharded, microbatched.

(Two processes: `test_loop.test_two_processes_stop_at_the_same_step`.)
"""

import jax
import numpy as np
import pytest

from sbs_jax.data.batching import EvalBatches
from sbs_jax.evaluation.loss_step import make_loss_step
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.student import Student
from tests.training.five_parts import (
    CONFIG,
    EXAMPLES,
    LENGTHS,
    LOSS,
    METHOD,
    ROWS,
    WEIGHTS,
    assert_equal,
    make_params,
    make_records,
    train,
)


@pytest.fixture(scope="module")
def records():
    return make_records()


@pytest.fixture(scope="module")
def params():
    return make_params()


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
    (batch,) = EvalBatches(records, ROWS, LENGTHS, pack=False)
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
    devices = jax.devices()[: mesh[0] * mesh[1]]
    found = train(records, params, make_mesh(*mesh, devices=devices), microbatches=microbatches)
    assert_equal(found, plain)
