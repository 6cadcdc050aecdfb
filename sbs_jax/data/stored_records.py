"""Tokenized records in memory-mapped files, for starts in seconds with flat memory.

    RECORDS_CACHE_DIR/esnli_sbs-train-3f1c.../    the records of a split, see `record_files`
    RECORDS_CACHE_DIR/mixture-96b2.../            those of several tasks behind one another

The folder's name ends with a hash of all that the records are made of: the names, sizes and times
of change of the data files, the code that reads them, the settings, the vocabulary, the lengths. So
other data or settings have a folder of their own, and no run sees stale records. Folders that are
not needed any more may be deleted. No TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers

from sbs_jax import (
    json_files,
    methods,
    parsers,
    part_templates,
    parts,
    remote_copies,
    table_files,
    text_tokenizer,
    token_ids,
)
from sbs_jax.data import record_files
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.first_pass import records_of_pieces
from sbs_jax.data.records import UNCUT, Records, join_records, mixture_of
from sbs_jax.data.resolving import ResolvedTask
from sbs_jax.data.settings import DataSettings
from sbs_jax.data.tokenizing import make_records
from sbs_jax.errors import UserError
from sbs_jax.files import CannotWrite, locked, refuse_remote
from sbs_jax.token_ids import EOS_ID, PAD_ID

log = logging.getLogger(__name__)

_FORMAT = 2
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what such file systems say
_PATIENCE = 24 * 3600.0  # seconds that a process waits for another one that makes the same
# What makes records of texts, besides this package.
_CODE = (
    json_files,
    methods,
    parsers,
    part_templates,
    parts,
    table_files,
    text_tokenizer,
    token_ids,
)
# Settings of where things lie; the vocabulary itself is compared.
_ELSEWHERE = (
    "model_dir",
    "vocabulary_path",
    "vocabulary_size",
    "use_cached_tasks",
    "cache_dir",
    "records_cache_dir",
    "records_processes",
)


def load(task: ResolvedTask, split: str, limits: tuple[int, int]) -> Records:
    """Maps the records of a split into memory, after they were made if they are not there.

    Without `DataSettings.records_cache_dir`, and where it is not known what the data set reads,
    they are made every time, and lie in memory.

    Args:
      task: a task, no mixture.
      split: the split of the task.
      limits: the most tokens of inputs and targets.

    Returns:
      The records; the arrays of those that are kept are maps of files, which cannot be written to.

    Raises:
      UserError: the folder cannot be written to, or the data cannot be read.
    """
    origin = origin_of(task, split)
    if origin is None:
        return make_records(task, split, limits)
    folder = _folder(task, split, limits, origin)
    found = record_files.open_folder(folder)
    if found is None:
        found = _uncut(task, split, limits, origin)
    if found is not None:
        return found
    with making(folder):
        found = record_files.open_folder(folder)  # By now another process may have made it.
        if found is None:
            own = folder.parent / f".{folder.name}.pieces"
            pieces = records_of_pieces(task, split, own, limits)
            if pieces:
                record_files.write_joined(folder, pieces)
            else:
                record_files.write_records(folder, make_records(task, split, limits))
            del pieces
            shutil.rmtree(own, ignore_errors=True)
            found = record_files.open_folder(folder)
            assert found is not None  # It was written just now.
    return found


def _uncut(
    task: ResolvedTask, split: str, limits: tuple[int, int], origin: Sequence[Any]
) -> Records | None:
    """Maps what `pipeline.load_whole_records` kept, where it is the same: nothing is too long."""
    task = task.with_settings(dataclasses.replace(task.settings, strict_lengths=False))
    found = record_files.open_folder(_folder(task, split, UNCUT, origin))
    return found if found is not None and found.fits(limits) else None


@contextlib.contextmanager
def making(folder: Path) -> Iterator[None]:
    """Lets one process at a time make the records of a folder, and removes what killed ones left.

    Where a file system knows no locks they are made by each of them; all make the same.

    Raises:
      CannotWrite: nothing can be written beside the folder.
    """
    lock = folder.parent / f".{folder.name}.lock"
    with contextlib.ExitStack() as stack:
        try:
            try:
                stack.enter_context(locked(lock))
            except CannotWrite:
                raise
            except UserError:
                log.info("%s: another process makes these records; waiting for it.", folder)
                stack.enter_context(locked(lock, patience=_PATIENCE))
        except CannotWrite as error:
            if getattr(error.__cause__, "errno", None) not in _NO_LOCKS:
                raise
            log.debug("%s", error)
        else:
            for left in folder.parent.glob(f".{folder.name}.*{record_files.PARTIAL}"):
                shutil.rmtree(left, ignore_errors=True)
        yield


def join(settings: DataSettings, records: Sequence[Records], rates: Sequence[float]) -> Records:
    """Makes one of the records of several tasks, as `records.join_records` does.

    Where all of them are mapped from files, so is what they are together: it is written piece by
    piece, once for all rates.

    Args:
      settings: the settings of the data; they say where it is kept.
      records: the records of each task.
      rates: how often each is drawn.

    Raises:
      UserError: the folder cannot be written to.
    """
    if settings.records_cache_dir is None or any(one.checksum is None for one in records):
        return join_records(records, rates)
    made_of = [_FORMAT, np.__version__]
    made_of += [[one.checksum, len(one), dataclasses.asdict(one.counts)] for one in records]
    made_of += [[one.draw, one.source is None, one.variant is None] for one in records]
    folder = _root(settings) / f"mixture-{_digest(made_of)}"
    found = record_files.open_folder(folder)
    if found is None:
        record_files.write_joined(folder, records)
        found = record_files.open_folder(folder)
        assert found is not None  # It was written just now.
    return dataclasses.replace(found, mixture=mixture_of(records, rates))


def origin_of(task: ResolvedTask, split: str) -> list[Any] | None:
    """Returns what tells all files that are read from others; None where they are not known."""
    settings = task.settings
    info = task.info
    if settings.records_cache_dir is None or settings.use_cached_tasks:
        return None
    if info is None or info.dataset.origin is None:
        log.warning(
            "RECORDS_CACHE_DIR: it is not known which files '%s' reads, so its records are "
            "tokenized at every start (`origin` of register_dataset names them).",
            task.name,
        )
        return None
    with settings_lib.override(settings):
        read = list(info.dataset.origin(split, settings))
    if not read:
        return None
    read += [Path(__file__).parent, *(Path(str(module.__file__)) for module in _CODE)]
    given = settings.rationales_file
    paths = given.values() if isinstance(given, Mapping) else [] if given is None else [given]
    read += [remote_copies.local(path) for path in paths]
    return [one if isinstance(one, str) else list(listing(one)) for one in read]


def listing(path: Path) -> Iterator[tuple[str, ...]]:
    """Yields what tells a file, or each file below a folder, from another.

    That is the name, size and time of change of data, and the content of code, which each host or
    container may have installed at another time and place.
    """
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.suffix == ".py":
            yield file.name, hashlib.sha256(file.read_bytes()).hexdigest()
        elif file.is_file() and file.suffix != ".pyc":
            status = file.stat()
            yield str(file.absolute()), str(status.st_size), str(status.st_mtime_ns)


def _folder(task: ResolvedTask, split: str, limits: tuple[int, int], origin: Sequence[Any]) -> Path:
    settings = task.settings.record()
    tokenizer = task.vocabulary.tokenizer
    made_of = {
        "format": _FORMAT,
        "method": [part.record() for part in task.require_info("be kept").definition.parts],
        "settings": {name: settings[name] for name in sorted(settings) if name not in _ELSEWHERE},
        "lengths": limits,
        "origin": origin,
        "vocabulary": hashlib.sha256(tokenizer.serialized_model_proto()).hexdigest(),
        # A file beside a `tokenizer.json` says which tokens these are.
        "special": [tokenizer.id_to_piece(number) for number in (PAD_ID, EOS_ID)],
        "libraries": [np.__version__, sentencepiece.__version__, tokenizers.__version__],
    }
    return _root(task.settings) / f"{task.name}-{split}-{_digest(made_of)}"


def _root(settings: DataSettings) -> Path:
    root = Path(settings.records_cache_dir or "").expanduser().absolute()
    refuse_remote(root)
    return root


def _digest(made_of: Any) -> str:
    text = json.dumps(made_of, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
