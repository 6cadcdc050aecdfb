"""Which tokens of the input mattered to an output: gradient × input."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sbs_jax.models.interface import Network
from sbs_jax.token_ids import PAD_ID


@functools.partial(jax.jit, static_argnames=("model",))
def input_saliency(
    model: Network,
    params: Any,
    encoder_input_tokens: Int[Array, "B S"],
    targets: Int[Array, "B T"],
    *,
    decoder_prompt: Int[Array, " P"] | None = None,
) -> Float[Array, "B S"]:
    """Gradient × input: how much each input token adds to the log-probability of the targets.

    This is the dot product of a token's embedding with the gradient of the sum of the targets'
    log-probabilities: to first order, what would be lost if the embedding were 0 (Shrikumar et al.
    2016, arXiv 1605.01713). It may be negative. Parameters may be cut over a mesh and rows over its
    `data` axis; call it within the mesh then.

    Args:
      model: the network.
      params: the parameters of the model.
      encoder_input_tokens: int32 ids, padded with 0, one sequence a row.
      targets: int32 ids, EOS included, padded with 0.
      decoder_prompt: what the decoder is fed before the targets; see `greedy_decode`.

    Returns:
      float32, 0 on padding.
    """
    variables = {"params": params}
    segments = model.apply(variables, encoder_input_tokens, method="input_segments")
    rows = targets.shape[0]
    prompt = jnp.asarray(() if decoder_prompt is None else decoder_prompt, jnp.int32)
    fed = jnp.concatenate([jnp.full(1, PAD_ID, jnp.int32), prompt])
    decoder_inputs = jnp.concatenate(
        [jnp.broadcast_to(fed, (rows, fed.shape[0])), targets[:, :-1]], axis=1
    )

    def log_probability(embedded: Float[Array, "B S D"]) -> Float[Array, ""]:
        encoded = model.apply(variables, embedded, segments, method="encode_embedded")
        hidden = model.apply(variables, encoded, segments, decoder_inputs, method="decode_hidden")
        logits = model.apply(variables, hidden[:, fed.shape[0] - 1 :], method="logits")
        log_probs = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
        # Rows do not touch one another: the gradient of the sum has that of each.
        return jnp.sum(jnp.where(targets != 0, chosen, 0.0))

    embedded = model.apply(variables, encoder_input_tokens, method="embed")
    gradient = jax.grad(log_probability)(embedded)
    product = gradient.astype(jnp.float32) * embedded.astype(jnp.float32)
    return jnp.where(segments > 0, jnp.sum(product, axis=-1), 0.0)
