"""Copies on this machine of remote files: data are read many times, and mapped into memory.

    ~/.cache/sbs_jax/remote/gs/BUCKET/data/svamp/svamp_train.json   gs://BUCKET/data/svamp/…

A copy is fetched again when the store says that the original has changed. XDG_CACHE_HOME moves the
folder, and it may be deleted at any time that nothing runs.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sbs_jax import remote
from sbs_jax.errors import UserError
from sbs_jax.files import atomic_write_text, locked, writing
from sbs_jax.json_files import optional_json

_VERSION = ("etag", "ETag", "md5Hash", "generation", "LastModified", "updated", "mtime", "created")
_PATIENCE = 24 * 3600.0  # seconds to wait for another process that fetches the same


def cache_root() -> Path:
    """Returns the user's folder for what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "sbs_jax"


def local(path: str | os.PathLike[str], *, beside: Sequence[str] = ()) -> Path:
    """Returns a path of this machine with the content of a file, or of a folder.

    Args:
      path: a path of this machine, which is returned as it is (`~` expanded); or a URL, whose
        file, or all files below it, are fetched where that has not been done.
      beside: names of further files, fetched from the same folder where they are there.

    Raises:
      UserError: the store cannot be read, or the copy not be written.
    """
    text = os.fspath(path)
    if not remote.is_remote(text):
        return Path(text).expanduser()
    url = text.rstrip("/")
    scheme, _, rest = url.partition("://")
    target = cache_root() / "remote" / scheme / rest
    _fetch(url, target)
    for name in beside:
        folder = url.rpartition("/")[0]
        _fetch(f"{folder}/{name}", target.parent / name)
    return target


def _fetch(url: str, target: Path) -> None:
    """Makes `target` what `url` is; nothing where there is nothing."""
    system = remote.file_system(url)
    index = cache_root() / "remote" / "index" / hashlib.sha256(url.encode()).hexdigest()[:24]
    with locked(index.with_suffix(".lock"), patience=_PATIENCE):
        with remote.reaching(url, "read"):
            root = system._strip_protocol(url)
            found: dict[str, Any] = system.find(root, detail=True)
        known = optional_json(index)
        versions = {}
        for name, info in sorted(found.items()):
            own = name[len(root) :].strip("/")
            if name.endswith("/") or ".." in own.split("/"):
                continue  # The mark of an empty folder, or no name that we would write to.
            versions[own] = _version(info)
            file = target / own if own else target
            if known.get(own) == versions[own] and file.is_file():
                continue
            _download(system, name, f"{url}/{own}" if own else url, file, info)
        for own in known.keys() - versions.keys():
            with contextlib.suppress(OSError):
                (target / own if own else target).unlink()
        if known != versions:
            atomic_write_text(index, json.dumps(versions) + "\n")


def _version(info: dict[str, Any]) -> str:
    """What changes when the content of an object does."""
    return " ".join(str(info[key]) for key in ("size", *_VERSION) if info.get(key) is not None)


def _download(system: Any, name: str, url: str, file: Path, info: dict[str, Any]) -> None:
    partial = file.with_name(f".{file.name}.part")
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    with remote.reaching(url, "read"):
        system.get_file(name, str(partial))
    if partial.stat().st_size != info.get("size", partial.stat().st_size):
        raise UserError(f"{url}: changed while it was read; start the same command again.")
    changed = next((info[key] for key in ("mtime", "LastModified") if info.get(key)), None)
    if isinstance(changed, datetime.datetime):  # The same on all hosts, for RECORDS_CACHE_DIR.
        os.utime(partial, (changed.timestamp(), changed.timestamp()))
    with writing(file):
        os.replace(partial, file)
