"""JSON, JSONL and text files of others: what is wrong with one is said with its file and line."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sbs_jax.errors import UserError


class DuplicateKeyError(Exception):
    """A key stands twice in a JSON object; the argument is the key."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DuplicateKeyError(next(key for key in keys if keys.count(key) > 1))
    return values


def _decoder_of_many() -> json.JSONDecoder:
    """Returns a decoder that keeps a key once, however many of the objects have it."""
    names: dict[str, str] = {}

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = {names.setdefault(key, key): value for key, value in pairs}
        return values if len(values) == len(pairs) else _unique_keys(pairs)

    return json.JSONDecoder(object_pairs_hook=unique_keys)


_UNIQUE = json.JSONDecoder(object_pairs_hook=_unique_keys)


def parse_json(text: str, *, decoder: json.JSONDecoder = _UNIQUE) -> Any:
    """Parses JSON, where no object may have a key twice.

    Args:
      text: the JSON.
      decoder: what reads it; it refuses such keys.

    Raises:
      DuplicateKeyError: an object does; which of the values counts?
      ValueError: it is no JSON (`json.JSONDecodeError`).
      RecursionError: it is nested too deeply.
    """
    if text.startswith("{") and text.endswith("}\n"):
        # A line as most are: `decode` would look for white space around it, which takes as long.
        with contextlib.suppress(ValueError):
            value, end = decoder.raw_decode(text)
            if end == len(text) - 1:
                return value
    if text.startswith("\ufeff"):
        return json.loads(text)  # It says what is wrong.
    return decoder.decode(text)


def text_encoding(encoding: str) -> str:
    """Returns the name under which Python knows a text encoding.

    UTF-8 is ``utf-8-sig``, which passes over the byte order mark that spreadsheets put in front.

    Raises:
      UserError: Python knows no such encoding of texts.
    """
    try:
        "".encode(encoding)
    except (LookupError, ValueError, TypeError) as error:
        raise UserError(
            f"ENCODING = {encoding!r} is no encoding of texts that Python knows; it is 'utf-8', "
            "'utf-16', 'latin-1', 'cp1252', …"
        ) from error
    name = codecs.lookup(encoding).name
    return "utf-8-sig" if name == "utf-8" else name


def optional_json(path: Path) -> dict[str, Any]:
    """Reads a file that holds a JSON object; an empty dict if it cannot be read.

    Raises:
      UserError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}).") from error


def not_encoded(
    path: str | os.PathLike[str], encoding: str, error: UnicodeError, advice: str
) -> UserError:
    """Returns the error of a text file that is not in `encoding`; it names the line."""
    data = Path(path).read_bytes()
    reason, before = getattr(error, "reason", str(error)), b""
    try:
        data.decode(encoding)
    except UnicodeDecodeError as whole:  # `error` counts from some block of the file
        reason, before = whole.reason, data[: whole.start]
    line = before.decode(encoding, "replace").count("\n") + 1
    name = encoding.upper().removesuffix("-SIG")
    return UserError(f"{path}, line {line}: not {name} text ({reason}); {advice}.")


class FilePart(NamedTuple):
    """Neighbouring lines of a text file.

    Attributes:
      start: the byte at which the first of them begins.
      size: how many bytes they take.
      first: the number of the first line, from 1.
    """

    start: int
    size: int
    first: int


def _open_part(path: str | os.PathLike[str], part: FilePart, encoding: str) -> io.TextIOWrapper:
    with open(path, "rb") as file:
        file.seek(part.start)
        lines = io.BytesIO(file.read(part.size))
    return io.TextIOWrapper(lines, encoding.removesuffix("-sig") if part.start else encoding)


def read_jsonl(
    path: str | os.PathLike[str],
    *,
    encoding: str = "utf-8",
    advice: str = "convert the file to UTF-8",
    part: FilePart | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields ``(line number from 1, object)`` for each non-blank line of a JSONL file.

    Args:
      path: the file; a byte order mark at its beginning is passed over.
      encoding: the encoding of its text.
      advice: what to do about a file that is in another encoding, for the error.
      part: the lines that are read; None reads all of them.

    Raises:
      UserError: the file cannot be read, is not in that encoding, or a line is not a JSON object;
        the message names the file and the line.
    """
    encoding = text_encoding(encoding)
    try:
        # Closed by the `with` below.
        file = open(path, encoding=encoding) if not part else _open_part(path, part, encoding)  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    with file:
        number, decoder = part.first - 1 if part else 0, _decoder_of_many()
        try:
            for line in file:
                number += 1
                if not line.strip():
                    continue
                try:
                    row = parse_json(line, decoder=decoder)
                except DuplicateKeyError as error:
                    raise UserError(
                        f"{path}, line {number}: the key {error.args[0]!r} occurs twice in one "
                        "object; which value counts?"
                    ) from None
                except (json.JSONDecodeError, RecursionError) as error:
                    reason = getattr(error, "msg", "nested too deeply").removesuffix(" at")
                    raise UserError(f"{path}, line {number}: not valid JSON ({reason}).") from error
                if not isinstance(row, dict):
                    raise UserError(
                        f"{path}, line {number}: expected a JSON object, found "
                        f"{type(row).__name__}."
                    )
                yield number, row
        except UnicodeError as error:
            raise not_encoded(path, encoding, error, advice) from error
