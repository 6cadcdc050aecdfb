"""A compact Llama-family decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Functions over a plain tree of arrays (`checkpoints/decoder_weights.py` gives its layout). Attention
looks at two key stores: a prefix that the whole batch shares, held once, and each row's own cache.
Shapes: B batch, N new tokens, P prefix, T columns of the cache, D model, KV key heads, G query
heads per key head,
K head width, F MLP, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sbs_jax.models.decoder.config import DecoderConfig

Params = dict[str, Any]

# Logical axes, with the names of the table in sbs_jax/partitioning. What one key head and its
# query heads do stays on one device.
AXES = {
    "embedding": ("vocab", "embed"),
    "norm": ("embed",),
    "head": ("embed", "vocab"),
    "attention_norm": ("embed",),
    "qkv": ("embed", "heads", None, None),
    "qkv_bias": ("heads", None, None),
    "out": ("heads", None, None, "embed"),
    "out_bias": ("embed",),
    "mlp_norm": ("embed",),
    "gate_up": ("embed", None, "mlp"),
    "down": ("mlp", "embed"),
}


class Store(NamedTuple):
    """Keys and values of all layers.

    A row's own cache holds arrays [B, KV, T, K] a layer; a shared prefix [KV, P, K].
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]


class Prefix(NamedTuple):
    """The shared prefix: its store, padded to a round length, and how much of it is real."""

    store: Store
    length: Int[Array, ""]


def new_cache(config: DecoderConfig, rows: int, columns: int, dtype: str = "float32") -> Store:
    """Returns an empty cache of `rows` rows."""
    shape = (rows, config.num_kv_heads, columns, config.head_dim)
    empty = tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers))
    return Store(empty, tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers)))


def forward(
    params: Params,
    config: DecoderConfig,
    tokens: Int[Array, "B N"],
    column: Int[Array, ""] | int,
    padding: Int[Array, " B"],
    cache: Store,
    prefix: Prefix | None = None,
    *,
    last_only: bool = False,
) -> tuple[Float[Array, "B N V"], Store]:
    """Runs the decoder over the columns `column` … `column + N - 1` of the cache.

    Rows are padded on the left: row b begins at column `padding[b]`, at position `prefix.length`.

    Args:
      params: From `load_params`.
      config: The model's shape.
      tokens: New tokens; what stands on padding is ignored.
      column: The first column to fill.
      padding: Columns of padding in front of each row.
      cache: Keys and values of the columns before.
      prefix: What stands before column 0 of every row.
      last_only: Computes the logits of the last token alone.

    Returns:
      Logits in float32, [B, N, V] (or [B, 1, V]), and the cache with the new columns.
    """
    rows, new = tokens.shape
    columns = cache.keys[0].shape[2]
    kv, groups, width = config.num_kv_heads, config.groups, config.head_dim
    places = column + jnp.arange(new)
    positions = jnp.maximum(places[None] - padding[:, None], 0)
    if prefix is not None:
        positions = positions + prefix.length
    cos, sin = _rotation(config, positions)
    own = jnp.arange(columns)
    seen = (own >= padding[:, None, None]) & (own <= places[:, None])  # [B, N, T]
    hidden = params["embedding"][tokens]
    keys, values = list(cache.keys), list(cache.values)
    for number, layer in enumerate(params["layers"]):
        normed = _norm(hidden, layer["attention_norm"], config.norm_eps)
        qkv = jnp.einsum("bnd,dhgk->bnhgk", normed, layer["qkv"])
        if "qkv_bias" in layer:
            qkv = qkv + layer["qkv_bias"]
        turned = _rotate(qkv[..., : groups + 1, :], cos, sin)
        query, key = turned[..., :groups, :], turned[..., groups, :]
        keys[number] = _write(keys[number], key, column)
        values[number] = _write(values[number], qkv[..., groups + 1, :], column)
        # [B, KV, N·G, K]: one matrix product a key head.
        query = query.transpose(0, 2, 1, 3, 4).reshape(rows, kv, new * groups, width)
        query = query * (width**-0.5)
        pair = None
        if prefix is not None:
            pair = prefix.store.keys[number], prefix.store.values[number], prefix.length
        mixed = _attend(query, keys[number], values[number], jnp.repeat(seen, groups, 1), pair)
        mixed = mixed.reshape(rows, kv, new, groups, width).transpose(0, 2, 1, 3, 4)
        added = jnp.einsum("bnhgk,hgkd->bnd", mixed, layer["out"])
        if "out_bias" in layer:
            added = added + layer["out_bias"]
        hidden = hidden + added
        normed = _norm(hidden, layer["mlp_norm"], config.norm_eps)
        gate_up = jnp.einsum("bnd,dcf->bncf", normed, layer["gate_up"])
        inner = jax.nn.silu(gate_up[..., 0, :]) * gate_up[..., 1, :]
        hidden = hidden + inner @ layer["down"]
    if last_only:
        hidden = hidden[:, -1:]
    hidden = _norm(hidden, params["norm"], config.norm_eps)
    head = params["head"] if "head" in params else params["embedding"].T
    logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32)
    return logits, Store(tuple(keys), tuple(values))


def _attend(
    query: Float[Array, "B KV M K"],
    keys: Float[Array, "B KV T K"],
    values: Float[Array, "B KV T K"],
    seen: Array,
    prefix: tuple[Array, Array, Array] | None,
) -> Float[Array, "B KV M K"]:
    """Attention over the row's own cache and the shared prefix, as one softmax."""
    rows, kv, many, width = query.shape
    scores = jnp.einsum("bhmk,bhtk->bhmt", query, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(seen[:, None], scores, -jnp.inf)
    # A column of padding sees nothing; any finite maximum keeps it from being NaN.
    highest = jnp.maximum(scores.max(-1, keepdims=True), -1e30)
    if prefix is None:
        weights = jnp.exp(scores - highest)
        total = jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)
        return jnp.einsum("bhmt,bhtk->bhmk", (weights / total).astype(values.dtype), values)
    prefix_keys, prefix_values, length = prefix
    # The whole batch against one set of keys: one large product instead of B small ones.
    flat = query.transpose(1, 0, 2, 3).reshape(kv, rows * many, width)
    before = jnp.einsum("hmk,hpk->hmp", flat, prefix_keys, preferred_element_type=jnp.float32)
    before = jnp.where(jnp.arange(prefix_keys.shape[1]) < length, before, -jnp.inf)
    back = (kv, rows, many)
    top = jnp.maximum(highest[..., 0], before.max(-1).reshape(back).swapaxes(0, 1))[..., None]
    weights = jnp.exp(scores - top)
    early = jnp.exp(before - top.swapaxes(0, 1).reshape(kv, rows * many, 1))
    total = weights.sum(-1) + early.sum(-1).reshape(back).swapaxes(0, 1)
    mixed = jnp.einsum("bhmt,bhtk->bhmk", weights.astype(values.dtype), values)
    shared = jnp.einsum("hmp,hpk->hmk", early.astype(values.dtype), prefix_values)
    mixed = mixed + shared.reshape(*back, width).swapaxes(0, 1)
    return (mixed / total[..., None]).astype(values.dtype)


def _write(store: Array, new: Array, column: Any) -> Array:
    """Writes [B, N, KV, K] into the columns from `column` on."""
    return jax.lax.dynamic_update_slice(
        store, new.swapaxes(1, 2).astype(store.dtype), (0, 0, column, 0)
    )


def _rotation(config: DecoderConfig, positions: Array) -> tuple[Array, Array]:
    """Returns cos and sin [B, N, 1, 1, K], in float32."""
    angles = positions[..., None] * jnp.asarray(config.inverse_frequencies, jnp.float32)
    angles = jnp.concatenate([angles, angles], -1)[:, :, None, None]
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    first, second = jnp.split(x, 2, -1)
    turned = jnp.concatenate([-second, first], -1)
    return (x * cos + turned * sin).astype(x.dtype)


def _norm(x: Array, scale: Array, eps: float) -> Array:
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + eps)
    return wide.astype(x.dtype) * scale


def logits_of(
    params: Params, config: DecoderConfig, tokens: Int[Array, "B N"]
) -> Float[Array, "B N V"]:
    """Returns the logits of whole texts (no padding); what parity tests look at."""
    rows, length = tokens.shape
    cache = new_cache(config, rows, length, params["embedding"].dtype)
    return forward(params, config, tokens, 0, jnp.zeros(rows, jnp.int32), cache)[0]


def size_of(params: Mapping[str, Any]) -> int:
    """Returns the number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
