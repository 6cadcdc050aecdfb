"""The sizes of padding-free batches: tokens of a group, and kinds of rows for its attention."""

from __future__ import annotations

import dataclasses

from sbs_jax.data.batch_arrays import array_shapes
from sbs_jax.row_tables import MULTIPLE, table_name

PARTS = 16
"""A batch that has no room in the usual sizes, or could do with smaller ones, has a multiple of one
in so many parts of them, so that few sizes are compiled."""


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
            round_up(self.inputs * parts / PARTS),
            round_up(self.targets * parts / PARTS),
            tuple(kinds),
        )

    def __str__(self) -> str:
        rows = ", ".join(f"{kind.rows} × ({kind.inputs} + {kind.targets})" for kind in self.kinds)
        return f"{self.inputs} input and {self.targets} target tokens, attention in {rows}"


def round_up(tokens: float) -> int:
    """The next multiple of `MULTIPLE`."""
    return int(-(-tokens // MULTIPLE)) * MULTIPLE


def batch_shapes(sizes: Sizes, groups: int, *, shared_inputs: bool) -> dict[str, tuple[int, ...]]:
    """The shape of each int32 array of a batch."""
    shapes: dict[str, tuple[int, ...]] = {
        **array_shapes((sizes.inputs, sizes.targets), groups, shared_inputs=shared_inputs)
    }
    for number, kind in enumerate(sizes.kinds):
        shapes[table_name("encoder", number)] = (groups, kind.rows, kind.inputs)
        shapes[table_name("decoder", number)] = (groups, kind.rows, kind.targets)
    return shapes
