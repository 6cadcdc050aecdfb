"""cuDNN's attention without a GPU: when it is chosen, what it is asked, what it stands for."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbs_jax.errors import UserError
from sbs_jax.models import attention
from sbs_jax.models.config import T5Config

CONFIG = T5Config(
    vocab_size=64,
    emb_dim=32,
    num_heads=4,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=8,
    mlp_dim=64,
    dropout_rate=0.0,
    dtype="bfloat16",
)


@pytest.fixture
def installed(monkeypatch):
    """As if the CUDA plugin and cuDNN were there."""
    kernel = "jax._src.cudnn.fused_attention_stablehlo."
    monkeypatch.setattr(kernel + "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(kernel + "check_is_flash_attention", lambda *_, **__: None)


def test_auto_takes_it_where_it_can(installed):
    auto = functools.partial(dataclasses.replace, CONFIG)
    assert attention.choose_attention(auto(), "gpu") == "cudnn"
    assert attention.choose_attention(auto(), "tpu") == "xla"
    assert attention.choose_attention(auto(), "cpu") == "xla"
    assert attention.choose_attention(auto(dtype="float32"), "gpu") == "xla"
    assert attention.choose_attention(auto(attention="xla"), "gpu") == "xla"
    assert attention.choose_attention(auto(attention="cudnn"), "gpu") == "cudnn"


def test_without_cudnn_auto_is_xla():
    # A width of its own: jax remembers what it traced.
    config = dataclasses.replace(CONFIG, head_dim=16)
    assert attention.choose_attention(config, "gpu") == "xla"


@pytest.mark.parametrize(
    ("changes", "platform", "says"),
    [
        ({}, "cpu", "a CPU has no cuDNN"),
        ({"head_dim": 24}, "gpu", "cuDNN is not detected"),
        ({"dropout_rate": 0.1}, "gpu", "cannot drop attention weights"),
    ],
)
def test_asked_for_by_name_where_it_cannot_be_had(changes, platform, says):
    config = dataclasses.replace(CONFIG, attention="cudnn", **changes)
    with pytest.raises(UserError, match=says):
        attention.choose_attention(config, platform)


@pytest.mark.parametrize(
    ("changes", "says"), [({"dtype": "float32"}, "dtype"), ({"head_dim": 12}, "head_dim")]
)
def test_configurations_that_never_work(changes, says):
    with pytest.raises(UserError, match=f"T5Config.{says}"):
        dataclasses.replace(CONFIG, attention="cudnn", **changes)


def arrays(dtype, rows=2, queries=6, keys=10):
    rng = np.random.default_rng(0)

    def normal(*shape, dtype=dtype):
        return jnp.asarray(rng.normal(size=shape), dtype)

    segments = jnp.asarray(rng.integers(1, 3, size=(rows, keys)))
    biases = (
        normal(1, 4, queries, keys, dtype=jnp.float32),
        attention.segment_bias(segments[:, :queries], segments),
        attention.padding_bias(segments),
    )
    return normal(rows, 4, queries, 8), normal(rows, 4, keys, 8), normal(rows, 4, keys, 8), biases


def plain(config, *given):
    layer = attention.Attention(config)
    return layer.attend_plainly(*given, None)


def test_it_stands_for_the_plain_computation(monkeypatch):
    """Layout, scale and biases, with jax's own implementation in the kernel's place."""
    original = jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn,
        "dot_product_attention",
        lambda *args, implementation, **options: original(*args, **options),
    )
    given = arrays(jnp.float32)

    def loss(function, queries, keys, values, biases):
        return jnp.sum(jnp.sin(function(queries, keys, values, biases)))

    expected, found = (
        jax.jit(jax.value_and_grad(functools.partial(loss, function), argnums=(0, 1, 2, 3)))(*given)
        for function in (
            functools.partial(plain, dataclasses.replace(CONFIG, dtype="float32")),
            attention.attend_with_cudnn,
        )
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
    )


def test_a_gpu_is_asked_for_both_kernels(installed):
    queries, keys, values, biases = arrays(jnp.bfloat16)

    def loss(queries, keys, values, bias):
        mixed = attention.attend_with_cudnn(queries, keys, values, (bias, *biases[1:]))
        return mixed.astype(jnp.float32).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
    lowered = gradient.trace(queries, keys, values, biases[0]).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    assert "__cudnn$fmhaScaleBiasSoftmax" in text
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward" in text
    # The logits of [B, H, Q, L] are written nowhere but as their bias, in bfloat16.
    assert "tensor<2x4x6x10xf32>" not in text.split("custom_call", 1)[1].split("return")[0][:2000]


def test_odd_lengths_are_left_to_xla():
    queries = jnp.zeros((1, 4, 1, 8))
    keys = jnp.zeros((1, 4, 6, 8))
    assert not attention.cudnn_takes(queries, keys)
    assert attention.cudnn_takes(keys, keys)
