"""Ranking of a closed label set: the exact log-probability of each candidate, encoding once."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from sbs_jax.decoding.begin import FEW_QUERIES
from sbs_jax.decoding.candidates import CandidateTree, candidate_tree, plain_tree
from sbs_jax.models.interface import Network
from sbs_jax.models.stacks import EncoderMemory

MAX_LOGITS = 1 << 25
"""Logits that the head computes at a time; the whole vocabulary for all nodes may be gigabytes."""


def rank_candidates(
    model: Network,
    params: Any,
    encoder_input_tokens: Int[Array, "B S"],
    candidates: Int[Array, "*B C T"] | CandidateTree,
    *,
    decoder_prompt: Int[Array, " P"] | None = None,
) -> Float[Array, "B C"]:
    """The log-probability of each candidate as the decoder's whole output.

    It is exact: the sum of the log-softmax, over the whole vocabulary, of the candidate's tokens.
    A row is encoded once, and prefixes that candidates share are decoded once. `jax.nn.softmax` of
    the result is the distribution among the candidates. Parameters may be cut over a mesh and rows
    over its `data` axis; call it within the mesh then.

    Args:
      model: the network.
      params: the parameters of the model.
      encoder_input_tokens: int32 ids, padded with 0, one sequence a row.
      candidates: int ids, [C, T] for all rows or [B, C, T] for each, EOS included, then 0; or the
        `candidate_tree` of these. Within a jitted function pass the tree, or an array of numpy that
        is a constant there: the prefixes of traced candidates are unknown, thus not shared.
      decoder_prompt: what the decoder is fed before a candidate; see `greedy_decode`. A
        `CandidateTree` already has it.

    Returns:
      float32 natural logarithms. A candidate of only 0, which fills up rows with fewer, has -inf.

    Raises:
      UserError: see `candidate_tree`.
    """
    if isinstance(candidates, CandidateTree):
        if decoder_prompt is not None:
            raise TypeError("Give the decoder_prompt to candidate_tree.")
        tree = candidates
    elif isinstance(candidates, jax.core.Tracer) or isinstance(decoder_prompt, jax.core.Tracer):
        tree = plain_tree(jnp.asarray(candidates), decoder_prompt)
    else:
        prompt = None if decoder_prompt is None else np.asarray(decoder_prompt)
        tree = candidate_tree(np.asarray(candidates), prompt)
    return _rank(model, params, encoder_input_tokens, tree)


@functools.partial(jax.jit, static_argnames=("model",))
def _rank(
    model: Network,
    params: Any,
    encoder_input_tokens: Int[Array, "B S"],
    tree: CandidateTree,
) -> Float[Array, "B C"]:
    rows = encoder_input_tokens.shape[0]
    queries = tree.tokens.shape[0] * tree.tokens.shape[-1]
    memory, _ = model.apply(
        {"params": params},
        encoder_input_tokens,
        1,
        few_queries=queries <= FEW_QUERIES,
        method="start_decoding",
    )
    if tree.order.ndim == 1:
        # One row of everything, which broadcasts.
        tree = CandidateTree(
            tree.tokens[:, None],
            tree.depths[:, None],
            tree.visible[:, None],
            tree.nodes[:, None],
            tree.candidates[:, None],
            tree.order[None],
        )
    groups = (tree.tokens, tree.depths, tree.visible, tree.nodes, tree.candidates)
    scores = functools.partial(_score, model, params, memory)
    if groups[0].shape[0] == 1:
        ranked = scores(tuple(array[0] for array in groups))
    else:
        by_group = lax.map(scores, groups)
        ranked = jnp.moveaxis(by_group, 0, 1).reshape(rows, -1)
    order = jnp.broadcast_to(tree.order, (rows, tree.order.shape[-1]))
    return jnp.take_along_axis(ranked, order, axis=1)


def _score(
    model: Network, params: Any, memory: EncoderMemory, group: tuple[Array, ...]
) -> Float[Array, "B C"]:
    """Log-probabilities of the candidates of one group."""
    tokens, depths, visible, nodes, candidates = group
    rows, count = memory.bias.shape[0], tokens.shape[-1]
    variables = {"params": params}
    cache = model.apply(variables, method=lambda network: network.decoder.empty_cache(rows, count))
    tokens = jnp.broadcast_to(tokens, (rows, count))
    hidden, _ = model.apply(
        variables, tokens, 0, depths, depths, visible, memory, cache, method="extend"
    )
    nodes = jnp.broadcast_to(nodes, (rows, *nodes.shape[1:]))
    candidates = jnp.broadcast_to(candidates, nodes.shape)

    chunk = min(count, max(8, MAX_LOGITS // (rows * model.config.vocab_size)))
    total = jnp.zeros(nodes.shape[:2], jnp.float32)
    for start in range(0, count, chunk):
        selected = hidden[:, start : start + chunk]
        logits = model.apply(variables, selected, method="logits")
        total += _gather(logits, nodes - start, candidates)
    is_candidate = jnp.any(candidates != 0, axis=-1)
    return jnp.where(is_candidate, total, -jnp.inf)


def _gather(
    logits: Float[Array, "B M V"], nodes: Int[Array, "B C T"], candidates: Int[Array, "B C T"]
) -> Float[Array, "B C"]:
    """Sums the log-probabilities of candidates' tokens at those nodes that `logits` are of."""
    count = logits.shape[1]
    normalisers = jax.nn.logsumexp(logits, axis=-1)
    here = (nodes >= 0) & (nodes < count) & (candidates != 0)
    row = jnp.arange(logits.shape[0])[:, None, None]
    node = jnp.clip(nodes, 0, count - 1)
    log_probs = logits[row, node, candidates] - normalisers[row, node]
    return jnp.sum(jnp.where(here, log_probs, 0.0), axis=-1)
