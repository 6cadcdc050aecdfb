"""The network equals Hugging Face's T5 on random weights: logits, loss, every gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from sbs_jax.checkpoints.huggingface import params_from_huggingface
from tests.hf_models import hf_model, torch
from tests.t5_weights import CASES, apply, our_model, padded_batch, shift_right

TOLERANCE = 1e-4


@pytest.mark.parametrize(("version", "shape"), CASES)
def test_logits(version, shape):
    config, params = our_model(version, shape)
    inputs, targets = padded_batch(shape)
    decoder_inputs = shift_right(targets)
    with torch.no_grad():
        expected = hf_model(version, shape)(
            input_ids=torch.tensor(inputs),
            attention_mask=torch.tensor(inputs > 0),
            decoder_input_ids=torch.tensor(decoder_inputs),
        ).logits.numpy()
    logits = apply(config, params, inputs, decoder_inputs)
    assert logits.dtype == jnp.float32
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("version", "shape"), CASES)
def test_loss_and_gradients(version, shape):
    config, params = our_model(version, shape)
    inputs, targets = padded_batch(shape, rows=4, seed=1)

    model = hf_model(version, shape)
    model.zero_grad()
    labels = torch.tensor(np.where(targets > 0, targets, -100), dtype=torch.long)
    expected = model(
        input_ids=torch.tensor(inputs), attention_mask=torch.tensor(inputs > 0), labels=labels
    ).loss
    expected.backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    expected_gradients = params_from_huggingface(gradients, config)

    def loss_fn(params):
        logits = apply(config, params, inputs, shift_right(targets))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.sum(losses * (targets > 0)) / np.sum(targets > 0)

    loss, found_gradients = jax.jit(jax.value_and_grad(loss_fn))(params)
    np.testing.assert_allclose(loss, expected.item(), rtol=TOLERANCE)
    found = traverse_util.flatten_dict(found_gradients, sep="/")
    wanted = traverse_util.flatten_dict(expected_gradients, sep="/")
    assert found.keys() == wanted.keys()
    for path, gradient in wanted.items():
        size = np.linalg.norm(gradient)
        assert size > 0, path
        assert np.linalg.norm(found[path] - gradient) <= TOLERANCE * size, path
