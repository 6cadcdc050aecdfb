"""Sampling: temperature, top-k, top-p, several samples of each input."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from sbs_jax.decoding.begin import begin
from sbs_jax.decoding.greedy import most_likely
from sbs_jax.errors import UserError, require_at_least
from sbs_jax.models.interface import Network
from sbs_jax.token_ids import PAD_ID

_COLDEST = 1e-30
"""Logits are divided by at least this, to tell which tokens top-p leaves at temperature 0."""


def sample_decode(
    model: Network,
    params: Any,
    encoder_input_tokens: Int[Array, "B S"],
    *,
    rng: Key[Array, "*B"],
    max_decode_len: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    num_samples: int = 1,
    eos_id: int = 1,
    decoder_prompt: Int[Array, " P"] | None = None,
) -> tuple[Int[Array, "B N T"], Float[Array, "B N"]]:
    """Draws outputs token by token, each until its EOS or `max_decode_len` tokens.

    First the temperature divides the logits, then top-k and after it top-p narrow the vocabulary,
    as in Hugging Face's `generate`. All samples of a row share one encoding. Parameters may be cut
    over a mesh and rows over its `data` axis; the draws are the same on every mesh.

    Args:
      model: the network.
      params: the parameters of the model.
      encoder_input_tokens: int32 ids, padded with 0, one sequence a row. A row without any token is
        padding, and takes no step.
      rng: a key of `jax.random.key`; or a key for each row, so that a row's samples do not depend
        on its place in a batch.
      max_decode_len: T, at least 1.
      temperature: at least 0, where 0 is greedy decoding.
      top_k: draw from the so many most likely tokens; 0 for all.
      top_p: draw from the fewest most likely tokens whose probabilities sum to at least this; in
        (0, 1].
      num_samples: N, independent samples of a row.
      eos_id: the token that ends a sample.
      decoder_prompt: see `greedy_decode`.

    Returns:
      int32 ids without the start token, EOS included, then 0; and the float32 log-probability of
      each sample under the model itself, so at temperature 1 and without top-k and top-p.

    Raises:
      UserError: a setting is impossible.
    """
    if not isinstance(temperature, jax.core.Tracer) and not temperature >= 0:
        raise UserError(f"temperature = {temperature} must be at least 0 (0 is greedy decoding).")
    if top_k < 0:
        raise UserError(f"top_k = {top_k} must be at least 0 (0 draws from all tokens).")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p = {top_p} must lie in (0, 1] (1 draws from all tokens).")
    require_at_least(1, num_samples=num_samples)
    return _sample(
        model,
        params,
        encoder_input_tokens,
        rng,
        jnp.float32(temperature),
        decoder_prompt,
        max_decode_len=max_decode_len,
        top_k=top_k,
        top_p=top_p,
        num_samples=num_samples,
        eos_id=eos_id,
    )


@functools.partial(
    jax.jit,
    static_argnames=("model", "max_decode_len", "top_k", "top_p", "num_samples"),
)
def _sample(
    model: Network,
    params: Any,
    encoder_input_tokens: Int[Array, "B S"],
    rng: Key[Array, "*B"],
    temperature: Float[Array, ""],
    decoder_prompt: Int[Array, " P"] | None,
    *,
    max_decode_len: int,
    top_k: int,
    top_p: float,
    num_samples: int,
    eos_id: int,
) -> tuple[Int[Array, "B N T"], Float[Array, "B N"]]:
    variables = {"params": params}
    memory, cache, token, offset = begin(
        model, params, encoder_input_tokens, max_decode_len, decoder_prompt, outputs=num_samples
    )
    batch_size = encoder_input_tokens.shape[0]
    rows = batch_size * num_samples
    keys = rng
    if rng.ndim == 0:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(batch_size))
    cache = jax.tree.map(lambda leaf: jnp.repeat(leaf, num_samples, axis=0), cache)

    def unfinished(state: tuple[Any, ...]) -> Bool[Array, ""]:
        step, _, _, finished, _, _ = state
        return (step < max_decode_len) & ~jnp.all(finished)

    def decode(state: tuple[Any, ...]) -> tuple[Any, ...]:
        step, tokens, decoded, finished, log_probs, cache = state
        logits, cache = model.apply(
            variables, tokens, offset + step, memory, cache, method="decode_step"
        )
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        shape = (num_samples, logits.shape[-1])
        noise = jax.vmap(lambda key: jax.random.gumbel(key, shape))(step_keys)
        tokens = draw(logits, noise.reshape(logits.shape), temperature, top_k=top_k, top_p=top_p)
        chosen = jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
        log_prob = chosen - jax.nn.logsumexp(logits, axis=-1)
        log_probs += jnp.where(finished, 0.0, log_prob)
        tokens = jnp.where(finished, PAD_ID, tokens)
        decoded = lax.dynamic_update_index_in_dim(decoded, tokens, step, axis=0)
        return step + 1, tokens, decoded, finished | (tokens == eos_id), log_probs, cache

    padding_rows = jnp.repeat(~jnp.any(encoder_input_tokens > 0, axis=1), num_samples)
    decoded = jnp.full((max_decode_len, rows), PAD_ID, jnp.int32)
    log_probs = jnp.zeros((rows,), jnp.float32)
    state = (jnp.int32(0), jnp.full((rows,), token), decoded, padding_rows, log_probs, cache)
    _, _, decoded, _, log_probs, _ = lax.while_loop(unfinished, decode, state)
    return (
        decoded.T.reshape(batch_size, num_samples, max_decode_len),
        log_probs.reshape(batch_size, num_samples),
    )


def draw(
    logits: Float[Array, "*B V"],
    noise: Float[Array, "*B V"],
    temperature: Float[Array, ""],
    *,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Int[Array, "*B"]:
    """Draws a token of each distribution.

    argmax(logits / t + noise) follows softmax(logits / t); here both are multiplied by t, which
    makes 0 a temperature like any other.

    Args:
      logits: the logits of the whole vocabulary.
      noise: the noise of the Gumbel distribution.
      temperature: at least 0.
      top_k: see `sample_decode`.
      top_p: see `sample_decode`.
    """
    allowed = kept(logits, temperature, top_k=top_k, top_p=top_p)
    return most_likely(jnp.where(allowed, logits + temperature * noise, -jnp.inf))


def kept(
    logits: Float[Array, "*B V"], temperature: Float[Array, ""], *, top_k: int, top_p: float
) -> Bool[Array, "*B V"]:
    """The tokens that top-k, and of these top-p, leave; arguments as `draw`.

    Tokens as likely as the last one left are left, too.
    """
    if (top_k <= 0 or top_k >= logits.shape[-1]) and top_p >= 1:
        return jnp.ones(logits.shape, bool)
    scaled = logits - jnp.max(logits, axis=-1, keepdims=True)
    scaled /= jnp.maximum(temperature, _COLDEST)
    if 0 < top_k < logits.shape[-1]:
        largest = lax.top_k(scaled, top_k)[0]
    else:
        largest = jnp.sort(scaled, axis=-1, descending=True)
    if top_p < 1:
        probs = jax.nn.softmax(largest, axis=-1)
        before = jnp.cumsum(probs, axis=-1) - probs
        largest = jnp.where(before < top_p, largest, jnp.inf)
    return scaled >= jnp.min(largest, axis=-1, keepdims=True)
