"""Data of your own without any Python: files whose fields gin names (gin/tasks/your_data.gin).

Files are JSONL, JSON, CSV, TSV or Parquet. A row holds an input and a label. It may also hold a
person's rationale (or a list of several) and a teacher's label and rationale. Where no row has a
teacher's rationale, the person's is used in its place, so that METHOD needs no RATIONALE_SOURCE.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gin

from sbs_jax import DataSettings, Example, Row, read_rows, register_dataset, remote, remote_copies
from sbs_jax.data.release import example_of, rationale_texts
from sbs_jax.errors import UserError
from sbs_jax.json_files import text_encoding
from sbs_jax.metrics import SCORERS

NAME = "your_data"

log = logging.getLogger(__name__)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Files:
    """Which files, and what their fields are called.

    Attributes:
      train_file: the training examples.
      eval_file: validation; None holds out a tenth of the training examples.
      test_file: None is `eval_file`.
      input_field: name of the field of the input, which every row must have.
      label_field: name of the field of the label, which every row must have.
      rationale_field: name of the field of a person's rationale; it may be missing or empty.
      llm_label_field: name of the field of the teacher's label; it may be missing or empty.
      llm_rationale_field: name of the field of the teacher's rationale; it may be missing or empty.
      id_field: name of the field of the id; the split and the line's number where there is none.
      encoding: the encoding of text files.
      scorer: key of `sbs_jax.metrics.SCORERS`.
      labels: all labels, where they are few.

    Raises:
      UserError: the scorer or the encoding is unknown.
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

    def __post_init__(self) -> None:
        text_encoding(self.encoding)
        if self.scorer not in SCORERS:
            raise UserError(
                f"SCORER names the scorer '{self.scorer}', but there are "
                f"{', '.join(sorted(SCORERS))}."
            )

    def of(self, split: str) -> Path:
        """Returns the file that the examples of `split` are read from.

        Raises:
          UserError: none is given, or it is not there.
        """
        own = {
            "train": self.train_file,
            "validation": self.eval_file,
            "test": self.test_file or self.eval_file,
        }[split]
        if own is None and split == "test":
            raise UserError(
                "There are no test examples: give --gin.TEST_FILE=PATH or --gin.EVAL_FILE=PATH."
            )
        path = own or self.train_file
        if path is None:
            raise UserError("TRAIN_FILE is missing: give --gin.TRAIN_FILE=PATH.")
        copy = remote_copies.local(path)
        if remote.is_remote(path) and not copy.exists():
            raise UserError(f"{path}: there is nothing to read; check the name and the network.")
        return copy


def load(split: str, settings: DataSettings) -> list[Example]:
    """Reads the examples of a split."""
    del settings
    chosen = Files()
    rows = read_rows(chosen.of(split), encoding=chosen.encoding)
    teachers = chosen.llm_rationale_field
    if teachers != Files.llm_rationale_field and not any(teachers in row for row in rows):
        log.warning(
            "%s: no row has the field LLM_RATIONALE_FIELD = '%s'; '%s' stands for it.",
            chosen.of(split),
            teachers,
            chosen.rationale_field,
        )
    examples = [_example(row, chosen, split) for row in rows]
    if not any(rationale_texts(example["llm_rationale"])[0] for example in examples):
        for example in examples:
            example["llm_rationale"] = example["rationale"]
    if not any(example["llm_label"] for example in examples):
        for example in examples:
            del example["llm_label"]
    return examples


def _example(row: Row, chosen: Files, split: str) -> Example:
    return example_of(
        row,
        {
            "id": _text(row, chosen.id_field, blank=True) or f"{split}-{row.line}",
            "input": _text(row, chosen.input_field),
            "label": _text(row, chosen.label_field),
            "rationale": _rationales(row, chosen.rationale_field),
            "llm_label": _text(row, chosen.llm_label_field, blank=True),
            "llm_rationale": _rationales(row, chosen.llm_rationale_field),
        },
    )


def _no_rationales(split: str) -> str:
    chosen = Files()
    path = chosen.of("train" if split == "validation" and not chosen.eval_file else split)
    seen = {name: None for row in read_rows(path, encoding=chosen.encoding) for name in row}
    fields = {
        "RATIONALE_FIELD": chosen.rationale_field,
        "LLM_RATIONALE_FIELD": chosen.llm_rationale_field,
    }
    state = " and ".join(
        f"{macro} = '{field}' {'is empty in every row' if field in seen else 'is in no row'}"
        for macro, field in fields.items()
    )
    return f"{path}: {state}; its fields are {', '.join(seen)}."


def _text(row: Row, field: str, *, blank: bool = False) -> str:
    """Returns a field's text; numbers and truth values become texts."""
    value: Any = row[field] if field in row or not blank else ""
    if isinstance(value, float) and not math.isfinite(value):
        raise row.error(f"field '{field}' must be a text or a number, not {value}")
    if isinstance(value, bool | int | float):
        return str(value)
    return row.text(field, blank=blank)


def _rationales(row: Row, field: str) -> str | list[str]:
    value: Any = row.get(field, "")
    if isinstance(value, list):
        return row.texts(field)
    return row.text(field, blank=True)


def _origin(split: str, settings: DataSettings) -> list[Path | str]:
    del settings
    chosen = Files()
    return [Path(__file__), chosen.of(split), repr(chosen)]


def _judge() -> tuple[str, Sequence[str]]:
    chosen = Files()
    return chosen.scorer, chosen.labels


register_dataset(
    NAME,
    load=load,
    judge=_judge,
    own_validation=lambda: Files().eval_file is not None,
    no_rationales=_no_rationales,
    origin=_origin,
)
