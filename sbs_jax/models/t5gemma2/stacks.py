"""The encoder's and the decoder's stack of a T5Gemma 2, of the layers that decoders have."""

from __future__ import annotations

from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from sbs_jax.models.attention import mask_bias
from sbs_jax.models.decoder.layers import KeysValues, RMSNorm
from sbs_jax.models.decoder.rotary import rotation
from sbs_jax.models.decoder.rows import positions_in
from sbs_jax.models.decoder.stack import (
    LAYER_SEEDS,
    Layer,
    View,
    kinds,
    seeds_of,
    with_remat,
    within_window,
)
from sbs_jax.models.dropout import Seeds, dropout
from sbs_jax.models.stacks import DecoderCache, EncoderMemory
from sbs_jax.models.t5gemma2.config import T5Gemma2Config


class Encoder(nn.Module):
    """The encoder's stack, whose layers look both ways.

    Attributes:
      config: the network's.
    """

    config: T5Gemma2Config

    def setup(self) -> None:
        """Creates the layers."""
        layer = with_remat(Layer, self.config)
        self.layers = [layer(self.config) for _ in range(self.config.num_encoder_layers)]
        self.encoder_norm = RMSNorm(self.config)

    @property
    def num_seeds(self) -> int:
        """Places that drop, in this stack and its layers."""
        return 2 + self.config.num_encoder_layers * LAYER_SEEDS

    def __call__(
        self, x: Float[Array, "B S D"], segment_ids: Int[Array, "B S"], seeds: Seeds
    ) -> Float[Array, "B S D"]:
        """Encodes embedded tokens; those of a segment see one another."""
        config = self.config
        positions = positions_in(segment_ids)
        same = segment_ids[:, :, None] == segment_ids[:, None, :]
        views = {}
        for local in kinds(config, config.num_encoder_layers):
            visible = same & _around(config, positions) if local else same
            views[local] = View(rotation(config, positions, local=local), mask_bias(visible), None)
        first, last, *seeds = seeds
        x = dropout(x, first, config)
        for number, layer in enumerate(self.layers):
            x = layer(x, views[config.is_local(number)], seeds_of(number, seeds))
        return dropout(self.encoder_norm(x), last, config)


class Decoder(nn.Module):
    """The decoder's stack: each attention is to its own tokens and to the encoder's output at once.

    Attributes:
      config: the network's.
    """

    config: T5Gemma2Config

    def setup(self) -> None:
        """Creates the layers."""
        layer = with_remat(Layer, self.config)
        self.layers = [layer(self.config) for _ in range(self.config.num_decoder_layers)]
        self.decoder_norm = RMSNorm(self.config)

    @property
    def num_seeds(self) -> int:
        """Places that drop, in this stack and its layers."""
        return 2 + self.config.num_decoder_layers * LAYER_SEEDS

    def __call__(
        self,
        x: Float[Array, "B T D"],
        encoded: Float[Array, "B S D"],
        encoder_segment_ids: Int[Array, "B S"],
        segment_ids: Int[Array, "B T"],
        source_ids: Int[Array, "B T"],
        seeds: Seeds,
    ) -> Float[Array, "B T D"]:
        """Decodes embedded tokens, all at once.

        Args:
          x: embedded inputs of the decoder.
          encoded: the encoder's output.
          encoder_segment_ids: the segment of each token of `encoded`.
          segment_ids: the segment of each token of `x`, which sees those of its own before it.
          source_ids: the segment of `encoded` that each token of `x` sees.
          seeds: the seeds of dropout.
        """
        config = self.config
        positions = positions_in(segment_ids)
        visible = (segment_ids[:, :, None] == segment_ids[:, None, :]) & (
            positions[:, :, None] >= positions[:, None, :]
        )
        # Padding, whose source is 0, sees that of the encoder; without any it sees itself.
        about = mask_bias(source_ids[:, :, None] == encoder_segment_ids[:, None, :])
        views = self._views(positions, positions, visible, about)
        first, last, *seeds = seeds
        x = dropout(x, first, config)
        for number, layer in enumerate(self.layers):
            x = layer(x, views[config.is_local(number)], seeds_of(number, seeds), encoded)
        return dropout(self.decoder_norm(x), last, config)

    def encoder_keys_values(self, encoded: Float[Array, "B S D"]) -> tuple[KeysValues, ...]:
        """The keys and values of the encoder's output in every layer."""
        return tuple(layer.remember(encoded) for layer in self.layers)

    def empty_cache(self, rows: int, length: int) -> DecoderCache:
        """A cache for `length` slots."""
        config = self.config
        shape = (rows, config.num_kv_heads, length, config.head_dim)
        return DecoderCache.empty(config.num_decoder_layers, shape, config.dtype)

    def extend(
        self,
        x: Float[Array, "R Q D"],
        slot: Int[Array, ""] | int,
        positions: Int[Array, "#R #Q"],
        key_positions: Int[Array, "#R L"],
        visible: Bool[Array, "#R #Q L"],
        memory: EncoderMemory,
        cache: DecoderCache,
    ) -> tuple[Float[Array, "R Q D"], DecoderCache]:
        """Runs new tokens, whose keys and values go into the cache; see `T5Gemma2.extend`."""
        views = self._views(positions, key_positions, visible, memory.bias[:, 0])
        written = []
        for number, layer in enumerate(self.layers):
            view = views[self.config.is_local(number)]
            x, updated = layer.step(
                x, view, cache.keys_values[number], slot, memory.keys_values[number]
            )
            written.append(updated)
        return self.decoder_norm(x), DecoderCache(tuple(written))

    def _views(
        self,
        positions: Int[Array, "#R #Q"],
        key_positions: Int[Array, "#R L"],
        visible: Bool[Array, "#R #Q L"],
        memory: Float[Array, "#R #Q S"],
    ) -> dict[bool, View]:
        """The views of global (False) and local (True) layers, as far as there are any."""
        config = self.config
        views = {}
        for local in kinds(config, config.num_decoder_layers):
            seen = visible
            if local:
                seen = visible & within_window(config, positions, key_positions)
            views[local] = View(rotation(config, positions, local=local), mask_bias(seen), memory)
        return views


def _around(config: T5Gemma2Config, positions: Int[Array, "B S"]) -> Bool[Array, "B S S"]:
    """Whether keys lie within the sliding window around each token.

    It has (sliding_window + 1) // 2 positions up to the token's own, and sliding_window // 2 after.
    """
    assert config.sliding_window is not None
    before = positions[:, :, None] - positions[:, None, :]
    return (before < (config.sliding_window + 1) // 2) & (-before <= config.sliding_window // 2)
