"""Beam search with T5X's and Hugging Face's length penalty, n-best."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sbs_jax.decoding.begin import begin
from sbs_jax.errors import UserError, require_at_least
from sbs_jax.models.interface import Network
from sbs_jax.models.stacks import DecoderCache
from sbs_jax.token_ids import PAD_ID

LENGTH_PENALTIES = ("t5x", "huggingface")
EARLY_STOPPING = (False, True, "never")

_IMPOSSIBLE = -1e9
"""Added to scores that must not win. Finite, as in Hugging Face, so that sums stay ordered."""


class _Search(NamedTuple):
    """What a step hands to the next; N beams of B rows.

    Attributes:
      step: tokens so far.
      tokens: int32 [B, N], the last of each live beam.
      live: int32 [B, N, T], outputs that have not ended, the best first.
      live_scores: float32 [B, N], their log-probabilities.
      ended: int32 [B, N, T], the best outputs that have, the best first.
      ended_scores: float32 [B, N], log-probabilities over length penalties.
      has_ended: bool [B, N], which of `ended` exist.
      open: bool [B], whether a live beam may yet beat an ended one.
      visible: bool [B, N, L], the slots of the cache that belong to each beam.
      cache: the cache of L slots.
    """

    step: Int[Array, ""]
    tokens: Int[Array, "B N"]
    live: Int[Array, "B N T"]
    live_scores: Float[Array, "B N"]
    ended: Int[Array, "B N T"]
    ended_scores: Float[Array, "B N"]
    has_ended: Bool[Array, "B N"]
    open: Bool[Array, " B"]
    visible: Bool[Array, "B N L"]
    cache: DecoderCache


def beam_decode(
    model: Network,
    params: Any,
    encoder_input_tokens: Int[Array, "B S"],
    *,
    max_decode_len: int,
    num_beams: int = 4,
    alpha: float = 0.6,
    num_return: int = 1,
    length_penalty: str = "t5x",
    early_stopping: bool | str = "never",
    eos_id: int = 1,
    decoder_prompt: Int[Array, " P"] | None = None,
) -> tuple[Int[Array, "B N T"], Float[Array, "B N"]]:
    """Searches for the outputs with the largest log-probability over length penalty.

    The steps are those of Hugging Face's `generate(num_beams=…)`, whichever the penalty: an output
    ends with its EOS or at `max_decode_len`, and only the best `num_beams` continuations of a step
    may end. (T5X lets the best 2 · `num_beams` end, and takes unended outputs only where none
    has ended.)

    Live beams are never moved in memory: every beam writes its keys and values into slots of its
    own, and knows which slots are its past. All beams of a row share one encoding. Parameters may
    be cut over a mesh and rows over its `data` axis; call it within the mesh then.

    Args:
      model: the network.
      params: the parameters of the model.
      encoder_input_tokens: int32 ids, padded with 0, one sequence a row. A row without any token is
        padding, and takes no step.
      max_decode_len: T, at least 1.
      num_beams: outputs that are followed at a time.
      alpha: the exponent of the length penalty; larger ones favour longer outputs.
      num_return: N, the best so many of `num_beams`.
      length_penalty: the length penalty of an output of n tokens, EOS included: `t5x` is ((5 + n) /
        6) ** alpha, `huggingface` is n ** alpha (its `length_penalty`).
      early_stopping: when a row is done, as in Hugging Face: True, once `num_beams` outputs have
        ended; False, once these beat the best live beam at its present length; `never`, once they
        beat it at any length, which is T5X's rule.
      eos_id: the token that ends an output.
      decoder_prompt: see `greedy_decode`.

    Returns:
      int32 ids without the start token, EOS included, then 0, the best output of a row first; and
      float32 scores: log-probabilities over length penalties.

    Raises:
      UserError: a setting is impossible.
    """
    require_at_least(1, num_beams=num_beams)
    if not 1 <= num_return <= num_beams:
        raise UserError(f"num_return = {num_return} must lie in [1, num_beams = {num_beams}].")
    if length_penalty not in LENGTH_PENALTIES:
        known = ", ".join(repr(name) for name in LENGTH_PENALTIES)
        raise UserError(f"length_penalty = {length_penalty!r} must be one of {known}.")
    if early_stopping not in EARLY_STOPPING:
        raise UserError(f"early_stopping = {early_stopping!r} must be False, True or 'never'.")
    tokens, scores = _search(
        model,
        params,
        encoder_input_tokens,
        jnp.float32(alpha),
        decoder_prompt,
        max_decode_len=max_decode_len,
        num_beams=num_beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        eos_id=eos_id,
    )
    return tokens[:, :num_return], scores[:, :num_return]


@functools.partial(
    jax.jit,
    static_argnames=(
        "model",
        "max_decode_len",
        "num_beams",
        "length_penalty",
        "early_stopping",
    ),
)
def _search(
    model: Network,
    params: Any,
    encoder_input_tokens: Int[Array, "B S"],
    alpha: Float[Array, ""],
    decoder_prompt: Int[Array, " P"] | None,
    *,
    max_decode_len: int,
    num_beams: int,
    length_penalty: str,
    early_stopping: bool | str,
    eos_id: int,
) -> tuple[Int[Array, "B N T"], Float[Array, "B N"]]:
    variables = {"params": params}
    memory, cache, token, offset = begin(
        model, params, encoder_input_tokens, max_decode_len * num_beams, decoder_prompt
    )
    rows, beams = encoder_input_tokens.shape[0], num_beams
    # Slots: the prompt's, then those of all beams at step 0, at step 1, …
    slots = np.arange(offset + max_decode_len * beams)
    key_positions = np.where(slots < offset, slots, offset + (slots - offset) // beams)[None]

    def penalty(length: Int[Array, ""] | int) -> Float[Array, ""]:
        base = jnp.asarray(length, jnp.float32)
        return ((5.0 + base) / 6.0 if length_penalty == "t5x" else base) ** alpha

    def continuations(search: _Search) -> tuple[Array, Array, Array, Bool[Array, "B N L"], Any]:
        """The best 2 N: scores, beams, tokens; the slots that beams see; and the cache."""
        slot = offset + search.step * beams
        own = jnp.broadcast_to(jnp.eye(beams, dtype=bool), (rows, beams, beams))
        visible = lax.dynamic_update_slice_in_dim(search.visible, own, slot, axis=2)
        hidden, cache = model.apply(
            variables,
            search.tokens,
            slot,
            (offset + search.step)[None, None],
            key_positions,
            visible,
            memory,
            search.cache,
            method="extend",
        )
        logits = model.apply(variables, hidden, method="logits")
        # A row's best 2 N are among the best 2 N of its beams; the normaliser changes no order.
        count = min(2 * beams, logits.shape[-1])
        best, ids = lax.top_k(logits, count)
        best += (search.live_scores - jax.nn.logsumexp(logits, axis=-1))[..., None]
        scores, chosen = lax.top_k(best.reshape(rows, -1), 2 * beams)
        return scores, chosen // count, _pick(ids.reshape(rows, -1), chosen), visible, cache

    def decode(search: _Search) -> _Search:
        scores, parents, tokens, visible, cache = continuations(search)
        length = search.step + 1
        outputs = lax.dynamic_update_slice_in_dim(
            _pick(search.live, parents), tokens[..., None], search.step, axis=2
        )
        ends = (tokens == eos_id) | (length == max_decode_len)

        live_scores, kept = lax.top_k(jnp.where(ends, scores + _IMPOSSIBLE, scores), beams)
        parents = _pick(parents, kept)

        # More than N continuations may end; those are there to have N that go on.
        ending = ends & (jnp.arange(2 * beams) < beams)[None]
        closed = ~search.open
        if early_stopping is True:
            closed |= jnp.all(search.has_ended, axis=1)
        new_scores = scores / penalty(length)
        new_scores = jnp.where(ending & ~closed[:, None], new_scores, new_scores + _IMPOSSIBLE)
        ended_scores, best = lax.top_k(
            jnp.concatenate([search.ended_scores, new_scores], axis=1), beams
        )
        ended = _pick(jnp.concatenate([search.ended, outputs], axis=1), best)
        has_ended = _pick(jnp.concatenate([search.has_ended, ending], axis=1), best)

        reached = length
        if early_stopping == "never":
            reached = jnp.where(alpha > 0, max_decode_len, length)
        possible = live_scores[:, 0] / penalty(reached)
        beaten = jnp.all(has_ended, axis=1) & (possible <= ended_scores[:, -1])
        return _Search(
            length,
            _pick(tokens, kept),
            _pick(outputs, kept),
            live_scores,
            ended,
            ended_scores,
            has_ended,
            search.open & ~beaten,
            _pick(visible, parents),
            cache,
        )

    def unfinished(search: _Search) -> Bool[Array, ""]:
        going = search.open
        if early_stopping is True:
            going &= ~jnp.all(search.has_ended, axis=1)
        return (search.step < max_decode_len) & jnp.any(going)

    impossible = jnp.full((rows, beams), _IMPOSSIBLE, jnp.float32)
    nothing = jnp.full((rows, beams, max_decode_len), PAD_ID, jnp.int32)
    search = lax.while_loop(
        unfinished,
        decode,
        _Search(
            jnp.int32(0),
            jnp.full((rows, beams), token),
            nothing,
            # All beams are the same at first, and only one of them may go on.
            impossible.at[:, 0].set(0.0),
            nothing,
            impossible,
            jnp.zeros((rows, beams), bool),
            jnp.any(encoder_input_tokens > 0, axis=1),
            jnp.broadcast_to(slots < offset, (rows, beams, slots.size)),
            cache,
        ),
    )
    return search.ended, search.ended_scores


def _pick(array: Array, beams: Int[Array, "B M"]) -> Array:
    """Beams of each row: `array` [B, N, …] → [B, M, …]."""
    return jnp.take_along_axis(array, beams.reshape(*beams.shape, *[1] * (array.ndim - 2)), axis=1)
