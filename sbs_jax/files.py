"""Small files, read and written so that a killed process leaves nothing half-written."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

from sbs_jax import remote
from sbs_jax.errors import UserError

DISK_ERRORS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.EISDIR,
        errno.ENAMETOOLONG,
    }
)
"""Numbers of the errors by which a system refuses to make, read or write a file."""
_URL = re.compile(r"(?:^|/)(gs|s3|az|abfs|hf|memory|https?):/+")
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")  # as `tempfile.mkstemp` names them


class CannotWrite(UserError):
    """A disk refused to make or write a file; the system's error is the cause."""


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what a disk refuses (no room, no permission, no folder) into a sentence.

    Args:
      path: the file or folder that is written, named where the error names none itself.

    Raises:
      CannotWrite: the system refused something in the block.
    """
    try:
        yield
    except (ConnectionError, TimeoutError):
        raise  # Not the disk's.
    except OSError as error:
        raise CannotWrite(cannot_write(path, error)) from error


def cannot_write(path: str | os.PathLike[str], error: OSError) -> str:
    """Returns the sentence that says that `path` cannot be written, why, and what to do."""
    advice = {
        errno.ENOSPC: "make room on that disk",
        errno.EDQUOT: "make room within the quota",
        errno.ENOTDIR: "a part of this path is a file; choose another folder",
        errno.EEXIST: "a file is in the way; choose another folder",
        errno.EACCES: "choose a folder that this user may write to",
        errno.EPERM: "choose a folder that this user may write to",
        errno.EROFS: "choose a folder that may be written to",
    }.get(error.errno or 0, "see to that disk, or choose another folder")
    reason = error.strerror or str(error) or type(error).__name__
    return f"{path}: cannot be written ({reason}); {advice}, then start the same command again."


def require_named(path: str | os.PathLike[str], descriptor: int) -> None:
    """Checks that `path` still names the open file that is written.

    Raises:
      UserError: it was removed or replaced; what is written would be gone when it is closed.
    """
    try:
        same = os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        same = False
    if not same:
        raise UserError(
            f"{path}: was removed or replaced while this program was writing it; start it again."
        )


def refused(error: OSError) -> str:
    """Returns the sentence for an error of which it is not known what was tried."""
    where = error.filename or "A file"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return cannot_write(where, error)
    return f"{where}: cannot be read or written ({error.strerror}); see to it, or name another."


@contextlib.contextmanager
def atomic_open(
    path: str | os.PathLike[str], mode: Literal["w", "wb"] = "w", **options: Any
) -> Iterator[IO[Any]]:
    """Opens `path` for writing; the file takes its place only when the block ends well.

    It is written beside `path`, so readers see the old content or the new, never a part of it. An
    object at a URL is written at the end, whole.

    Args:
      path: its folder is made if need be; or the URL of an object.
      mode: text (UTF-8) or bytes.
      **options: further ones of `open`, such as `errors`.

    Raises:
      UserError: the system does not let it be written (the disk is full, say).
    """
    if remote.is_remote(path):
        content = io.BytesIO()
        if "b" in mode:
            yield content
        else:
            text = io.TextIOWrapper(content, **({"encoding": "utf-8"} | options))
            yield text
            text.flush()
        remote.write(os.fspath(path), content.getvalue())
        return
    refuse_remote(path)
    with writing(path), _beside(Path(path), mode, options) as file:
        yield file


def refuse_remote(path: str | os.PathLike[str]) -> None:
    """Refuses what `pathlib` makes of a URL: a folder `gs:` on this machine.

    Raises:
      UserError: `path` is such a one, or a URL.
    """
    text = os.fspath(path)
    if found := _URL.search(text):
        raise UserError(
            f"{found[1]}://{text[found.end() :].lstrip('/')}: only MODEL_DIR, DATA_DIR, "
            "EVAL_OUTPUT_DIR and what a run reads may be remote; name a folder of this machine "
            "here."
        )


@contextlib.contextmanager
def _beside(target: Path, mode: str, options: dict[str, Any]) -> Iterator[IO[Any]]:
    target.parent.mkdir(parents=True, exist_ok=True)
    if "b" not in mode:
        options = {"encoding": "utf-8"} | options
    handle, temporary = tempfile.mkstemp(
        dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"
    )
    try:
        with os.fdopen(handle, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; what we write is as public as any other file of the user's.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], *, patience: float = 0.0) -> Iterator[None]:
    """Holds an exclusive lock on the file `path`, which is there only as long as it is held.

    The system drops the lock when this process ends, however it ends; a file that a killed process
    left behind blocks no other process. An object at a URL is held by renewing it; see
    `remote.leased`.

    Args:
      path: the lock's file; its folder is made if need be. Or a URL.
      patience: seconds to wait for another process that holds the file.

    Raises:
      UserError: another process still holds it then, or the file cannot be written.
    """
    if remote.is_remote(path):
        with remote.leased(os.fspath(path)):
            yield
        return
    refuse_remote(path)
    path = Path(path)
    made = not path.parent.exists()
    deadline = time.monotonic() + patience
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while (file := _lock(path)) is None:
            if time.monotonic() > deadline:
                raise UserError(f"{path}: another process is at work here; wait for it or end it.")
            time.sleep(0.2)
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if made:
                with contextlib.suppress(OSError):  # It holds something by now, as a rule.
                    path.parent.rmdir()


def _lock(path: Path) -> IO[Any] | None:
    """Opens and locks a file; None if another process holds it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its holder may have removed it between the two calls, and a third process made a new one.
        if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    file.close()
    return None


def end_of_lines(descriptor: int) -> int:
    """Returns the number of bytes of an open file up to its last line break, that included.

    What follows is a line that was torn when its writer was killed.
    """
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - 65536)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def remove_temporary(folder: str | os.PathLike[str]) -> None:
    """Removes what killed processes left of `atomic_open`, in a folder and in those below it.

    Call it only while no other process writes there. A remote folder holds none.
    """
    if remote.is_remote(folder):
        return
    for path in Path(folder).rglob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` (UTF-8) to `path`; see `atomic_open`."""
    with atomic_open(path) as file:
        file.write(text)


def atomic_write_jsonl(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line to `path`, atomically."""
    atomic_write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
