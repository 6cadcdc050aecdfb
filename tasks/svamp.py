"""SVAMP: arithmetic word problems; the label is an equation (Patel et al. 2021, arXiv 2103.07191).

The student's target is the released equation as it stands, ``( 84.0 / 2.0 )``: decimals and spaces
are kept, for that is what the published students learned and what scores compare by value anyway.
The teacher's label is its own expression in parentheses, ``(84 / 2)``. There are no human
rationales.
"""

from __future__ import annotations

from sbs_jax.data.registration import register_dataset
from sbs_jax.data.release import Example, Row
from sbs_jax.data.settings import DataSettings
from sbs_jax.data.sources import PublicNames, first_text, load_public
from sbs_jax.parsers import PARSERS

NAMES = PublicNames(huggingface=("ChilleD/SVAMP",))


def load(split: str, settings: DataSettings) -> list[Example]:
    """Reads ``DATA_DIR/svamp/svamp_{split}.json`` and the teacher's completions beside it."""
    parser = PARSERS["svamp"]
    return load_public(settings, "svamp", split, NAMES, convert=_convert, parser=parser)


def _convert(row: Row) -> Example:
    return {
        "id": f"{row.path.stem}-{row.line}",
        "input": row.text("input") if "input" in row else word_problem(row),
        "label": row.text(row.first_of("label", "Equation")),
        "rationale": "",
    }


def word_problem(row: Row) -> str:
    """Returns body and question, a line each, as the published code joins them."""
    body = first_text(row, ("Body", "body"), blank=True)
    return f"{body}\n{first_text(row, ('Question', 'question'))}"


register_dataset("svamp", load=load, scorer="value", public=True)
