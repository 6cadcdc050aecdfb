"""T5Gemma 2 as a Flax Linen module, in the place of a T5: `T5Gemma2`.

An encoder-decoder of Gemma 3's layers (Zhang et al. 2025, arXiv 2512.14856). The encoder looks both
ways; its local layers have a window around each token. The decoder has one attention where T5 has
two: the keys of its own tokens, rotated by their positions, and those of the encoder's output, not
rotated, share the projections, the norms and one softmax. One embedding serves both stacks and the
head. The vision tower is left out.

The rows are those of a T5, packed or not, with two differences, both of them as the model was
pretrained: the EOS with which the data end an input is not read, and the decoder begins with the
vocabulary's own start token (`T5Gemma2Config.bos_id`), for which its inputs have 0.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from sbs_jax.models.attention import padding_bias
from sbs_jax.models.decoder.layers import Embedder, capped
from sbs_jax.models.decoder.rows import positions_in, without_end
from sbs_jax.models.decoder.stack import extend_by_one
from sbs_jax.models.drawing import parameter
from sbs_jax.models.dropout import Seeds, draw_seeds
from sbs_jax.models.network import segments_of
from sbs_jax.models.stacks import DecoderCache, EncoderMemory
from sbs_jax.models.t5gemma2.config import T5Gemma2Config
from sbs_jax.models.t5gemma2.stacks import Decoder, Encoder


class T5Gemma2(nn.Module):
    """The text's part of a T5Gemma 2.

    Attributes:
      config: dimensions and variant.
      memory_type: the type of what `start_decoding` remembers of inputs.
      cache_type: the type of what decoding remembers of its own tokens.
      absolute_positions: whether more than the differences of positions counts in `extend`.
      reads_prompts: whether the tokens that a decoder is fed first may as well stand at the end of
        its input.
    """

    config: T5Gemma2Config
    memory_type: ClassVar[type] = EncoderMemory
    cache_type: ClassVar[type] = DecoderCache
    absolute_positions: ClassVar[bool] = True  # queries are rotated, the encoder's keys are not
    reads_prompts: ClassVar[bool] = False

    def setup(self) -> None:
        """Creates the stacks around the embedding that they share."""
        self.token_embedder = Embedder(self.config)
        self.eoi_embedder = _EndOfImage(self.config)
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def __call__(
        self,
        encoder_input_tokens: Int[Array, "B S"],
        decoder_input_tokens: Int[Array, "B T"],
        **options: Any,
    ) -> Float[Array, "B T V"]:
        """The logits of the token after each decoder input: `logits(hidden(...))`, float32."""
        return self.logits(self.hidden(encoder_input_tokens, decoder_input_tokens, **options))

    def hidden(
        self,
        encoder_input_tokens: Int[Array, "B S"],
        decoder_input_tokens: Int[Array, "B T"],
        *,
        encoder_segment_ids: Int[Array, "B S"] | None = None,
        decoder_segment_ids: Int[Array, "B T"] | None = None,
        decoder_source_ids: Int[Array, "B T"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "B T D"]:
        """The decoder's last hidden states; arguments and result are those of `Transformer.hidden`.

        The 0 that begins each segment of `decoder_input_tokens` stands for the start token.
        """
        if encoder_segment_ids is None:
            encoder_segment_ids = segments_of(encoder_input_tokens)
        read = without_end(encoder_input_tokens, encoder_segment_ids)
        encoded = self.encode_embedded(self.embed(encoder_input_tokens), read, deterministic)
        return self.decode_hidden(
            encoded,
            read,
            decoder_input_tokens,
            decoder_segment_ids,
            deterministic,
            decoder_source_ids=decoder_source_ids,
        )

    def input_segments(self, tokens: Int[Array, "B S"]) -> Int[Array, "B S"]:
        """The segment ids of inputs that are not packed: 1 on tokens, 0 on EOS and padding."""
        return without_end(tokens, segments_of(tokens))

    def embed(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """Looks up tokens of the encoder or the decoder."""
        embedded = self.eoi_embedder(tokens, self.token_embedder(tokens))
        return nn.with_logical_constraint(embedded, ("batch", "length", "embed"))

    def encode_embedded(
        self,
        embedded: Float[Array, "B S D"],
        encoder_segment_ids: Int[Array, "B S"],
        deterministic: bool = True,
    ) -> Float[Array, "B S D"]:
        """Runs the encoder on the result of `embed`, of which a gradient may be wanted.

        The segments are those of `input_segments`, or of `hidden` without the EOS of each input.
        """
        seeds = self._seeds(self.encoder.num_seeds, deterministic)
        return self.encoder(embedded, encoder_segment_ids, seeds)

    def decode_hidden(
        self,
        encoded: Float[Array, "B S D"],
        encoder_segment_ids: Int[Array, "B S"],
        decoder_input_tokens: Int[Array, "B T"],
        decoder_segment_ids: Int[Array, "B T"] | None = None,
        deterministic: bool = True,
        *,
        decoder_source_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Runs the decoder on all positions at once; segments are those of `encode_embedded`."""
        if decoder_segment_ids is None:
            decoder_segment_ids = jnp.ones_like(decoder_input_tokens)
        if decoder_source_ids is None:
            decoder_source_ids = decoder_segment_ids
        return self.decoder(
            self._embed_outputs(decoder_input_tokens, positions_in(decoder_segment_ids)),
            encoded,
            encoder_segment_ids,
            decoder_segment_ids,
            decoder_source_ids,
            self._seeds(self.decoder.num_seeds, deterministic),
        )

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """The output head, float32, on any selection of hidden states."""
        logits = capped(self.token_embedder.attend(hidden), self.config.logits_softcap)
        if logits.ndim != 3:
            return logits  # A selection is not batch-shaped: skip the sharding constraint.
        return nn.with_logical_constraint(logits, ("batch", "length", "vocab"))

    def start_decoding(
        self,
        encoder_input_tokens: Int[Array, "B S"],
        max_decode_len: int,
        *,
        few_queries: bool = False,
    ) -> tuple[EncoderMemory, DecoderCache]:
        """Encodes, and prepares `decode_step` for up to `max_decode_len` tokens a row."""
        segments = self.input_segments(encoder_input_tokens)
        encoded = self.encode_embedded(self.embed(encoder_input_tokens), segments)
        memory = EncoderMemory(self.decoder.encoder_keys_values(encoded), padding_bias(segments))
        return memory, self.decoder.empty_cache(encoded.shape[0], max_decode_len)

    def empty_memory(self, rows: int, length: int, *, few_queries: bool = False) -> EncoderMemory:
        """A memory of `rows` inputs of `length` tokens, all zeros."""
        keys_values = self.decoder.empty_cache(rows, length).keys_values
        return EncoderMemory(keys_values, jnp.zeros((rows, 1, 1, length), jnp.float32))

    def decode_step(
        self,
        tokens: Int[Array, " B"],
        position: Int[Array, ""],
        memory: EncoderMemory,
        cache: DecoderCache,
    ) -> tuple[Float[Array, "B V"], DecoderCache]:
        """Decodes one token of every row, as `Transformer.decode_step` does.

        Whatever the token at position 0 is, the start token is taken.
        """
        return extend_by_one(self, tokens, position, memory, cache)

    def extend(
        self,
        tokens: Int[Array, "R Q"],
        slot: Int[Array, ""] | int,
        query_positions: Int[Array, "#R #Q"],
        key_positions: Int[Array, "#R L"],
        visible: Bool[Array, "#R #Q L"],
        memory: EncoderMemory,
        cache: DecoderCache,
    ) -> tuple[Float[Array, "R Q D"], DecoderCache]:
        """Decodes tokens that need not follow one another, as `Transformer.extend` does."""
        x = self._embed_outputs(tokens, query_positions)
        return self.decoder.extend(x, slot, query_positions, key_positions, visible, memory, cache)

    def _embed_outputs(
        self, tokens: Int[Array, "B L"], positions: Int[Array, "#B #L"]
    ) -> Float[Array, "B L D"]:
        """Looks up the decoder's inputs, the first of which is the start token."""
        return self.embed(jnp.where(positions == 0, self.config.our_bos_id, tokens))

    def _seeds(self, count: int, deterministic: bool) -> Seeds:
        return draw_seeds(None if deterministic else self.make_rng("dropout"), count)


class _EndOfImage(nn.Module):
    """The embedding of the token that ends an image; a module, so that the head does not need it.

    Attributes:
      config: the network's.
    """

    config: T5Gemma2Config

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "*B"], embedded: Float[Array, "*B D"]
    ) -> Float[Array, "*B D"]:
        """Puts it in the place of what was looked up for that token."""
        shape = (self.config.emb_dim,)
        vector = parameter(self, "vector", nn.initializers.zeros, ("embed",), shape)
        here = (tokens == self.config.our_eoi_id)[..., None]
        vector = jnp.expand_dims(vector.astype(embedded.dtype), range(tokens.ndim))
        return jnp.where(here, vector, embedded)
