"""What padding-free batches and the networks that read them agree on. Pure Python.

`data.padding_free` makes such batches, `models.attention_rows` reads them.
"""

MULTIPLE = 16
"""The number of tokens of a group is a multiple of it, as are the lengths of the rows of attention.
The networks cut groups into lines of so many tokens."""


def table_name(side: str, kind: int) -> str:
    """The name in a batch of the table of a side, `encoder` or `decoder`, and a kind of row."""
    return f"{side}_rows_{kind}"
