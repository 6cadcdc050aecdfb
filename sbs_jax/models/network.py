"""T5 as a Flax Linen module: `Transformer`, two stacks around one embedding.

Parameters have T5X's names and shapes (`t5x/examples/t5/network.py`), for instance
`encoder/layers_0/attention/query/kernel`, so that public T5X checkpoints fit.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from sbs_jax.models.attention import padding_bias
from sbs_jax.models.attention_rows import BothRows
from sbs_jax.models.config import T5Config
from sbs_jax.models.dropout import Seeds, draw_seeds
from sbs_jax.models.layers import TokenEmbedder
from sbs_jax.models.stacks import Decoder, DecoderCache, Encoder, EncoderMemory


class Transformer(nn.Module):
    """An encoder-decoder T5, v1.0 or v1.1.

    Attributes:
      config: dimensions and variant.
      memory_type: the type of what `start_decoding` remembers of inputs.
      cache_type: the type of what decoding remembers of its own tokens.
      absolute_positions: whether more than the differences of positions counts in `extend`.
      reads_prompts: whether the tokens that a decoder is fed first may as well stand at the end of
        its input.
    """

    config: T5Config
    memory_type: ClassVar[type] = EncoderMemory
    cache_type: ClassVar[type] = DecoderCache
    absolute_positions: ClassVar[bool] = False
    reads_prompts: ClassVar[bool] = False

    def setup(self) -> None:
        """Creates the stacks around the embedding that they share."""
        self.token_embedder = TokenEmbedder(self.config)
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
        rows: BothRows | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "B T D"]:
        """The decoder's last hidden states, the input of `logits`.

        Args:
          encoder_input_tokens: int32 ids.
          decoder_input_tokens: targets shifted right within each segment, starting with 0.
          encoder_segment_ids: which of the sequences packed into its row each token belongs to,
            from 1; 0 is padding. Derived from nonzero tokens if None: one sequence a row.
          decoder_segment_ids: the same for the targets; a segment attends to the encoder's segment
            with its number. If None, a row is one sequence that attends to all that is not padding.
          decoder_source_ids: the encoder's segment that each decoder token attends to, where that
            is not the one of its own segment's number: several segments may share one.
          rows: the rows in which the tokens of a padding-free batch attend. All arrays are then
            [G, N], groups of tokens; segments are numbered within a group.
          deterministic: no dropout; otherwise an rng named `dropout` must be given.

        Returns:
          Hidden states in the activations' dtype. Those of padding are meaningless.
        """
        if encoder_segment_ids is None:
            encoder_segment_ids = segments_of(encoder_input_tokens)
        encoded = self.encode(encoder_input_tokens, encoder_segment_ids, deterministic, rows=rows)
        return self.decode_hidden(
            encoded,
            encoder_segment_ids,
            decoder_input_tokens,
            decoder_segment_ids,
            deterministic,
            decoder_source_ids=decoder_source_ids,
            rows=rows,
        )

    def input_segments(self, tokens: Int[Array, "B S"]) -> Int[Array, "B S"]:
        """The segment ids of inputs that are not packed: 1 on tokens, 0 on padding."""
        return segments_of(tokens)

    def embed(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """Looks up tokens of the encoder or the decoder."""
        embedded = self.token_embedder(tokens)
        return nn.with_logical_constraint(embedded, ("batch", "length", "embed"))

    def encode(
        self,
        encoder_input_tokens: Int[Array, "B S"],
        encoder_segment_ids: Int[Array, "B S"] | None = None,
        deterministic: bool = True,
        *,
        rows: BothRows | None = None,
    ) -> Float[Array, "B S D"]:
        """Runs the encoder; arguments as `hidden`."""
        if encoder_segment_ids is None:
            encoder_segment_ids = segments_of(encoder_input_tokens)
        embedded = self.embed(encoder_input_tokens)
        return self.encode_embedded(embedded, encoder_segment_ids, deterministic, rows=rows)

    def encode_embedded(
        self,
        embedded: Float[Array, "B S D"],
        encoder_segment_ids: Int[Array, "B S"],
        deterministic: bool = True,
        *,
        rows: BothRows | None = None,
    ) -> Float[Array, "B S D"]:
        """Runs the encoder on the result of `embed`, of which a gradient may be wanted."""
        seeds = self._seeds(self.encoder.num_seeds, deterministic)
        own = None if rows is None else rows.inputs
        return self.encoder(embedded, encoder_segment_ids, seeds, own)

    def decode_hidden(
        self,
        encoded: Float[Array, "B S D"],
        encoder_segment_ids: Int[Array, "B S"],
        decoder_input_tokens: Int[Array, "B T"],
        decoder_segment_ids: Int[Array, "B T"] | None = None,
        deterministic: bool = True,
        *,
        decoder_source_ids: Int[Array, "B T"] | None = None,
        rows: BothRows | None = None,
    ) -> Float[Array, "B T D"]:
        """Runs the decoder on all positions at once; arguments as `hidden`."""
        return self.decoder(
            self.embed(decoder_input_tokens),
            encoded,
            encoder_segment_ids,
            decoder_segment_ids,
            self._seeds(self.decoder.num_seeds, deterministic),
            decoder_source_ids,
            rows,
        )

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """The output head, float32, on any selection of hidden states.

        Computing it for real target tokens only saves the head's work on padding.
        """
        if self.config.scales_logits:
            hidden = hidden * jnp.asarray(self.config.emb_dim**-0.5, hidden.dtype)
        if self.config.logits_via_embedding:
            logits = self.token_embedder.attend(hidden)
        else:
            logits = self.decoder.head(hidden)
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
        """Encodes, and prepares `decode_step` for up to `max_decode_len` tokens a row.

        Args:
          encoder_input_tokens: int32 ids.
          max_decode_len: the number of positions of the cache.
          few_queries: whether few tokens will be decoded of each input, so that keys and values of
            the input would cost more than they save; see `Attention.attend_encoded`.
        """
        segments = segments_of(encoder_input_tokens)
        encoded = self.encode(encoder_input_tokens, segments)
        bias = padding_bias(segments)
        if self._makes_keys_values(few_queries):
            memory = EncoderMemory(self.decoder.encoder_keys_values(encoded), bias)
        else:
            memory = EncoderMemory((), bias, encoded)
        return memory, self.decoder.empty_cache(encoded.shape[0], max_decode_len)

    def empty_memory(self, rows: int, length: int, *, few_queries: bool = False) -> EncoderMemory:
        """A memory of `rows` inputs of `length` tokens, all zeros; see `start_decoding`."""
        bias = jnp.zeros((rows, 1, 1, length), jnp.float32)
        if self._makes_keys_values(few_queries):
            return EncoderMemory(self.decoder.empty_cache(rows, length).keys_values, bias)
        shape = (rows, length, self.config.emb_dim)
        return EncoderMemory((), bias, jnp.zeros(shape, self.config.dtype))

    def _makes_keys_values(self, few_queries: bool) -> bool:
        # An adapter's two matrices are not the one that queries are multiplied by.
        return not few_queries or self.config.lora_rank is not None

    def decode_step(
        self,
        tokens: Int[Array, " B"],
        position: Int[Array, ""],
        memory: EncoderMemory,
        cache: DecoderCache,
    ) -> tuple[Float[Array, "B V"], DecoderCache]:
        """Decodes one token of every row.

        Args:
          tokens: the token at `position` of the decoder's input; 0 at the first.
          position: from 0; calls must come in order.
          memory: the memory of `start_decoding`.
          cache: the cache of `start_decoding` or the call before.

        Returns:
          The float32 logits of the next token, and the cache for the next call.
        """
        embedded = self.embed(tokens[:, None])
        hidden, cache = self.decoder.step(embedded, position, memory, cache)
        return self.logits(hidden[:, 0]), cache

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
        """Decodes tokens that need not follow one another: a prompt, beams, a tree of candidates.

        Args:
          tokens: inputs of the decoder. R is a multiple of the encoded inputs B; rows of one input
            are neighbours.
          slot: where the cache takes them; slots `slot`, …, `slot` + Q - 1 are written.
          query_positions: how many tokens of its own sequence come before each, less than L.
          key_positions: the same of what every slot of the cache holds (any, if invisible).
          visible: the slots that each token sees, its own among them.
          memory: the memory of `start_decoding`.
          cache: the cache of L slots, from `start_decoding` or the call before.

        Returns:
          The last hidden states, the input of `logits`, and the cache for the next call.
        """
        return self.decoder.extend(
            self.embed(tokens), slot, query_positions, key_positions, visible, memory, cache
        )

    def _seeds(self, count: int, deterministic: bool) -> Seeds:
        return draw_seeds(None if deterministic else self.make_rng("dropout"), count)


def segments_of(tokens: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """The segment ids of unpacked rows: 1 on tokens, 0 on padding."""
    return (tokens > 0).astype(jnp.int32)
