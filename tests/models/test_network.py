"""Properties of the network that need no other implementation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from sbs_jax.models.network import Transformer
from tests import toy
from tests.t5_weights import CASES, apply, our_model, padded_batch, shift_right

TINY = dataclasses.replace(toy.CONFIG, vocab_size=32, head_dim=4, mlp_dim=24)
TINY_V1_0 = dataclasses.replace(TINY, mlp_activations=("relu",), logits_via_embedding=True)
TOKENS = np.array([[5, 6, 7, 8], [9, 3, 0, 0]], np.int32)


@functools.cache
def init(config):
    return jax.jit(Transformer(config).init)(jax.random.key(0), TOKENS, TOKENS)["params"]


def flat(tree):
    return traverse_util.flatten_dict(nn.unbox(tree), sep="/")


@pytest.mark.parametrize(("config", "mlp"), [(TINY, ["wi_0", "wi_1"]), (TINY_V1_0, ["wi"])])
def test_parameters_have_the_names_and_shapes_of_t5x(config, mlp):
    attention = {"query": (16, 8), "key": (16, 8), "value": (16, 8), "out": (8, 16)}
    expected = {
        "token_embedder/embedding": (32, 16),
        "encoder/relpos_bias/rel_embedding": (2, 32),
        "encoder/encoder_norm/scale": (16,),
        "decoder/relpos_bias/rel_embedding": (2, 32),
        "decoder/decoder_norm/scale": (16,),
    }
    layers = {
        "encoder/layers_0": {"attention": "pre_attention_layer_norm"},
        "decoder/layers_0": {
            "self_attention": "pre_self_attention_layer_norm",
            "encoder_decoder_attention": "pre_cross_attention_layer_norm",
        },
    }
    for layer, blocks in layers.items():
        for block, norm in blocks.items():
            expected |= {f"{layer}/{block}/{name}/kernel": s for name, s in attention.items()}
            expected[f"{layer}/{norm}/scale"] = (16,)
        expected |= {f"{layer}/mlp/{name}/kernel": (16, 24) for name in mlp}
        expected[f"{layer}/mlp/wo/kernel"] = (24, 16)
        expected[f"{layer}/pre_mlp_layer_norm/scale"] = (16,)
    if not config.logits_via_embedding:
        expected["decoder/logits_dense/kernel"] = (16, 32)
    assert {path: leaf.shape for path, leaf in flat(init(config)).items()} == expected


def test_every_parameter_has_logical_axes_that_the_config_sizes():
    boxed = traverse_util.flatten_dict(
        init(TINY), sep="/", is_leaf=lambda _, x: hasattr(x, "names")
    )
    for path, box in boxed.items():
        assert box.value.shape == tuple(TINY.axis_sizes[name] for name in box.names), path


def test_initial_scales():
    config = dataclasses.replace(TINY, vocab_size=500, emb_dim=128, head_dim=64, mlp_dim=256)
    params = flat(init(config))
    stddevs = {
        "token_embedder/embedding": 1.0,
        "encoder/layers_0/attention/query/kernel": (128 * 64) ** -0.5,
        "encoder/layers_0/attention/key/kernel": 128**-0.5,
        "encoder/layers_0/attention/out/kernel": (2 * 64) ** -0.5,
        "encoder/layers_0/mlp/wi_0/kernel": 128**-0.5,
        "encoder/layers_0/mlp/wo/kernel": 256**-0.5,
        "decoder/logits_dense/kernel": 128**-0.5,
    }
    for path, stddev in stddevs.items():
        # 16,384 numbers or more: the sample's own error is below 1 %.
        assert np.std(params[path]) == pytest.approx(stddev, rel=0.03), path
    wide = flat(init(dataclasses.replace(config, head_init_stddev=0.5)))
    assert np.std(wide["decoder/logits_dense/kernel"]) == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize(("version", "shape"), CASES)
def test_packed_rows_give_each_segment_its_own_logits(version, shape):
    config, params = our_model(version, shape)
    inputs, targets = padded_batch(shape)
    order = [2, 0, 1]
    packed = {name: [] for name in ("inputs", "input_ids", "targets", "target_ids")}
    for segment, row in enumerate(order, start=1):
        for name, tokens in (("input", inputs[row]), ("target", targets[row])):
            real = tokens[tokens > 0]
            packed[f"{name}s"].append(shift_right(real[None])[0] if name == "target" else real)
            packed[f"{name}_ids"].append(np.full(real.size, segment))
    # Padding at the end of the row, filled with tokens that must not matter.
    packed = {name: np.concatenate([*parts, [0] * 5])[None] for name, parts in packed.items()}
    packed["inputs"][0, -5:] = 3
    together = apply(
        config,
        params,
        packed["inputs"],
        packed["targets"],
        encoder_segment_ids=packed["input_ids"],
        decoder_segment_ids=packed["target_ids"],
    )[0]
    alone = apply(config, params, inputs, shift_right(targets))
    for segment, row in enumerate(order, start=1):
        length = np.count_nonzero(targets[row])
        np.testing.assert_allclose(
            together[packed["target_ids"][0] == segment], alone[row, :length], atol=2e-5, rtol=0
        )


def test_empty_rows_give_finite_numbers_and_no_gradient():
    params = nn.unbox(init(TINY))
    zeros = np.zeros((2, 6), np.int32)

    def total(params, weight):
        logits = apply(
            TINY,
            params,
            zeros,
            zeros,
            encoder_segment_ids=zeros,
            decoder_segment_ids=zeros,
        )
        return jnp.sum(jax.nn.log_softmax(logits) * weight)

    assert np.isfinite(total(params, 1.0))
    gradients = jax.grad(total)(params, 0.0)
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(gradients))


def test_hidden_then_logits_of_some_positions_is_the_whole():
    for config in (TINY, TINY_V1_0):
        params = init(config)
        whole = apply(config, params, TOKENS, TOKENS)
        hidden = apply(config, params, TOKENS, TOKENS, method="hidden")
        assert hidden.shape == (2, 4, config.emb_dim)
        encoded = apply(config, params, TOKENS, method="encode")
        segments = np.where(TOKENS > 0, 1, 0)
        again = apply(config, params, encoded, segments, TOKENS, method="decode_hidden")
        np.testing.assert_allclose(hidden, again, atol=1e-6)
        chosen = hidden.reshape(-1, config.emb_dim)[np.array([1, 6])]
        some = apply(config, params, chosen, method="logits")
        np.testing.assert_allclose(some, whole.reshape(-1, 32)[np.array([1, 6])], atol=1e-6)


def test_scale_logits_overrides_what_tying_says():
    for config in (TINY, TINY_V1_0):
        params = init(config)
        scaled, plain = (
            apply(dataclasses.replace(config, scale_logits=choice), params, TOKENS, TOKENS)
            for choice in (True, False)
        )
        np.testing.assert_allclose(scaled, plain * 16**-0.5, rtol=1e-5, atol=1e-6)
        default = apply(config, params, TOKENS, TOKENS)
        np.testing.assert_array_equal(default, scaled if config.logits_via_embedding else plain)


@functools.partial(jax.jit, static_argnums=1)
def loss_and_gradients(params, config):
    """Of any smooth function of the logits, with dropout."""

    def loss_fn(params):
        logits = Transformer(config).apply(
            {"params": params},
            TOKENS,
            TOKENS,
            deterministic=False,
            rngs={"dropout": jax.random.key(3)},
        )
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1))

    return jax.value_and_grad(loss_fn)(params)


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (TINY_V1_0, {"embedding_lookup": "one_hot"}),
        (TINY, {"embedding_lookup": "one_hot"}),
        (TINY, {"remat": "minimal"}),
        (TINY, {"remat": "full"}),
    ],
)
def test_options_of_speed_and_memory_change_no_number(config, change):
    params = nn.unbox(init(config))
    loss, gradients = loss_and_gradients(params, config)
    other_loss, other_gradients = loss_and_gradients(params, dataclasses.replace(config, **change))
    np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
    for found, expected in zip(
        jax.tree.leaves(other_gradients), jax.tree.leaves(gradients), strict=True
    ):
        assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize(("version", "float32_attention_logits"), [("v1.0", False), ("v1.1", True)])
def test_bfloat16_activations_over_float32_parameters(version, float32_attention_logits):
    config, params = our_model(version, "plain")
    inputs, targets = padded_batch("plain")
    decoder_inputs = shift_right(targets)
    half = dataclasses.replace(
        config, dtype="bfloat16", float32_attention_logits=float32_attention_logits
    )
    exact = apply(config, params, inputs, decoder_inputs)
    rounded = apply(half, params, inputs, decoder_inputs)
    assert rounded.dtype == jnp.float32
    error = np.sqrt(np.mean((exact - rounded) ** 2))
    # bfloat16 has 8 bits: some 2 % after two layers, far from float32's 1e-6.
    assert 1e-4 * np.std(exact) < error < 0.1 * np.std(exact)
    hidden = jax.eval_shape(lambda: apply(half, params, inputs, decoder_inputs, method="hidden"))
    assert hidden.dtype == jnp.bfloat16
    gradients = jax.jit(
        jax.grad(lambda params: jnp.mean(apply(half, params, inputs, decoder_inputs) ** 2))
    )(params)
    for leaf in jax.tree.leaves(gradients):
        assert leaf.dtype == jnp.float32
        assert np.all(np.isfinite(leaf))
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    fresh = jax.eval_shape(Transformer(half).init, jax.random.key(0), tokens, tokens)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(fresh))


def test_dropout_depends_on_the_rng_alone():
    def logits(seed, **changes):
        return apply(
            dataclasses.replace(TINY, **changes),
            init(TINY),
            TOKENS,
            TOKENS,
            deterministic=False,
            rngs={"dropout": jax.random.key(seed)},
        )

    plain = apply(TINY, init(TINY), TOKENS, TOKENS)
    np.testing.assert_array_equal(logits(0), logits(0))
    assert not np.allclose(logits(0), logits(1))
    assert not np.allclose(logits(0), plain)
    np.testing.assert_array_equal(logits(0, dropout_rate=0.0), plain)
    assert not np.allclose(logits(0), logits(0, dropout_broadcast_length=True))
