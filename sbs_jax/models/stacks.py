"""The encoder's and the decoder's stack, their layers, and what decoding step by step keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sbs_jax.models.attention import (
    MASKED,
    Attention,
    causal_bias,
    mask_bias,
    padding_bias,
    segment_bias,
)
from sbs_jax.models.attention_rows import AttentionRows, BothRows, in_lines
from sbs_jax.models.config import T5Config
from sbs_jax.models.dropout import Seed, Seeds, draw_seeds, dropout
from sbs_jax.models.layers import Kernel, Mlp, RMSNorm, project
from sbs_jax.models.relative_position import RelativePositionBias

KeysValues = tuple[Float[Array, "B H L K"], Float[Array, "B H L K"]]
Source = KeysValues | Float[Array, "B S D"]
"""What cross-attention reads: keys and values of the encoder's output, or that output itself."""
Biases = Sequence[Float[Array, "#B #H #Q L"]]


@struct.dataclass
class EncoderMemory:
    """What decoding needs of the encoder, computed once per sequence.

    Attributes:
      keys_values: the keys and values of every decoder layer's cross-attention, each [B, H, S, K];
        or none.
      bias: masks padding, float32 [B, 1, 1, S].
      encoded: the encoder's output where there are no keys and values.
    """

    keys_values: tuple[KeysValues, ...]
    bias: Float[Array, "B 1 1 S"]
    encoded: Float[Array, "B S D"] | None = None

    def sources(self, layers: int) -> Sequence[Source]:
        """What the cross-attention of each layer reads."""
        return self.keys_values if self.encoded is None else (self.encoded,) * layers

    def widened(self, length: int) -> EncoderMemory:
        """Pads the encoded inputs to `length` tokens."""
        more = (0, length - self.bias.shape[-1])

        def pad(array: jax.Array) -> jax.Array:
            widths = (*[(0, 0)] * (array.ndim - 2), more, (0, 0))
            return jnp.pad(array, widths)

        return EncoderMemory(
            jax.tree.map(pad, self.keys_values),
            jnp.pad(self.bias, ((0, 0), (0, 0), (0, 0), more), constant_values=MASKED),
            jax.tree.map(pad, self.encoded),
        )

    @classmethod
    def spread(cls, heads: Any, rows: Any) -> EncoderMemory:
        """Puts `heads` in the place of keys and values, and `rows` in that of other arrays."""
        return cls(heads, rows, rows)


@struct.dataclass
class DecoderCache:
    """What decoding remembers of the tokens so far.

    Attributes:
      keys_values: the keys and values of every layer's self-attention, each [B, H, T, K] with H
        heads of keys, 0 where still unwritten.
    """

    keys_values: tuple[KeysValues, ...]

    @classmethod
    def empty(cls, layers: int, shape: tuple[int, int, int, int], dtype: Any) -> DecoderCache:
        """A cache of zeros, [B, H, T, K] in every layer."""
        zeros = nn.with_logical_constraint(
            jnp.zeros(shape, dtype), ("batch", "heads", "length", "kv")
        )
        return cls(((zeros, zeros),) * layers)

    @classmethod
    def spread(cls, heads: Any) -> DecoderCache:
        """Puts `heads` in the place of keys and values."""
        return cls(heads)


class Encoder(nn.Module):
    """The encoder's stack.

    Attributes:
      config: the network's.
    """

    config: T5Config

    def setup(self) -> None:
        """Creates the layers."""
        config = self.config
        if not config.relative_attention_per_layer:
            self.relpos_bias = RelativePositionBias(config, bidirectional=True)
        self.layers = _layers(EncoderLayer, config, config.num_encoder_layers, broadcast=2)
        self.encoder_norm = RMSNorm(config)

    @property
    def num_seeds(self) -> int:
        """Places that drop, in this stack and its layers."""
        return 2 + self.config.num_encoder_layers * EncoderLayer.num_seeds

    def __call__(
        self,
        x: Float[Array, "B S D"],
        segment_ids: Int[Array, "B S"],
        seeds: Seeds,
        rows: AttentionRows | None = None,
    ) -> Float[Array, "B S D"]:
        """Encodes embedded tokens; see `Transformer.hidden`."""
        first, last, *seeds = seeds
        by_kind = (segment_ids,) if rows is None else rows.spread(segment_ids)
        table = None if self.config.relative_attention_per_layer else self.relpos_bias
        biases = tuple(_with_positions(table, segment_bias(ids, ids)) for ids in by_kind)
        shape = x.shape
        if rows is not None:
            x = in_lines(x)
        x = dropout(x, first, self.config)
        x = _through(self.layers, x, _batched(seeds, EncoderLayer.num_seeds), biases, rows)
        return dropout(self.encoder_norm(x), last, self.config).reshape(shape)


class EncoderLayer(nn.Module):
    """Self-attention and MLP, each with norm before, dropout after, and a residual around.

    Attributes:
      config: the network's.
      num_seeds: places that drop.
    """

    config: T5Config
    num_seeds: ClassVar[int] = 4

    def setup(self) -> None:
        """Creates both blocks."""
        if self.config.relative_attention_per_layer:
            self.relpos_bias = RelativePositionBias(self.config, bidirectional=True)
        self.pre_attention_layer_norm = RMSNorm(self.config)
        self.attention = Attention(self.config)
        self.pre_mlp_layer_norm = RMSNorm(self.config)
        self.mlp = Mlp(self.config)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        seeds: Seeds,
        biases: Sequence[Biases],
        rows: AttentionRows | None,
    ) -> Float[Array, "B S D"]:
        """Applies the layer; there are biases for each kind of row."""
        if self.config.relative_attention_per_layer:
            biases = [_with_positions(self.relpos_bias, *own) for own in biases]
        normed = self.pre_attention_layer_norm(x)
        if rows is None:
            attended = self.attention(normed, normed, biases[0], seeds[0])
        else:
            attended = self.attention.in_rows(normed, normed, biases, seeds[0], rows, rows)
        x += dropout(attended, seeds[1], self.config)
        mapped = self.mlp(self.pre_mlp_layer_norm(x), seeds[2])
        x += dropout(mapped, seeds[3], self.config)
        return nn.with_logical_constraint(x, ("batch", "length", "embed"))


class Decoder(nn.Module):
    """The decoder's stack, and the head if it has one of its own.

    Attributes:
      config: the network's.
    """

    config: T5Config

    def setup(self) -> None:
        """Creates the layers."""
        config = self.config
        if not config.relative_attention_per_layer:
            self.relpos_bias = RelativePositionBias(config, bidirectional=False)
        self.layers = _layers(DecoderLayer, config, config.num_decoder_layers, broadcast=4)
        self.decoder_norm = RMSNorm(config)
        if not config.logits_via_embedding:
            init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
            if config.head_init_stddev is not None:
                init = nn.initializers.normal(config.head_init_stddev)
            shape = (config.emb_dim, config.vocab_size)
            self.logits_dense = Kernel(shape, ("embed", "vocab"), init)

    @property
    def num_seeds(self) -> int:
        """Places that drop, in this stack and its layers."""
        return 2 + self.config.num_decoder_layers * DecoderLayer.num_seeds

    def __call__(
        self,
        x: Float[Array, "B T D"],
        encoded: Float[Array, "B S D"],
        encoder_segment_ids: Int[Array, "B S"],
        segment_ids: Int[Array, "B T"] | None,
        seeds: Seeds,
        source_ids: Int[Array, "B T"] | None = None,
        rows: BothRows | None = None,
    ) -> Float[Array, "B T D"]:
        """Decodes embedded tokens, all positions at once; see `Transformer.hidden`."""
        if segment_ids is None:
            self_masks: tuple[Array, ...] = (causal_bias(x.shape[1]),)
            cross_masks: tuple[Array, ...] = (padding_bias(encoder_segment_ids),)
        else:
            source_ids = segment_ids if source_ids is None else source_ids
            ids = (encoder_segment_ids, segment_ids, source_ids)
            by_kind = [ids] if rows is None else rows.spread(*ids)
            self_masks = tuple(segment_bias(own, own, causal=True) for _, own, _ in by_kind)
            cross_masks = tuple(segment_bias(source, inputs) for inputs, _, source in by_kind)
        table = None if self.config.relative_attention_per_layer else self.relpos_bias
        self_biases = tuple(_with_positions(table, mask) for mask in self_masks)
        cross_biases = tuple((mask,) for mask in cross_masks)
        first, last, *seeds = seeds
        shape = x.shape
        if rows is not None:
            x = in_lines(x)
        x = dropout(x, first, self.config)
        layer_seeds = _batched(seeds, DecoderLayer.num_seeds)
        x = _through(self.layers, x, layer_seeds, encoded, self_biases, cross_biases, rows)
        return dropout(self.decoder_norm(x), last, self.config).reshape(shape)

    def head(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """The untied output head, float32."""
        return project(hidden, self.logits_dense(), self.config, result_dtype="float32")

    def encoder_keys_values(self, encoded: Float[Array, "B S D"]) -> tuple[KeysValues, ...]:
        """Every layer's keys and values of the encoder's output."""
        return tuple(layer.encoder_keys_values(encoded) for layer in self._each_layer())

    def empty_cache(self, batch_size: int, length: int) -> DecoderCache:
        """A cache for `length` positions."""
        config = self.config
        shape = (batch_size, config.num_heads, length, config.head_dim)
        return DecoderCache.empty(config.num_decoder_layers, shape, config.dtype)

    def step(
        self,
        x: Float[Array, "B 1 D"],
        position: Int[Array, ""],
        memory: EncoderMemory,
        cache: DecoderCache,
    ) -> tuple[Float[Array, "B 1 D"], DecoderCache]:
        """Decodes the embedded token at `position`; see `Transformer.decode_step`."""
        length = cache.keys_values[0][0].shape[2]
        seen = mask_bias(jnp.arange(length) <= position)[None, None, None, :]
        return self._advance(
            x, position, lambda table: table.at_step(position, length), seen, memory, cache
        )

    def extend(
        self,
        x: Float[Array, "B Q D"],
        slot: Int[Array, ""] | int,
        query_positions: Int[Array, "#B #Q"],
        key_positions: Int[Array, "#B L"],
        visible: Bool[Array, "#B #Q L"],
        memory: EncoderMemory,
        cache: DecoderCache,
    ) -> tuple[Float[Array, "B Q D"], DecoderCache]:
        """Decodes embedded tokens that need not follow one another; see `Transformer.extend`."""
        length = cache.keys_values[0][0].shape[2]
        return self._advance(
            x,
            slot,
            lambda table: table.between(query_positions, key_positions, length),
            mask_bias(visible)[:, None],
            memory,
            cache,
        )

    def _advance(
        self,
        x: Float[Array, "B Q D"],
        slot: Int[Array, ""] | int,
        relative: Callable[[RelativePositionBias], Float[Array, "#B H Q L"]],
        mask: Float[Array, "#B 1 #Q L"],
        memory: EncoderMemory,
        cache: DecoderCache,
    ) -> tuple[Float[Array, "B Q D"], DecoderCache]:
        per_layer = self.config.relative_attention_per_layer
        shared = () if per_layer else (relative(self.relpos_bias),)
        written = []
        sources = memory.sources(len(cache.keys_values))
        for layer, cached, source in zip(
            self._each_layer(), cache.keys_values, sources, strict=True
        ):
            own = (relative(layer.relpos_bias),) if per_layer else shared
            biases = (*own, mask)
            x, updated = layer.step(x, slot, cached, biases, source, (memory.bias,))
            written.append(updated)
        return self.decoder_norm(x), DecoderCache(tuple(written))

    def _each_layer(self) -> Sequence[DecoderLayer]:
        """The layers one by one; of stacked parameters each gets its own part."""
        if not self.config.scan_layers:
            return self.layers
        stacked = self.layers.variables["params"]
        return [
            DecoderLayer(self.config, parent=None).bind(
                {"params": jax.tree.map(lambda leaf, index=index: leaf[index], stacked)}
            )
            for index in range(self.config.num_decoder_layers)
        ]


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and MLP, each as in `EncoderLayer`.

    Attributes:
      config: the network's.
      num_seeds: places that drop.
    """

    config: T5Config
    num_seeds: ClassVar[int] = 6

    def setup(self) -> None:
        """Creates the three blocks."""
        if self.config.relative_attention_per_layer:
            self.relpos_bias = RelativePositionBias(self.config, bidirectional=False)
        self.pre_self_attention_layer_norm = RMSNorm(self.config)
        self.self_attention = Attention(self.config)
        self.pre_cross_attention_layer_norm = RMSNorm(self.config)
        self.encoder_decoder_attention = Attention(self.config)
        self.pre_mlp_layer_norm = RMSNorm(self.config)
        self.mlp = Mlp(self.config)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seeds: Seeds,
        encoded: Float[Array, "B S D"],
        self_biases: Sequence[Biases],
        cross_biases: Sequence[Biases],
        rows: BothRows | None,
    ) -> Float[Array, "B T D"]:
        """Applies the layer to all positions; biases as in `EncoderLayer`."""
        if self.config.relative_attention_per_layer:
            self_biases = [_with_positions(self.relpos_bias, *own) for own in self_biases]
        normed = self.pre_self_attention_layer_norm(x)
        if rows is None:
            attended = self.self_attention(normed, normed, self_biases[0], seeds[0])
        else:
            own = rows.targets
            attended = self.self_attention.in_rows(normed, normed, self_biases, seeds[0], own, own)
        x += dropout(attended, seeds[1], self.config)
        normed = self.pre_cross_attention_layer_norm(x)
        if rows is None:
            keys_values = self.encoder_keys_values(encoded)
            attended = self._attend_encoder(normed, keys_values, cross_biases[0], seeds[2])
        else:
            attended = self.encoder_decoder_attention.in_rows(
                normed, encoded, cross_biases, seeds[2], rows.targets, rows.inputs
            )
        return self._map(x, attended, seeds[3:])

    def encoder_keys_values(self, encoded: Float[Array, "B S D"]) -> KeysValues:
        """The keys and values of the encoder's output."""
        return self.encoder_decoder_attention.keys_values(encoded)

    def step(
        self,
        x: Float[Array, "B Q D"],
        slot: Int[Array, ""] | int,
        cached: KeysValues,
        self_biases: Biases,
        source: Source,
        cross_biases: Biases,
    ) -> tuple[Float[Array, "B Q D"], KeysValues]:
        """Applies the layer to new tokens, whose keys and values go into the cache from `slot`."""
        normed = self.pre_self_attention_layer_norm(x)
        keys, values = (
            lax.dynamic_update_slice_in_dim(old, new, slot, axis=2)
            for old, new in zip(cached, self.self_attention.keys_values(normed), strict=True)
        )
        x += self.self_attention.attend(normed, (keys, values), self_biases, None)
        normed = self.pre_cross_attention_layer_norm(x)
        attended = self._attend_encoder(normed, source, cross_biases, None)
        return self._map(x, attended, draw_seeds(None, 3)), (keys, values)

    def _attend_encoder(
        self,
        normed: Float[Array, "B T D"],
        source: Source,
        biases: Biases,
        seed: Seed | None,
    ) -> Float[Array, "B T D"]:
        """Cross-attention; drops nothing where it reads the encoder's output itself."""
        attention = self.encoder_decoder_attention
        # Decoding may have several rows for one encoded input. Here they are queries of one row,
        # so that what is read of the encoder is neither repeated nor read more than once.
        queries = normed.reshape(jax.tree.leaves(source)[0].shape[0], -1, normed.shape[-1])
        if isinstance(source, tuple):
            attended = attention.attend(queries, source, biases, seed)
        else:
            attended = attention.attend_encoded(queries, source, biases)
        return attended.reshape(normed.shape)

    def _map(
        self, x: Float[Array, "B T D"], attended: Float[Array, "B T D"], seeds: Seeds
    ) -> Float[Array, "B T D"]:
        """What comes after cross-attention."""
        x += dropout(attended, seeds[0], self.config)
        mapped = self.mlp(self.pre_mlp_layer_norm(x), seeds[1])
        x += dropout(mapped, seeds[2], self.config)
        return nn.with_logical_constraint(x, ("batch", "length", "embed"))


def _with_positions(table: RelativePositionBias | None, mask: Float[Array, "#B 1 Q L"]) -> Biases:
    """A mask, behind the biases of a table if there is one."""
    return (mask,) if table is None else (table(mask.shape[-1]), mask)


def _batched(seeds: Seeds, size: int) -> list[Seeds]:
    return [seeds[start : start + size] for start in range(0, len(seeds), size)]


def _layers(layer: Any, config: T5Config, count: int, broadcast: int) -> Any:
    """The layers of a stack: a list, or with `scan_layers` one module around stacked parameters.

    Args:
      layer: the class of the layers.
      config: the config of the network.
      count: the number of layers.
      broadcast: how many arguments of a layer are the same for all, after `x` and its seeds.
    """
    if not config.scan_layers:
        layer = _remat(layer, config)
        return [layer(config) for _ in range(count)]
    scanned = nn.scan(
        _remat(_carrying(layer), config),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, *[nn.broadcast] * broadcast),
        length=count,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned(config)


def _carrying(layer: Any) -> Any:
    """The layer's class as `nn.scan` wants it: what goes on, and nothing to be collected."""

    class Carrying(layer):
        def __call__(self, x: Float[Array, "B L D"], *arguments: Any) -> tuple[Any, None]:
            return super().__call__(x, *arguments), None

    return Carrying


def _through(layers: Any, x: Float[Array, "B L D"], seeds: list[Seeds], *shared: Any) -> Any:
    """Applies all layers, each with its own seeds."""
    if isinstance(layers, nn.Module):
        dropped = [[seed for seed in one if seed is not None] for one in seeds]
        stacked = jnp.stack([jnp.stack(one) for one in dropped]) if dropped[0] else seeds[0]
        return layers(x, stacked, *shared)[0]
    for layer, own in zip(layers, seeds, strict=True):
        x = layer(x, own, *shared)
    return x


# What a layer keeps for its gradient, by the names of `T5Config.remat`; None keeps everything.
KEPT: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_saveable,
    "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def _remat(layer: Any, config: T5Config) -> Any:
    """The layer's class, recomputing in the backward pass what `config.remat` says."""
    policy = KEPT[config.remat]
    if policy is None:
        return layer
    # Around the body of a loop, nothing has to keep XLA from undoing it.
    return nn.remat(layer, policy=policy, prevent_cse=not config.scan_layers)
