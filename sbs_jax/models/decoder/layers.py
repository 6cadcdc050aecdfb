"""What a decoder's layer is made of: projections, norms, the embedding, attention, the MLP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int

from sbs_jax.models.attention_rows import AttentionRows
from sbs_jax.models.decoder.config import LayerConfig
from sbs_jax.models.decoder.rotary import Rotation, rotate
from sbs_jax.models.drawing import Initializer, parameter
from sbs_jax.models.dropout import Seed, dropout, seed_of_kind
from sbs_jax.models.layers import (
    ACTIVATION_FUNCTIONS,
    multiply,
    project,
    with_adapter,
)

KeysValues = tuple[Float[Array, "B KV L K"], Float[Array, "B KV L K"]]

_FEW_QUERIES = 64
_INIT_STDDEV = 0.02
"""The deviation of fresh kernels and embeddings: transformers' `initializer_range`."""


def wide_dtype(config: LayerConfig) -> jnp.dtype:
    """Returns the dtype of norms, softmax and logits: float32, or float64 in numerical tests."""
    return jnp.promote_types(jnp.float32, config.dtype)


class Dense(nn.Module):
    """A projection of the last axis, `NAME/kernel` and perhaps `NAME/bias`.

    Attributes:
      config: the network's.
      features: (input width, output width).
      axes: the logical names of both axes.
      use_bias: whether a bias is added.
      result_dtype: the result dtype of the result; None is the activations' dtype.
    """

    config: LayerConfig
    features: tuple[int, int]
    axes: tuple[str, str]
    use_bias: bool = False
    result_dtype: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*B inputs"]) -> Float[Array, "*B outputs"]:
        """Projects."""
        kernel = parameter(self, "kernel", _normal(), self.axes, self.features)
        matrix = with_adapter(self, kernel, self.axes, self.config)
        product = project(x, matrix, self.config, result_dtype=self.result_dtype)
        if self.use_bias:
            zeros = nn.initializers.zeros
            bias = parameter(self, "bias", zeros, self.axes[1:], self.features[1:])
            product += jnp.expand_dims(bias.astype(product.dtype), range(product.ndim - 1))
        return product


class RMSNorm(nn.Module):
    """Divides by the root mean square of the last axis, then scales by a weight (or 1 + weight).

    Attributes:
      config: the network's.
      axis: the logical name of the axis.
    """

    config: LayerConfig
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Normalises in float32; the result has the activations' dtype."""
        config = self.config
        ones = nn.initializers.zeros if config.norm_adds_one else nn.initializers.ones
        scale = parameter(self, "scale", ones, (self.axis,), (x.shape[-1],))
        scale = jnp.expand_dims(scale, range(x.ndim - 1))
        wide = x.astype(wide_dtype(config))
        mean_square = jnp.mean(lax.square(wide), axis=-1, keepdims=True)
        normed = wide * lax.rsqrt(mean_square + config.layer_norm_epsilon)
        if config.norm_adds_one:  # Gemma rounds after it scales, Llama before.
            return (normed * (1.0 + scale.astype(wide.dtype))).astype(config.dtype)
        return normed.astype(config.dtype) * scale.astype(config.dtype)


class Embedder(nn.Module):
    """The embedding table [V, D], which may be the output head as well.

    Attributes:
      config: the network's.
    """

    config: LayerConfig

    def setup(self) -> None:
        """Creates the table."""
        shape = (self.config.vocab_size, self.config.emb_dim)
        self.embedding = parameter(self, "embedding", _normal(), ("vocab", "embed"), shape)

    def __call__(self, tokens: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        """Looks tokens up, in the activations' dtype. An id outside [0, V) gives NaN, not noise."""
        config = self.config
        if config.embedding_lookup == "gather":
            found = jnp.take(self.embedding, tokens, axis=0).astype(config.dtype)
        else:
            one_hot = jax.nn.one_hot(tokens, config.vocab_size, dtype=config.dtype)
            found = project(one_hot, self.embedding, config)
        if config.scale_embeddings:
            found *= jnp.asarray(config.embedding_scale, found.dtype)
        return found

    def attend(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """The dot product with every embedding, float32: the tied output head."""
        wide = str(wide_dtype(self.config))
        return project(hidden, self.embedding.T, self.config, result_dtype=wide)


class Keys(NamedTuple):
    """Keys and values that queries may attend to.

    Attributes:
      keys: [B, KV, L, K], rotated. The R rows of queries are a multiple of B; rows that share the
        same keys are neighbours.
      values: like `keys`.
      bias: added to the attention logits, float32, broadcastable to [R, Q, L].
    """

    keys: Float[Array, "B KV L K"]
    values: Float[Array, "B KV L K"]
    bias: Float[Array, "#R #Q L"]


def joined(first: Keys, second: Keys) -> Keys:
    """Puts keys behind one another, for one softmax over both; they are of the same rows."""
    rows, queries = jnp.broadcast_shapes(first.bias.shape[:2], second.bias.shape[:2])
    biases = (
        jnp.broadcast_to(bias, (rows, queries, bias.shape[-1]))
        for bias in (first.bias, second.bias)
    )
    return Keys(
        jnp.concatenate([first.keys, second.keys], axis=2),
        jnp.concatenate([first.values, second.values], axis=2),
        jnp.concatenate(list(biases), axis=2),
    )


class Attention(nn.Module):
    """Grouped-query attention with rotary positions.

    Attributes:
      config: the network's.
    """

    config: LayerConfig

    def setup(self) -> None:
        """Creates the projections."""
        config = self.config
        queries = config.num_heads * config.head_dim
        shared = config.num_kv_heads * config.head_dim
        axes, bias = ("embed", "joined_kv"), config.attention_bias
        self.query = Dense(config, (config.emb_dim, queries), axes, bias)
        self.key = Dense(config, (config.emb_dim, shared), axes, bias)
        self.value = Dense(config, (config.emb_dim, shared), axes, bias)
        self.out = Dense(
            config, (queries, config.emb_dim), ("joined_kv", "embed"), config.attention_out_bias
        )
        if config.qk_norm:
            self.query_norm = RMSNorm(config, "kv")
            self.key_norm = RMSNorm(config, "kv")

    def queries_keys_values(
        self, x: Float[Array, "B Q D"], by: Rotation
    ) -> tuple[Float[Array, "B H Q K"], Float[Array, "B KV Q K"], Float[Array, "B KV Q K"]]:
        """Projects and rotates queries and keys, and projects values."""
        key, value = self.keys_values(x)
        return self._rotated_query(self.query(x), by), rotate(key, by), value

    def _rotated_query(self, x: Float[Array, "B Q NK"], by: Rotation) -> Float[Array, "B H Q K"]:
        """Splits projected queries into heads, and rotates and scales these."""
        config = self.config
        query = self._heads(x, config.num_heads)
        if config.qk_norm:
            query = self.query_norm(query)
        return rotate(query, by) * jnp.asarray(config.attention_scale, query.dtype)

    def keys_values(self, x: Float[Array, "B L D"]) -> KeysValues:
        """Projects keys, which are not rotated yet, and values."""
        return self._split_keys(self.key(x)), self._heads(self.value(x), self.config.num_kv_heads)

    def _split_keys(self, x: Float[Array, "B L NK"]) -> Float[Array, "B KV L K"]:
        """Splits projected keys into heads."""
        key = self._heads(x, self.config.num_kv_heads)
        return self.key_norm(key) if self.config.qk_norm else key

    def in_rows(
        self,
        x: Float[Array, "M W D"],
        rotations: Sequence[Rotation],
        biases: Sequence[Float[Array, "#B #L L"]],
        rows: AttentionRows,
        seed: Seed | None,
    ) -> Float[Array, "M W D"]:
        """Attends within the rows of a padding-free batch, and projects the result.

        Args:
          x: groups of tokens, in any two leading axes.
          rotations: those of each kind of row.
          biases: added to the logits in each kind of row.
          rows: where the tokens lie.
          seed: drops attention weights.
        """
        queries, keys, values = (rows.spread(of(x)) for of in (self.query, self.key, self.value))
        mixed = []
        for kind, (by, bias) in enumerate(zip(rotations, biases, strict=True)):
            query = self._rotated_query(queries[kind], by)
            key = rotate(self._split_keys(keys[kind]), by)
            value = self._heads(values[kind], self.config.num_kv_heads)
            source = Keys(key, value, bias)
            mixed.append(self._mix(query, (source,), seed_of_kind(seed, kind)))
        return self.out(rows.gather(mixed)).reshape(x.shape)

    def attend(
        self, query: Float[Array, "R H Q K"], sources: Sequence[Keys], seed: Seed | None
    ) -> Float[Array, "R Q D"]:
        """Attends to all `sources` in one softmax, and projects the result.

        Args:
          query: rotated and scaled.
          sources: one in training; what a decoder remembers of its input and of its output while
            it decodes.
          seed: drops attention weights; used with one source only.
        """
        return self.out(self._mix(query, sources, seed))

    def _mix(
        self, query: Float[Array, "R H Q K"], sources: Sequence[Keys], seed: Seed | None
    ) -> Float[Array, "R Q HK"]:
        """The values, mixed; heads side by side."""
        config = self.config
        rows, _, length, width = query.shape
        query = query.reshape(rows, config.num_kv_heads, config.groups, length, width)
        wide = wide_dtype(config) if config.float32_attention_logits else config.dtype
        if len(sources) == 1:
            by_head = _goes_by_head(config, query, sources[0], seed)
            mixed = (
                _attend_by_head(config, query, sources[0])
                if by_head
                else _attend_once(config, query, sources[0], seed)
            )
        else:
            # One softmax over parts that are never joined in memory.
            logits = [_logits(config, query, source) for source in sources]
            highest = jnp.max(jnp.stack([part.max(-1, keepdims=True) for part in logits]), axis=0)
            parts = [jnp.exp(part - highest) for part in logits]
            total = sum(part.sum(-1, keepdims=True) for part in parts)
            summed = sum(
                _products("rhgql,rhlk->rhgqk", part.astype(config.dtype), source.values, wide)
                for part, source in zip(parts, sources, strict=True)
            )
            mixed = jnp.asarray(summed / total, config.dtype)
        mixed = mixed.reshape(rows, config.num_heads, length, width).swapaxes(1, 2)
        return mixed.reshape(rows, length, -1)

    def _heads(self, x: Float[Array, "B L NK"], count: int) -> Float[Array, "B N L K"]:
        heads = x.reshape(*x.shape[:-1], count, self.config.head_dim).swapaxes(1, 2)
        return nn.with_logical_constraint(heads, ("batch", "heads", "length", "kv"))


def capped(logits: Float[Array, "*B"], cap: float | None) -> Float[Array, "*B"]:
    """Keeps logits between ± cap: cap · tanh(logits / cap); None does not cap them."""
    if cap is None:
        return logits
    limit = jnp.asarray(cap, logits.dtype)
    return limit * jnp.tanh(logits / limit)


def _logits(
    config: LayerConfig, query: Float[Array, "R KV G Q K"], source: Keys
) -> Float[Array, "R KV G Q L"]:
    """The masked attention logits of queries, in the dtype of the softmax."""
    wide = wide_dtype(config) if config.float32_attention_logits else config.dtype
    logits = _products("rhgqk,rhlk->rhgql", query, source.keys, wide)
    logits = capped(logits, config.attention_softcap)
    bias, rows = source.bias, query.shape[0]
    if bias.shape[0] not in (1, rows):
        bias = jnp.repeat(bias, rows // bias.shape[0], axis=0)
    return logits + bias[:, None, None].astype(logits.dtype)


def _attend_once(
    config: LayerConfig, query: Float[Array, "R KV G Q K"], source: Keys, seed: Seed | None
) -> Float[Array, "R KV G Q K"]:
    """Attends to one source, the logits of all heads at once."""
    weights = jax.nn.softmax(_logits(config, query, source), axis=-1).astype(config.dtype)
    weights = dropout(weights, seed, config)
    return _products("rhgql,rhlk->rhgqk", weights, source.values, config.dtype)


def _goes_by_head(
    config: LayerConfig, query: Float[Array, "R KV G Q K"], source: Keys, seed: Seed | None
) -> bool:
    """Whether queries attend head by head: where the config says so, and that is worth a loop."""
    rows, length = query.shape[0], query.shape[3]
    drops = seed is not None and config.dropout_rate > 0
    plain = source.keys.shape[0] == rows and source.bias.shape[0] in (1, rows)
    return config.attention == "by_head" and plain and not drops and length >= _FEW_QUERIES


def _attend_by_head(
    config: LayerConfig, query: Float[Array, "R KV G Q K"], source: Keys
) -> Float[Array, "R KV G Q K"]:
    """Attends head by head, whose logits are computed again for the gradient.

    The logits of one head stay in the cache of a CPU's core; those of all go through its memory
    several times, there and back.
    """
    rows, kv_heads, groups, length, width = query.shape

    def group(own: tuple[Array, Array, Array, Array]) -> Float[Array, "G Q K"]:
        row, queries, keys, values = own
        place = row if source.bias.shape[0] == rows else 0
        bias = lax.dynamic_index_in_dim(source.bias, place, keepdims=True)
        shared = Keys(keys[None, None], values[None, None], bias)

        def head(one: Float[Array, "Q K"]) -> Float[Array, "Q K"]:
            return _attend_once(config, one[None, None, None], shared, None)[0, 0, 0]

        return lax.map(jax.checkpoint(head), queries)

    joined = rows * kv_heads
    mixed = lax.map(
        group,
        (
            jnp.arange(joined) // kv_heads,
            query.reshape(joined, groups, length, width),
            source.keys.reshape(joined, -1, width),
            source.values.reshape(joined, -1, width),
        ),
    )
    return mixed.reshape(query.shape)


def _products(spec: str, left: Array, right: Array, dtype: jnp.dtype | str) -> Array:
    """An einsum over rows r, whose right side may have fewer: each then serves several rows."""
    rows, sources = left.shape[0], right.shape[0]
    if rows == sources:
        return multiply(spec, left, right, str(dtype))
    # The queries of all rows against one set of keys: one large product instead of many small.
    grouped = left.reshape(sources, rows // sources, *left.shape[1:])
    operands, result = spec.split("->")
    first, second = operands.split(",")
    spec = f"s{first},s{second[1:]}->s{result}"
    product = multiply(spec, grouped, right, str(dtype))
    return product.reshape(rows, *product.shape[2:])


class Mlp(nn.Module):
    """The gated feed-forward block.

    Attributes:
      config: the network's.
    """

    config: LayerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"], seed: Seed | None) -> Float[Array, "B L D"]:
        """Applies it, without norm and residual; `seed` drops hidden units."""
        config = self.config
        inward = (config.emb_dim, config.mlp_dim), ("embed", "mlp")
        gate, up = (
            ACTIVATION_FUNCTIONS[name](Dense(config, *inward, name=f"wi_{index}")(x))
            for index, name in enumerate(config.mlp_activations)
        )
        hidden = dropout(gate * up, seed, config)
        hidden = nn.with_logical_constraint(hidden, ("batch", "length", "mlp"))
        return Dense(config, (config.mlp_dim, config.emb_dim), ("mlp", "embed"), name="wo")(hidden)


def _normal() -> Initializer:
    return nn.initializers.normal(_INIT_STDDEV)
