"""Writes a student as a CTranslate2 model, whose engine multiplies in int8 on CPUs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from sbs_jax.errors import UserError
from sbs_jax.models.config import T5Config


def save(
    folder: str | os.PathLike[str], params: Mapping[str, Any], config: T5Config, quantization: str
) -> None:
    """Writes a model that `ctranslate2.Translator` reads.

    Its tokens are named by their ids in decimal, so that no vocabulary is needed to use it.

    Args:
      folder: an empty folder.
      params: T5X's tree of arrays, float32.
      config: the network's dimensions.
      quantization: `float32`, or `int8`: then every output has a scale, and inputs are
        rounded as well.

    Raises:
      UserError: ctranslate2 is not installed, or cannot run the network.
    """
    try:
        from ctranslate2.specs import TransformerSpec, common_spec
    except ModuleNotFoundError as error:
        raise UserError(
            "ENGINE = 'ctranslate2' needs the package ctranslate2: "
            "pip install 'sbs_jax[ctranslate2]'."
        ) from error
    activations = {
        "relu": common_spec.Activation.RELU,
        "gelu": common_spec.Activation.GELUTanh,
        "silu": common_spec.Activation.SWISH,
    }
    activation, *gate = config.mlp_activations
    if activation not in activations or (gate and gate != ["linear"]):
        raise UserError(
            f"ENGINE = 'ctranslate2' cannot run mlp_activations = {config.mlp_activations}; "
            "leave ENGINE out."
        )
    spec = TransformerSpec.from_config(
        (config.num_encoder_layers, config.num_decoder_layers),
        config.num_heads,
        pre_norm=True,
        activation=activations[activation],
        ffn_glu=bool(gate),
        relative_attention_bias=True,
        rms_norm=True,
    )
    embedding = np.array(params["token_embedder"]["embedding"], np.float32)
    _set_stack(spec.encoder, params["encoder"], "encoder", embedding, config)
    _set_stack(spec.decoder, params["decoder"], "decoder", embedding, config)
    if config.logits_via_embedding:
        spec.decoder.projection.weight = embedding.copy()
    else:
        spec.decoder.projection.weight = _weights(params["decoder"]["logits_dense"])
    if config.scales_logits:
        spec.decoder.scale_outputs = np.float32(config.emb_dim**-0.5)
    tokens = [str(token) for token in range(config.vocab_size)]
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    spec.config.bos_token = spec.config.decoder_start_token = "0"
    spec.config.eos_token, spec.config.unk_token = "1", "2"
    spec.config.layer_norm_epsilon = config.layer_norm_epsilon
    spec.validate()
    spec.optimize(quantization=quantization)
    spec.save(os.fspath(folder))


def _set_stack(
    spec: Any, params: Mapping[str, Any], name: str, embedding: np.ndarray, config: T5Config
) -> None:
    is_decoder = name == "decoder"
    embeddings = spec.embeddings[0] if isinstance(spec.embeddings, list) else spec.embeddings
    embeddings.weight = embedding.copy()
    spec.scale_embeddings = False
    spec.layer_norm.gamma = _gamma(params[f"{name}_norm"])
    for number, layer in enumerate(spec.layer):
        own = params[f"layers_{number}"]
        table = (own if config.relative_attention_per_layer else params)["relpos_bias"]
        prefix = "self_" if is_decoder else ""
        _set_attention(layer.self_attention, own[f"{prefix}attention"], joined=True)
        layer.self_attention.layer_norm.gamma = _gamma(own[f"pre_{prefix}attention_layer_norm"])
        layer.self_attention.relative_attention_bias = np.array(
            table["rel_embedding"], np.float32
        ).T.copy()
        layer.self_attention.relative_attention_max_distance = np.int32(
            config.relative_attention_max_distance
        )
        if is_decoder:
            _set_attention(layer.attention, own["encoder_decoder_attention"], joined=False)
            layer.attention.layer_norm.gamma = _gamma(own["pre_cross_attention_layer_norm"])
        mlp = own["mlp"]
        layer.ffn.layer_norm.gamma = _gamma(own["pre_mlp_layer_norm"])
        layer.ffn.linear_1.weight = _weights(mlp["wo"])
        if len(config.mlp_activations) == 1:
            layer.ffn.linear_0.weight = _weights(mlp["wi"])
        else:
            layer.ffn.linear_0.weight = _weights(mlp["wi_0"])
            layer.ffn.linear_0_noact.weight = _weights(mlp["wi_1"])


def _set_attention(spec: Any, params: Mapping[str, Any], *, joined: bool) -> None:
    # T5 does not divide logits by the square root of the head's width.
    spec.queries_scale = np.float32(1.0)
    query, key, value = (_weights(params[name]) for name in ("query", "key", "value"))
    if joined:
        spec.linear[0].weight = np.concatenate([query, key, value])
    else:
        spec.linear[0].weight = query
        spec.linear[1].weight = np.concatenate([key, value])
    spec.linear[-1].weight = _weights(params["out"])


def _weights(params: Mapping[str, Any]) -> np.ndarray:
    """The kernel [inputs, outputs] as [outputs, inputs]."""
    return np.array(params["kernel"], np.float32).T.copy()


def _gamma(params: Mapping[str, Any]) -> np.ndarray:
    return np.array(params["scale"], np.float32)
