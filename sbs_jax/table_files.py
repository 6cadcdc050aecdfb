"""CSV and TSV files of others: what is wrong with one is said with its file and line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from sbs_jax.errors import UserError
from sbs_jax.json_files import not_encoded, text_encoding


def read_table(
    path: Path, *, encoding: str = "utf-8", advice: str = "convert the file to UTF-8"
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the rows of a table, one at a time.

    Args:
      path: the file; its ending, ``.csv`` or ``.tsv``, says whether commas or tabs separate the
        fields, and its first line names them. Blank lines are passed over.
      encoding: the encoding of its text; a byte order mark at its beginning is passed over.
      advice: what to do about a file that is in another encoding, for the error.

    Yields:
      The number of the row's last line, from 1, and its fields by name.

    Raises:
      UserError: the file cannot be read, is not in that encoding, or a row is malformed; the
        message names the file and the line.
    """
    encoding = text_encoding(encoding)
    # A field may be long (the standard library's limit is 128 KiB).
    csv.field_size_limit(1 << 30)
    delimiter = "," if path.suffix.lower() == ".csv" else "\t"
    try:
        with path.open(encoding=encoding, newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = next(reader, [])
            for name in header:
                if header.count(name) > 1:
                    raise UserError(f"{path}, line 1: names the field {name!r} twice.")
            for values in reader:
                if not values:
                    continue
                if len(values) != len(header):
                    raise UserError(
                        f"{path}, line {reader.line_num}: has {len(values)} fields, but the first "
                        f"line names {len(header)}."
                    )
                yield reader.line_num, dict(zip(header, values, strict=True))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeError as error:
        raise not_encoded(path, encoding, error, advice) from error
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not valid CSV ({error}).") from error
