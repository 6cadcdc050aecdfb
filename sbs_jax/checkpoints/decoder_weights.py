"""A decoder's weights and what its files say of it, from a Hugging Face folder or a GGUF file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from sbs_jax.checkpoints.decoder_gguf import open_gguf
from sbs_jax.checkpoints.decoder_huggingface import open_decoder
from sbs_jax.checkpoints.safetensors_files import read_json
from sbs_jax.checkpoints.tensors import StoredTensor, place_tree
from sbs_jax.errors import UserError
from sbs_jax.models.decoder.config import DecoderConfig
from sbs_jax.models.decoder.network import DecoderOnly
from sbs_jax.partitioning import rules as rules_lib


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights that are read when asked for, one tensor at a time.

    Attributes:
      config: The network's dimensions.
      source: The folder or the GGUF file.
      metadata: GGUF metadata, or None for a folder.
      stored: Where each parameter (by path) is read from, in our layout.
      eos_ids: Tokens that end a text, in the file's numbering.
      bos_id: The token that starts a text, or None.
    """

    config: DecoderConfig
    source: Path
    metadata: dict[str, Any] | None
    stored: Mapping[str, StoredTensor]
    eos_ids: tuple[int, ...]
    bos_id: int | None


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a Hugging Face folder or a GGUF file, in the file's own numbering of tokens.

    Raises:
      UserError: It is neither, or a model of another family.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        config, stored = open_decoder(path)
        raw = read_json(path / "config.json")
        generation = path / "generation_config.json"
        more = read_json(generation) if generation.is_file() else {}
        ends = (*_ids(more.get("eos_token_id")), *_ids(raw.get("eos_token_id")))
        starts = _ids(raw.get("bos_token_id"))
        bos = starts[0] if starts else None
        return Checkpoint(config, path, None, stored, tuple(dict.fromkeys(ends)), bos)
    if path.is_file():
        config, stored, meta = open_gguf(path)
        ends = tuple(_ids(meta.get("tokenizer.ggml.eos_token_id")))
        bos = meta.get("tokenizer.ggml.bos_token_id")
        return Checkpoint(config, path, meta, stored, ends, bos)
    raise UserError(f"MODEL_PATH = {path} is neither a Hugging Face folder nor a GGUF file.")


def load_params(checkpoint: Checkpoint, mesh: Mesh, dtype: str = "float32") -> Any:
    """Reads the weights onto the mesh, one tensor at a time, cast to `dtype`.

    Returns:
      The parameters of `DecoderOnly(checkpoint.config)`.

    Raises:
      UserError: A file is missing or damaged.
    """
    network = DecoderOnly(checkpoint.config)
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    boxed = jax.eval_shape(network.init, jax.random.key(0), tokens, tokens)["params"]
    rules = rules_lib.logical_axis_rules(mesh, checkpoint.config.axis_sizes)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding),
        nn.unbox(boxed),
        rules_lib.param_shardings(boxed, mesh, rules),
    )
    advice = "the files of this model may be damaged"
    return place_tree(checkpoint.stored, abstract, where=str(checkpoint.source), advice=advice)


def _ids(value: Any) -> list[int]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]
