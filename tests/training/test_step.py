"""The step on a toy network: what does not depend on the network at all."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sbs_jax.errors import UserError
from sbs_jax.evaluation.loss_step import make_loss_step
from sbs_jax.training import optimizers, schedules
from sbs_jax.training.state import create_state
from sbs_jax.training.step import Loss, make_train_step

VOCAB, WIDTH = 13, 8


def toy_apply(params, batch, dropout_rng):
    """Predicts from the last decoder input and the mean of the encoder's embeddings."""
    real = (batch["encoder_segment_ids"] > 0)[..., None]
    context = jnp.sum(params["embedding"][batch["encoder_input_tokens"]] * real, axis=1)
    hidden = params["embedding"][batch["decoder_input_tokens"]] + context[:, None, :]
    if dropout_rng is not None:
        hidden = hidden * jax.random.bernoulli(dropout_rng, 0.9, hidden.shape)
    return jnp.tanh(hidden) @ params["head"]


def without_dropout(params, batch, dropout_rng):
    del dropout_rng
    return toy_apply(params, batch, None)


@pytest.fixture(scope="module")
def params():
    keys = jax.random.split(jax.random.key(1), 2)
    return {
        "embedding": jax.random.normal(keys[0], (VOCAB, WIDTH)),
        "head": jax.random.normal(keys[1], (WIDTH, VOCAB)),
    }


@pytest.fixture(scope="module")
def batch():
    """8 rows in which the parts are spread very unevenly, one row being empty."""
    rng = np.random.default_rng(3)
    lengths = [(2, 7), (1, 9), (10, 0), (0, 10), (3, 3), (0, 0), (1, 1), (5, 2)]
    parts = np.zeros((8, 10), np.int32)
    segments = np.zeros((8, 10), np.int32)
    for row, (label, rationale) in enumerate(lengths):
        parts[row, :label] = 1
        segments[row, :label] = 1
        parts[row, label : label + rationale] = 2
        segments[row, label : label + rationale] = 2 if label else 1
    tokens = rng.integers(2, VOCAB, size=(8, 10)).astype(np.int32)
    return {
        "encoder_input_tokens": rng.integers(2, VOCAB, size=(8, 6)).astype(np.int32),
        "encoder_segment_ids": np.ones((8, 6), np.int32),
        "decoder_input_tokens": tokens,
        "decoder_target_tokens": np.roll(tokens, -1, axis=1),
        "decoder_target_parts": parts,
        "decoder_segment_ids": segments,
    }


def run(
    params, batch, steps=3, apply=without_dropout, optimizer=None, seed=0, loss=None, **options
):
    optimizer = optimizer or optimizers.sgd(0.1)
    step = jax.jit(make_train_step(apply, optimizer, loss or Loss(), **options))
    state = create_state(params, optimizer, seed)
    history = []
    for _ in range(steps):
        state, metrics = step(state, batch)
        history.append(jax.device_get(metrics))
    return state, history


@pytest.mark.parametrize("normalization", ["token_mean", "example_mean"])
@pytest.mark.parametrize("count", [2, 4, 8])
def test_microbatches_equal_the_whole(params, batch, normalization, count):
    options = {"loss": Loss(rationale_weight=0.7, normalization=normalization)}
    whole_state, whole = run(params, batch, **options)
    state, history = run(params, batch, num_microbatches=count, **options)
    for ours, expected in zip(history, whole, strict=True):
        assert ours.keys() == expected.keys()
        for key in expected:
            np.testing.assert_allclose(ours[key], expected[key], rtol=1e-5, err_msg=key)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        state.params,
        whole_state.params,
    )


def test_order_of_rows_does_not_matter(params, batch):
    order = np.random.default_rng(0).permutation(8)
    _, expected = run(params, batch)
    _, shuffled = run(params, {key: value[order] for key, value in batch.items()})
    np.testing.assert_allclose(shuffled[-1]["loss"], expected[-1]["loss"], rtol=1e-6)


def test_gradient_of_sgd_is_the_written_out_gradient(params, batch):
    """One SGD step against jax.grad of the formula in DESIGN.md, written without sbs_jax.losses."""

    def formula(params):
        log_p = jax.nn.log_softmax(toy_apply(params, batch, None))
        ce = -jnp.take_along_axis(log_p, batch["decoder_target_tokens"][..., None], -1)[..., 0]
        parts = batch["decoder_target_parts"]
        label, rationale = (parts == 1), (parts == 2)
        return (ce * label).sum() / label.sum() + 0.3 * (ce * rationale).sum() / rationale.sum()

    state, history = run(params, batch, steps=1, loss=Loss(rationale_weight=0.3))
    value, gradient = jax.value_and_grad(formula)(params)
    np.testing.assert_allclose(history[0]["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(history[0]["grad_norm"], optax.global_norm(gradient), rtol=1e-5)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.params, expected
    )


def test_dropout_differs_by_step_and_seed_and_repeats(params, batch):
    frozen = optimizers.sgd(0.0)
    _, first = run(params, batch, apply=toy_apply, optimizer=frozen)
    _, again = run(params, batch, apply=toy_apply, optimizer=frozen)
    _, other = run(params, batch, apply=toy_apply, optimizer=frozen, seed=1)
    values = [float(metrics["loss"]) for metrics in first]
    assert len(set(values)) == 3
    assert values == [float(metrics["loss"]) for metrics in again]
    assert values[0] != float(other[0]["loss"])


def test_rationale_weight_may_be_a_schedule(params, batch):
    ramp = schedules.linear_decay(peak=1.0, total_steps=2)
    _, history = run(params, batch, loss=Loss(rationale_weight=ramp))
    assert [float(metrics["rationale_weight"]) for metrics in history] == [1.0, 0.5, 0.0]
    last = history[-1]
    np.testing.assert_allclose(last["loss"], last["label_loss"], rtol=1e-6)


def test_learning_rate_is_reported_as_used(params, batch):
    rate = schedules.linear_decay(peak=0.2, total_steps=4)
    state, history = run(params, batch, steps=2, optimizer=optimizers.sgd(rate))
    np.testing.assert_allclose([m["learning_rate"] for m in history], [0.2, 0.15], rtol=1e-6)
    assert int(state.step) == 2


def test_loss_step_of_pieces_gives_the_loss_of_the_whole(params, batch):
    for normalization in ("token_mean", "example_mean"):
        step = make_loss_step(without_dropout, loss_normalization=normalization)
        pieces = [
            step(params, {key: value[rows] for key, value in batch.items()})
            for rows in (slice(0, 3), slice(3, 8))
        ]
        total = jax.tree.map(lambda *values: sum(values), *pieces)
        _, history = run(params, batch, steps=1, loss=Loss(normalization=normalization))
        for part in ("label", "rationale"):
            np.testing.assert_allclose(
                total[part]["loss"] / total[part]["weight"],
                history[0][f"{part}_loss"],
                rtol=1e-6,
            )
            assert total[part]["tokens"] == history[0][f"{part}_tokens"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_microbatches": 3}, "NUM_MICROBATCHES = 3 does not divide the 8 rows"),
        ({"num_microbatches": 0}, "NUM_MICROBATCHES = 0"),
        ({"rationale_weight": -1.0}, "RATIONALE_WEIGHT = -1.0"),
        ({"normalization": "sum"}, "LOSS_NORMALIZATION"),
    ],
)
def test_bad_options_get_a_sentence(params, batch, options, says):
    microbatches = {k: v for k, v in options.items() if k == "num_microbatches"}
    with pytest.raises(UserError, match=says):
        loss = Loss(**{k: v for k, v in options.items() if k not in microbatches})
        run(params, batch, steps=1, loss=loss, **microbatches)
