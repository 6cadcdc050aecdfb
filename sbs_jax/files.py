"""Small files, read and written so that a killed process leaves nothing half-written."""

from __future__ import annotations

import codecs
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
from typing import IO, Any, Literal, NamedTuple

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


class Part(NamedTuple):
    """Neighbouring lines of a text file.

    Attributes:
      start: the byte at which the first of them begins.
      size: how many bytes they take.
      first: the number of the first line, from 1.
    """

    start: int
    size: int
    first: int


def _open_part(path: str | os.PathLike[str], part: Part, encoding: str) -> io.TextIOWrapper:
    with open(path, "rb") as file:
        file.seek(part.start)
        lines = io.BytesIO(file.read(part.size))
    return io.TextIOWrapper(lines, encoding.removesuffix("-sig") if part.start else encoding)


def read_jsonl(
    path: str | os.PathLike[str],
    *,
    encoding: str = "utf-8",
    advice: str = "convert the file to UTF-8",
    part: Part | None = None,
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
