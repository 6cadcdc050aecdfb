"""The sizes of padding-free batches: tokens of a group, and kinds of rows for its attention."""

from __future__ import annotations

import dataclasses

from sbs_jax.data.batch_arrays import array_shapes
from sbs_jax.row_tables import MULTIPLE, table_name

PARTS = 16
"""A batch that has no room in the usual sizes, or could do with smaller ones, has a multiple of one
in so many parts of them, so that few sizes are compiled."""

MANY, MANY_MULTIPLE = 1600, 64
"""So many tokens of a group, or more, are a multiple of this number. XLA cuts the sums over tokens
that gradients of weights are into parts for a GPU; where these are not equal it pads arrays of all
tokens before."""


@dataclasses.dataclass(frozen=True)
class RowKind:
    """Rows of one length.

    Attributes:
      rows: how many of them a group has.
      inputs: places for input tokens.
      targets: places for target tokens.
    """

    rows: int
    inputs: int
    targets: int


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of a group of a batch.

    Attributes:
      inputs: input tokens, one of padding among them.
      targets: target tokens, one of padding among them.
      kinds: kinds of rows, the shortest one first; the last one takes every record.
    """

    inputs: int
    targets: int
    kinds: tuple[RowKind, ...]

    def scaled(self, parts: int) -> Sizes:
        """So many `PARTS` of these sizes."""
        kinds = (
            dataclasses.replace(kind, rows=-(-kind.rows * parts // PARTS)) for kind in self.kinds
        )
        return Sizes(
            group_tokens(self.inputs * parts / PARTS),
            group_tokens(self.targets * parts / PARTS),
            tuple(kinds),
        )

    def __str__(self) -> str:
        rows = ", ".join(f"{kind.rows} × ({kind.inputs} + {kind.targets})" for kind in self.kinds)
        return f"{self.inputs} input and {self.targets} target tokens, attention in {rows}"


def round_up(tokens: float, multiple: int = MULTIPLE) -> int:
    """The next multiple of `MULTIPLE`, or of another number."""
    return int(-(-tokens // multiple)) * multiple


def group_tokens(needed: float) -> int:
    """How many tokens a group has of which so many are needed.

    >>> group_tokens(1000), group_tokens(5000)
    (1008, 5056)
    """
    return round_up(needed, MANY_MULTIPLE if needed >= MANY else MULTIPLE)


def batch_shapes(sizes: Sizes, groups: int, *, shared_inputs: bool) -> dict[str, tuple[int, ...]]:
    """The shape of each int32 array of a batch."""
    shapes: dict[str, tuple[int, ...]] = {
        **array_shapes((sizes.inputs, sizes.targets), groups, shared_inputs=shared_inputs)
    }
    for number, kind in enumerate(sizes.kinds):
        shapes[table_name("encoder", number)] = (groups, kind.rows, kind.inputs)
        shapes[table_name("decoder", number)] = (groups, kind.rows, kind.targets)
    return shapes
