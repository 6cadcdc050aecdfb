"""Llama-family weights from a Hugging Face folder or a GGUF file, as plain numpy arrays.

The tree is that of `models/decoder/network.py`: per layer a fused `qkv` [D, KV, G+2, K] (for each
key head its G query heads, then the key, then the value), `out` [KV, G, K, D], `gate_up` [D, 2, F],
`down` [F, D].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sbs_jax.checkpoints.gguf_files import GGUFFile
from sbs_jax.checkpoints.safetensors_files import open_safetensors, read_json
from sbs_jax.errors import UserError
from sbs_jax.models.decoder.config import DecoderConfig
from sbs_jax.models.decoder.network import AXES, Params
from sbs_jax.partitioning.rules import logical_axis_rules

FAMILIES = ("llama", "qwen2")


Layer = dict[str, np.ndarray]


@dataclass
class Checkpoint:
    """Weights that are read when asked for, one at a time.

    Attributes:
      config: The model's shape.
      source: The folder or the GGUF file.
      metadata: GGUF metadata, or None for a folder.
      top: Reads `embedding` [V, D], `norm` [D] and, unless tied, `head` [D, V].
      layers: Yields each layer's arrays in turn.
    """

    config: DecoderConfig
    source: Path
    metadata: dict[str, Any] | None
    top: Callable[[], dict[str, np.ndarray]]
    layers: Callable[[], Iterator[Layer]]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a Hugging Face folder or a GGUF file.

    Raises:
      UserError: it is neither, or a model of another family.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return _open_gguf(path)
    raise UserError(f"MODEL_PATH = {path} is neither a Hugging Face folder nor a GGUF file.")


def load_params(checkpoint: Checkpoint, mesh: Mesh, dtype: str = "float32") -> Params:
    """Reads the weights onto the mesh, one array at a time, cast to `dtype`."""
    config = checkpoint.config
    sizes = {
        "vocab": config.vocab_size,
        "heads": config.num_kv_heads,
        "mlp": config.mlp_dim,
        "embed": config.emb_dim,
    }
    rules = dict(logical_axis_rules(mesh, sizes))

    def put(name: str, array: np.ndarray) -> jax.Array:
        spec = PartitionSpec(*(rules.get(axis) for axis in AXES[name]))
        return jax.device_put(np.asarray(array).astype(jnp.dtype(dtype)), NamedSharding(mesh, spec))

    params: Params = {name: put(name, array) for name, array in checkpoint.top().items()}
    params["layers"] = [
        {name: put(name, array) for name, array in layer.items()} for layer in checkpoint.layers()
    ]
    return params


def _fuse(
    config: DecoderConfig, q: np.ndarray, k: np.ndarray, v: np.ndarray, o: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows of q, k, v [heads·K, D or 1] → qkv [D or 1, KV, G+2, K]; o [D, heads·K] → out."""
    kv, groups, width = config.num_kv_heads, config.groups, config.head_dim
    qkv = np.concatenate(
        [
            q.reshape(kv, groups, width, -1),
            k.reshape(kv, 1, width, -1),
            v.reshape(kv, 1, width, -1),
        ],
        axis=1,
    )
    out = None if o is None else np.ascontiguousarray(o.T).reshape(kv, groups, width, -1)
    return np.ascontiguousarray(np.moveaxis(qkv, -1, 0)), out


def _layer(config: DecoderConfig, read: Callable[[str], np.ndarray | None]) -> Layer:
    """Builds one layer from `read`, which knows Hugging Face's names."""
    qkv, out = _fuse(config, *(read(f"self_attn.{n}_proj.weight") for n in "qkvo"))
    layer = {
        "attention_norm": read("input_layernorm.weight"),
        "qkv": qkv,
        "out": out,
        "mlp_norm": read("post_attention_layernorm.weight"),
        "gate_up": np.stack([read("mlp.gate_proj.weight").T, read("mlp.up_proj.weight").T], axis=1),
        "down": np.ascontiguousarray(read("mlp.down_proj.weight").T),
    }
    biases = [read(f"self_attn.{n}_proj.bias") for n in "qkv"]
    if biases[0] is not None:
        layer["qkv_bias"] = _fuse(config, *(b[:, None] for b in biases), None)[0][0]
    out_bias = read("self_attn.o_proj.bias")
    if out_bias is not None:
        layer["out_bias"] = out_bias
    return layer


# --- a Hugging Face folder --------------------------------------------------------------------


def _open_folder(folder: Path) -> Checkpoint:
    raw = read_json(folder / "config.json")
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise UserError(
            f"{folder}/config.json: model_type is {family!r}; read here are {', '.join(FAMILIES)}."
        )
    if raw.get("use_sliding_window") or raw.get("mlp_bias"):
        raise UserError(f"{folder}/config.json: sliding windows and MLP biases are not read here.")
    if raw.get("hidden_act", "silu") != "silu":
        raise UserError(f"{folder}/config.json: hidden_act is {raw['hidden_act']!r}, not silu.")
    tensors = open_safetensors(folder)
    heads = raw["num_attention_heads"]
    width = raw.get("head_dim") or raw["hidden_size"] // heads
    # transformers 5 writes rope_parameters, earlier versions rope_theta and rope_scaling.
    rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    theta = float(rope.get("rope_theta") or raw.get("rope_theta") or 10_000.0)
    generation = folder / "generation_config.json"
    more = read_json(generation) if generation.is_file() else {}
    config = DecoderConfig(
        vocab_size=raw["vocab_size"],
        emb_dim=raw["hidden_size"],
        mlp_dim=raw["intermediate_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=width,
        inverse_frequencies=_frequencies(theta, width, rope, folder),
        rope_theta=theta,
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        max_positions=raw.get("max_position_embeddings", 2048),
        tied="lm_head.weight" not in tensors,
        eos_ids=tuple(dict.fromkeys([*_ids(more.get("eos_token_id")), *_ids(raw["eos_token_id"])])),
        bos_id=raw.get("bos_token_id"),
    )

    def whole(name: str) -> np.ndarray:
        if name not in tensors:
            raise UserError(f"{folder}: the weights lack {name}.")
        tensor = tensors[name]
        return tensor[(slice(None),) * len(tensor.shape)]

    def top() -> dict[str, np.ndarray]:
        found = {
            "embedding": whole("model.embed_tokens.weight"),
            "norm": whole("model.norm.weight"),
        }
        if not config.tied:
            found["head"] = np.ascontiguousarray(whole("lm_head.weight").T)
        return found

    def layers() -> Iterator[Layer]:
        for number in range(config.num_layers):
            prefix = f"model.layers.{number}."

            def read(name: str, prefix: str = prefix) -> np.ndarray | None:
                if name.endswith(".bias") and prefix + name not in tensors:
                    return None
                return whole(prefix + name)

            yield _layer(config, read)

    return Checkpoint(config, folder, None, top, layers)


def _frequencies(theta: float, width: int, rope: dict[str, Any], folder: Path) -> tuple[float, ...]:
    """Returns the inverse frequencies, as transformers' modeling_rope_utils computes them."""
    inverse = _unscaled_frequencies(theta, width)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "linear":
        inverse /= rope["factor"]
    elif kind == "llama3":
        factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
        old = rope["original_max_position_embeddings"]
        wavelength = 2 * math.pi / inverse
        smooth = np.clip((old / wavelength - low) / (high - low), 0.0, 1.0)
        inverse = (1 - smooth) * inverse / factor + smooth * inverse
    elif kind != "default":
        raise UserError(
            f"{folder}/config.json: rope_type {kind!r} is not read here; known are default, linear "
            "and llama3."
        )
    return tuple(inverse.tolist())


def _unscaled_frequencies(theta: float, width: int) -> np.ndarray:
    """Returns the frequencies as Hugging Face rounds them: in float32.

    At position 60 the difference to float64 is a few 1e-6 of a turn, which shows in the logits.
    """
    powers = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    return (np.float32(1.0) / np.float32(theta) ** powers).astype(np.float64)


def _ids(value: Any) -> list[int]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


# --- a GGUF file --------------------------------------------------------------------------------

_GGUF_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    **{f"self_attn.{n}_proj.{w}": f"attn_{n}.{w}" for n in "qkv" for w in ("weight", "bias")},
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.o_proj.bias": "attn_output.bias",
}


def _open_gguf(path: Path) -> Checkpoint:
    file = GGUFFile(path)
    meta = file.metadata
    family = meta.get("general.architecture")
    if family not in FAMILIES:
        raise UserError(
            f"{path}: general.architecture is {family!r}; read here are {', '.join(FAMILIES)}."
        )

    def value(key: str, default: Any = None) -> Any:
        found = meta.get(f"{family}.{key}", default)
        if found is None:
            raise UserError(f"{path}: the metadata lack {family}.{key}.")
        return found

    heads = value("attention.head_count")
    emb = value("embedding_length")
    width = value("attention.key_length", value("rope.dimension_count", emb // heads))
    theta = float(value("rope.freq_base", 10_000.0))
    inverse = _unscaled_frequencies(theta, width)
    if "rope_freqs.weight" in file.tensors:  # Llama 3.1's scaling, worked out by the converter
        inverse = inverse / file.tensor("rope_freqs.weight").astype(np.float64)
    elif value("rope.scaling.type", "none") == "linear":
        inverse = inverse / value("rope.scaling.factor")
    elif value("rope.scaling.type", "none") != "none":
        raise UserError(f"{path}: rope scaling {meta[f'{family}.rope.scaling.type']!r} is unknown.")
    config = DecoderConfig(
        vocab_size=len(meta["tokenizer.ggml.tokens"]),
        emb_dim=emb,
        mlp_dim=value("feed_forward_length"),
        num_layers=value("block_count"),
        num_heads=heads,
        num_kv_heads=value("attention.head_count_kv", heads),
        head_dim=width,
        inverse_frequencies=tuple(inverse.tolist()),
        rope_theta=theta,
        norm_eps=float(value("attention.layer_norm_rms_epsilon")),
        max_positions=value("context_length"),
        tied="output.weight" not in file.tensors,
        eos_ids=tuple(_ids(meta.get("tokenizer.ggml.eos_token_id"))),
        bos_id=meta.get("tokenizer.ggml.bos_token_id"),
    )

    def top() -> dict[str, np.ndarray]:
        found = {
            "embedding": file.tensor("token_embd.weight"),
            "norm": file.tensor("output_norm.weight"),
        }
        if not config.tied:
            found["head"] = np.ascontiguousarray(file.tensor("output.weight").T)
        return found

    def layers() -> Iterator[Layer]:
        for number in range(config.num_layers):

            def read(name: str, number: int = number) -> np.ndarray | None:
                own = f"blk.{number}.{_GGUF_NAMES[name]}"
                if own not in file.tensors and name.endswith(".bias"):
                    return None
                tensor = file.tensor(own)
                if family == "llama" and name.startswith(("self_attn.q_", "self_attn.k_")):
                    # The converter interleaves the halves that the rotation pairs; undo it.
                    shape = tensor.shape
                    paired = tensor.reshape(-1, width // 2, 2, *shape[1:])
                    tensor = np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(shape)
                return tensor

            yield _layer(config, read)

    return Checkpoint(config, path, meta, top, layers)
