"""Reads a teacher's ``rationales.jsonl`` (`python -m sbs_jax.teach` writes it). Pure Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sbs_jax.errors import UserError
from sbs_jax.json_files import read_jsonl


def read_rationales(file: Path, name: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the rows of a file, each with its place, for errors.

    A row has a text ``id`` of its own, and perhaps ``llm_label`` and ``llm_rationale`` or a list
    of them, ``llm_rationales``. What else it has is not looked at.

    Args:
      file: the file.
      name: what the user calls it, for errors; `file` by default.

    Raises:
      UserError: the file cannot be read or holds no rows, or a row is malformed or has the id of
        another one; names the line.
    """
    name = f"RATIONALES_FILE = {name or file}"
    seen: set[str] = set()
    for line, row in read_jsonl(file):
        where = f"{name}, line {line}"
        require_text(row, "id", where)
        if row["id"] in seen:
            raise UserError(f"{where}: the id '{row['id']}' occurs twice.")
        seen.add(row["id"])
        if not all(isinstance(text, str) for text in texts_of(row)):
            raise UserError(f"{where}: 'llm_rationale' and 'llm_rationales' must be texts.")
        if not isinstance(row.get("llm_label", ""), str):
            raise UserError(f"{where}: field 'llm_label' must be a text.")
        yield where, row
    if not seen:
        raise UserError(f"{name}: holds no rows.")


def rationale_field(row: Mapping[str, Any]) -> Any:
    """Returns what a row says of its rationales: a text or a list of texts, if it was read."""
    return row.get("llm_rationales") or row.get("llm_rationale", "")


def texts_of(row: Mapping[str, Any]) -> list[Any]:
    """Returns `rationale_field` as a list."""
    found = rationale_field(row)
    return found if isinstance(found, list) else [found]


def require_text(row: Mapping[str, Any], field: str, where: str) -> None:
    """Refuses a row that has no text, or an empty one, in a field.

    Raises:
      UserError: it names the place of the row and the field.
    """
    if not isinstance(row.get(field), str) or not row[field]:
        raise UserError(f"{where}: field '{field}' must be a text.")
