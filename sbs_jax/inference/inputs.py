"""Reads the inputs of a file or a task one at a time, in their order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sbs_jax.errors import UserError
from sbs_jax.json_files import not_encoded, read_jsonl
from sbs_jax.table_files import read_table

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".txt")


@dataclasses.dataclass(frozen=True)
class Item:
    """An input.

    Attributes:
      id: the name of the input; the number of its line if the file gives none.
      input: the text, without task prefix.
      where: the place of the input, for error messages: `file, line 3`.
      target: the gold label, if it is known.
      candidates: the input's own closed label set, if it has one.
      rationale: the rationale that `rationale_input` students read; '' for none.
    """

    id: str
    input: str
    where: str
    target: str | None = None
    candidates: tuple[str, ...] | None = None
    rationale: str = ""


def read_items(path: str, input_field: str = "input") -> Iterator[Item]:
    """Reads a file without ever holding more than a line of it.

    Args:
      path: `.jsonl` (or `.json`) with an object a line, `.csv` or `.tsv` with a first line that
        names the fields, or `.txt` with an input a line. Blank lines are passed over. Fields are
        `input_field`, and where there are such `id`, `label` (gold), `candidates` (a list; in a
        table separated by `|`) and `rationale`.
      input_field: which field holds the input.

    Raises:
      UserError: the file cannot be read, or a line is malformed; names it.
    """
    file = Path(path).expanduser()
    ending = file.suffix.lower()
    if ending not in FORMATS:
        raise UserError(f"INPUT_FILE = {path}: files of inputs end in {', '.join(FORMATS)}.")
    if ending == ".txt":
        for number, line in _lines(file):
            if text := line.strip():
                yield Item(str(number), text, f"{path}, line {number}")
        return
    rows = read_jsonl(file) if ending.startswith(".json") else _table(file)
    for number, row in rows:
        yield _item(row, f"{path}, line {number}", str(number), input_field)


def read_task(name: str, split: str, module: str | None = None) -> Iterator[Item]:
    """The examples of a split of a registered task or data set (this needs TensorFlow).

    Raises:
      UserError: there is no such task or split, or it cannot be read.
    """
    from sbs_jax.data import datasets
    from sbs_jax.data.release import rationale_texts
    from sbs_jax.data.resolving import TaskChoice, resolve_task

    info = resolve_task(TaskChoice(name, module)).require_info("be inferred from")
    for number, example in enumerate(datasets.load_examples(info.dataset, split), start=1):
        rationale = rationale_texts(example.get(info.rationale_key, ""))[0]
        where = f"'{name}' ({split}), example {number}"
        yield Item(example["id"], example["input"], where, example["label"], None, rationale)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with file.open(encoding="utf-8-sig") as opened:
            for line in opened:
                number += 1
                yield number, line
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise not_encoded(file, "utf-8-sig", error, "convert the file to UTF-8") from error


def _table(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in read_table(file):
        # An empty cell is no value.
        values: dict[str, Any] = {name: value for name, value in row.items() if value}
        if "candidates" in values:
            values["candidates"] = values["candidates"].split("|")
        yield number, values


def _item(row: Mapping[str, Any], where: str, number: str, field: str) -> Item:
    def text(name: str) -> str | None:
        value = row.get(name)
        if value is not None and not isinstance(value, str):
            raise UserError(f"{where}: field '{name}' must be a text, not {type(value).__name__}.")
        return value

    if field not in row:
        known = ", ".join(map(str, row)) or "none"
        raise UserError(
            f"{where}: has no field '{field}' (fields: {known}); --gin.INPUT_FIELD=NAME names "
            "another one."
        )
    value = text(field)
    if value is None or not value.strip():
        raise UserError(f"{where}: the input is empty.")
    candidates = row.get("candidates")
    if candidates is not None:
        is_list = isinstance(candidates, list)
        if not is_list or not all(isinstance(label, str) for label in candidates):
            raise UserError(f"{where}: field 'candidates' must be a list of texts.")
        candidates = tuple(dict.fromkeys(candidates))
    name = row.get("id")
    if name is not None and not isinstance(name, str | int):
        raise UserError(f"{where}: field 'id' must be a text or a number.")
    return Item(
        id=number if name is None else str(name),
        input=value,
        where=where,
        target=text("label"),
        candidates=candidates,
        rationale=text("rationale") or "",
    )
