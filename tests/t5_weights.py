"""Tiny T5s with random weights, the same in Hugging Face's names and in ours; without torch.

hf_models.py makes transformers' networks of them, where torch is installed.
"""

import functools

import jax
import numpy as np

from sbs_jax.checkpoints.huggingface import config_from_huggingface
from sbs_jax.models.network import Transformer
from tests.hf_weights import params_from_huggingface

# Three shapes: plain; H · K ≠ D, odd sizes, uneven stacks; long enough for all buckets.
SHAPES = {
    "plain": {
        "vocab_size": 64,
        "d_model": 32,
        "num_heads": 4,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
    },
    "uneven": {
        "vocab_size": 97,
        "d_model": 24,
        "num_heads": 3,
        "d_kv": 16,
        "d_ff": 40,
        "num_layers": 1,
        "num_decoder_layers": 3,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 20,
    },
    "long": {
        "vocab_size": 50,
        "d_model": 16,
        "num_heads": 2,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 2,
    },
}
LENGTHS = {"plain": (13, 9), "uneven": (21, 17), "long": (150, 140)}
VERSIONS = ("v1.0", "v1.1")
CASES = [(version, shape) for version in VERSIONS for shape in SHAPES]


@functools.cache
def hf_config(version, shape):
    """What Hugging Face's config.json says."""
    sizes = SHAPES[shape]
    gated = version == "v1.1"
    defaults = {
        "num_decoder_layers": sizes["num_layers"],
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
    }
    return (
        defaults
        | sizes
        | {
            "model_type": "t5",
            "feed_forward_proj": "gated-gelu" if gated else "relu",
            # transformers 5 ties every T5; to this it only listens for the scale of the logits.
            "tie_word_embeddings": not gated,
            "decoder_start_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 0,
        }
    )


@functools.cache
def state_dict(version, shape):
    """The weights in Hugging Face's names, float32, with the copies of the embedding that it lists.

    Standard deviations are those of a fresh model in transformers, with three exceptions: norms and
    relative position biases are not constant, so that a mistake in them shows, and embeddings are
    smaller, because fresh tied models repeat their input for ever.
    """
    config = hf_config(version, shape)
    rng = np.random.default_rng(CASES.index((version, shape)))
    width, inner, hidden = config["d_model"], config["num_heads"] * config["d_kv"], config["d_ff"]

    def normal(*dims, stddev):
        return (stddev * rng.standard_normal(dims)).astype(np.float32)

    def norm():
        return 1 + normal(width, stddev=0.2)

    tensors = {"shared.weight": normal(config["vocab_size"], width, stddev=0.25)}
    for stack, layers in (
        ("encoder", config["num_layers"]),
        ("decoder", config["num_decoder_layers"]),
    ):
        tensors[f"{stack}.embed_tokens.weight"] = tensors["shared.weight"]
        attentions = ["SelfAttention"] + ["EncDecAttention"] * (stack == "decoder")
        for block in range(layers):
            for place, attention in enumerate(attentions):
                layer = f"{stack}.block.{block}.layer.{place}"
                for name, dims, stddev in (
                    ("q", (inner, width), (width * config["d_kv"]) ** -0.5),
                    ("k", (inner, width), width**-0.5),
                    ("v", (inner, width), width**-0.5),
                    ("o", (width, inner), inner**-0.5),
                ):
                    tensors[f"{layer}.{attention}.{name}.weight"] = normal(*dims, stddev=stddev)
                if block == place == 0:
                    tensors[f"{layer}.{attention}.relative_attention_bias.weight"] = normal(
                        config["relative_attention_num_buckets"], config["num_heads"], stddev=1.0
                    )
                tensors[f"{layer}.layer_norm.weight"] = norm()
            layer = f"{stack}.block.{block}.layer.{len(attentions)}"
            for name in ("wi_0", "wi_1") if version == "v1.1" else ("wi",):
                tensors[f"{layer}.DenseReluDense.{name}.weight"] = normal(
                    hidden, width, stddev=width**-0.5
                )
            tensors[f"{layer}.DenseReluDense.wo.weight"] = normal(
                width, hidden, stddev=hidden**-0.5
            )
            tensors[f"{layer}.layer_norm.weight"] = norm()
        tensors[f"{stack}.final_layer_norm.weight"] = norm()
    tensors["lm_head.weight"] = (
        normal(config["vocab_size"], width, stddev=width**-0.5)
        if version == "v1.1"
        else tensors["shared.weight"]
    )
    return tensors


@functools.cache
def our_model(version, shape):
    """The `(config, params)` of these weights."""
    tensors = state_dict(version, shape)
    config = config_from_huggingface(hf_config(version, shape), tensors)
    return config, params_from_huggingface(tensors, config)


def padded_batch(shape, rows=3, seed=0):
    """Encoder inputs and targets of different lengths, int32, padded with 0; targets end in 1."""
    rng = np.random.default_rng(seed)
    arrays = []
    for length, ends in zip(LENGTHS[shape], (False, True), strict=True):
        tokens = rng.integers(2, SHAPES[shape]["vocab_size"], (rows, length)).astype(np.int32)
        for row in range(rows):
            kept = length - row * (length // (rows + 1))
            tokens[row, kept:] = 0
            if ends:
                tokens[row, kept - 1] = 1
        arrays.append(tokens)
    return arrays


def shift_right(targets):
    """The decoder's input for unpacked targets."""
    return np.pad(targets[:, :-1], ((0, 0), (1, 0)))


@functools.partial(jax.jit, static_argnames=("config", "method", "deterministic"))
def apply(config, params, *args, method=None, rngs=None, **kwargs):
    """`Transformer(config).apply`, compiled as a whole: operation by operation takes seconds."""
    return Transformer(config).apply({"params": params}, *args, method=method, rngs=rngs, **kwargs)
