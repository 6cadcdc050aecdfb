"""GGUF weights of decoders: llama.cpp's names, layouts and metadata, in ours."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sbs_jax.checkpoints.decoder_huggingface import huggingface_sources, move_ids
from sbs_jax.checkpoints.tensors import Index, StoredTensor, Transposed, read_whole
from sbs_jax.errors import UserError
from sbs_jax.models.decoder.config import DecoderConfig

if TYPE_CHECKING:
    from sbs_jax.gguf_files import GGUFFile

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3")

_GEMMA = ("gemma2", "gemma3")
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    # Gemma's.
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def open_gguf(
    path: Path, pad_id: int = 0, eos_id: int = 1
) -> tuple[DecoderConfig, dict[str, StoredTensor], dict[str, Any]]:
    """Finds the weights of a decoder in a GGUF file; they are dequantised when they are read.

    Args:
      path: the file.
      pad_id: see `DecoderConfig`.
      eos_id: id of the end of a sequence; the defaults keep the file's own numbering.

    Returns:
      The config; where each of our parameters (by path) is read from, in our layout; the metadata.

    Raises:
      UserError: The file is damaged, or holds another kind of model.
    """
    from sbs_jax.gguf_files import GGUFFile  # the package gguf, which few runs need

    file = GGUFFile(path)
    config = dataclasses.replace(config_from_gguf(file), pad_id=pad_id, eos_id=eos_id)
    family = file.metadata["general.architecture"]
    found: dict[str, StoredTensor] = {}
    for ours, source in huggingface_sources(config).items():
        theirs = gguf_name(source.name, family)
        if theirs not in file.tensors:
            raise UserError(f"{path}: the tensor {theirs} is missing.")
        tensor: StoredTensor = file.tensors[theirs]
        if family == "llama" and pairs_heads(theirs):
            tensor = _Unpaired(tensor, config.head_dim)
        elif family in _GEMMA and theirs.endswith("norm.weight"):
            tensor = _LessOne(tensor)
        found[ours] = Transposed(tensor) if source.transposed else tensor
    return config, move_ids(found, config.moved_ids), file.metadata


def config_from_gguf(file: GGUFFile) -> DecoderConfig:
    """The config of a GGUF file.

    Raises:
      UserError: The file lacks a key, or holds another kind of model.
    """
    path, meta = file.path, file.metadata
    family = meta.get("general.architecture")
    if family not in ARCHITECTURES:
        raise UserError(
            f"{path}: general.architecture is {family!r}; read here are {', '.join(ARCHITECTURES)}."
        )

    def value(key: str, default: Any = None) -> Any:
        found = meta.get(f"{family}.{key}", default)
        if found is None:
            raise UserError(f"{path}: the metadata lack {family}.{key}.")
        return found

    gemma = family in _GEMMA
    heads, emb = value("attention.head_count"), value("embedding_length")
    width = value("attention.key_length", value("rope.dimension_count", emb // heads))
    rope: dict[str, Any] = {"rope_theta": float(value("rope.freq_base", 10_000.0))}
    scaling = value("rope.scaling.type", "none")
    if "rope_freqs.weight" in file.tensors:  # Llama 3.1's scaling, worked out by the converter
        divisors = file.tensor("rope_freqs.weight").astype(np.float64)
        rope["rope_divisors"] = tuple(divisors.tolist())
    elif scaling == "linear":
        rope |= {"rope_scaling": "linear", "rope_factor": float(value("rope.scaling.factor"))}
    elif scaling != "none":
        raise UserError(f"{path}: rope scaling {scaling!r} is unknown.")
    if family == "gemma3":
        rope["local_rope_theta"] = float(value("rope.freq_base_swa", 10_000.0))
    layers = value("block_count")
    scalar = None
    if family == "gemma2" and layers == 46:  # llama.cpp's own rule: the 27B scales by D / H
        scalar = emb / heads
    return DecoderConfig(
        vocab_size=file.tensors["token_embd.weight"].shape[0]
        if "token_embd.weight" in file.tensors
        else len(meta["tokenizer.ggml.tokens"]),
        emb_dim=emb,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=value("attention.head_count_kv", heads),
        head_dim=width,
        mlp_dim=value("feed_forward_length"),
        mlp_activations=("gelu" if gemma else "silu", "linear"),
        logits_via_embedding="output.weight" not in file.tensors,
        # The shortest decimal that is this float32: 1e-05, where the file says 9.99999974e-06.
        layer_norm_epsilon=float(str(np.float32(value("attention.layer_norm_rms_epsilon")))),
        norm_adds_one=gemma,
        post_norms=gemma,
        qk_norm=family in ("qwen3", "gemma3"),
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        attention_out_bias="blk.0.attn_output.bias" in file.tensors,
        attention_scalar=scalar,
        attention_softcap=float(value("attn_logit_softcapping", 50.0))
        if family == "gemma2"
        else None,
        logits_softcap=float(value("final_logit_softcapping", 30.0))
        if family == "gemma2"
        else None,
        scale_embeddings=gemma,
        sliding_window=value("attention.sliding_window", 4096) if gemma else None,
        full_attention_every={"gemma2": 2, "gemma3": 6}.get(family, 1),
        max_positions=value("context_length"),
        **rope,
    )


def gguf_name(huggingface: str, family: str) -> str:
    """The name in a GGUF file of a tensor with this name in transformers."""
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if huggingface in whole:
        return whole[huggingface]
    _, _, number, rest = huggingface.split(".", 3)
    name, kind = rest.rsplit(".", 1)
    if family in _GEMMA and name == "post_attention_layernorm":
        return f"blk.{number}.post_attention_norm.{kind}"
    return f"blk.{number}.{_NAMES[name]}.{kind}"


def pairs_heads(name: str) -> bool:
    """Whether a tensor of a `llama` of this name in a GGUF file has heads interleaved."""
    return name.split(".")[-2] in ("attn_q", "attn_k")


class _Whole:
    """A stored tensor that is changed after it has been read whole."""

    def __init__(self, tensor: StoredTensor) -> None:
        self._tensor = tensor
        self.shape, self.dtype = tuple(tensor.shape), tensor.dtype

    def __getitem__(self, index: Index) -> np.ndarray:
        """Reads a part."""
        return self._changed(read_whole(self._tensor))[index]

    def _changed(self, whole: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class _Unpaired(_Whole):
    """A query or key projection of a `llama`, whose converter interleaves the rotation's halves."""

    def __init__(self, tensor: StoredTensor, head_dim: int) -> None:
        super().__init__(tensor)
        self._half = head_dim // 2

    def _changed(self, whole: np.ndarray) -> np.ndarray:
        paired = whole.reshape(-1, self._half, 2, *whole.shape[1:])
        return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(whole.shape)


class _LessOne(_Whole):
    """A norm of a Gemma, to whose weights the converter adds 1."""

    def _changed(self, whole: np.ndarray) -> np.ndarray:
        return whole - 1
