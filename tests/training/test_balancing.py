"""Weights that find themselves: against numpy, in microbatches, saved and resumed, and off."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sbs_jax.errors import UserError
from sbs_jax.training.balancing import Balancing
from sbs_jax.training.optimizers import Optimizer, adamw
from sbs_jax.training.state import create_state
from sbs_jax.training.step import Loss, make_train_step

NAMES = ("label", "rationale")
VOCAB, WIDTH = 13, 8


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(1)
    shapes = {"embedding": (VOCAB, WIDTH), "head": (WIDTH, VOCAB)}
    return {name: jnp.asarray(rng.normal(size=shape), "float32") for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def batch():
    """Eight rows with a label and a rationale, of very different lengths."""
    rng = np.random.default_rng(2)
    parts = np.zeros((8, 10), np.int32)
    for row, (label, rationale) in enumerate(
        [(2, 7), (1, 9), (10, 0), (0, 10), (3, 3), (0, 0), (1, 1), (5, 2)]
    ):
        parts[row, :label], parts[row, label : label + rationale] = 1, 2
    tokens = rng.integers(2, VOCAB, size=(8, 10)).astype(np.int32)
    return {
        "decoder_input_tokens": tokens,
        "decoder_target_tokens": np.roll(tokens, -1, axis=1),
        "decoder_target_parts": parts,
        "decoder_segment_ids": parts,
    }


def no_dropout(params, batch, dropout_rng):
    del dropout_rng
    return jnp.tanh(params["embedding"][batch["decoder_input_tokens"]]) @ params["head"]


def run(params, batch, balancing, steps=3, **options):
    """The state and the metrics of some steps of plain descent."""
    loss = Loss(rationale_weight=0.5, balancing=balancing)
    optimizer = balancing.wrap(Optimizer(optax.sgd(0.05), lambda step: 0.05), NAMES)
    step = jax.jit(make_train_step(no_dropout, optimizer, loss, **options))
    state, found = create_state(params, optimizer, 0), []
    for _ in range(steps):
        state, metrics = step(state, batch)
        found.append({name: float(value) for name, value in metrics.items()})
    return state, found


def by_hand(params, batch, weights):
    """Part means, and norms of their weighted gradients with respect to the logits, in numpy."""
    logits = np.asarray(no_dropout(params, batch, None), np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    targets = np.asarray(batch["decoder_target_tokens"])
    ce = -np.log(np.take_along_axis(p, targets[..., None], -1)[..., 0])
    means, norms = [], []
    for code, weight in enumerate(weights, start=1):
        mine = np.asarray(batch["decoder_target_parts"]) == code
        means.append(ce[mine].mean())
        slope = (p - np.eye(p.shape[-1])[targets])[mine] * weight / mine.sum()
        norms.append(np.sqrt((slope**2).sum()))
    return np.array(means), np.array(norms)


def test_uncertainty_is_descent_on_kendalls_loss(params, batch):
    balancing = Balancing("uncertainty", rate=0.1)
    state, found = run(params, batch, balancing)
    s = np.zeros(2)
    for metrics in found:
        weights = np.exp(-s) * (1.0, 0.5)
        means = np.array([metrics["label_loss"], metrics["rationale_loss"]])
        assert metrics["label_weight"] == pytest.approx(weights[0], rel=1e-5)
        assert metrics["rationale_weight"] == pytest.approx(weights[1], rel=1e-5)
        assert metrics["loss"] == pytest.approx(weights @ means, rel=1e-5)
        s -= 0.1 * (0.5 - np.exp(-s) * means)
    np.testing.assert_allclose(state.opt_state.balance.values, s, rtol=1e-5)


def test_gradient_norm_moves_factors_as_gradnorm_does(params, batch):
    balancing = Balancing("gradient_norm", rate=0.1, alpha=1.5)
    _, found = run(params, batch, balancing)
    factors, first = np.ones(2), None
    optimizer = Optimizer(optax.sgd(0.05), lambda step: 0.05)
    state = create_state(params, optimizer, 0)
    for metrics in found:
        weights = factors * (1.0, 0.5)
        means, norms = by_hand(state.params, batch, weights)
        assert metrics["rationale_weight"] == pytest.approx(weights[1], rel=1e-4)
        assert metrics["label_gradient_norm"] == pytest.approx(norms[0], rel=1e-4)
        assert metrics["rationale_gradient_norm"] == pytest.approx(norms[1], rel=1e-4)
        # The step with these weights fixed, as `Loss` without a rule takes it.
        first = means if first is None else first
        left = means / first
        target = norms.mean() * (left / left.mean()) ** 1.5
        moved = factors - 0.1 * np.sign(norms - target) * norms / factors
        factors = moved * factors.sum() / moved.sum()
        scaled = Optimizer(optax.sgd(0.05 * weights[0]), lambda step: 0.05)
        loss = Loss(rationale_weight=float(weights[1] / weights[0]))
        state, _ = make_train_step(no_dropout, scaled, loss)(state, batch)


@pytest.mark.parametrize("rule", ["uncertainty", "gradient_norm"])
def test_microbatches_are_the_whole_and_a_saved_state_goes_on(params, batch, rule):
    balancing = Balancing(rule, rate=0.1)
    whole, metrics = run(params, batch, balancing)
    cut, others = run(params, batch, balancing, num_microbatches=4)
    for one, other in zip(metrics, others, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    np.testing.assert_allclose(
        whole.opt_state.balance.values, cut.opt_state.balance.values, rtol=1e-5
    )
    # All that a rule carries is in the state: through bytes and back, it goes on to the bit.
    loss = Loss(balancing=balancing)
    optimizer = balancing.wrap(adamw(1e-2), NAMES)
    step = jax.jit(make_train_step(no_dropout, optimizer, loss))
    state, _ = step(create_state(params, optimizer, 0), batch)
    leaves, structure = jax.tree.flatten(state)
    again = structure.unflatten([jnp.asarray(np.array(leaf)) for leaf in leaves])
    jax.tree.map(np.testing.assert_array_equal, step(state, batch), step(again, batch))


def test_an_empty_part_moves_nothing_and_without_a_rule_nothing_is_there(params, batch):
    labels = dict(batch)
    labels["decoder_target_parts"] = np.where(batch["decoder_target_parts"] == 2, 0, 1) * (
        batch["decoder_target_parts"] > 0
    )
    for rule in ("uncertainty", "gradient_norm"):
        state, found = run(params, labels, Balancing(rule, rate=0.1))
        assert float(state.opt_state.balance.values[1]) == (0.0 if rule == "uncertainty" else 1.0)
        assert all(np.isfinite(list(metrics.values())).all() for metrics in found)
    off, optimizer = Balancing(), adamw(1e-3)
    assert off.wrap(optimizer, NAMES) is optimizer


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rule": "gradnorm"}, "BALANCING = 'gradnorm' must be None, uncertainty or gradient_norm"),
        ({"rate": 0.0}, "BALANCING_RATE = 0.0 must be above 0"),
        ({"alpha": -1.0}, "BALANCING_ALPHA = -1.0 must not be negative"),
    ],
)
def test_impossible_values_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        Balancing(**options)
