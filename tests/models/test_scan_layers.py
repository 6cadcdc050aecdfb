"""Layers as a loop: the same numbers as layers one by one, and parameters converted both ways."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sbs_jax.decoding.greedy import greedy_decode
from sbs_jax.models import stacking
from sbs_jax.models.network import Transformer
from tests.batches import network_inputs, random_batch
from tests.toy import LAYERS as CONFIG

TOKENS = jax.ShapeDtypeStruct((1, 2), jnp.int32)


def scanned(config):
    return dataclasses.replace(config, scan_layers=True)


def init(config):
    return nn.unbox(Transformer(config).init(jax.random.key(0), *[jnp.ones((1, 2), jnp.int32)] * 2))


@pytest.fixture(scope="module")
def stacked_params():
    return jax.jit(lambda: init(scanned(CONFIG)))()["params"]


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize("per_layer", [False, True])
def test_stacked_parameters_are_those_of_all_layers(per_layer):
    config = dataclasses.replace(CONFIG, relative_attention_per_layer=per_layer)
    stacked = jax.eval_shape(lambda: init(scanned(config)))["params"]
    single = jax.eval_shape(lambda: init(config))["params"]
    assert stacking.is_stacked(stacked)
    assert not stacking.is_stacked(single)
    assert stacked["decoder"]["layers"]["mlp"]["wi_0"]["kernel"].shape == (2, 32, 64)
    unstacked = jax.eval_shape(stacking.unstack_layers, stacked)
    assert shapes(unstacked) == shapes(single)
    assert shapes(jax.eval_shape(stacking.stack_layers, single)) == shapes(stacked)


def test_conversion_there_and_back_changes_nothing(stacked_params):
    again = stacking.stack_layers(stacking.unstack_layers(stacked_params))
    jax.tree.map(np.testing.assert_array_equal, again, stacked_params)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_logits_and_gradients_are_equal(stacked_params, remat):
    batch = random_batch(rows=4)

    def run(config, params):
        model = Transformer(dataclasses.replace(config, remat=remat))

        def loss(params):
            logits = model.apply(
                {"params": params},
                **network_inputs(batch),
                deterministic=False,
                rngs={"dropout": jax.random.key(3)},
            )
            return jnp.square(logits).mean(), logits

        (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return logits, gradients

    logits, gradients = run(CONFIG, stacking.unstack_layers(stacked_params))
    own_logits, own_gradients = run(scanned(CONFIG), stacked_params)
    np.testing.assert_allclose(own_logits, logits, rtol=1e-6, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
        stacking.unstack_layers(own_gradients),
        gradients,
    )


def test_decoding_is_equal(stacked_params):
    inputs = random_batch(rows=4)["encoder_input_tokens"]
    single = stacking.unstack_layers(stacked_params)
    expected = greedy_decode(Transformer(CONFIG), single, inputs, max_decode_len=5)
    found = greedy_decode(Transformer(scanned(CONFIG)), stacked_params, inputs, max_decode_len=5)
    np.testing.assert_array_equal(found, expected)


def test_a_program_does_not_grow_with_its_layers():
    def size(layers):
        config = dataclasses.replace(
            scanned(CONFIG), num_encoder_layers=layers, num_decoder_layers=layers
        )
        params = jax.eval_shape(lambda: init(config))["params"]
        apply = Transformer(config).apply
        return len(str(jax.make_jaxpr(lambda p, x: apply({"params": p}, x, x))(params, TOKENS)))

    assert size(24) < 1.05 * size(2)
