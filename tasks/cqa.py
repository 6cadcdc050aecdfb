"""CommonsenseQA (Talmor et al. 2019), with people's rationales of CoS-E v1.11 or of ECQA.

The input is the question, then ``Answer Choices:``, then ``(a) ...`` to ``(e) ...``, a line each,
as in the published code; the label is the text of the right choice, without its letter.

CoS-E's rationales (Rajani et al. 2019) lie in the release itself. HUMAN_RATIONALES = 'ecqa' takes
ECQA's (Aggarwal et al. 2021) instead, from its published files in ``DATA_DIR/ecqa/``:
``cqa_data_train.csv``, ``_val`` and ``_test`` (``q_no``, ``q_text``, ``q_op1`` to ``q_op5``,
``q_ans``, ``taskB``, in CSV or JSONL), or ``ecqa.jsonl`` (``id``, ``explanation``). ECQA splits the
questions in its own way, so they are joined by id, whatever the file.
"""

from __future__ import annotations

import string
from pathlib import Path

import gin

from sbs_jax import DataSettings, Example, Row, read_rows, register_public
from sbs_jax.data.release import changed
from sbs_jax.errors import UserError

COS_E, ECQA = "cos_e", "ecqa"


@gin.configurable
def human_rationales(source: str = COS_E) -> str:
    """Returns whose rationales RATIONALE_SOURCE = 'human' means: ``cos_e`` or ``ecqa``."""
    if source not in (COS_E, ECQA):
        raise UserError(f"HUMAN_RATIONALES must be 'cos_e' or 'ecqa', not {source!r}.")
    return source


def to_example(row: Row) -> dict[str, str]:
    """Makes an example of a question, its choices and the right one."""
    choices, answer = _choices(row)
    if not 2 <= len(choices) <= len(string.ascii_lowercase):
        raise row.error(f"field 'choices' must hold 2 to 26 choices, not {len(choices)}")
    letters = string.ascii_lowercase[: len(choices)]
    lines = [f"({letter}) {choice}" for letter, choice in zip(letters, choices, strict=True)]
    return {
        "id": row.text("id", blank=True) or f"{row.path.stem}-{row.line}",
        "input": "\n".join([row.text("question"), "Answer Choices:", *lines]),
        "label": answer,
        "rationale": row.text("abstractive_explanation", blank=True),
    }


def with_human_rationales(
    examples: list[Example], split: str, settings: DataSettings
) -> list[Example]:
    """Returns the examples with the rationales that `human_rationales` names."""
    if human_rationales() == COS_E:
        return examples
    folder = settings.folder("ecqa")
    rationales = _read_ecqa(folder)
    if not any(example["id"] in rationales for example in examples):
        raise UserError(
            f"{folder}: explains none of the {split} examples; its ids ('{next(iter(rationales))}')"
            f" are others than theirs ('{examples[0]['id']}')."
        )
    return [changed(example, rationale=rationales.get(example["id"], "")) for example in examples]


def _choices(row: Row) -> tuple[list[str], str]:
    """Returns the choices and the right one, as CoS-E or CommonsenseQA's own page has them."""
    value = row["choices"]
    if isinstance(value, dict) and {"label", "text"} <= set(value) and "answerKey" in row:
        choices = Row(value, row.path, row.line).texts("text")
        by_letter = dict(zip(value["label"], choices, strict=False))
        if row["answerKey"] not in by_letter:
            raise row.error(f"field 'answerKey' is {row['answerKey']!r}, which is no choice")
        return choices, by_letter[row["answerKey"]]
    return row.texts("choices"), row.text("answer")


def _read_ecqa(folder: Path) -> dict[str, str]:
    """Returns the explanations of all files in ECQA's folder, by the id of the question."""
    files = sorted(
        path for path in folder.glob("*") if path.suffix.lower() in (".csv", ".json", ".jsonl")
    )
    found = {}
    for path in files:
        for row in read_rows(path):
            if not any(name in row for name in ("taskB", "explanation")):
                continue  # ECQA's list of authors' splits, or the like
            identity = row.text_of("q_no", "id")
            found[identity] = row.text_of("taskB", "explanation", blank=True).strip()
    if not found:
        raise UserError(
            f"HUMAN_RATIONALES = 'ecqa': {folder} holds no file with the fields q_no and taskB "
            "(cqa_data_train.csv) or id and explanation (ecqa.jsonl); put those of "
            "github.com/dair-iitd/ECQA-Dataset there."
        )
    return found


load = register_public(
    "cqa",
    convert=to_example,
    parser="cqa",
    finish=with_human_rationales,
    tfds="cos_e",
    tfds_splits={"test": "validation"},  # the published code's test examples
    huggingface=("Salesforce/cos_e", "v1.11"),
    huggingface_splits={"test": "validation"},
).load
