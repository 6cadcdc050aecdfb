"""Rows of texts and their branches: who sees whom, and at which position; see `network`."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from sbs_jax.token_ids import EOS_ID


class Places(NamedTuple):
    """Where the tokens of a row belong; who sees whom follows.

    Attributes:
      positions: int32 [B, L], within the token's text, that is x and the branch.
      examples: int32 [B, L], from 1 within a row; 0 is padding.
      branches: int32 [B, L], 0 for x, else the branch's number in its row.
      repeated: bool [B, L], x's last tokens, which branches see as their own start token instead.
    """

    positions: Int[Array, "B L"]
    examples: Int[Array, "B L"]
    branches: Int[Array, "B L"]
    repeated: Bool[Array, "B L"]

    def visible(self) -> Bool[Array, "B L L"]:
        """Which keys (last axis) each token sees."""
        query, key = (lambda of: of[:, :, None]), (lambda of: of[:, None, :])
        own = query(self.branches) == key(self.branches)
        text = (key(self.branches) == 0) & ~key(self.repeated).astype(bool)
        return (
            (query(self.examples) == key(self.examples))
            & (own | text)
            & (query(self.positions) >= key(self.positions))
        )


def places_of(
    text_ids: Int[Array, "B S"], branch_ids: Int[Array, "B T"], source_ids: Int[Array, "B T"]
) -> tuple[Places, Int[Array, "B T"]]:
    """Where the tokens of rows of texts, followed by their branches, belong.

    Args:
      text_ids: the text of each token of the texts, from 1; 0 is padding.
      branch_ids: the branch of each of the other tokens, from 1; 0 is padding.
      source_ids: the text that each of these continues.

    Returns:
      The places, and for each token of the branches the index of the last token of its text.
    """
    about = source_ids[:, :, None] == text_ids[:, None, :]  # [B, T, S]
    index = jnp.arange(text_ids.shape[1])[None, None]
    last = jnp.max(jnp.where(about, index, 0), axis=-1)
    steps = positions_in(branch_ids)
    places = Places(
        positions=jnp.concatenate([positions_in(text_ids), about.sum(-1) - 1 + steps], axis=1),
        examples=jnp.concatenate([text_ids, source_ids], axis=1),
        branches=jnp.concatenate([jnp.zeros_like(text_ids), branch_ids], axis=1),
        repeated=jnp.pad(is_last(text_ids), ((0, 0), (0, steps.shape[1]))),
    )
    return places, last


def positions_in(segment_ids: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """Returns how many tokens of its own segment come before each; segments are contiguous."""
    index = jnp.arange(segment_ids.shape[1])[None]
    before = jnp.pad(segment_ids, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    starts = jnp.where(segment_ids != before, index, 0)
    return index - lax.cummax(starts, axis=1)


def without_end(tokens: Int[Array, "B S"], segment_ids: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """Takes the EOS at the end of each text for padding, unless the text is nothing else."""
    ends = (tokens == EOS_ID) & is_last(segment_ids) & (positions_in(segment_ids) > 0)
    return jnp.where(ends, 0, segment_ids)


def is_last(segment_ids: Int[Array, "B L"]) -> Bool[Array, "B L"]:
    """Which tokens are the last ones of their segment."""
    after = jnp.pad(segment_ids, ((0, 0), (0, 1)), constant_values=-1)[:, 1:]
    return segment_ids != after
