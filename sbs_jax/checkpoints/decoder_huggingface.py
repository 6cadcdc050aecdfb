"""Hugging Face's decoder weights, in and out: names and layouts; torch is never imported.

Read and written are the families `decoder_config_json.FAMILIES`. The rows of the vocabulary are
those of the file, except for those that `DecoderConfig.moved_ids` exchanges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from sbs_jax.checkpoints import state_dicts
from sbs_jax.checkpoints.decoder_config_json import (
    EMBEDDING,
    HEAD,
    config_from_huggingface,
    require_family,
)
from sbs_jax.checkpoints.huggingface import CONFIG_FILE
from sbs_jax.checkpoints.safetensors_files import open_safetensors, read_json
from sbs_jax.checkpoints.state_dicts import TensorName, parameter_shapes
from sbs_jax.checkpoints.tensors import Index, StoredTensor
from sbs_jax.errors import located
from sbs_jax.models.decoder.config import DecoderConfig, LayerConfig

_VOCABULARY_ROWS = ("token_embedder/embedding",)
_VOCABULARY_COLUMNS = ("decoder/logits_dense/kernel",)


def open_decoder(
    folder: str | Path, pad_id: int = 0, eos_id: int = 1
) -> tuple[DecoderConfig, dict[str, StoredTensor]]:
    """Finds the weights of a decoder that transformers saved; their values are read later.

    Args:
      folder: holds `config.json`, and `model.safetensors` or its shards with their index.
      pad_id: see `DecoderConfig`.
      eos_id: id of the end of a sequence; the defaults keep the file's own numbering.

    Returns:
      The config, and where each of our parameters (by path) is read from, in our layout.

    Raises:
      UserError: A file is missing or damaged, or holds another kind of model.
    """
    folder = Path(folder).expanduser()
    raw = read_json(folder / CONFIG_FILE)
    with located(folder):
        require_family(raw)
        tensors = open_safetensors(folder)
        config = config_from_huggingface(raw, tensors)
        config = dataclasses.replace(config, pad_id=pad_id, eos_id=eos_id)
        return config, match_huggingface(tensors, config)


def match_huggingface(
    state_dict: Mapping[str, StoredTensor], config: DecoderConfig
) -> dict[str, StoredTensor]:
    """Finds our parameters in a Hugging Face state dict, by path, in our layout.

    Raises:
      UserError: Tensors are missing, unknown or of another shape; names them.
    """
    found = state_dicts.match(
        state_dict,
        huggingface_sources(config),
        parameter_shapes(config),
        weights="the weights",
        config="DecoderConfig",
        is_spare=lambda name: (
            (name == HEAD and config.logits_via_embedding)
            # Old files hold the frequencies of the rotary embedding.
            or name.endswith("rotary_emb.inv_freq")
        ),
    )
    return move_ids(found, config.moved_ids)


def huggingface_sources(config: DecoderConfig) -> dict[str, TensorName]:
    """Where each of our parameters (`decoder/layers_0/mlp/wo/kernel`) lies in Hugging Face's."""
    return dict(_sources(config))


def in_own_order(
    stored: Mapping[str, StoredTensor], config: LayerConfig
) -> dict[str, StoredTensor]:
    """The parameters with the vocabulary as the file has it; undoes what matching did to it."""
    return move_ids(stored, {theirs: ours for ours, theirs in config.moved_ids.items()})


def move_ids(
    stored: Mapping[str, StoredTensor], moved: Mapping[int, int]
) -> dict[str, StoredTensor]:
    """Reorders the vocabulary of stored parameters: row `i` is read from row `moved[i]`."""
    if not moved:
        return dict(stored)
    axes = dict.fromkeys(_VOCABULARY_ROWS, 0) | dict.fromkeys(_VOCABULARY_COLUMNS, 1)
    return {
        path: _Moved(tensor, axes[path], moved) if path in axes else tensor
        for path, tensor in stored.items()
    }


class _Moved:
    """A stored matrix of which some rows or columns are read from other places."""

    def __init__(self, tensor: StoredTensor, axis: int, moved: Mapping[int, int]) -> None:
        self._tensor, self._axis, self._moved = tensor, axis, moved
        self.shape, self.dtype = tuple(tensor.shape), tensor.dtype

    def __getitem__(self, index: Index) -> np.ndarray:
        """Reads a part."""
        part = np.array(self._tensor[index])
        start, stop, _ = index[self._axis].indices(self.shape[self._axis])
        for here, there in self._moved.items():
            if start <= here < stop:
                one = list(index)
                one[self._axis] = slice(there, there + 1)
                place = (slice(None),) * self._axis + (slice(here - start, here - start + 1),)
                part[place] = self._tensor[tuple(one)]
        return part


def layer_sources(
    config: LayerConfig, ours: str, theirs: str, norms: Mapping[str, str]
) -> Iterator[tuple[str, TensorName]]:
    """Where the parameters of one layer lie.

    Args:
      config: the network's.
      ours: the path of the layer here.
      theirs: the name of the layer in Hugging Face's state dict.
      norms: the names there of the norms before and after both blocks, by those here.
    """
    attention, their_attention = f"{ours}/self_attention", f"{theirs}.self_attn"
    for name in ("query", "key", "value"):
        their_name = f"{their_attention}.{name[0]}_proj"
        yield from _linear(f"{attention}/{name}", their_name, config.attention_bias)
    yield from _linear(f"{attention}/out", f"{their_attention}.o_proj", config.attention_out_bias)
    if config.qk_norm:
        yield _norm(f"{attention}/query_norm", f"{their_attention}.q_norm")
        yield _norm(f"{attention}/key_norm", f"{their_attention}.k_norm")
    for our_mlp, their_mlp in (("wi_0", "gate"), ("wi_1", "up"), ("wo", "down")):
        yield from _linear(f"{ours}/mlp/{our_mlp}", f"{theirs}.mlp.{their_mlp}_proj")
    for our_name, their_name in norms.items():
        yield _norm(f"{ours}/{our_name}", f"{theirs}.{their_name}")


def _sources(config: DecoderConfig) -> Iterator[tuple[str, TensorName]]:
    norms = {"pre_self_attention_layer_norm": "input_layernorm"}
    if config.post_norms:
        norms |= {
            "post_self_attention_layer_norm": "post_attention_layernorm",
            "pre_mlp_layer_norm": "pre_feedforward_layernorm",
            "post_mlp_layer_norm": "post_feedforward_layernorm",
        }
    else:
        norms |= {"pre_mlp_layer_norm": "post_attention_layernorm"}
    yield "token_embedder/embedding", TensorName(EMBEDDING, transposed=False)
    for number in range(config.num_layers):
        yield from layer_sources(
            config, f"decoder/layers_{number}", f"model.layers.{number}", norms
        )
    yield _norm("decoder/decoder_norm", "model.norm")
    if not config.logits_via_embedding:
        yield from _linear("decoder/logits_dense", HEAD.removesuffix(".weight"))


def _norm(ours: str, theirs: str) -> tuple[str, TensorName]:
    return f"{ours}/scale", TensorName(f"{theirs}.weight", transposed=False)


def _linear(ours: str, theirs: str, bias: bool = False) -> Iterator[tuple[str, TensorName]]:
    yield f"{ours}/kernel", TensorName(f"{theirs}.weight", transposed=True)
    if bias:
        yield f"{ours}/bias", TensorName(f"{theirs}.bias", transposed=False)
