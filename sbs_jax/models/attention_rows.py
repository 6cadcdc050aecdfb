"""Padding-free batches: where their tokens lie when they attend.

In a padding-free batch the tokens of many rows stand behind one another, [G, N] in G groups, with
next to no padding between them: norms, projections, feed-forward blocks and the head work on real
tokens alone. Only attention needs sequences side by side. For it, queries, keys and values are
copied into short rows, of a few kinds that differ in their length, and its result is copied back.
`sbs_jax.data.padding_free` makes such batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from sbs_jax.row_tables import MULTIPLE, table_name

Tables = tuple[Int[Array, "G R L"], ...]
"""By kind of row, with R and L of its own: the token at each place, int32. That of an empty place
is the last token of the group, which is padding always."""


class AttentionRows(NamedTuple):
    """The rows in which the tokens of G groups attend.

    Attributes:
      tables: the token at each place of the rows, by kind.
      places: int32 [G, N], the place of each token, counted through the rows of all kinds; their
        number for padding.
    """

    tables: Tables
    places: Int[Array, "G N"]

    @classmethod
    def of(cls, tables: Sequence[Int[Array, "G R L"]], count: int) -> AttentionRows:
        """The rows of groups of `count` tokens, the last of which is padding."""
        flat = jnp.concatenate([table.reshape(table.shape[0], -1) for table in tables], axis=1)
        total = flat.shape[1]
        numbers = jnp.arange(total, dtype=jnp.int32)
        padding = jnp.full((count,), total, jnp.int32)
        places = jax.vmap(lambda at: padding.at[at].set(numbers))(flat)
        return cls(tuple(tables), places.at[:, -1].set(total))

    def spread(self, x: Shaped[Array, "G N *C"]) -> tuple[Shaped[Array, "B L *C"], ...]:
        """Copies tokens to their places in B = G · R rows of each kind; the others hold padding.

        `x` may as well have the shape of `in_lines`.
        """
        x = x.reshape(*self.places.shape, *x.shape[2:])
        return _spread(x, self.tables, self.places)

    def gather(self, rows: Sequence[Shaped[Array, "B L *C"]]) -> Shaped[Array, "G N *C"]:
        """Copies what lies in the rows of each kind back to the tokens; padding becomes 0."""
        return _gather(tuple(rows), self.tables, self.places)


class BothRows(NamedTuple):
    """The rows of inputs and of targets; those of one number hold the same examples."""

    inputs: AttentionRows
    targets: AttentionRows

    @classmethod
    def of(cls, batch: Mapping[str, Int[Array, ...]]) -> BothRows | None:
        """The rows of a padding-free batch; None of another."""
        if table_name("encoder", 0) not in batch:
            return None
        return cls(rows_of(batch, "encoder"), rows_of(batch, "decoder"))

    def spread(
        self,
        text_ids: Int[Array, "G N"],
        segment_ids: Int[Array, "G M"],
        source_ids: Int[Array, "G M"],
    ) -> list[tuple[Int[Array, "B S"], Int[Array, "B T"], Int[Array, "B T"]]]:
        """Copies the ids of inputs and of targets (two kinds of ids) to the rows of each kind."""
        return list(
            zip(
                self.inputs.spread(text_ids),
                self.targets.spread(segment_ids),
                self.targets.spread(source_ids),
                strict=True,
            )
        )

    def joined(self) -> AttentionRows:
        """Rows [inputs | targets], for the tokens of inputs followed by those of targets."""
        inputs, targets = self
        before, behind = inputs.places.shape[1], targets.places.shape[1]
        tables = []
        for first, second in zip(inputs.tables, targets.tables, strict=True):
            # The last token of all stands for padding here, not that of the inputs.
            first = jnp.where(first == before - 1, before + behind - 1, first)
            tables.append(jnp.concatenate([first, second + before], axis=2))
        return AttentionRows.of(tables, before + behind)


def rows_of(batch: Mapping[str, Int[Array, ...]], side: str) -> AttentionRows:
    """The rows of one side, `encoder` or `decoder`, of a padding-free batch."""
    tables: list[Array] = []
    while (name := table_name(side, len(tables))) in batch:
        tables.append(batch[name])
    return AttentionRows.of(tables, batch[f"{side}_segment_ids"].shape[1])


def _take(x: Shaped[Array, "G N *C"], index: Int[Array, "G M"]) -> Shaped[Array, "G M *C"]:
    if x.shape[0] == 1:
        return x[0].at[index[0]].get(mode="promise_in_bounds")[None]
    return jax.vmap(lambda of, at: of.at[at].get(mode="promise_in_bounds"))(x, index)


# Each copy is the other's gradient: a token has one place, and nothing reads an empty place or
# depends on padding. Left to JAX, gradients would be scatters, which are slow on every platform.
@jax.custom_vjp
def _spread(x: Array, tables: Tables, places: Array) -> tuple[Array, ...]:
    del places
    rows = []
    for table in tables:
        groups, number, length = table.shape
        taken = _take(x, table.reshape(groups, -1))
        rows.append(taken.reshape(groups * number, length, *x.shape[2:]))
    return tuple(rows)


@jax.custom_vjp
def _gather(rows: tuple[Array, ...], tables: Tables, places: Array) -> Array:
    groups = places.shape[0]
    flat = jnp.concatenate([x.reshape(groups, -1, *x.shape[2:]) for x in rows], axis=1)
    taken = _take(flat, jnp.minimum(places, flat.shape[1] - 1))
    real = (places < flat.shape[1]).reshape(*places.shape, *(1,) * (taken.ndim - 2))
    return jnp.where(real, taken, jnp.zeros((), taken.dtype))


def in_lines(x: Shaped[Array, "G N *C"]) -> Shaped[Array, "M 16 *C"]:
    """Cuts groups into lines of `MULTIPLE` tokens.

    XLA:CPU sums over all tokens of [1, N, D], as the gradients of norms do, ten times more slowly
    than over those of [N / 16, 16, D]; it was 5 % of a training step.
    """
    return x.reshape(-1, MULTIPLE, *x.shape[2:])


Saved = tuple[Tables, Array]


def _spread_forward(x: Array, tables: Tables, places: Array) -> tuple[tuple[Array, ...], Saved]:
    return _spread(x, tables, places), (tables, places)


def _spread_backward(saved: Saved, gradients: tuple[Array, ...]) -> tuple[Array, None, None]:
    return _gather(gradients, *saved), None, None


def _gather_forward(rows: tuple[Array, ...], tables: Tables, places: Array) -> tuple[Array, Saved]:
    return _gather(rows, tables, places), (tables, places)


def _gather_backward(saved: Saved, gradient: Array) -> tuple[tuple[Array, ...], None, None]:
    return _spread(gradient, *saved), None, None


_spread.defvjp(_spread_forward, _spread_backward)
_gather.defvjp(_gather_forward, _gather_backward)
