"""SVAMP: arithmetic word problems; the label is an equation (Patel et al. 2021, arXiv 2103.07191).

The student's target is the released equation as it stands, ``( 84.0 / 2.0 )``: decimals and spaces
are kept, for that is what the published students learned and what scores compare by value anyway.
The teacher's label is its own expression in parentheses, ``(84 / 2)``. There are no human
rationales.
"""

from __future__ import annotations

from sbs_jax import Row, register_public


def word_problem(row: Row) -> str:
    """Returns body and question, a line each, as the published code joins them."""
    return f"{row.text_of('Body', 'body', blank=True)}\n{row.text_of('Question', 'question')}"


def to_example(row: Row) -> dict[str, str]:
    """Makes an example of a row of the release or of Hugging Face's copy."""
    text = row.text("input") if "input" in row else word_problem(row)
    return {"input": text, "label": row.text_of("label", "Equation")}


page = ("ChilleD/SVAMP",)
load = register_public(
    "svamp", convert=to_example, parser="svamp", scorer="value", huggingface=page
).load
