"""The network equals Hugging Face's T5 on random weights: logits, loss, every gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from sbs_jax.checkpoints.huggingface import (
    config_from_huggingface,
    config_to_huggingface,
)
from tests.hf_models import hf_model, torch, transformers
from tests.hf_weights import params_from_huggingface
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


@pytest.mark.parity
def test_exact_gelu_and_22_buckets():
    torch.manual_seed(0)
    hf_config = transformers.T5Config(
        vocab_size=64, d_model=32, num_heads=4, d_kv=8, d_ff=48, num_layers=2,
        feed_forward_proj="gelu", relative_attention_num_buckets=22, decoder_start_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(hf_config).eval()
    for name, parameter in model.named_parameters():
        if "relative_attention_bias" in name:
            parameter.data = torch.randn_like(parameter)
    tensors = {name: value.numpy() for name, value in model.state_dict().items()}
    config = config_from_huggingface(hf_config.to_dict(), tensors)
    assert (config.mlp_activations, config.relative_attention_num_buckets) == (("gelu_erf",), 22)
    assert config_to_huggingface(config)["feed_forward_proj"] == "gelu"
    inputs = np.random.default_rng(0).integers(2, 64, (2, 90))
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor(inputs), decoder_input_ids=torch.tensor(inputs[:, :70])
        ).logits.numpy()
    logits = apply(config, params_from_huggingface(tensors, config), inputs, inputs[:, :70])
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=0)
