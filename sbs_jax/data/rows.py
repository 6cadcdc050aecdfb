"""Reads files of examples: JSONL, JSON lists, CSV, TSV and Parquet, a row at a time.

What is wrong with a file is said in one sentence that names the file and the line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sbs_jax.errors import UserError
from sbs_jax.json_files import DuplicateKeyError, not_encoded, parse_json, read_jsonl, text_encoding
from sbs_jax.table_files import read_table

_ADVICE = "convert the file, or name its ENCODING ('latin-1')"

FORMATS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")


class Row(Mapping[str, Any]):
    """A JSON object that knows where it was read, for the sentences of its errors."""

    __slots__ = ("_values", "line", "path")  # There may be millions.

    def __init__(self, values: Mapping[str, Any], path: Path, line: int) -> None:
        """Wraps `values`, found in `line` (from 1) of `path`."""
        self._values = values
        self.path = path
        self.line = line

    def __getitem__(self, key: str) -> Any:
        try:
            return self._values[key]
        except KeyError:
            known = ", ".join(sorted(map(str, self._values))) or "none"
            raise self.error(f"has no field '{key}' (fields: {known})") from None

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the value of `key`, or `default` if there is none."""
        return self._values.get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def error(self, what: str) -> UserError:
        """Returns an error that says `what` about this line."""
        return UserError(f"{self.path}, line {self.line}: {what}.")

    def text(self, key: str, *, blank: bool = False) -> str:
        """Returns the text of field `key`; it may be empty (or null, or missing) if `blank`."""
        value = self._values.get(key) if blank else self[key]
        if value is None and blank:
            return ""
        if not isinstance(value, str):
            raise self.error(f"field '{key}' must be a text, not {kind_of(value)}")
        if not blank and not value.strip():
            raise self.error(f"field '{key}' is empty")
        return value

    def first_of(self, *keys: str) -> str:
        """Returns the one of `keys` that the line has, for fields that go by several names."""
        for key in keys:
            if key in self:
                return key
        known = ", ".join(sorted(map(str, self._values))) or "none"
        raise self.error(f"has none of the fields {', '.join(map(repr, keys))} (fields: {known})")

    def text_of(self, *keys: str, blank: bool = False) -> str:
        """Returns the text of the first of `keys` that the line has; see `first_of` and `text`.

        With `blank` it may have none of them; the text is ``''`` then.
        """
        if blank and not any(key in self for key in keys):
            return ""
        return self.text(self.first_of(*keys), blank=blank)

    def texts(self, key: str) -> list[str]:
        """Returns the list of texts in field `key`."""
        value = self[key]
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(f"field '{key}' must be a list of texts")
        return value


def read_rows(path: Path, *, encoding: str = "utf-8") -> list[Row]:
    """Reads all rows of a file; its ending gives the format.

    ``.json`` and ``.jsonl`` hold either one object a line, or one JSON list of objects, or one
    object with such a list as its only list. The first line of ``.csv`` and ``.tsv`` names the
    fields.

    Args:
      path: the file.
      encoding: the encoding of a text file. A byte order mark at its beginning is passed over.

    Returns:
      The rows, at least one. Those of a JSON list or a Parquet file are numbered instead of lines.

    Raises:
      UserError: the file cannot be read, is malformed, or is empty; names the line. Or there is no
        such encoding.
    """
    encoding = text_encoding(encoding)
    ending = path.suffix.lower()
    if ending not in FORMATS:
        raise UserError(f"{path}: files of examples end in {', '.join(FORMATS)}.")
    if ending == ".parquet":
        rows = _read_parquet(path)
    elif ending in (".csv", ".tsv"):
        table = read_table(path, encoding=encoding, advice=_ADVICE)
        rows = [Row(values, path, line) for line, values in table]
    elif is_one_json(path, encoding):
        rows = _read_json(path, encoding)
    else:
        lines = read_jsonl(path, encoding=encoding, advice=_ADVICE)
        rows = [Row(values, path, line) for line, values in lines]
    if not rows:
        raise UserError(f"{path}: holds no examples.")
    return rows


def is_one_json(path: Path, encoding: str) -> bool:
    """Tells a JSON document from a JSON object a line: the first line alone is none."""
    try:
        with path.open(encoding=encoding) as file:
            first = next((line for line in file if line.strip()), "")
            if first.lstrip().startswith("["):
                return True
            if not first.lstrip().startswith("{"):
                return False
            try:
                json.loads(first)
            except RecursionError:
                return False
            except ValueError:
                # `{` and no more on the first line: a document over many lines.
                return first.strip() == "{"
            return False
    except (OSError, UnicodeError):
        return False  # the reader of lines raises it again, and names the line


def _read_json(path: Path, encoding: str) -> list[Row]:
    try:
        values = parse_json(path.read_text(encoding=encoding))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}).") from error
    except RecursionError as error:
        raise UserError(f"{path}, line 1: not valid JSON (nested too deeply).") from error
    except UnicodeError as error:
        raise not_encoded(path, encoding, error, _ADVICE) from error
    except DuplicateKeyError as error:
        raise UserError(f"{path}: the key {error.args[0]!r} occurs twice in one object.") from error
    if isinstance(values, dict):
        lists = [value for value in values.values() if isinstance(value, list)]
        values = lists[0] if len(lists) == 1 else [values]
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise UserError(f"{path}, entry {number}: expected an object, found {kind_of(value)}.")
    return [Row(value, path, number) for number, value in enumerate(values, start=1)]


def _read_parquet(path: Path) -> list[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path}: Parquet is read by pyarrow: pip install pyarrow.") from error
    try:
        values = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({error}).") from error
    return [Row(value, path, number) for number, value in enumerate(values, start=1)]


_KINDS = {dict: "an object", list: "a list", bool: "a truth value", type(None): "null"}


def kind_of(value: Any) -> str:
    """Names the type of a JSON value, for errors: ``a list``."""
    return _KINDS.get(type(value), "a number" if isinstance(value, int | float) else "a text")
