"""Candidates as a tree of their common prefixes, so that the decoder computes each prefix once."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int

from sbs_jax.decoding.shapes import round_up
from sbs_jax.errors import UserError
from sbs_jax.token_ids import PAD_ID

MAX_NODES = 256
"""More nodes are cut into groups that are decoded one after another.

Every node attends to all of its group, so the memory of attention grows with the square.
"""
NODES_MULTIPLE = 4
"""Trees of many sizes are padded to fewer, each of which is compiled once."""


@struct.dataclass
class CandidateTree:
    """The decoder's inputs for a set of candidates, one node for each distinct prefix.

    The axis B is missing where all rows have the same candidates. G is the number of groups, into
    which candidates are cut in sorted order; C is the number of candidates of a group.

    Attributes:
      tokens: int32 [G, B, M], the input token at each node: the last of its prefix.
      depths: int32 [G, B, M], tokens before it.
      visible: bool [G, B, M, M], the nodes on its path from the root, itself included.
      nodes: int32 [G, B, C, T], the node that predicts each token of each candidate.
      candidates: int32 [G, B, C, T], padded with 0.
      order: int32 [B, N], where each of the N candidates given lies in [G · C].
    """

    tokens: Int[Array, "G *B M"]
    depths: Int[Array, "G *B M"]
    visible: Bool[Array, "G *B M M"]
    nodes: Int[Array, "G *B C T"]
    candidates: Int[Array, "G *B C T"]
    order: Int[Array, "*B N"]


def candidate_tree(
    candidates: Int[np.ndarray, "*B C T"], decoder_prompt: Int[np.ndarray, " P"] | None = None
) -> CandidateTree:
    """Builds the tree on the host.

    Args:
      candidates: int ids [C, T] for all rows, or [B, C, T] for each; EOS included, then 0. A row of
        only 0 is no candidate.
      decoder_prompt: what the decoder is fed before a candidate; see `greedy_decode`.

    Returns:
      The tree, in numpy.

    Raises:
      UserError: the shape is another, or a candidate goes on after a 0.
    """
    candidates = np.asarray(candidates, np.int32)
    if candidates.ndim not in (2, 3) or not candidates.size:
        raise UserError(
            f"candidates have the shape {candidates.shape}; give ids [candidates, length] or "
            "[rows, candidates, length], none of them empty."
        )
    if np.any((candidates[..., :-1] == 0) & (candidates[..., 1:] != 0)):
        raise UserError("A candidate has 0, which is padding, before its end; leave it out.")
    shared = candidates.ndim == 2
    rows = candidates[None] if shared else candidates
    # Neighbours in sorted order have the longest prefixes in common. Padding sorts last: of two
    # candidates, the one that goes on has all nodes that the other needs.
    keys = np.where(rows == 0, np.iinfo(np.int32).max, rows)
    sorting = np.stack([np.lexsort(row.T[::-1]) for row in keys])
    rows = np.take_along_axis(rows, sorting[..., None], axis=1)
    paths = _paths(rows, decoder_prompt)
    count = rows.shape[1]
    groups = min(count, -(-int(_is_first(rows, paths).sum((1, 2)).max()) // MAX_NODES))
    size = -(-count // groups)
    # The last group is filled up with repeated candidates, whose scores are not read.
    filled = np.minimum(np.arange(groups * size), count - 1).reshape(groups, size)
    built = [_build(rows[:, group], paths[:, group]) for group in filled]
    most = round_up(max(tokens.shape[1] for tokens, *_ in built), NODES_MULTIPLE)
    arrays = [
        np.stack(parts) for parts in zip(*(_pad(parts, most) for parts in built), strict=True)
    ]
    if shared:
        arrays = [array[:, 0] for array in arrays]
    order = np.argsort(sorting, axis=1).astype(np.int32)
    # A tree in numpy: jax takes its arrays where it takes its own.
    tree: list[Any] = [*arrays, order[0] if shared else order]
    return CandidateTree(*tree)


def plain_tree(
    candidates: Int[Array, "*B C T"], decoder_prompt: Int[Array, " P"] | None = None
) -> CandidateTree:
    """A tree for traced candidates: their prefixes are not known, so each has nodes of its own."""
    *batch, count, length = candidates.shape
    root = jnp.zeros((*batch, count, 1), jnp.int32) + PAD_ID
    prompt = jnp.asarray(() if decoder_prompt is None else decoder_prompt, jnp.int32)
    prompts = jnp.broadcast_to(prompt, (*batch, count, prompt.shape[0]))
    # The last token of a candidate is predicted, never fed.
    paths = jnp.concatenate([root, prompts, candidates[..., :-1].astype(jnp.int32)], axis=-1)
    steps = paths.shape[-1]
    in_group = max(1, min(count, MAX_NODES // steps))
    groups = -(-count // in_group)
    chosen = np.minimum(np.arange(groups * in_group), count - 1).reshape(groups, in_group)
    number = np.arange(in_group * steps)
    nodes = number.reshape(in_group, steps)[:, steps - length :]
    same = number[:, None] // steps == number[None] // steps
    visible = same & (number[:, None] >= number[None])

    def grouped(array: Array) -> Array:
        return jnp.moveaxis(array[..., chosen, :], -3, 0)

    def repeated(array: np.ndarray) -> Array:
        middle = (1,) * len(batch)
        return jnp.broadcast_to(
            array.reshape(1, *middle, *array.shape), (groups, *batch, *array.shape)
        )

    return CandidateTree(
        grouped(paths).reshape(groups, *batch, -1),
        repeated((number % steps).astype(np.int32)),
        repeated(visible),
        repeated(nodes.astype(np.int32)),
        grouped(candidates.astype(jnp.int32)),
        jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (*batch, count)),
    )


def _paths(rows: np.ndarray, prompt: np.ndarray | None) -> np.ndarray:
    """The decoder's inputs of each candidate alone, int32 [B, C, 1 + P + T - 1]."""
    prompt = np.zeros(0, np.int32) if prompt is None else np.asarray(prompt, np.int32)
    fed = np.concatenate([np.full(1, PAD_ID, np.int32), prompt])
    common = np.broadcast_to(fed, (*rows.shape[:2], fed.size))
    return np.concatenate([common, rows[..., :-1]], axis=-1)


def _is_first(rows: np.ndarray, paths: np.ndarray) -> np.ndarray:
    """Whether a prefix, ending at [b, c, j], has to be computed and did not occur in c - 1."""
    changed = np.ones(paths.shape, bool)
    changed[:, 1:] = np.logical_or.accumulate(paths[:, 1:] != paths[:, :-1], axis=-1)
    # What comes after a candidate's last token predicts nothing; the common start always counts.
    needed = np.concatenate(
        [np.ones((*rows.shape[:2], paths.shape[-1] - rows.shape[-1]), bool), rows != 0], axis=-1
    )
    needed[..., 0] = True
    return changed & needed


def _build(rows: np.ndarray, paths: np.ndarray) -> tuple[np.ndarray, ...]:
    """One group: tokens, depths, visible, nodes, candidates; rows of fewer nodes are padded."""
    batch, count, steps = paths.shape
    first = _is_first(rows, paths)
    # Sorted candidates: what has occurred before, occurred in the neighbour.
    numbers = np.cumsum(first.reshape(batch, -1), axis=1).reshape(first.shape) - 1
    for candidate in range(1, count):
        numbers[:, candidate] = np.where(
            first[:, candidate], numbers[:, candidate], numbers[:, candidate - 1]
        )
    total = int(first.sum((1, 2)).max())
    tokens = np.zeros((batch, total), np.int32)
    depths = np.zeros((batch, total), np.int32)
    where = np.nonzero(first)
    tokens[where[0], numbers[where]] = paths[where]
    depths[where[0], numbers[where]] = where[2]
    visible = np.zeros((batch, total, total), bool)
    visible[:, np.arange(total), np.arange(total)] = True
    for step in range(1, steps):
        new = np.nonzero(first[:, :, step])
        mine, parent = numbers[*new, step], numbers[*new, step - 1]
        visible[new[0], mine] |= visible[new[0], parent]
    length = rows.shape[-1]
    return tokens, depths, visible, numbers[..., steps - length :].astype(np.int32), rows


def _pad(parts: tuple[np.ndarray, ...], nodes: int) -> tuple[np.ndarray, ...]:
    tokens, depths, visible, numbers, rows = parts
    more = nodes - tokens.shape[1]
    wide = ((0, 0), (0, more))
    visible = np.pad(visible, (*wide, (0, more)))
    # A node that is padding sees itself, so that its softmax is finite.
    visible[:, np.arange(nodes), np.arange(nodes)] = True
    return np.pad(tokens, wide), np.pad(depths, wide), visible, numbers, rows
