"""T5Gemma 2's weights and config.json as Hugging Face has them, in and out; without its images.

Of the published models the text's part is read; the vision tower stays unread. What is written is
whole to transformers: its vision tower has no layers, and zeros.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sbs_jax.checkpoints import decoder_config_json, state_dicts
from sbs_jax.checkpoints.decoder_huggingface import layer_sources, move_ids
from sbs_jax.checkpoints.huggingface import CONFIG_FILE
from sbs_jax.checkpoints.safetensors_files import open_safetensors, read_json
from sbs_jax.checkpoints.state_dicts import TensorName, parameter_shapes
from sbs_jax.checkpoints.tensors import StoredTensor, same_values
from sbs_jax.errors import UserError, located
from sbs_jax.models.decoder.config import DecoderConfig, LayerConfig
from sbs_jax.models.t5gemma2.config import T5Gemma2Config

FAMILY = "t5gemma2"
"""`model_type` in config.json."""

_EMBEDDING = "model.encoder.embed_tokens.weight"
_EOI_EMBEDDING = "model.encoder.embed_tokens.eoi_embedding"
_COPIES = {
    "lm_head.out_proj.weight": _EMBEDDING,
    "model.decoder.embed_tokens.weight": _EMBEDDING,
    "model.decoder.embed_tokens.eoi_embedding": _EOI_EMBEDDING,
}
_IMAGES = ("model.encoder.vision_tower.", "model.encoder.multi_modal_projector.")
_NORMS = {
    "pre_self_attention_layer_norm": "pre_self_attn_layernorm",
    "post_self_attention_layer_norm": "post_self_attn_layernorm",
    "pre_mlp_layer_norm": "pre_feedforward_layernorm",
    "post_mlp_layer_norm": "post_feedforward_layernorm",
}
# Of two stacks that are read as two decoders; of the encoder's, the decoder's count.
_MAY_DIFFER = ("num_layers", "max_positions", "logits_softcap")
_SHARED = tuple(field.name for field in dataclasses.fields(LayerConfig))
_WIDTH, _PATCH = 16, 14
_VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": _WIDTH,
    "intermediate_size": _WIDTH,
    "num_hidden_layers": 0,
    "num_attention_heads": 1,
    "image_size": _PATCH,
    "patch_size": _PATCH,
    "vision_use_head": False,
}


def open_t5gemma2(
    folder: str | Path, pad_id: int = 0, eos_id: int = 1
) -> tuple[T5Gemma2Config, dict[str, StoredTensor]]:
    """Finds the weights of a T5Gemma 2 that transformers saved; their values are read later.

    Args:
      folder: holds `config.json`, and `model.safetensors` or its shards with their index.
      pad_id: see `LayerConfig`.
      eos_id: see `LayerConfig`; the defaults keep the file's own numbering.

    Returns:
      The config, and where each of our parameters (by path) is read from, in our layout.

    Raises:
      UserError: a file is missing or damaged, or holds another kind of model.
    """
    folder = Path(folder).expanduser()
    raw = read_json(folder / CONFIG_FILE)
    with located(folder):
        tensors = open_safetensors(folder)
        config = dataclasses.replace(config_from_huggingface(raw), pad_id=pad_id, eos_id=eos_id)
        return config, match_huggingface(tensors, config)


def config_from_huggingface(raw: Mapping[str, Any]) -> T5Gemma2Config:
    """The config of a T5Gemma 2, ids in the file's own numbering.

    Args:
      raw: `config.json`.

    Raises:
      UserError: it says what `T5Gemma2Config` cannot say.
    """
    encoder, decoder = raw.get("encoder") or {}, raw.get("decoder") or {}
    text = encoder.get("text_config") or {}
    stacks = [_as_decoder(stack) for stack in (text, decoder)]
    for name in (field.name for field in dataclasses.fields(DecoderConfig)):
        theirs, ours = (getattr(stack, name) for stack in stacks)
        if theirs != ours and name not in _MAY_DIFFER:
            raise UserError(
                f"{CONFIG_FILE}: {name} is {theirs!r} in the encoder and {ours!r} in the decoder; "
                "T5Gemma 2 is read with both alike."
            )
    return T5Gemma2Config(
        num_encoder_layers=stacks[0].num_layers,
        num_decoder_layers=stacks[1].num_layers,
        bos_id=decoder.get("bos_token_id", T5Gemma2Config.bos_id),
        eoi_id=encoder.get("eoi_token_index", T5Gemma2Config.eoi_id),
        **{name: getattr(stacks[1], name) for name in _SHARED},
    )


def config_to_huggingface(config: T5Gemma2Config, dtype: str = "float32") -> dict[str, Any]:
    """The `config.json` of a T5Gemma 2, as transformers 5 reads it."""
    shared = {name: getattr(config, name) for name in _SHARED}
    # A Gemma 3, as which the stacks are written, has no biases.
    shared |= {"attention_bias": False, "attention_out_bias": False}
    text, decoder = (
        decoder_config_json.config_to_huggingface(DecoderConfig(num_layers=layers, **shared), dtype)
        | {
            "model_type": f"{FAMILY}_{name}",
            "attention_bias": config.attention_bias,
            "bos_token_id": config.bos_id,
        }
        for name, layers in (
            ("text", config.num_encoder_layers),
            ("decoder", config.num_decoder_layers),
        )
    )
    for stack in (text, decoder):
        del stack["architectures"]
    return {
        "architectures": ["T5Gemma2ForConditionalGeneration"],
        "model_type": FAMILY,
        "is_encoder_decoder": True,
        "encoder": {
            "model_type": f"{FAMILY}_encoder",
            "text_config": text,
            "vision_config": _VISION,
            "mm_tokens_per_image": 1,
            "eoi_token_index": config.eoi_id,
        },
        "decoder": decoder,
        "eoi_token_index": config.eoi_id,
        "dropout_rate": config.dropout_rate,
        "attention_dropout": config.dropout_rate,
        "tie_word_embeddings": True,
        "bos_token_id": config.bos_id,
        "eos_token_id": config.eos_id,
        "pad_token_id": config.pad_id,
        "vocab_size": config.vocab_size,
        "dtype": dtype,
    }


def generation_to_huggingface(config: T5Gemma2Config) -> dict[str, Any]:
    """What `generation_config.json` says of the ids that begin, end and fill up texts."""
    return {
        "decoder_start_token_id": config.bos_id,
        "bos_token_id": config.bos_id,
        "eos_token_id": config.eos_id,
        "pad_token_id": config.pad_id,
    }


def match_huggingface(
    state_dict: Mapping[str, StoredTensor], config: T5Gemma2Config
) -> dict[str, StoredTensor]:
    """Finds our parameters in a Hugging Face state dict, by path, in our layout.

    Raises:
      UserError: tensors are missing, unknown or of another shape, or embeddings are not tied; names
        them.
    """
    # Networks of transformers 5.2 and later call the encoder's layers so; files do not.
    named = {
        name.replace("model.encoder.text_model.", "model.encoder."): tensor
        for name, tensor in state_dict.items()
    }
    for copy, name in _COPIES.items():
        if copy in named and name in named and not same_values(named[copy], named[name]):
            raise UserError(
                f"{copy} and {name} of the weights differ; a T5Gemma2Config has one embedding."
            )
    found = state_dicts.match(
        named,
        huggingface_sources(config),
        parameter_shapes(config),
        weights="the weights",
        config="T5Gemma2Config",
        is_spare=lambda name: name in _COPIES or name.startswith(_IMAGES),
    )
    return move_ids(found, config.moved_ids)


def huggingface_sources(config: T5Gemma2Config) -> dict[str, TensorName]:
    """Where each of our parameters lies in Hugging Face's state dict."""
    return dict(_sources(config))


def no_images(config: T5Gemma2Config) -> dict[str, np.ndarray]:
    """The tensors, all zeros, of the vision tower that `config_to_huggingface` describes."""
    tower, projector = _IMAGES
    shapes: dict[str, tuple[int, ...]] = {
        f"{tower}vision_model.embeddings.patch_embedding.weight": (_WIDTH, 3, _PATCH, _PATCH),
        f"{tower}vision_model.embeddings.patch_embedding.bias": (_WIDTH,),
        f"{tower}vision_model.embeddings.position_embedding.weight": (1, _WIDTH),
        f"{tower}vision_model.post_layernorm.weight": (_WIDTH,),
        f"{tower}vision_model.post_layernorm.bias": (_WIDTH,),
        f"{projector}mm_input_projection_weight": (_WIDTH, config.emb_dim),
        f"{projector}mm_soft_emb_norm.weight": (_WIDTH,),
    }
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def _as_decoder(stack: Mapping[str, Any]) -> DecoderConfig:
    """A stack's dimensions, read as those of a Gemma 3."""
    decoder = decoder_config_json.config_from_huggingface(
        {**stack, "model_type": "gemma3_text"}, {}
    )
    bias = bool(stack.get("attention_bias"))
    return dataclasses.replace(decoder, attention_bias=bias, attention_out_bias=bias)


def _sources(config: T5Gemma2Config) -> Iterator[tuple[str, TensorName]]:
    yield "token_embedder/embedding", TensorName(_EMBEDDING, transposed=False)
    yield "eoi_embedder/vector", TensorName(_EOI_EMBEDDING, transposed=False)
    for stack, layers in (
        ("encoder", config.num_encoder_layers),
        ("decoder", config.num_decoder_layers),
    ):
        for number in range(layers):
            ours, theirs = f"{stack}/layers_{number}", f"model.{stack}.layers.{number}"
            yield from layer_sources(config, ours, theirs, _NORMS)
        norm = TensorName(f"model.{stack}.norm.weight", transposed=False)
        yield f"{stack}/{stack}_norm/scale", norm
