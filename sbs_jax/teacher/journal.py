"""The journal: every completion is on disk before it counts as done.

`OUTPUT_DIR/generations.jsonl` is only ever appended to. Everything else in the folder is derived
from it, and can be derived again without asking the teacher.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import tempfile
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sbs_jax.closing import Closing
from sbs_jax.errors import UserError
from sbs_jax.files import cannot_write, end_of_lines, remove_temporary, require_named, writing
from sbs_jax.teacher.types import Completion, CompletionRequest

FILE_NAME = "generations.jsonl"
_LOCK_NAME = ".lock"
_OPTIONAL = [item.name for item in fields(Completion) if item.name != "text"]
_encode = json.JSONEncoder(separators=(",", ":")).encode


class FolderLock:
    """Locks `OUTPUT_DIR` for one run; the kernel releases the lock when the process dies."""

    def __init__(self, folder: Path) -> None:
        """Locks `folder`, which is made if need be.

        Raises:
          UserError: another run holds it, or it cannot be written.
        """
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._fd, 100).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise UserError(
                f"{folder} is in use by another run{f' (process {holder})' if holder else ''}; "
                "wait for it or choose another OUTPUT_DIR."
            ) from error
        remove_temporary(folder)
        with contextlib.suppress(OSError):  # The lock holds; its owner's number is a courtesy.
            os.ftruncate(self._fd, 0)
            os.write(self._fd, f"{os.getpid()}\n".encode("ascii"))

    def release(self) -> None:
        """Releases the lock."""
        os.close(self._fd)


@dataclass
class Totals:
    """Sums over a journal: what the folder has cost so far, in all runs."""

    completions: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usage_estimated: int = 0
    damaged_lines: int = 0

    def add(self, completion: Completion) -> None:
        """Counts one completion."""
        if completion.error is None:
            self.completions += 1
        else:
            self.errors += 1
        self.prompt_tokens += completion.prompt_tokens
        self.completion_tokens += completion.completion_tokens
        self.usage_estimated += completion.usage_estimated


class LineIndex:
    """Maps a key to the position of a line in a file.

    A temporary SQLite database with a bounded page cache: memory does not grow with its size.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=OFF")
        self._database.execute("PRAGMA synchronous=OFF")
        self._database.execute(
            "CREATE TABLE place (key BLOB PRIMARY KEY, start INTEGER, length INTEGER, file INTEGER)"
            " WITHOUT ROWID"
        )
        self._database.execute("BEGIN")

    def put(self, key: str, start: int, length: int, file: int = 0) -> None:
        """Records the position of the line of `key` (hex digits); the last one counts.

        Raises:
          UserError: the index does not fit into memory, nor the rest of it onto the disk.
        """
        try:
            self._database.execute(
                "INSERT OR REPLACE INTO place VALUES (?, ?, ?, ?)",
                (bytes.fromhex(key), start, length, file),
            )
        except sqlite3.Error as error:
            raise UserError(
                f"The index of what was answered cannot be kept in {tempfile.gettempdir()} "
                f"({error}); make room there, or set SQLITE_TMPDIR to another folder."
            ) from error

    def get(self, key: str) -> tuple[int, int, int] | None:
        """Returns (start, length, file), or None."""
        return self._database.execute(
            "SELECT start, length, file FROM place WHERE key = ?", (bytes.fromhex(key),)
        ).fetchone()

    def close(self) -> None:
        """Deletes it."""
        self._database.close()


@dataclass
class Journal(Closing):
    """An open journal, held by this process alone.

    Attributes:
      folder: OUTPUT_DIR.
      totals: Sums over everything in it.
      dropped_bytes: Length of the torn last line that was cut off when opening.
    """

    folder: Path
    totals: Totals = field(default_factory=Totals)
    dropped_bytes: int = 0

    def __post_init__(self) -> None:
        self.path = self.folder / FILE_NAME
        self._lock = FolderLock(self.folder)
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            self._lock.release()
            raise UserError(cannot_write(self.path, error)) from error
        self._index = LineIndex()
        self._end = 0
        try:
            with writing(self.path):
                # Half-written files of runs that were killed; no other process writes here now.
                for stale in self.folder.glob(".*.tmp"):
                    stale.unlink()
                self._drop_torn_line()
            self._scan()
        except BaseException:
            os.close(self._fd)
            self._lock.release()
            raise

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever written."""
        return self._end == 0

    def __contains__(self, key: str) -> bool:
        return self._index.get(key) is not None

    def get(self, key: str) -> Completion | None:
        """Returns the completion that was written under `key`, or None."""
        place = self._index.get(key)
        if place is None:
            return None
        return completion_of(json.loads(os.pread(self._fd, place[1], place[0])))

    def append(
        self, request: CompletionRequest, completion: Completion, *, final: bool = True
    ) -> None:
        """Appends one completion.

        Args:
          request: The request.
          completion: The answer to the request.
          final: Whether it counts as done; False notes a fault that a restart tries again.

        Raises:
          UserError: the disk is full, or does not take it for another reason.
        """
        row: dict[str, Any] = {
            "key": request.key,
            "id": request.example.id,
            "kind": request.kind,
            "sample": request.sample,
            "attempt": request.attempt,
            "text": completion.text,
            "finish_reason": completion.finish_reason,
            "prompt_tokens": completion.prompt_tokens,
            "completion_tokens": completion.completion_tokens,
            "seconds": round(completion.seconds, 4),
            "tries": completion.tries,
        }
        if completion.usage_estimated:
            row["usage_estimated"] = True
        if completion.logprob is not None:
            row["logprob"] = completion.logprob
        if completion.server:
            row["server"] = completion.server
        if completion.error is not None:
            row["error"] = completion.error
            row["final"] = final
        # ASCII: whatever the teacher wrote (lone surrogates, NUL, U+2028), the line is one line.
        line = _encode(row).encode("ascii") + b"\n"
        try:
            written = os.write(self._fd, line)
            while written < len(line):
                written += os.write(self._fd, line[written:])
        except OSError as error:
            with contextlib.suppress(OSError):  # If not now, the next start drops the torn line.
                os.ftruncate(self._fd, self._end)
            raise UserError(cannot_write(self.path, error)) from error
        if final:
            self._index.put(request.key, self._end, len(line))
        self._end += len(line)
        self.totals.add(completion)

    def sync(self) -> None:
        """Forces what was written to the disk (kill -9 does not need it, a power cut does).

        Raises:
          UserError: the disk is full or does not take it for another reason, or the file is gone.
        """
        with writing(self.path):
            os.fsync(self._fd)
        require_named(self.path, self._fd)

    def close(self) -> None:
        """Syncs and closes the journal, and releases the folder.

        Raises:
          UserError: see `sync`.
        """
        try:
            self.sync()
        finally:
            os.close(self._fd)
            self._index.close()
            self._lock.release()

    def _drop_torn_line(self) -> None:
        size, end = os.fstat(self._fd).st_size, end_of_lines(self._fd)
        if end < size:
            self.dropped_bytes = size - end
            os.ftruncate(self._fd, end)

    def _scan(self) -> None:
        with open(self.path, "rb") as file:
            for line in file:
                start, self._end = self._end, self._end + len(line)
                try:
                    row = json.loads(line)
                    completion = completion_of(row)
                    done = completion.error is None or row.get("final", True)
                    if done:
                        self._index.put(row["key"], start, len(line))
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    # A disk's fault, not ours: the row is simply missing and will be asked again.
                    self.totals.damaged_lines += 1
                    continue
                self.totals.add(completion)


def completion_of(row: dict[str, Any]) -> Completion:
    """Turns a row of the journal back into a completion."""
    return Completion(row["text"], **{name: row[name] for name in _OPTIONAL if name in row})
