"""The sizes of padding-free batches: tokens of a group, and kinds of rows for its attention."""

from __future__ import annotations

import dataclasses

from sbs_jax.data.batch_arrays import array_shapes
from sbs_jax.row_tables import MULTIPLE, table_name

PARTS = 16
"""A batch that does not fit into the usual sizes, or would fit into smaller ones, gets these sizes
scaled by a multiple of 1 / `PARTS`, so that few shapes are compiled."""

MANY, MANY_MULTIPLE = 1600, 64
"""If a group has `MANY` tokens or more, their number is a multiple of `MANY_MULTIPLE`. Gradients of
weights are sums over tokens, which XLA cuts into parts for a GPU; if these would not be equal, it
pads arrays of all tokens before."""


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
      kinds: the kinds of rows, shortest first; every record fits into the last one.
    """

    inputs: int
    targets: int
    kinds: tuple[RowKind, ...]

    def scaled(self, parts: int) -> Sizes:
        """Returns the sizes times `parts` / `PARTS`, rounded up."""
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
    """Returns the least multiple of a number that is not below `tokens`."""
    return int(-(-tokens // multiple)) * multiple


def group_tokens(needed: float) -> int:
    """Returns how many tokens a group has if `needed` tokens are needed.

    >>> group_tokens(1000), group_tokens(5000)
    (1008, 5056)
    """
    return round_up(needed, MANY_MULTIPLE if needed >= MANY else MULTIPLE)


def batch_shapes(sizes: Sizes, groups: int, *, shared_inputs: bool) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each int32 array of a batch."""
    shapes: dict[str, tuple[int, ...]] = {
        **array_shapes((sizes.inputs, sizes.targets), groups, shared_inputs=shared_inputs)
    }
    for number, kind in enumerate(sizes.kinds):
        shapes[table_name("encoder", number)] = (groups, kind.rows, kind.inputs)
        shapes[table_name("decoder", number)] = (groups, kind.rows, kind.targets)
    return shapes
