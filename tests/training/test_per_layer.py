"""Adafactor on stacked layers is Adafactor on layers one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sbs_jax.models import stacking
from sbs_jax.training import optimizers


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)

    def normal(*shape, by=scale):
        return jnp.asarray(by * rng.normal(size=shape), jnp.float32)

    return {
        "token_embedder": {"embedding": normal(20, 16)},
        "encoder": {
            # Layers of different scale, by which Adafactor's steps go.
            **{
                f"layers_{i}": {"kernel": normal(16, 24, by=scale * 4**i), "scale": normal(16)}
                for i in range(3)
            },
            "encoder_norm": {"scale": normal(16)},
        },
        "decoder": {f"layers_{i}": {"kernel": normal(16, 16)} for i in range(2)},
    }


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_stacking_changes_no_step(max_grad_norm):
    transformation = optimizers.adafactor(
        0.01, min_dim_size_to_factor=8, max_grad_norm=max_grad_norm
    ).transformation

    def train(params, convert):
        state = transformation.init(params)
        for step in range(3):
            gradients = convert(tree(step + 1, scale=0.1))
            updates, state = jax.jit(transformation.update)(gradients, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    start = tree(0)
    single, state = train(start, lambda gradients: gradients)
    stacked, stacked_state = train(stacking.stack_layers(start), stacking.stack_layers)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        stacking.unstack_layers(stacked),
        single,
    )
    # Both are factored, so both are small.
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(s)) for s in (state, stacked_state)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)
