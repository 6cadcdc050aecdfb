"""A JSONL file that can be continued after a kill, and a record of what it was made with."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sbs_jax.closing import Closing
from sbs_jax.errors import UserError
from sbs_jax.files import (
    atomic_write_text,
    cannot_write,
    end_of_lines,
    refuse_remote,
    require_named,
    writing,
)
from sbs_jax.json_files import read_jsonl


class ResumableOutput(Closing):
    """Appends rows, in whole lines, on disk before `append` returns.

    Beside `FILE` lies `FILE.run.json`: what the rows were made with. A `FILE` that was made with
    something else, or by something else, is never touched.
    """

    def __init__(
        self,
        path: str,
        made_with: Mapping[str, Any],
        *,
        checkpoint: str,
        macro: str = "OUTPUT_FILE",
    ) -> None:
        """Opens the file, and drops a line that was torn when its writer was killed.

        Args:
          path: the file; its folder is made if need be.
          made_with: JSON values by the names that the user knows them by; `parameters` is a
            digest of the checkpoint's.
          checkpoint: the folder of the checkpoint, which may be moved.
          macro: the macro that names the file, or its folder, for the sentences of errors.

        Raises:
          UserError: the file was made with something else, or another process writes it.
        """
        refuse_remote(path)
        self.path = Path(path).expanduser()
        self._begin_anew = f"name another {macro}, or remove this one to begin anew"
        self._record = self.path.with_name(self.path.name + ".run.json")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            existed = self.path.exists()
            if existed:
                self._check(json.loads(json.dumps(made_with)), checkpoint)
            else:
                record = {"checkpoint": checkpoint, **made_with}
                text = json.dumps(record, indent=2, ensure_ascii=False)
                atomic_write_text(self._record, text + "\n")
            # Without a buffer, whose rest would be written when the file is closed after a failure.
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"{macro} = {cannot_write(path, error)}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise UserError(f"{self.path}: another process is writing it.") from error
        with writing(self.path):
            self._drop_torn_line()

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows that are there.

        Raises:
          UserError: one is no JSON object; names the line.
        """
        return (row for _, row in read_jsonl(self.path))

    def cut(self, rows: int) -> None:
        """Keeps the first `rows` rows."""
        size = 0
        with self.path.open("rb") as file:
            for _ in range(rows):
                size += len(file.readline())
        with writing(self.path):
            self._file.truncate(size)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes rows behind those that are there.

        Raises:
          UserError: the disk is full, or does not take them for another reason; a line that was
            torn by that is dropped, now or when the call is repeated. Or the file is gone.
        """
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        left = memoryview(text.encode("utf-8", "replace"))
        try:
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._drop_torn_line()
            raise UserError(cannot_write(self.path, error)) from error
        require_named(self.path, self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _check(self, wanted: Mapping[str, Any], checkpoint: str) -> None:
        try:
            found = json.loads(self._record.read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise ValueError
        except (OSError, ValueError):
            raise UserError(
                f"{self.path}: exists, and {self._record.name} beside it, which would tell what it "
                f"was made with, does not; {self._begin_anew}."
            ) from None
        begun_with = found.pop("checkpoint", None)
        if found.get("parameters") != wanted.get("parameters"):
            other = f"with another checkpoint ({begun_with}) than {checkpoint}"
            if begun_with == checkpoint:
                other = f"when {checkpoint} held other weights"
            raise UserError(f"{self.path}: was begun {other}; {self._begin_anew}.")
        for name in [*wanted, *found]:
            if found.get(name) != wanted.get(name):
                raise UserError(
                    f"{self.path}: was begun with {name} = {found.get(name)!r}, not "
                    f"{wanted.get(name)!r}; {self._begin_anew}."
                )

    def _drop_torn_line(self) -> None:
        with self.path.open("rb") as file:
            size, end = os.fstat(file.fileno()).st_size, end_of_lines(file.fileno())
        if end < size:
            self._file.truncate(end)
