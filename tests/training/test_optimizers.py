"""Optimizers against their formulas, and the sentences of their constructors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbs_jax.errors import UserError
from sbs_jax.training import optimizers, schedules


def test_adamw_is_the_formula_with_clipping():
    gradient = np.asarray([3.0, 4.0])  # norm 5: clipped to [0.6, 0.8]
    optimizer = optimizers.adamw(0.1, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.01)
    params = jnp.asarray([1.0, -2.0])
    state = optimizer.transformation.init(params)
    updates, _ = optimizer.transformation.update(jnp.asarray(gradient), state, params)
    clipped = gradient / 5
    step = clipped / (np.sqrt(clipped**2) + 1e-8)  # after bias correction of both moments
    np.testing.assert_allclose(updates, -0.1 * (step + 0.01 * np.asarray(params)), rtol=1e-5)


def test_published_schedule_decays_linearly_to_zero():
    schedule = schedules.linear_decay(peak=5e-5, total_steps=100)
    values = [float(schedule(step)) for step in (0, 50, 100, 150)]
    np.testing.assert_allclose(values, [5e-5, 2.5e-5, 0, 0], atol=1e-12)


def test_warmup_rsqrt_and_cosine():
    warm = schedules.linear_decay(peak=1.0, total_steps=30, warmup_steps=10)
    np.testing.assert_allclose([warm(0), warm(5), warm(10), warm(20)], [0, 0.5, 1, 0.5], atol=1e-6)
    short = schedules.linear_decay(peak=1.0, total_steps=3, warmup_steps=10)
    np.testing.assert_allclose([short(0), short(2)], [0, 0.2], atol=1e-6)
    short = schedules.cosine_decay(peak=1.0, total_steps=3, warmup_steps=10)
    np.testing.assert_allclose([short(0), short(2)], [0, 0.2], atol=1e-6)
    rsqrt = schedules.rsqrt(1.0, warmup_steps=100)
    np.testing.assert_allclose([rsqrt(0), rsqrt(100), rsqrt(400)], [1, 1, 0.5], rtol=1e-6)
    cosine = schedules.cosine_decay(peak=2.0, total_steps=10)
    np.testing.assert_allclose([cosine(0), cosine(5), cosine(10)], [2, 1, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: optimizers.adamw(-1.0), "learning_rate = -1.0"),
        (lambda: optimizers.adamw(1.0, b1=1.0), "b1 = 1.0"),
        (lambda: optimizers.adamw(1.0, b2=-0.1), "b2 = -0.1"),
        (lambda: optimizers.adamw(1.0, eps=0.0), "eps = 0.0"),
        (lambda: optimizers.adamw(1.0, weight_decay=-1.0), "weight_decay = -1.0"),
        (lambda: optimizers.adamw(1.0, max_grad_norm=0.0), "max_grad_norm = 0.0"),
        (lambda: optimizers.adafactor(1.0, decay_rate=1.0), "decay_rate = 1.0"),
        (lambda: schedules.linear_decay(1.0, 0), "total_steps = 0 .*TRAIN_STEPS"),
        (lambda: schedules.cosine_decay(1.0, 10, -1), "warmup_steps = -1"),
        (lambda: schedules.rsqrt(1.0, 0), "warmup_steps = 0"),
    ],
)
def test_bad_hyperparameters_get_a_sentence(build, says):
    with pytest.raises(UserError, match=says):
        build()


def test_ramps_of_lambda_reach_their_end_and_stay():
    linear = schedules.linear_ramp(0.5, 2.5, 10)
    cosine = schedules.cosine_ramp(0.5, 2.5, 10)
    assert [float(linear(step)) for step in (0, 5, 10, 99)] == pytest.approx([0.5, 1.5, 2.5, 2.5])
    assert [float(cosine(step)) for step in (0, 5, 10, 99)] == pytest.approx([0.5, 1.5, 2.5, 2.5])
    assert float(cosine(1)) < float(linear(1))
    down = schedules.cosine_ramp(1.0, 0.0, 4)
    assert float(down(jnp.int32(2))) == pytest.approx(0.5)
    for ramp in (schedules.linear_ramp, schedules.cosine_ramp):
        with pytest.raises(UserError, match=r"steps = 0 must be at least 1"):
            ramp(0.0, 1.0, 0)
        with pytest.raises(UserError, match=r"end = -1.0 must not be negative"):
            ramp(0.0, -1.0, 5)


def test_frozen_parameters_stay_and_the_others_move_as_ever():
    params = {
        "token_embedder": {"embedding": jnp.ones((4, 3))},
        "decoder": {"layers_0": {"kernel": jnp.ones((3, 3))}, "layers_1": {"kernel": jnp.ones(3)}},
    }
    gradients = jax.tree.map(
        lambda leaf: 0.01 * jnp.arange(1.0, 1 + leaf.size).reshape(leaf.shape), params
    )
    plain = optimizers.adamw(0.1, max_grad_norm=None)
    frozen = optimizers.freeze(plain, ["token_embedder", "layers_0/"])
    state = frozen.transformation.init(params)
    updates, _ = frozen.transformation.update(gradients, state, params)
    alone, _ = plain.transformation.update(gradients, plain.transformation.init(params), params)
    assert not updates["token_embedder"]["embedding"].any()
    assert not updates["decoder"]["layers_0"]["kernel"].any()
    last = updates["decoder"]["layers_1"]["kernel"]
    np.testing.assert_array_equal(last, alone["decoder"]["layers_1"]["kernel"])
    assert last.all()
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 10  # no moments of what is frozen
    assert optimizers.freeze(plain, []) is plain


@pytest.mark.parametrize(
    ("patterns", "sentence"),
    [(["("], "no regular expression"), (["nothing"], "fits no parameter"), (["."], "nothing to")],
)
def test_patterns_that_make_no_sense(patterns, sentence):
    with pytest.raises(UserError, match=sentence):
        frozen = optimizers.freeze(optimizers.adamw(0.1), patterns)
        frozen.transformation.init({"a": {"b": jnp.ones(2)}})
