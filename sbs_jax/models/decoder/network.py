"""A decoder-only language model as a Flax Linen module, for the local teacher and for students.

`DecoderOnly` has the interface of the T5 (`models/interface.py`), so the same data, loss, training,
decoding and ranking serve both. What is the encoder's input there, is here the text x that comes
first. A row holds x once and each target as a branch of its own:

    [ x | p_y y | p_r r ]        several examples a row

A token attends to a key if both belong to the same example, the key's branch is x or the token's
own, and the key is not later. The positions of each branch go on from those of x.

The data end x with EOS, which is not read here: branches follow the text itself.

Decoder inputs begin with a start token, as T5's do: here it stands for the last token of x, which
predicts the first token of every branch. So it has x's last position and embedding, and branches
do not see x's own copy of it. What a branch computes is what the plain text `x p_y y` gives.

Shapes: B batch, S tokens of x, T tokens of targets, D model, H query heads, KV heads of keys and
values, K head width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from sbs_jax.models.attention import mask_bias
from sbs_jax.models.attention_rows import BothRows
from sbs_jax.models.decoder.config import DecoderConfig
from sbs_jax.models.decoder.layers import Embedder, capped
from sbs_jax.models.decoder.rows import Places, places_of, positions_in, without_end
from sbs_jax.models.decoder.stack import Memory, Stack, extend_by_one
from sbs_jax.models.dropout import Seeds, draw_seeds
from sbs_jax.models.network import segments_of
from sbs_jax.models.stacks import DecoderCache


class DecoderOnly(nn.Module):
    """A decoder-only language model: Llama, SmolLM2, Qwen2, Qwen2.5, Qwen3, Gemma 2, Gemma 3.

    Attributes:
      config: dimensions and variant.
      memory_type: the type of what `start_decoding` remembers of texts.
      cache_type: the type of what decoding remembers of its own tokens.
      absolute_positions: whether more than the differences of positions counts in `extend`.
      reads_prompts: whether the tokens that a decoder is fed first may as well stand at the end of
        its input.
    """

    config: DecoderConfig
    memory_type: ClassVar[type] = Memory
    cache_type: ClassVar[type] = DecoderCache
    absolute_positions: ClassVar[bool] = True  # positions go on from those of the text
    reads_prompts: ClassVar[bool] = True

    def setup(self) -> None:
        """Creates the embedding and the stack."""
        self.token_embedder = Embedder(self.config)
        self.decoder = Stack(self.config)

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
        """The last hidden states of the targets' tokens, the input of `logits`.

        Args:
          encoder_input_tokens: int32 ids of the texts x.
          decoder_input_tokens: targets shifted right within each segment, starting with 0, which
            stands for the last token of x.
          encoder_segment_ids: which of the texts packed into its row each token belongs to, from
            1; 0 is padding. Derived from nonzero tokens if None: one text a row.
          decoder_segment_ids: which branch each target's token belongs to, from 1; a branch
            continues the text of its number. If None, a row is one branch of one text.
          decoder_source_ids: the text that each target's token continues, where that is not the
            one of its own segment's number: several branches may share one.
          rows: see `models.network.Transformer.hidden`.
          deterministic: no dropout; otherwise an rng named `dropout` must be given.

        Returns:
          Hidden states in the activations' dtype. Those of padding are meaningless.
        """
        if encoder_segment_ids is None:
            encoder_segment_ids = segments_of(encoder_input_tokens)
        text_ids = without_end(encoder_input_tokens, encoder_segment_ids)
        if rows is not None:
            assert decoder_segment_ids is not None
            if decoder_source_ids is None:
                decoder_source_ids = decoder_segment_ids
            tokens = (encoder_input_tokens, decoder_input_tokens)
            ids = (text_ids, decoder_segment_ids, decoder_source_ids)
            return self._hidden_in_rows(*tokens, *ids, rows, deterministic)
        return self.decode_hidden(
            self.embed(encoder_input_tokens),
            text_ids,
            decoder_input_tokens,
            decoder_segment_ids,
            deterministic,
            decoder_source_ids=decoder_source_ids,
        )

    def input_segments(self, tokens: Int[Array, "B S"]) -> Int[Array, "B S"]:
        """The segment ids of texts that are not packed: 1 on their tokens, 0 on EOS and padding."""
        return without_end(tokens, segments_of(tokens))

    def embed(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """Looks up tokens."""
        embedded = self.token_embedder(tokens)
        return nn.with_logical_constraint(embedded, ("batch", "length", "embed"))

    def encode_embedded(
        self,
        embedded: Float[Array, "B S D"],
        encoder_segment_ids: Int[Array, "B S"],
        deterministic: bool = True,
    ) -> Float[Array, "B S D"]:
        """What `decode_hidden` wants of the texts: the result of `embed` itself.

        The segments are those of `input_segments`, or of `hidden` without the EOS of each text.

        There is no encoder: texts and branches go through the same layers, together.
        """
        del encoder_segment_ids, deterministic
        return embedded

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
        """`hidden` from the texts' embeddings, of which a gradient may be wanted."""
        if decoder_segment_ids is None:
            decoder_segment_ids = jnp.ones_like(decoder_input_tokens)
        if decoder_source_ids is None:
            decoder_source_ids = decoder_segment_ids
        places, last = places_of(encoder_segment_ids, decoder_segment_ids, decoder_source_ids)
        start = jnp.take_along_axis(encoded, last[..., None], axis=1)
        first = positions_in(decoder_segment_ids) == 0
        branches = jnp.where(first[..., None], start, self.embed(decoder_input_tokens))
        x = jnp.concatenate([encoded, branches], axis=1)
        hidden = self.decoder(x, places.positions, places.visible(), self._seeds(deterministic))
        return hidden[:, encoded.shape[1] :]

    def _hidden_in_rows(
        self,
        encoder_input_tokens: Int[Array, "G N"],
        decoder_input_tokens: Int[Array, "G M"],
        text_ids: Int[Array, "G N"],
        decoder_segment_ids: Int[Array, "G M"],
        decoder_source_ids: Int[Array, "G M"],
        rows: BothRows,
        deterministic: bool,
    ) -> Float[Array, "G M D"]:
        """`hidden` of a padding-free batch."""
        by_kind = rows.spread(text_ids, decoder_segment_ids, decoder_source_ids)
        places, lasts = zip(*(places_of(*ids) for ids in by_kind), strict=True)
        # The token, within its group, that each target's start token stands for.
        ends = [
            jnp.take_along_axis(table.reshape(-1, table.shape[-1]), last, axis=1)
            for table, last in zip(rows.inputs.tables, lasts, strict=True)
        ]
        start = jnp.take_along_axis(encoder_input_tokens, rows.targets.gather(ends), axis=1)
        first = positions_in(decoder_segment_ids) == 0
        tokens = jnp.where(first, start, decoder_input_tokens)
        x = self.embed(jnp.concatenate([encoder_input_tokens, tokens], axis=1))
        hidden = self.decoder.in_rows(x, places, rows.joined(), self._seeds(deterministic))
        return hidden[:, encoder_input_tokens.shape[1] :]

    def _seeds(self, deterministic: bool) -> Seeds:
        key = None if deterministic else self.make_rng("dropout")
        return draw_seeds(key, self.decoder.num_seeds)

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """The output head, float32, on any selection of hidden states."""
        config = self.config
        if config.logits_via_embedding:
            logits = self.token_embedder.attend(hidden)
        else:
            logits = self.decoder.head(hidden)
        logits = capped(logits, config.logits_softcap)
        if logits.ndim != 3:
            return logits  # not batch-shaped: skip the sharding constraint
        return nn.with_logical_constraint(logits, ("batch", "length", "vocab"))

    def start_decoding(
        self,
        encoder_input_tokens: Int[Array, "B S"],
        max_decode_len: int,
        *,
        few_queries: bool = False,
    ) -> tuple[Memory, DecoderCache]:
        """Reads the texts, and prepares `decode_step` for up to `max_decode_len` tokens a row."""
        segments = self.input_segments(encoder_input_tokens)
        embedded = self.embed(encoder_input_tokens)
        positions = positions_in(segments)
        places = Places(positions, segments, jnp.zeros_like(segments), jnp.zeros_like(segments))
        keys_values = self.decoder.read(embedded, positions, places.visible())
        lengths = segments.sum(-1)
        last = jnp.maximum(lengths - 1, 0)
        start = jnp.take_along_axis(embedded, last[:, None, None], axis=1)[:, 0]
        seen = (segments > 0) & (positions < last[:, None])
        memory = Memory(keys_values, mask_bias(seen)[:, None], positions, lengths, start)
        return memory, self.decoder.empty_cache(segments.shape[0], max_decode_len)

    def empty_memory(self, rows: int, length: int, *, few_queries: bool = False) -> Memory:
        """A memory of `rows` texts of `length` tokens, all zeros."""
        return Memory(
            keys_values=self.decoder.empty_cache(rows, length).keys_values,
            bias=jnp.zeros((rows, 1, length), jnp.float32),
            positions=jnp.zeros((rows, length), jnp.int32),
            lengths=jnp.zeros(rows, jnp.int32),
            start=jnp.zeros((rows, self.config.emb_dim), self.config.dtype),
        )

    def decode_step(
        self,
        tokens: Int[Array, " B"],
        position: Int[Array, ""],
        memory: Memory,
        cache: DecoderCache,
    ) -> tuple[Float[Array, "B V"], DecoderCache]:
        """Decodes one token of every row.

        Args:
          tokens: the token at `position` of the decoder's input; whatever it is at position 0, the
            last token of the row's text is taken.
          position: from 0; calls must come in order.
          memory: the memory of `start_decoding`.
          cache: the cache of `start_decoding` or the call before.

        Returns:
          The float32 logits of the next token, and the cache for the next call.
        """
        return extend_by_one(self, tokens, position, memory, cache)

    def extend(
        self,
        tokens: Int[Array, "R Q"],
        slot: Int[Array, ""] | int,
        query_positions: Int[Array, "#R #Q"],
        key_positions: Int[Array, "#R L"],
        visible: Bool[Array, "#R #Q L"],
        memory: Memory,
        cache: DecoderCache,
    ) -> tuple[Float[Array, "R Q D"], DecoderCache]:
        """Decodes tokens that need not follow one another: a prompt, beams, a tree of candidates.

        Args:
          tokens: inputs of the decoder. R is a multiple of the texts B; rows of one text are
            neighbours.
          slot: where the cache takes them; slots `slot`, …, `slot` + Q - 1 are written.
          query_positions: how many tokens of its own branch come before each, less than L.
          key_positions: the same of what every slot of the cache holds (any, if invisible).
          visible: the slots that each token sees, its own among them.
          memory: the memory of `start_decoding`.
          cache: the cache of L slots, from `start_decoding` or the call before.

        Returns:
          The last hidden states, the input of `logits`, and the cache for the next call.
        """
        rows = tokens.shape[0]

        def each(of_text: Array) -> Array:
            return jnp.repeat(of_text, rows // of_text.shape[0], axis=0)

        first = jnp.broadcast_to(query_positions == 0, tokens.shape)
        x = jnp.where(first[..., None], each(memory.start)[:, None], self.embed(tokens))
        offset = each(memory.lengths)[:, None] - 1
        return self.decoder.extend(
            x, slot, offset + query_positions, offset + key_positions, visible, memory, cache
        )

    def continue_texts(
        self,
        tokens: Int[Array, "R Q"],
        column: Int[Array, ""] | int,
        padding: Int[Array, " R"],
        cache: DecoderCache,
        prefix: Memory | None = None,
        *,
        last_only: bool = False,
    ) -> tuple[Float[Array, "R Q V"], DecoderCache]:
        """Fills the columns `column` … `column + Q - 1` of texts that are padded on the left.

        Row r begins at column `padding[r]`, behind the prefix.

        Args:
          tokens: int32 ids; what stands on padding is ignored.
          column: the first column to fill.
          padding: columns of padding in front of each row.
          cache: what the columns before have left; columns are its slots.
          prefix: a text that all rows begin with; see `stack.as_prefix`.
          last_only: computes the logits of the last column alone.

        Returns:
          Logits in float32, [R, Q, V] (or [R, 1, V]), and the cache with the new columns.
        """
        columns = jnp.arange(cache.keys_values[0][0].shape[2])[None]
        new = column + jnp.arange(tokens.shape[1])[None]
        before = padding[:, None]
        if prefix is not None:
            before = before - prefix.lengths[:, None]
        # A column of padding sees itself alone, so that it stays finite.
        key, query = columns[:, None], new[..., None]
        visible = (key >= padding[:, None, None]) & (key <= query) | (key == query)
        hidden, cache = self.decoder.extend(
            self.embed(tokens),
            column,
            jnp.maximum(new - before, 0),
            jnp.maximum(columns - before, 0),
            visible,
            prefix,
            cache,
        )
        return self.logits(hidden[:, -1:] if last_only else hidden), cache
