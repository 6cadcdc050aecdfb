"""What e-SNLI and ANLI share: three labels, and two texts in one input."""

from __future__ import annotations

from sbs_jax import Row
from sbs_jax.token_ids import EOS_STRING

LABELS = ("entailment", "neutral", "contradiction")
"""The labels, by the number that stands for each in the files."""


def nli_input(row: Row) -> str:
    """Returns premise and hypothesis, joined with the EOS string as in the published code.

    A few hypotheses of SNLI are empty; the fields have to be there, though.
    """
    texts = []
    # tensorflow-datasets calls ANLI's premises contexts.
    for key in ("context" if "context" in row else "premise", "hypothesis"):
        if key not in row:
            row.text(key)  # raises
        texts.append(row.text(key, blank=True))
    return EOS_STRING.join(texts)


def nli_label(row: Row) -> str | None:
    """Returns the label, given by number or by name; None where people did not agree (-1)."""
    value = row["label"]
    if isinstance(value, str):
        word = value.strip().lower()
        if word in LABELS:
            return word
        value = int(word) if word.removeprefix("-").isdecimal() else value
    if value in (0, 1, 2) and not isinstance(value, bool):
        return LABELS[int(value)]
    if value == -1:
        return None
    raise row.error(
        f"field 'label' must be 0 (entailment), 1 (neutral) or 2 (contradiction), not {value!r}"
    )
