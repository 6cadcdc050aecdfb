"""e-SNLI: inference between two sentences, with people's explanations (Camburu et al. 2018).

In the release layout, ``DATA_DIR/esnli/esnli_{train,valid,test}.json``, a line holds ``premise``,
``hypothesis``, ``label`` (0 entailment, 1 neutral, 2 contradiction) and ``explanation_1``; in
validation and test also ``_2`` and ``_3``. A line labelled -1 is left out, with its completion.
"""

from __future__ import annotations

from typing import Any

from sbs_jax import Row, register_public

from .nli import LABELS, nli_input, nli_label


def to_example(row: Row) -> dict[str, Any] | None:
    """Makes an example of a row; None where people did not agree on the label."""
    label = nli_label(row)
    if label is None:
        return None
    explanations = [row.text(f"explanation_{number}", blank=True) for number in (1, 2, 3)]
    rationales = [text for text in explanations if text.strip()]
    return {"input": nli_input(row), "label": label, "rationale": rationales}


load = register_public(
    "esnli",
    convert=to_example,
    parser="esnli",
    labels=LABELS,
    own_validation=True,
    tfds="esnli",
    huggingface=("esnli",),
).load
