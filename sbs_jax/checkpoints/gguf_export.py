"""Writes a decoder as a GGUF file, which llama.cpp and what stands on it run.

Names, layouts and keys are those of llama.cpp's own converter, of which `decoder_gguf` reads what
is written here: query and key projections of a `llama` are interleaved, and norms of a Gemma have 1
added. Tensors are read, converted and written one after another.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType, LlamaFileType, RopeScalingType
from gguf.gguf_writer import WriterState

from sbs_jax.checkpoints.decoder_config_json import huggingface_type
from sbs_jax.checkpoints.decoder_gguf import gguf_name, pairs_heads
from sbs_jax.checkpoints.decoder_huggingface import huggingface_sources
from sbs_jax.checkpoints.tensors import StoredTensor, read_whole
from sbs_jax.errors import UserError
from sbs_jax.files import atomic_open
from sbs_jax.models.decoder.config import DecoderConfig
from sbs_jax.models.decoder.rotary import inverse_frequencies
from sbs_jax.text_tokenizer import TextTokenizer

TYPES = {
    "float32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "float16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
"""The types of matrices and of the file, by DTYPE; vectors are float32 in all of them."""

_BLOCK = 32  # numbers that share a scale in Q8_0


def write_gguf(
    path: Path,
    config: DecoderConfig,
    stored: Mapping[str, StoredTensor],
    tokenizer: TextTokenizer,
    *,
    dtype: str = "float32",
    name: str = "student",
) -> None:
    """Writes the file, atomically.

    Args:
      path: the file.
      config: the network's.
      stored: the parameters by path, in our layout, the vocabulary in the tokenizer's own order.
      tokenizer: a pretrained byte-level one.
      dtype: of matrices: `float32`, `float16` or `q8_0` (8 bits a weight and a scale for 32;
        matrices whose rows 32 does not divide are float16).
      name: the name of the model, in the metadata.

    Raises:
      UserError: GGUF has no name for the network or for the tokenizer.
    """
    family = huggingface_type(config).removesuffix("_text")
    writer = _Writer(None, family)
    kind, file_type = TYPES[dtype]
    writer.add_name(name)
    writer.add_file_type(file_type)
    _describe_network(writer, config, family)
    _describe_tokenizer(writer, config, tokenizer)
    sources = {
        gguf_name(source.name, family): (stored[ours], source.transposed)
        for ours, source in huggingface_sources(config).items()
    }
    kinds = {}
    for theirs, (tensor, transposed) in sources.items():
        shape = tuple(tensor.shape)[::-1] if transposed else tuple(tensor.shape)
        kinds[theirs] = _kind(shape, kind)
        writer.announce(theirs, shape, kinds[theirs])
    divisors = _rope_divisors(config)
    if divisors is not None:
        writer.announce("rope_freqs.weight", divisors.shape, GGMLQuantizationType.F32)
    with atomic_open(path, "wb") as file:
        writer.begin(file)
        for theirs, (tensor, transposed) in sources.items():
            whole = np.asarray(read_whole(tensor), np.float32)
            whole = whole.T if transposed else whole
            if family == "llama" and pairs_heads(theirs):
                whole = _paired(whole, config.head_dim)
            elif config.norm_adds_one and theirs.endswith("norm.weight"):
                whole = whole + 1
            writer.write_tensor_data(_converted(np.ascontiguousarray(whole), kinds[theirs]))
        if divisors is not None:
            writer.write_tensor_data(divisors)


class _Writer(gguf.GGUFWriter):
    """`gguf.GGUFWriter`, whose tensors come after the header, one at a time."""

    def announce(self, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType) -> None:
        """Says which tensor comes next; the file's header names all of them."""
        block, size = gguf.GGML_QUANT_SIZES[kind]
        count = int(np.prod(shape)) // block * size
        if kind == GGMLQuantizationType.Q8_0:
            in_bytes = (*shape[:-1], shape[-1] // block * size)
            self.add_tensor_info(name, in_bytes, np.dtype(np.uint8), count, kind)
        else:
            plain = np.float16 if kind == GGMLQuantizationType.F16 else np.float32
            self.add_tensor_info(name, shape, np.dtype(plain), count)

    def begin(self, file: IO[bytes]) -> None:
        """Writes everything but the tensors; the file stays the caller's."""
        own: Any = file
        self.fout, self.state = [own], WriterState.EMPTY
        self.write_header_to_file()
        self.write_kv_data_to_file()
        self.write_ti_data_to_file()


def _kind(shape: tuple[int, ...], wanted: GGMLQuantizationType) -> GGMLQuantizationType:
    if len(shape) < 2:
        return GGMLQuantizationType.F32
    if wanted == GGMLQuantizationType.Q8_0 and shape[-1] % _BLOCK:
        return GGMLQuantizationType.F16
    return wanted


def _converted(whole: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    if kind == GGMLQuantizationType.Q8_0:
        return gguf.quantize(whole, kind)
    return whole.astype(np.float16 if kind == GGMLQuantizationType.F16 else np.float32)


def _paired(whole: np.ndarray, head_dim: int) -> np.ndarray:
    """Interleaves the halves of each head; undoes what `decoder_gguf` does when it reads."""
    halves = whole.reshape(-1, 2, head_dim // 2, *whole.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(whole.shape)


def _describe_network(writer: _Writer, config: DecoderConfig, family: str) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.emb_dim)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.mlp_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_rope_freq_base(config.rope_theta)
    if family == "llama":
        writer.add_rope_dimension_count(config.head_dim)
    if config.rope_scaling == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_factor)
    if config.sliding_window is not None:
        writer.add_sliding_window(config.sliding_window)
    if config.local_rope_theta is not None:
        writer.add_rope_freq_base_swa(config.local_rope_theta)
    if config.attention_softcap is not None:
        writer.add_attn_logit_softcapping(config.attention_softcap)
    if config.logits_softcap is not None:
        writer.add_final_logit_softcapping(config.logits_softcap)


def _rope_divisors(config: DecoderConfig) -> np.ndarray | None:
    """What frequencies are divided by, where GGUF has no name for the scaling (Llama 3.1's)."""
    if config.rope_divisors is not None:
        return np.asarray(config.rope_divisors, np.float32)
    if config.rope_scaling != "llama3":
        return None
    powers = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    return (config.rope_theta**-powers / inverse_frequencies(config)).astype(np.float32)


def _describe_tokenizer(writer: _Writer, config: DecoderConfig, tokenizer: TextTokenizer) -> None:
    described = tokenizer.for_gguf()
    if described is None:
        raise UserError(
            f"{tokenizer.path}: GGUF files name the pre-tokenizers of GPT-2, SmolLM, Llama 3 and "
            "Qwen2, and this tokenizer has none of them; convert the exported Hugging Face folder "
            "by llama.cpp's own converter."
        )
    tokens, types = list(described.tokens), list(described.types)
    # Rows of the embedding beyond the vocabulary stand for nothing.
    spare = range(len(tokens), config.vocab_size)
    tokens += [f"[PAD{number}]" for number in spare]
    types += [int(gguf.TokenType.UNUSED)] * len(spare)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(described.pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(described.merges)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_add_bos_token(False)
