"""Places that are no files of this machine: `gs://BUCKET/FOLDER` and other URLs (a leaf).

MODEL_DIR and what is read of checkpoints go through `etils.epath`, as Orbax does; data go through
fsspec (`remote_copies`). An object of a store appears whole when it has been written, and not at
all before: that is what an atomic rename is to a file of a disk. An object cannot grow, so a file
that does (metrics, events) is written on this machine and sent whole from time to time (`Outbox`).
Nor can an object be locked by the operating system, so who holds one renews it (`leased`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from sbs_jax.closing import Closing
from sbs_jax.errors import UserError

log = logging.getLogger(__name__)

WRITABLE = "gs"
"""The scheme whose places can be written to: Orbax and TensorStore know it, too."""

RENEW_SECONDS = 15.0
"""How often the holder of a lease says that it is alive."""
STALE_SECONDS = 60.0
"""After so long without a word, the holder of a lease counts as dead."""
SETTLE_SECONDS = 1.0
"""Within which a second process that takes the same lease is noticed."""

_PATIENCE_SECONDS = 10.0  # Clients try for more than a minute, and say nothing of it.
_ONE_SLASH = re.compile(r"(gs|s3|az|abfs|hf|https?):/(?!/)")
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs"}


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Tells whether a path is a URL."""
    return "://" in os.fspath(path)


def place(path: str | os.PathLike[str]) -> Path:
    """Returns the absolute path of a file or folder, or the place that a URL names.

    Args:
      path: a path of this machine, possibly relative or with `~`; or `gs://…`.

    Returns:
      A path; of a URL an `etils.epath.Path`, which has the methods of `pathlib.Path`.

    Raises:
      UserError: the URL is of another kind, or a package is missing.
    """
    text = os.fspath(path)
    if found := _ONE_SLASH.match(text):
        raise UserError(f"{text}: write {found[1]}://{text[found.end() :]}, with two slashes.")
    if not is_remote(text):
        return Path(text).expanduser().absolute()
    scheme = text.partition("://")[0]
    if scheme != WRITABLE:
        raise UserError(
            f"{text}: {scheme}:// is not supported here, {WRITABLE}:// is; mount it as a folder "
            "instead."
        )
    file_system(text)
    return cast(Path, epath_of(text))


def epath_of(url: str) -> Any:
    """Returns the `etils.epath.Path` of a URL, through fsspec where its package is there."""
    package = _PACKAGES.get(url.partition("://")[0])
    if package and importlib.util.find_spec(package):
        # epath would prefer TensorFlow, whose start takes seconds, to what Orbax's other half uses.
        os.environ.setdefault("EPATH_USE_TF", "false")
        _set_up_clients()
    from etils import epath

    return epath.Path(url)


def file_system(url: str) -> Any:
    """Returns fsspec's file system of a URL.

    Raises:
      UserError: its package is not installed, or fsspec does not know the scheme.
    """
    scheme = url.partition("://")[0]
    try:
        import fsspec

        _set_up_clients()
        return fsspec.filesystem(scheme)
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        extra = "gs" if package == "gcsfs" else scheme
        advice = f"pip install 'sbs_jax[{extra}]'" if package else str(error)
        raise UserError(
            f"{url}: {scheme}:// needs a package that is not installed: {advice}."
        ) from error
    except ValueError as error:
        raise UserError(f"{url}: {scheme}:// is unknown; mount it as a folder instead.") from error


def _set_up_clients() -> None:
    """Asks each time what a folder holds, since others write, too, and silences tracebacks."""
    import fsspec

    if not log.isEnabledFor(logging.DEBUG):
        logging.getLogger("gcsfs").setLevel(
            logging.CRITICAL
        )  # It logs tracebacks of what it raises.
    for scheme in _PACKAGES:
        fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)


@contextlib.contextmanager
def reaching(url: str | os.PathLike[str], doing: str) -> Iterator[None]:
    """Turns what a store or its client refuses into a sentence, and says when it takes long.

    Args:
      url: the object that is read or written.
      doing: `read` or `written`.

    Raises:
      UserError: something in the block failed.
    """
    patience = threading.Timer(
        _PATIENCE_SECONDS, log.warning, ("%s: cannot be %s yet; trying again.", url, doing)
    )
    patience.daemon = True
    patience.start()
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Of the client, its network library, or its authentication.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise UserError(
            f"{url}: cannot be {doing} ({type(error).__name__}: {reason}); check the name, the "
            "network and the credentials, then start the same command again."
        ) from error
    finally:
        patience.cancel()


def write(url: str, content: bytes) -> None:
    """Writes an object whole.

    Raises:
      UserError: the store does not take it.
    """
    with reaching(url, "written"):
        file_system(url).pipe_file(url, content)


class Outbox(Closing):
    """A folder of this machine, for files that grow, whose content is sent to a remote one.

    Attributes:
      folder: where the files are written.
    """

    def __init__(self, url: str) -> None:
        """Makes an empty folder for what goes to the folder `url`."""
        self._url = url.rstrip("/")
        self.folder = Path(tempfile.mkdtemp(prefix="sbs_jax-"))
        self._sent: dict[Path, tuple[int, int]] = {}
        self._last = time.monotonic()

    def send(self, *, after: float = 0.0) -> None:
        """Sends each file that has changed since, whole.

        Args:
          after: do nothing before so many seconds have passed since the last time; then, a store
            that does not take one is logged, and asked again the next time.

        Raises:
          UserError: the store does not take one, and `after` is 0.
        """
        if time.monotonic() - self._last < after:
            return
        if after:
            try:
                self.send()
            except UserError as error:
                log.warning("%s", error)
                self._last = time.monotonic()
            return
        for file in sorted(self.folder.rglob("*")):
            if not file.is_file():
                continue
            status = file.stat()
            state = (status.st_size, status.st_mtime_ns)
            if self._sent.get(file) != state:
                write(f"{self._url}/{file.relative_to(self.folder).as_posix()}", file.read_bytes())
                self._sent[file] = state
        self._last = time.monotonic()

    def close(self) -> None:
        """Sends what is left, and removes the folder.

        Raises:
          UserError: the store does not take it; the folder stays, and the sentence names it.
        """
        if not self.folder.exists():
            return
        try:
            self.send()
        except UserError as error:
            raise UserError(f"{error} What was not sent lies in {self.folder}.") from error
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def leased(url: str) -> Iterator[None]:
    """Holds the object `url` for this process: it says so there every `RENEW_SECONDS`.

    A process that was killed says nothing any more: who comes after it waits until
    `STALE_SECONDS` have passed in silence (if it was on this machine, not at all).

    Raises:
      UserError: another process holds it and is alive, or the store cannot be written to.
    """
    own: dict[str, Any] = {"id": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
    _wait_for_holder(url)
    _say(url, own)
    time.sleep(SETTLE_SECONDS)
    if (_read(url) or {}).get("id") != own["id"]:
        raise UserError(_held(url, _read(url) or {}))
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(url, own, ended), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        with contextlib.suppress(Exception):  # It counts as dead after a while.
            if (_read(url) or {}).get("id") == own["id"]:
                file_system(url).rm_file(url)


def _renew(url: str, own: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(RENEW_SECONDS):
        try:
            if (holder := _read(url)) is not None and holder.get("id") != own["id"]:
                log.critical("%s This process ends.", _held(url, holder))
                os._exit(1)  # Two processes must not write to one place.
            _say(url, own)
        except UserError as error:
            log.warning("%s", error)  # The next time may succeed.


def _wait_for_holder(url: str) -> None:
    """Returns when nobody holds a lease who is alive.

    Raises:
      UserError: its holder renewed it.
    """
    first = _read(url)
    if first is None or _ended_here(first):
        return
    log.warning(
        "%s: was not given back; waiting up to %.0f s for a sign that its process (%s, %s) is "
        "alive.",
        *(url, STALE_SECONDS, first.get("host"), first.get("pid")),
    )
    deadline = time.monotonic() + STALE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(2.0, STALE_SECONDS / 5))
        now = _read(url)
        if now is None:
            return
        if now != first:
            raise UserError(_held(url, now))


def _ended_here(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that has ended."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _held(url: str, holder: dict[str, Any]) -> str:
    return (
        f"{url}: another process is at work here (process {holder.get('pid')} on "
        f"{holder.get('host')}); wait for it or end it."
    )


def _say(url: str, own: dict[str, Any]) -> None:
    write(url, json.dumps({**own, "renewed": time.time()}).encode())


def _read(url: str) -> dict[str, Any] | None:
    """What the holder of a lease said last; None where nobody holds it."""
    with reaching(url, "read"):
        try:
            content = json.loads(file_system(url).cat_file(url))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}
