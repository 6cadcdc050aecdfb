"""What padding-free batches and the networks that read them agree on. Pure Python.

`data.padding_free` makes such batches, `models.attention_rows` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MULTIPLE = 16
"""The number of tokens of a group is a multiple of it, as are the lengths of the rows of attention.
The networks cut groups into lines of so many tokens."""


def table_name(side: str, kind: int) -> str:
    """The name in a batch of the table of a side, `encoder` or `decoder`, and a kind of row."""
    return f"{side}_rows_{kind}"


def row_shapes(batch: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """How many rows of each kind a batch of arrays has, and their lengths S and T.

    The list is empty if the batch is not padding-free.
    """
    shapes: list[tuple[int, int, int]] = []
    while (name := table_name("encoder", len(shapes))) in batch:
        groups, rows, inputs = batch[name].shape
        targets = batch[table_name("decoder", len(shapes))].shape[2]
        shapes.append((groups * rows, inputs, targets))
    return shapes
