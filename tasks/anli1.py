"""ANLI, round 1: adversarial inference from a paragraph, with people's reasons (Nie et al. 2020).

In the release layout, ``DATA_DIR/anli1/anli1_{train,valid,test}.json``, a line holds ``uid``,
``premise``, ``hypothesis``, ``label`` (0 entailment, 1 neutral, 2 contradiction) and ``reason``,
which is mostly empty in the training examples. The folder, and its files, may also be called
``anli``.
"""

from __future__ import annotations

from sbs_jax import Row, register_public

from .nli import LABELS, nli_input, nli_label


def to_example(row: Row) -> dict[str, str] | None:
    """Makes an example of a row; None where people did not agree on the label."""
    label = nli_label(row)
    if label is None:
        return None
    fields = {"input": nli_input(row), "label": label, "rationale": row.text("reason", blank=True)}
    identity = row.text("uid", blank=True)
    return {**fields, "id": identity} if identity else fields


load = register_public(
    "anli1",
    convert=to_example,
    parser="anli",
    labels=LABELS,
    own_validation=True,
    aliases=("anli",),
    tfds="anli/r1",
    huggingface=("facebook/anli",),
    huggingface_splits={"train": "train_r1", "validation": "dev_r1", "test": "test_r1"},
).load
