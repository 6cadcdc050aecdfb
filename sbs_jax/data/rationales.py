"""Joins a teacher's ``rationales.jsonl`` (`python -m sbs_jax.teach`) to examples, by their ids."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sbs_jax import remote_copies
from sbs_jax.data.rationale_file import rationale_field, read_rationales
from sbs_jax.data.release import Example, add_fields, changed, rationale_texts
from sbs_jax.errors import UserError


def join_rationales(
    examples: list[Example], path: str | Mapping[str, str], dataset: str
) -> list[Example]:
    """Puts a teacher's labels and rationales in the place of the examples' own.

    Args:
      examples: the examples of one split.
      path: a JSONL file with ``id``, ``llm_label`` and ``llm_rationale`` (or a list of them,
        ``llm_rationales``) in each row, and possibly ``input``. It may hold other ids as well.
        Of several teachers a mapping from fields to such files: that of ``rationale`` is joined as
        a single file is, and any other field becomes the (first) rationale that its file has for
        the example, ``''`` where it has none.
      dataset: the data set's name, for errors.

    Returns:
      The examples. The teacher's label and rationale are ``''`` in those that the file does not
      name; if it names none of them, the keys are missing. Further fields of the file's rows are
      `release.own_fields` of their examples.

    Raises:
      UserError: the file is malformed, or names an id with another input.
    """
    if isinstance(path, Mapping):
        for field, one in path.items():
            if field == "rationale":
                examples = join_rationales(examples, one, dataset)
            else:
                examples = _join_field(examples, field, one, dataset)
        return examples
    rows = _rows(path)
    found = sum(example["id"] in rows for example in examples)
    joined = []
    for example in examples:
        plain: Any = changed(example)
        for key in ("llm_label", "llm_rationale"):
            plain.pop(key, None)
        if found:
            row = rows.get(example["id"], {"llm_label": "", "llm_rationale": ""})
            _check_input(row, example, path, dataset)
            plain |= {key: row[key] for key in ("llm_label", "llm_rationale")}
            add_fields(plain, row.get("fields", {}))
        joined.append(plain)
    return joined


def _join_field(examples: list[Example], field: str, path: str, dataset: str) -> list[Example]:
    """Puts the rationales of a further teacher into a field of the examples."""
    rows = _rows(path)
    joined = []
    for example in examples:
        row = rows.get(example["id"], {"llm_rationale": ""})
        _check_input(row, example, path, dataset)
        text = rationale_texts(row["llm_rationale"])[0]
        joined.append(changed(example, **{field: text}))
    return joined


def _check_input(row: Mapping[str, Any], example: Example, path: str, dataset: str) -> None:
    if row.get("input", example["input"]) != example["input"]:
        raise UserError(
            f"RATIONALES_FILE = {path}: the row with id '{example['id']}' has another "
            f"input than that example of '{dataset}'; it was written for other data."
        )


def _rows(path: str) -> dict[str, dict[str, Any]]:
    file = remote_copies.local(path)
    return _read(path, file, file.stat().st_mtime_ns if file.is_file() else 0)


@functools.lru_cache(maxsize=8)
def _read(path: str, file: Path, modified: int) -> dict[str, dict[str, Any]]:
    """Reads the rows by id; `modified` is the file's time of change, so that a new one is read."""
    del modified
    rows: dict[str, dict[str, Any]] = {}
    for _, row in read_rationales(file, path):
        rows[row["id"]] = {
            "llm_label": row.get("llm_label", ""),
            "llm_rationale": rationale_field(row),
            "fields": row,
        }
        if isinstance(row.get("input"), str):
            rows[row["id"]]["input"] = row["input"]
    return rows
