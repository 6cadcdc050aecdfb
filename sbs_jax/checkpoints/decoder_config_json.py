"""The dimensions of decoders as Hugging Face's config.json says them, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sbs_jax.checkpoints.huggingface import CONFIG_FILE
from sbs_jax.checkpoints.tensors import StoredTensor, same_values
from sbs_jax.errors import UserError
from sbs_jax.models.decoder.config import DecoderConfig

FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text")
"""`model_type` in config.json; SmolLM2 is a `llama`, Qwen2.5 a `qwen2`."""

_GEMMA = ("gemma2", "gemma3_text")
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu"}


def require_family(raw: Mapping[str, Any]) -> str:
    """Returns the `model_type` of a `config.json`.

    Raises:
      UserError: It is none of `FAMILIES`.
    """
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise UserError(
            f"{CONFIG_FILE}: model_type is {family!r}; the decoders read here are "
            f"{', '.join(FAMILIES)}."
        )
    return family


def config_from_huggingface(
    raw: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> DecoderConfig:
    """The config of a decoder.

    Args:
      raw: `config.json`.
      tensors: the weights: whether the head is tied and where biases are is read off them.

    Raises:
      UserError: It is of another family, or uses what `DecoderConfig` cannot say.
    """
    family = require_family(raw)
    gemma = family in _GEMMA
    if raw.get("mlp_bias") or raw.get("use_bidirectional_attention"):
        raise UserError(f"{CONFIG_FILE}: MLP biases and bidirectional attention are not read here.")
    if raw.get("use_sliding_window"):
        raise UserError(f"{CONFIG_FILE}: sliding windows are read for Gemma alone, not {family}.")
    activation = raw.get("hidden_activation") or raw.get("hidden_act")
    if activation is None:
        activation = "gelu_pytorch_tanh" if gemma else "silu"
    if activation not in _ACTIVATIONS:
        raise UserError(
            f"{CONFIG_FILE}: hidden_act is {activation!r}; read here are {', '.join(_ACTIVATIONS)}."
        )
    needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    if missing := [name for name in (*needed, "num_attention_heads") if name not in raw]:
        raise UserError(f"{CONFIG_FILE} lacks {', '.join(missing)}.")
    heads = raw["num_attention_heads"]
    head_dim = raw.get("head_dim") or (256 if gemma else raw["hidden_size"] // heads)
    scalar = raw.get("query_pre_attn_scalar", 256) if gemma else None
    first = "model.layers.0.self_attn."
    return DecoderConfig(
        vocab_size=raw["vocab_size"],
        emb_dim=raw["hidden_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        mlp_dim=raw["intermediate_size"],
        mlp_activations=(_ACTIVATIONS[activation], "linear"),
        logits_via_embedding=HEAD not in tensors
        or (EMBEDDING in tensors and same_values(tensors[HEAD], tensors[EMBEDDING])),
        layer_norm_epsilon=raw.get("rms_norm_eps", 1e-6),
        norm_adds_one=gemma,
        post_norms=gemma,
        qk_norm=family in ("qwen3", "gemma3_text"),
        attention_bias=first + "q_proj.bias" in tensors,
        attention_out_bias=first + "o_proj.bias" in tensors,
        attention_scalar=None if scalar in (None, head_dim) else float(scalar),
        attention_softcap=raw.get("attn_logit_softcapping", 50.0) if family == "gemma2" else None,
        logits_softcap=raw.get("final_logit_softcapping", 30.0 if family == "gemma2" else None)
        if gemma
        else None,
        scale_embeddings=gemma,
        max_positions=raw.get("max_position_embeddings", 2048),
        **(_windows(raw, family) if gemma else {}),
        **_rope(raw, family),
    )


def config_to_huggingface(config: DecoderConfig, dtype: str = "float32") -> dict[str, Any]:
    """The `config.json` of a decoder, as transformers 4 and 5 read it.

    Raises:
      UserError: transformers has no such network.
    """
    family = huggingface_type(config)
    name = {
        "llama": "Llama",
        "qwen2": "Qwen2",
        "qwen3": "Qwen3",
        "gemma2": "Gemma2",
        "gemma3_text": "Gemma3",
    }[family]
    activation = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[config.mlp_activations[0]]
    raw = {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.emb_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.layer_norm_epsilon,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.logits_via_embedding,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": config.eos_id,
        "pad_token_id": config.pad_id,
        "dtype": dtype,
    }
    if family != "qwen2":
        raw["attention_bias"] = config.attention_bias
    scaling = _rope_to_huggingface(config)
    if family not in _GEMMA:
        raw["hidden_act"] = activation
        raw["rope_theta"] = config.rope_theta
        raw["rope_parameters"] = {"rope_theta": config.rope_theta, **scaling}
        if config.rope_scaling != "none":
            raw["rope_scaling"] = scaling
        return raw
    scalar = config.attention_scalar or config.head_dim
    raw |= {
        "hidden_activation": activation,
        "query_pre_attn_scalar": int(scalar) if float(scalar).is_integer() else scalar,
        "sliding_window": config.sliding_window,
        "layer_types": [
            "sliding_attention" if config.is_local(number) else "full_attention"
            for number in range(config.num_layers)
        ],
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logits_softcap,
    }
    if family == "gemma2":
        raw["rope_theta"] = config.rope_theta
        raw["rope_parameters"] = {"rope_theta": config.rope_theta, **scaling}
        return raw
    local = config.local_rope_theta or config.rope_theta
    raw["rope_theta"], raw["rope_local_base_freq"] = config.rope_theta, local
    raw["rope_parameters"] = {
        "full_attention": {"rope_theta": config.rope_theta, **scaling},
        "sliding_attention": {"rope_type": "default", "rope_theta": local},
    }
    return raw


def _windows(raw: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The sliding window, and which layers it is for."""
    usual = 2 if family == "gemma2" else raw.get("sliding_window_pattern") or 6
    layers = raw["num_hidden_layers"]
    types = raw.get("layer_types")
    if types is not None:
        full = [kind == "full_attention" for kind in types]
        usual = full.index(True) + 1 if True in full else layers + 1
        if full != [(number + 1) % usual == 0 for number in range(layers)]:
            raise UserError(
                f"{CONFIG_FILE}: layer_types is no regular pattern with every n-th layer global."
            )
    return {
        "sliding_window": raw.get("sliding_window", 4096),
        "full_attention_every": usual,
    }


def _rope(raw: Mapping[str, Any], family: str) -> dict[str, Any]:
    # transformers 5 writes rope_parameters (Gemma 3's by the layer's kind), earlier versions
    # rope_theta and rope_scaling.
    given = raw.get("rope_parameters") or {}
    result: dict[str, Any] = {}
    theta = 10_000.0
    if family == "gemma3_text":
        theta = 1_000_000.0
        local = given.get("sliding_attention") or {}
        if (local.get("rope_type") or "default") != "default":
            raise UserError(f"{CONFIG_FILE}: local layers have a rope_type; it is not read here.")
        result["local_rope_theta"] = float(
            local.get("rope_theta") or raw.get("rope_local_base_freq") or 10_000.0
        )
        given = given.get("full_attention") or {}
    rope = {**(raw.get("rope_scaling") or {}), **given}
    result["rope_theta"] = float(rope.get("rope_theta") or raw.get("rope_theta") or theta)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return result
    if kind not in ("linear", "llama3"):
        raise UserError(
            f"{CONFIG_FILE}: rope_type {kind!r} is not read here; known are default, linear and "
            "llama3."
        )
    result |= {"rope_scaling": kind, "rope_factor": float(rope["factor"])}
    if kind == "llama3":
        result |= {
            "rope_low_freq_factor": float(rope["low_freq_factor"]),
            "rope_high_freq_factor": float(rope["high_freq_factor"]),
            "rope_original_max_positions": rope["original_max_position_embeddings"],
        }
    return result


def _rope_to_huggingface(config: DecoderConfig) -> dict[str, Any]:
    if config.rope_divisors is not None:
        raise UserError(
            "The rotary frequencies were read from a GGUF file as divisors, for which Hugging "
            "Face's config.json has no name; start from the Hugging Face folder of this model."
        )
    if config.rope_scaling == "none":
        return {"rope_type": "default"}
    scaling: dict[str, Any] = {"rope_type": config.rope_scaling, "factor": config.rope_factor}
    if config.rope_scaling == "llama3":
        scaling |= {
            "low_freq_factor": config.rope_low_freq_factor,
            "high_freq_factor": config.rope_high_freq_factor,
            "original_max_position_embeddings": config.rope_original_max_positions,
        }
    return scaling


def huggingface_type(config: DecoderConfig) -> str:
    """The family of transformers, `model_type`, that computes what `config` says.

    Raises:
      UserError: there is none.
    """
    gemma = (config.norm_adds_one, config.post_norms, config.scale_embeddings)
    capped = config.attention_softcap is not None
    if config.mlp_activations[1] != "linear" or config.mlp_activations[0] not in (
        _ACTIVATIONS.values()
    ):
        raise UserError(f"mlp_activations = {config.mlp_activations!r}: Hugging Face has no such.")
    if all(gemma) and config.sliding_window is not None and not config.attention_out_bias:
        if config.qk_norm and not capped:
            return "gemma3_text"
        if not config.qk_norm and config.local_rope_theta is None:
            return "gemma2"
    plain = not any(gemma) and not capped and config.logits_softcap is None
    if plain and config.sliding_window is None and config.attention_scalar is None:
        if config.attention_bias == config.attention_out_bias:
            return "qwen3" if config.qk_norm else "llama"
        if config.attention_bias and not config.qk_norm:
            return "qwen2"
    raise UserError(
        f"No family of transformers is this DecoderConfig; exported are {', '.join(FAMILIES)}."
    )
