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
    Attention,
    causal_bias,
    mask_bias,
    padding_bias,
    segment_bias,
)
from sbs_jax.models.config import T5Config
from sbs_jax.models.dropout import Seeds, draw_seeds, dropout
from sbs_jax.models.layers import Kernel, Mlp, RMSNorm, project
from sbs_jax.models.relative_position import RelativePositionBias

KeysValues = tuple[Float[Array, "B H L K"], Float[Array, "B H L K"]]
Biases = Sequence[Float[Array, "#B #H #Q L"]]


@struct.dataclass
class EncoderMemory:
    """What decoding needs of the encoder, computed once per sequence.

    Attributes:
      keys_values: of every decoder layer's cross-attention, each [B, H, S, K].
      bias: masks padding, float32 [B, 1, 1, S].
    """

    keys_values: tuple[KeysValues, ...]
    bias: Float[Array, "B 1 1 S"]


@struct.dataclass
class DecoderCache:
    """What the decoder remembers of the tokens so far.

    Attributes:
      keys_values: of every layer's self-attention, each [B, H, T, K], 0 where still unwritten.
    """

    keys_values: tuple[KeysValues, ...]


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
        layer = _remat(EncoderLayer, config)
        self.layers = [layer(config) for _ in range(config.num_encoder_layers)]
        self.encoder_norm = RMSNorm(config)

    @property
    def num_seeds(self) -> int:
        """Places that drop, in this stack and its layers."""
        return 2 + self.config.num_encoder_layers * EncoderLayer.num_seeds

    def __call__(
        self, x: Float[Array, "B S D"], segment_ids: Int[Array, "B S"], seeds: Seeds
    ) -> Float[Array, "B S D"]:
        """Encodes embedded tokens."""
        first, last, *seeds = seeds
        biases = (segment_bias(segment_ids, segment_ids),)
        if not self.config.relative_attention_per_layer:
            biases = (self.relpos_bias(x.shape[1]), *biases)
        x = dropout(x, first, self.config)
        for layer, layer_seeds in zip(
            self.layers, _batched(seeds, EncoderLayer.num_seeds), strict=True
        ):
            x = layer(x, biases, layer_seeds)
        return dropout(self.encoder_norm(x), last, self.config)


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
        self, x: Float[Array, "B S D"], biases: Biases, seeds: Seeds
    ) -> Float[Array, "B S D"]:
        """Applies the layer."""
        if self.config.relative_attention_per_layer:
            biases = (self.relpos_bias(x.shape[1]), *biases)
        normed = self.pre_attention_layer_norm(x)
        attended = self.attention(normed, normed, biases, seeds[0])
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
        layer = _remat(DecoderLayer, config)
        self.layers = [layer(config) for _ in range(config.num_decoder_layers)]
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
    ) -> Float[Array, "B T D"]:
        """Decodes embedded tokens, all positions at once; see `Transformer.hidden`."""
        length = x.shape[1]
        if segment_ids is None:
            self_mask, cross_mask = causal_bias(length), padding_bias(encoder_segment_ids)
        else:
            self_mask = segment_bias(segment_ids, segment_ids, causal=True)
            sources = segment_ids if source_ids is None else source_ids
            cross_mask = segment_bias(sources, encoder_segment_ids)
        self_biases = (self_mask,)
        if not self.config.relative_attention_per_layer:
            self_biases = (self.relpos_bias(length), self_mask)
        first, last, *seeds = seeds
        x = dropout(x, first, self.config)
        for layer, layer_seeds in zip(
            self.layers, _batched(seeds, DecoderLayer.num_seeds), strict=True
        ):
            x = layer(x, encoded, self_biases, (cross_mask,), layer_seeds)
        return dropout(self.decoder_norm(x), last, self.config)

    def head(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """The untied output head, float32."""
        return project(hidden, self.logits_dense(), self.config, result_dtype="float32")

    def encoder_keys_values(self, encoded: Float[Array, "B S D"]) -> tuple[KeysValues, ...]:
        """Every layer's keys and values of the encoder's output."""
        return tuple(layer.encoder_keys_values(encoded) for layer in self.layers)

    def empty_cache(self, batch_size: int, length: int) -> DecoderCache:
        """A cache for `length` positions."""
        config = self.config
        zeros = nn.with_logical_constraint(
            jnp.zeros((batch_size, config.num_heads, length, config.head_dim), config.dtype),
            ("batch", "heads", "length", "kv"),
        )
        return DecoderCache(((zeros, zeros),) * config.num_decoder_layers)

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
        shared = None if per_layer else relative(self.relpos_bias)
        written = []
        for layer, cached, encoder_keys_values in zip(
            self.layers, cache.keys_values, memory.keys_values, strict=True
        ):
            biases = (relative(layer.relpos_bias) if per_layer else shared, mask)
            x, updated = layer.step(x, slot, cached, biases, encoder_keys_values, (memory.bias,))
            written.append(updated)
        return self.decoder_norm(x), DecoderCache(tuple(written))


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
        encoded: Float[Array, "B S D"],
        self_biases: Biases,
        cross_biases: Biases,
        seeds: Seeds,
    ) -> Float[Array, "B T D"]:
        """Applies the layer to all positions."""
        if self.config.relative_attention_per_layer:
            self_biases = (self.relpos_bias(x.shape[1]), *self_biases)
        normed = self.pre_self_attention_layer_norm(x)
        attended = self.self_attention(normed, normed, self_biases, seeds[0])
        x += dropout(attended, seeds[1], self.config)
        keys_values = self.encoder_keys_values(encoded)
        return self._attend_encoder(x, keys_values, cross_biases, seeds[2:])

    def encoder_keys_values(self, encoded: Float[Array, "B S D"]) -> KeysValues:
        """The keys and values of the encoder's output."""
        return self.encoder_decoder_attention.keys_values(encoded)

    def step(
        self,
        x: Float[Array, "B Q D"],
        slot: Int[Array, ""] | int,
        cached: KeysValues,
        self_biases: Biases,
        encoder_keys_values: KeysValues,
        cross_biases: Biases,
    ) -> tuple[Float[Array, "B Q D"], KeysValues]:
        """Applies the layer to new tokens, whose keys and values go into the cache from `slot`."""
        normed = self.pre_self_attention_layer_norm(x)
        keys, values = (
            lax.dynamic_update_slice_in_dim(old, new, slot, axis=2)
            for old, new in zip(cached, self.self_attention.keys_values(normed), strict=True)
        )
        x += self.self_attention.attend(normed, (keys, values), self_biases, None)
        seeds = draw_seeds(None, 4)
        x = self._attend_encoder(x, encoder_keys_values, cross_biases, seeds)
        return x, (keys, values)

    def _attend_encoder(
        self,
        x: Float[Array, "B T D"],
        encoder_keys_values: KeysValues,
        biases: Biases,
        seeds: Seeds,
    ) -> Float[Array, "B T D"]:
        """The blocks after self-attention."""
        normed = self.pre_cross_attention_layer_norm(x)
        # Decoding may have several rows for one encoded input. Here they are queries of one row,
        # so that the encoder's keys and values are neither repeated nor read more than once.
        inputs = encoder_keys_values[0].shape[0]
        attended = self.encoder_decoder_attention.attend(
            normed.reshape(inputs, -1, x.shape[-1]), encoder_keys_values, biases, seeds[0]
        ).reshape(x.shape)
        x += dropout(attended, seeds[1], self.config)
        mapped = self.mlp(self.pre_mlp_layer_norm(x), seeds[2])
        x += dropout(mapped, seeds[3], self.config)
        return nn.with_logical_constraint(x, ("batch", "length", "embed"))


def _batched(seeds: Seeds, size: int) -> list[Seeds]:
    return [seeds[start : start + size] for start in range(0, len(seeds), size)]


def _remat(layer: Any, config: T5Config) -> Any:
    """The layer's class, recomputing in the backward pass what `config.remat` says."""
    if config.remat == "none":
        return layer
    policy = None
    if config.remat == "minimal":
        policy = jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims
    return nn.remat(layer, policy=policy)
