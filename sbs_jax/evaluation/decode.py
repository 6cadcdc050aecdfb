"""Decoding many encoder inputs in few shapes, sharded over the mesh, in their own order."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from sbs_jax.decoding.greedy import greedy_decode
from sbs_jax.partitioning.distributed import to_global
from sbs_jax.student import Student

LENGTHS = 4
"""Inputs are padded to one of so many lengths; every length is compiled once."""

DecodeFn = Callable[[Any, np.ndarray], jax.Array]
"""Maps parameters and encoder inputs int32 [B, S] to tokens int32 [B, T]."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Inputs that are decoded together.

    Attributes:
      rows: int64 [B], which inputs; the last may come several times, to fill the batch up.
      real: how many of `rows` count.
      length: how many encoder tokens are kept.
    """

    rows: np.ndarray
    real: int
    length: int


def plan(lengths: np.ndarray, batch_size: int, max_length: int, row_multiple: int) -> list[Group]:
    """Sorts inputs by length and cuts them into groups of one size.

    Args:
      lengths: int [N], tokens of each input.
      batch_size: the most rows of a group, before they are rounded up to `row_multiple`.
      max_length: the most tokens, at least the longest of `lengths`.
      row_multiple: every group's rows are a multiple of it (devices along `data`).

    Returns:
      Groups that hold every input once, with at most `LENGTHS` different lengths.
    """
    count = lengths.size
    if not count:
        return []
    groups = -(-count // max(batch_size, 1))
    rows = _round_up(-(-count // groups), row_multiple)
    order = np.argsort(lengths, kind="stable")
    planned = []
    for start in range(0, count, rows):
        chosen = order[start : start + rows]
        # Padding repeats a real input: an empty one might never end, and hold the others up.
        padding = np.full(rows - chosen.size, chosen[-1])
        length = _bucket(int(lengths[chosen].max()), max_length)
        planned.append(Group(np.concatenate([chosen, padding]), chosen.size, length))
    return planned


class Decoder:
    """Greedy decoding of one student on its mesh.

    Attributes:
      max_decode_len: the most tokens of an output, EOS included.
    """

    def __init__(
        self,
        student: Student,
        *,
        batch_size: int,
        max_decode_len: int,
        decode_fn: Callable[..., jax.Array] = greedy_decode,
    ) -> None:
        """Compiles nothing yet.

        Args:
          student: whose model decodes.
          batch_size: rows at a time.
          max_decode_len: the most tokens of an output.
          decode_fn: `greedy_decode` or one with its signature.
        """
        self.max_decode_len = max_decode_len
        self._mesh = student.mesh
        self._batch_size = batch_size
        self._decode = student.jit(
            functools.partial(_decode, decode_fn, student.model, max_decode_len),
            out_shardings=student.replicated,
        )

    def __call__(
        self, params: Any, inputs: np.ndarray, prompt: np.ndarray | None = None
    ) -> list[list[int]]:
        """Decodes all inputs.

        Args:
          params: on the mesh.
          inputs: encoder tokens int32 [N, S], padded with 0. Every process passes the same.
          prompt: int32 [P], tokens that begin every output and are not part of it.

        Returns:
          N lists of tokens, in the order of `inputs`, each without EOS and what follows.
        """
        lengths = np.count_nonzero(inputs, axis=1)
        groups = plan(lengths, self._batch_size, inputs.shape[1], self._mesh.shape["data"])
        prompts = () if prompt is None or not prompt.size else (prompt,)
        # All groups are under way before the first is fetched: the host never waits in between.
        decoded = [
            self._decode(
                params,
                to_global({"tokens": inputs[group.rows, : group.length]}, self._mesh),
                *prompts,
            )
            for group in groups
        ]
        outputs: list[list[int]] = [[] for _ in range(inputs.shape[0])]
        for group, tokens in zip(groups, decoded, strict=True):
            for row, sequence in zip(group.rows[: group.real], np.asarray(tokens), strict=False):
                outputs[row] = until_end(sequence)
        return outputs


def until_end(tokens: Sequence[int] | np.ndarray, eos_id: int = 1) -> list[int]:
    """The tokens before the first EOS or padding.

    >>> until_end([5, 6, 1, 0])
    [5, 6]
    """
    tokens = np.asarray(tokens)
    ends = np.flatnonzero((tokens == eos_id) | (tokens == 0))
    return tokens[: ends[0] if ends.size else tokens.size].tolist()


def _decode(
    decode_fn: Callable[..., jax.Array],
    model: Any,
    max_decode_len: int,
    params: Any,
    batch: dict[str, jax.Array],
    prompt: jax.Array | None = None,
) -> jax.Array:
    options = {} if prompt is None else {"decoder_prompt": prompt}
    return decode_fn(model, params, batch["tokens"], max_decode_len=max_decode_len, **options)


def _bucket(length: int, max_length: int) -> int:
    step = _round_up(-(-max_length // LENGTHS), 8)
    return min(_round_up(max(length, 1), step), max_length)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
