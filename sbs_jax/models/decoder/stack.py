"""The layers of a decoder-only network, and what decoding step by step keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sbs_jax.models.attention import MASKED, mask_bias
from sbs_jax.models.attention_rows import AttentionRows, in_lines
from sbs_jax.models.decoder.config import DecoderConfig, LayerConfig
from sbs_jax.models.decoder.layers import (
    Attention,
    Dense,
    Keys,
    KeysValues,
    Mlp,
    RMSNorm,
    joined,
    wide_dtype,
)
from sbs_jax.models.decoder.rotary import Rotation, rotation
from sbs_jax.models.decoder.rows import Places
from sbs_jax.models.dropout import Seeds, draw_seeds, dropout
from sbs_jax.models.stacks import KEPT, DecoderCache

LAYER_SEEDS = 4
"""Places of a layer that drop."""


@struct.dataclass
class Memory:
    """What decoding needs of the texts that come first, computed once per text.

    Attributes:
      keys_values: the keys values of every layer, each [B, KV, S, K].
      bias: masks padding and the last token, which comes again as the start token; float32
        [B, 1, S].
      positions: int32 [B, S], of each token within its text.
      lengths: int32 [B], tokens of each text.
      start: [B, D], the embedding of each text's last token.
    """

    keys_values: tuple[KeysValues, ...]
    bias: Float[Array, "B 1 S"]
    positions: Int[Array, "B S"]
    lengths: Int[Array, " B"]
    start: Float[Array, "B D"]

    def widened(self, length: int) -> Memory:
        """Pads the texts to `length` tokens."""
        more = (0, length - self.bias.shape[-1])
        widths = ((0, 0), (0, 0), more, (0, 0))
        return dataclasses.replace(
            self,
            keys_values=jax.tree.map(lambda array: jnp.pad(array, widths), self.keys_values),
            bias=jnp.pad(self.bias, ((0, 0), (0, 0), more), constant_values=MASKED),
            positions=jnp.pad(self.positions, ((0, 0), more)),
        )

    @classmethod
    def spread(cls, heads: Any, rows: Any) -> Memory:
        """Puts `heads` in the place of keys and values, and `rows` in that of other arrays."""
        return cls(heads, rows, rows, rows, rows)


def extend_by_one(
    network: Any,
    tokens: Int[Array, " B"],
    position: Int[Array, ""],
    memory: Any,
    cache: DecoderCache,
) -> tuple[Float[Array, "B V"], DecoderCache]:
    """A network's `decode_step`, by its `extend`: every row is at the same position."""
    slots = jnp.arange(cache.keys_values[0][0].shape[2])[None]
    hidden, cache = network.extend(
        tokens[:, None],
        position,
        jnp.reshape(position, (1, 1)),
        slots,
        (slots <= position)[:, None],
        memory,
        cache,
    )
    return network.logits(hidden[:, 0]), cache


class View(NamedTuple):
    """What the layers of one kind, local or global, see.

    Attributes:
      rotation: the rotation of the tokens that go through the layers.
      bias: the bias of the keys written with them or before, broadcastable to [R, Q, L].
      memory: the bias of the keys that are remembered; None without a memory.
    """

    rotation: Rotation
    bias: Float[Array, "#R #Q L"]
    memory: Float[Array, "#R #Q S"] | None


class Stack(nn.Module):
    """The layers, the last norm, and the head if it has a table of its own.

    Attributes:
      config: the network's.
    """

    config: DecoderConfig

    def setup(self) -> None:
        """Creates the layers."""
        config = self.config
        layer = with_remat(Layer, config)
        self.layers = [layer(config) for _ in range(config.num_layers)]
        self.decoder_norm = RMSNorm(config)
        if not config.logits_via_embedding:
            features = (config.emb_dim, config.vocab_size)
            wide = str(wide_dtype(config))
            self.logits_dense = Dense(config, features, ("embed", "vocab"), result_dtype=wide)

    @property
    def num_seeds(self) -> int:
        """Places that drop, in this stack and its layers."""
        return 2 + self.config.num_layers * LAYER_SEEDS

    def __call__(
        self,
        x: Float[Array, "B L D"],
        positions: Int[Array, "B L"],
        visible: Bool[Array, "B L L"],
        seeds: Seeds,
    ) -> Float[Array, "B L D"]:
        """Runs embedded tokens through all layers; each sees the keys that `visible` says."""
        views = self._views(positions, positions, visible, None)
        first, last, *seeds = seeds
        x = dropout(x, first, self.config)
        for number, layer in enumerate(self.layers):
            x = layer(x, views[self.config.is_local(number)], seeds_of(number, seeds))
        return dropout(self.decoder_norm(x), last, self.config)

    def in_rows(
        self,
        x: Float[Array, "G N D"],
        places: Sequence[Places],
        rows: AttentionRows,
        seeds: Seeds,
    ) -> Float[Array, "G N D"]:
        """Runs the tokens of a padding-free batch through all layers.

        Args:
          x: embedded tokens.
          places: where the tokens of the rows of each kind belong.
          rows: where the tokens attend.
          seeds: those of all places that drop.
        """
        views = [self._views(own.positions, own.positions, own.visible(), None) for own in places]
        first, last, *seeds = seeds
        shape = x.shape
        x = dropout(in_lines(x), first, self.config)
        for number, layer in enumerate(self.layers):
            local = self.config.is_local(number)
            by_kind = [view[local] for view in views]
            x = layer(x, None, seeds_of(number, seeds), in_rows=(rows, by_kind))
        return dropout(self.decoder_norm(x), last, self.config).reshape(shape)

    def head(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """The untied output head, float32."""
        return self.logits_dense(hidden)

    def read(
        self,
        x: Float[Array, "B L D"],
        positions: Int[Array, "B L"],
        visible: Bool[Array, "B L L"],
    ) -> tuple[KeysValues, ...]:
        """Every layer's keys and values of whole texts."""
        views = self._views(positions, positions, visible, None)
        written = []
        for number, layer in enumerate(self.layers):
            x, keys_values = layer.step(x, views[self.config.is_local(number)], None, 0, None)
            written.append(keys_values)
        return tuple(written)

    def empty_cache(self, rows: int, length: int) -> DecoderCache:
        """A cache for `length` slots."""
        config = self.config
        shape = (rows, config.num_kv_heads, length, config.head_dim)
        return DecoderCache.empty(config.num_layers, shape, config.dtype)

    def extend(
        self,
        x: Float[Array, "R Q D"],
        slot: Int[Array, ""] | int,
        positions: Int[Array, "#R #Q"],
        key_positions: Int[Array, "#R L"],
        visible: Bool[Array, "#R #Q L"],
        memory: Memory | None,
        cache: DecoderCache,
    ) -> tuple[Float[Array, "R Q D"], DecoderCache]:
        """Runs new tokens, whose keys and values go into the cache from `slot`.

        Args:
          x: embedded tokens.
          slot: where the cache takes them.
          positions: the positions of the tokens, counted from the beginning of their whole text.
          key_positions: the same of what every slot of the cache holds.
          visible: the slots that each token sees.
          memory: what all tokens of a row may see besides; None for nothing.
          cache: the cache of L slots.
        """
        views = self._views(positions, key_positions, visible, memory)
        written = []
        for number, layer in enumerate(self.layers):
            remembered = None if memory is None else memory.keys_values[number]
            view = views[self.config.is_local(number)]
            x, updated = layer.step(x, view, cache.keys_values[number], slot, remembered)
            written.append(updated)
        return self.decoder_norm(x), DecoderCache(tuple(written))

    def _views(
        self,
        positions: Int[Array, "#R Q"],
        key_positions: Int[Array, "#R L"],
        visible: Bool[Array, "#R #Q L"],
        memory: Memory | None,
    ) -> dict[bool, View]:
        """The views of global (False) and local (True) layers, as far as there are any."""
        config = self.config
        views = {}
        for local in kinds(config, config.num_layers):
            seen, remembered = visible, None if memory is None else memory.bias
            if local:
                seen = seen & within_window(config, positions, key_positions)
                if memory is not None:
                    rows = positions.shape[0]
                    of_rows = jnp.repeat(
                        memory.positions, rows // memory.positions.shape[0], axis=0
                    )
                    near = mask_bias(within_window(config, positions, of_rows))
                    remembered = near + jnp.repeat(
                        memory.bias, rows // memory.bias.shape[0], axis=0
                    )
            turned = rotation(config, positions, local=local)
            views[local] = View(turned, mask_bias(seen), remembered)
        return views


class Layer(nn.Module):
    """Attention and MLP, each with a norm before (and perhaps after) and a residual around.

    Attributes:
      config: the network's.
    """

    config: LayerConfig

    def setup(self) -> None:
        """Creates both blocks."""
        config = self.config
        self.pre_self_attention_layer_norm = RMSNorm(config)
        self.self_attention = Attention(config)
        self.pre_mlp_layer_norm = RMSNorm(config)
        self.mlp = Mlp(config)
        if config.post_norms:
            self.post_self_attention_layer_norm = RMSNorm(config)
            self.post_mlp_layer_norm = RMSNorm(config)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        view: View | None,
        seeds: Seeds,
        encoded: Float[Array, "B S D"] | None = None,
        in_rows: tuple[AttentionRows, Sequence[View]] | None = None,
    ) -> Float[Array, "B L D"]:
        """Applies the layer to tokens that see one another, and an encoder's output if given.

        Args:
          x: tokens.
          view: what they see; None in a padding-free batch.
          seeds: the seeds of this layer.
          encoded: the encoder's output.
          in_rows: where the tokens of a padding-free batch attend, and what they see in each kind
            of row.
        """
        if in_rows is not None:
            rows, views = in_rows
            normed = self.pre_self_attention_layer_norm(x)
            rotations, biases = [own.rotation for own in views], [own.bias for own in views]
            attended = self.self_attention.in_rows(normed, rotations, biases, rows, seeds[0])
            return self._finish(x, attended, seeds[1:])
        assert view is not None
        remembered = None if encoded is None else self.remember(encoded)
        return self._apply(x, view, None, 0, remembered, seeds)[0]

    def remember(self, encoded: Float[Array, "B S D"]) -> KeysValues:
        """The keys and values of an encoder's output, which has no positions here.

        T5Gemma 2 merges self- and cross-attention: both have the same projections.
        """
        return self.self_attention.keys_values(encoded)

    def step(
        self,
        x: Float[Array, "R Q D"],
        view: View,
        cached: KeysValues | None,
        slot: Int[Array, ""] | int,
        remembered: KeysValues | None,
    ) -> tuple[Float[Array, "R Q D"], KeysValues]:
        """Applies the layer without dropout, and also returns the keys and values so far.

        Args:
          x: tokens.
          view: what they see.
          cached: keys and values of earlier tokens, which get the new ones; None for none.
          slot: where `cached` takes the new ones.
          remembered: the memory's; None without.
        """
        seeds = draw_seeds(None, LAYER_SEEDS)
        return self._apply(x, view, cached, slot, remembered, seeds)

    def _apply(
        self,
        x: Float[Array, "R Q D"],
        view: View,
        cached: KeysValues | None,
        slot: Int[Array, ""] | int,
        remembered: KeysValues | None,
        seeds: Seeds,
    ) -> tuple[Float[Array, "R Q D"], KeysValues]:
        normed = self.pre_self_attention_layer_norm(x)
        query, *new = self.self_attention.queries_keys_values(normed, view.rotation)
        if cached is None:
            keys, values = new
        else:
            keys, values = (
                lax.dynamic_update_slice_in_dim(old, fresh.astype(old.dtype), slot, axis=2)
                for old, fresh in zip(cached, new, strict=True)
            )
        sources: Sequence[Keys] = (Keys(keys, values, view.bias),)
        if remembered is not None:
            assert view.memory is not None
            sources = (Keys(*remembered, view.memory), *sources)
            if cached is None:  # in training, where weights may be dropped
                sources = (joined(*sources),)
        attended = self.self_attention.attend(query, sources, seeds[0])
        return self._finish(x, attended, seeds[1:]), (keys, values)

    def _finish(
        self, x: Float[Array, "R Q D"], attended: Float[Array, "R Q D"], seeds: Seeds
    ) -> Float[Array, "R Q D"]:
        """What comes after attention."""
        config = self.config
        if config.post_norms:
            attended = self.post_self_attention_layer_norm(attended)
        x += dropout(attended, seeds[0], config)
        mapped = self.mlp(self.pre_mlp_layer_norm(x), seeds[1])
        if config.post_norms:
            mapped = self.post_mlp_layer_norm(mapped)
        x += dropout(mapped, seeds[2], config)
        return nn.with_logical_constraint(x, ("batch", "length", "embed"))


def as_prefix(cache: DecoderCache, length: Int[Array, ""]) -> Memory:
    """Makes a memory of a cache of one row, for `DecoderOnly.continue_texts`.

    Args:
      cache: one row, whose text begins at slot 0.
      length: tokens of the text; slots behind it are not seen.
    """
    slots = jnp.arange(cache.keys_values[0][0].shape[2])[None]
    length = jnp.reshape(length, (1,))
    width = cache.keys_values[0][0].shape[-1]
    # No row starts with a start token here.
    start = jnp.zeros((1, width), cache.keys_values[0][0].dtype)
    bias = mask_bias(slots < length[:, None])[:, None]
    return Memory(cache.keys_values, bias, slots, length, start)


def kinds(config: LayerConfig, num_layers: int) -> list[bool]:
    """Which kinds of layers a stack has: False stands for global ones, True for local ones."""
    return sorted({config.is_local(number) for number in range(num_layers)})


def seeds_of(number: int, seeds: Seeds) -> Seeds:
    """The seeds of one layer, out of those of all layers of a stack."""
    return seeds[number * LAYER_SEEDS : (number + 1) * LAYER_SEEDS]


def within_window(
    config: LayerConfig, positions: Int[Array, "#R Q"], key_positions: Int[Array, "#R L"]
) -> Bool[Array, "#R Q L"]:
    """Whether keys lie within the sliding window behind each token; there must be one."""
    assert config.sliding_window is not None
    return positions[:, :, None] - key_positions[:, None, :] < config.sliding_window


def with_remat(layer: Any, config: LayerConfig) -> Any:
    """The layer's class, recomputing in the backward pass what `config.remat` says."""
    policy = KEPT[config.remat]
    return layer if policy is None else nn.remat(layer, policy=policy)
