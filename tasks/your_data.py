"""Data of your own without any Python: files whose fields gin names (gin/tasks/your_data.gin).

Files are JSONL, JSON, CSV, TSV or Parquet. A row holds an input and a label and, as far as there
are any, a rationale of a person's (or several, as a list), and a teacher's label and rationale.
Where no row has a teacher's rationale, the person's stands for it, so that METHOD needs no
RATIONALE_SOURCE.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gin

from sbs_jax.data.datasets import hold_out
from sbs_jax.data.registration import register_dataset
from sbs_jax.data.release import Example, rationale_texts
from sbs_jax.data.rows import Row, read_rows
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError

NAME = "your_data"


@dataclasses.dataclass(frozen=True)
class Files:
    """Which files, and what their fields are called.

    Attributes:
      train_file: the training examples.
      eval_file: validation; None holds out a tenth of the training examples.
      test_file: None is `eval_file`.
      input_field: name of the field; required in every row.
      label_field: likewise.
      rationale_field: may be missing, or empty.
      llm_label_field: likewise.
      llm_rationale_field: likewise.
      id_field: likewise; the line's number otherwise.
      encoding: of CSV and JSON lists.
      scorer: key of `sbs_jax.metrics.SCORERS`.
      labels: all labels, where they are few.
    """

    train_file: str | None = None
    eval_file: str | None = None
    test_file: str | None = None
    input_field: str = "input"
    label_field: str = "label"
    rationale_field: str = "rationale"
    llm_label_field: str = "llm_label"
    llm_rationale_field: str = "llm_rationale"
    id_field: str = "id"
    encoding: str = "utf-8"
    scorer: str = "exact_match"
    labels: Sequence[str] = ()


@gin.configurable
def files(
    train_file: str | None = None,
    eval_file: str | None = None,
    test_file: str | None = None,
    input_field: str = "input",
    label_field: str = "label",
    rationale_field: str = "rationale",
    llm_label_field: str = "llm_label",
    llm_rationale_field: str = "llm_rationale",
    id_field: str = "id",
    encoding: str = "utf-8",
    scorer: str = "exact_match",
    labels: Sequence[str] = (),
) -> Files:
    """Returns the files as gin has bound them; see `Files`."""
    return Files(**locals())


def load(split: str, settings: DataSettings) -> list[Example]:
    """Reads the examples of a split."""
    chosen = files()
    own = {
        "train": chosen.train_file,
        "validation": chosen.eval_file,
        "test": chosen.test_file or chosen.eval_file,
    }[split]
    if own is None and split == "test":
        raise UserError(
            "There are no test examples: give --gin.TEST_FILE=PATH or --gin.EVAL_FILE=PATH."
        )
    path = own or chosen.train_file
    if path is None:
        raise UserError("TRAIN_FILE is missing: give --gin.TRAIN_FILE=PATH.")
    rows = read_rows(Path(path).expanduser(), encoding=chosen.encoding)
    examples = [_example(row, chosen, split) for row in rows]
    if not any(rationale_texts(example["llm_rationale"])[0] for example in examples):
        for example in examples:
            example["llm_rationale"] = example["rationale"]
    if not any(example["llm_label"] for example in examples):
        for example in examples:
            del example["llm_label"]
    if chosen.eval_file is None and split in ("train", "validation"):
        return hold_out(NAME, split, examples, settings)
    return examples


def _example(row: Row, chosen: Files, split: str) -> Example:
    return {
        "id": _text(row, chosen.id_field, blank=True) or f"{split}-{row.line}",
        "input": _text(row, chosen.input_field),
        "label": _text(row, chosen.label_field),
        "rationale": _rationales(row, chosen.rationale_field),
        "llm_label": _text(row, chosen.llm_label_field, blank=True),
        "llm_rationale": _rationales(row, chosen.llm_rationale_field),
    }


def _text(row: Row, field: str, *, blank: bool = False) -> str:
    """Returns a field's text; numbers and truth values become texts."""
    value: Any = row[field] if field in row or not blank else ""
    if isinstance(value, bool | int | float):
        return str(value)
    return row.text(field, blank=blank)


def _rationales(row: Row, field: str) -> str | list[str]:
    value: Any = row.get(field, "")
    if isinstance(value, list):
        return row.texts(field)
    return row.text(field, blank=True)


def _judge() -> tuple[str, Sequence[str]]:
    chosen = files()
    return chosen.scorer, chosen.labels


register_dataset(NAME, load=load, judge=_judge, own_validation=True)
