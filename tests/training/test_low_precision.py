"""Moments in bfloat16: smaller, and right on average."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sbs_jax.errors import UserError
from sbs_jax.training import low_precision, optimizers


def test_rounding_is_unbiased_and_to_a_neighbour():
    x = jnp.full((4096,), 1.0 + 0.3 * 2.0**-7, jnp.float32)  # 0.3 of the way to the next number
    rounded = low_precision.round_at_random(x, jnp.uint32(0), 0).astype(jnp.float32)
    assert set(np.unique(rounded)) == {1.0, 1.0 + 2.0**-7}
    np.testing.assert_allclose(np.mean(rounded > 1.0), 0.3, atol=0.03)
    other = low_precision.round_at_random(x, jnp.uint32(1), 0).astype(jnp.float32)
    assert 0.2 < np.mean(rounded != other) < 0.6
    np.testing.assert_array_equal(rounded, low_precision.round_at_random(x, jnp.uint32(0), 0))


@pytest.mark.parametrize("value", [0.0, -2.5, np.inf, -np.inf, np.nan])
def test_what_bfloat16_has_stays_what_it_is(value):
    x = jnp.full((8,), value, jnp.float32)
    rounded = low_precision.round_at_random(x, jnp.uint32(5), 2)
    np.testing.assert_array_equal(rounded.astype(jnp.float32), x)


def test_adamw_trains_as_in_float32():
    target = jnp.asarray(np.random.default_rng(0).normal(size=(64, 32)), jnp.float32)

    def train(moment_dtype):
        transformation = optimizers.adamw(0.01, moment_dtype=moment_dtype).transformation
        params = {"w": jnp.zeros_like(target), "scale": jnp.zeros(())}

        def step(carry, _):
            params, state = carry
            loss, gradients = jax.value_and_grad(
                lambda p: jnp.square(p["w"] - target).mean() + jnp.square(p["scale"] - 1.0)
            )(params)
            updates, state = transformation.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), loss

        start = params, transformation.init(params)
        (params, state), losses = jax.jit(lambda s: jax.lax.scan(step, s, length=400))(start)
        return params, state, losses

    _, state, losses = train("bfloat16")
    _, exact_state, exact = train("float32")
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == target.shape]
    assert len(moments) == 2
    assert all(leaf.dtype == jnp.bfloat16 for leaf in moments)
    assert jax.tree.structure(state) == jax.tree.structure(exact_state)
    assert exact[-1] < 0.01 * exact[0]
    assert losses[-1] < 1.2 * exact[-1] + 1e-6


def test_a_moment_that_no_gradient_reaches_decays():
    transformation = optimizers.adamw(0.01, moment_dtype="bfloat16").transformation
    params = {"w": jnp.ones((256,))}
    state = transformation.init(params)
    _, state = transformation.update({"w": jnp.full((256,), 0.05)}, state, params)

    def step(state, _):
        return transformation.update({"w": jnp.zeros((256,))}, state, params)[1], None

    later, _ = jax.jit(lambda s: jax.lax.scan(step, s, length=1000))(state)
    before, after = (jax.tree.leaves(s, is_leaf=lambda x: False) for s in (state, later))
    second = [i for i, leaf in enumerate(before) if leaf.shape == (256,)][1]
    ratio = np.mean(after[second].astype(np.float32)) / np.mean(before[second].astype(np.float32))
    np.testing.assert_allclose(ratio, 0.999**1000, rtol=0.1)


def test_other_dtypes_get_a_sentence():
    with pytest.raises(UserError, match="moment_dtype = 'float16' must be one of"):
        optimizers.adamw(0.1, moment_dtype="float16")
