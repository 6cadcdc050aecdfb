"""Tokenized records in memory-mapped files, for starts in seconds with flat memory.

    RECORDS_CACHE_DIR/esnli_sbs-train-3f1c.../input_tokens.npy, target_tokens.npy, ...
    RECORDS_CACHE_DIR/esnli_sbs-train-3f1c.../records.json   counts, checksum, the files' sizes

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
import itertools
import json
import logging
import mmap
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers

from sbs_jax import (
    methods,
    parsers,
    part_templates,
    parts,
    remote_copies,
    text_tokenizer,
    token_ids,
)
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.records import (
    UNCUT,
    Counts,
    Records,
    join_records,
    joined_arrays,
    joined_counts,
    mixture_of,
)
from sbs_jax.data.resolving import ResolvedTask
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError
from sbs_jax.files import CannotWrite, atomic_write_text, locked, refuse_remote, writing
from sbs_jax.token_ids import EOS_ID, PAD_ID

log = logging.getLogger(__name__)

_RECORD = "records.json"
_FORMAT = 2
_PARTIAL = ".partial"  # the end of a folder's name before it is complete
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what such file systems say
_PATIENCE = 24 * 3600.0  # seconds that a process waits for another one that makes the same
RANDOM_ABOVE = 1 << 30
"""Bytes. Smaller files are soon in the system's memory whole, the quicker the more it reads ahead.
Of 10 GB, not yet in memory, 20 batches made it read 109 GB that way, and 0.4 GB without."""
_ARRAYS = tuple(
    field.name for field in dataclasses.fields(Records) if field.type.startswith("np.ndarray")
)
# What makes records of texts, besides this package.
_CODE = (methods, parsers, part_templates, parts, text_tokenizer, token_ids)
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


def load_or_make(
    task: ResolvedTask,
    split: str,
    lengths: tuple[int, int],
    make: Callable[[], Records],
    in_pieces: Callable[[Path], Sequence[Records]] | None = None,
) -> Records:
    """Maps the records of a split into memory, after `make` made them if they are not there.

    Args:
      task: whose settings say where they are kept (`DataSettings.records_cache_dir`). Without that,
        and where it is not known what the data set reads, `make` is called every time.
      split: the split of the task.
      lengths: the most tokens of inputs and targets.
      make: reads and tokenizes them.
      in_pieces: is tried first: makes the records of pieces of the split, which it keeps in the
        folder that it is given; see `first_pass.records_of_pieces`.

    Returns:
      The records; their arrays are maps of files, which cannot be written to.

    Raises:
      UserError: the folder cannot be written to; or as `make` does.
    """
    origin = origin_of(task, split)
    if origin is None:
        return make()
    folder = _folder(task, split, lengths, origin)
    found = open_folder(folder)
    if found is None:
        found = _uncut(task, split, lengths, origin)
    if found is not None:
        return found
    with _alone(folder):
        found = open_folder(folder)  # By now another process may have made it.
        if found is None:
            own = folder.parent / f".{folder.name}.pieces"
            pieces = in_pieces(own) if in_pieces is not None else ()
            if pieces:
                _write_joined(folder, pieces)
            else:
                write_records(folder, make())
            del pieces
            shutil.rmtree(own, ignore_errors=True)
            found = open_folder(folder)
            assert found is not None  # It was written just now.
    return found


def _uncut(
    task: ResolvedTask, split: str, lengths: tuple[int, int], origin: Sequence[Any]
) -> Records | None:
    """Maps what `pipeline.load_whole_records` kept, where it is the same: nothing is too long."""
    task = task.with_settings(dataclasses.replace(task.settings, strict_lengths=False))
    found = open_folder(_folder(task, split, UNCUT, origin))
    return found if found is not None and found.fits(lengths) else None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
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
            for left in folder.parent.glob(f".{folder.name}.*{_PARTIAL}"):
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
    found = open_folder(folder)
    if found is None:
        _write_joined(folder, records)
        found = open_folder(folder)
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
    return [one if isinstance(one, str) else list(_listed(one)) for one in read]


def _listed(path: Path) -> Iterator[tuple[str, ...]]:
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


def _folder(
    task: ResolvedTask, split: str, lengths: tuple[int, int], origin: Sequence[Any]
) -> Path:
    settings = task.settings.record()
    tokenizer = task.vocabulary.tokenizer
    made_of = {
        "format": _FORMAT,
        "method": [part.record() for part in task.require_info("be kept").definition.parts],
        "settings": {name: settings[name] for name in sorted(settings) if name not in _ELSEWHERE},
        "lengths": lengths,
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


def write_records(folder: Path, records: Records) -> None:
    """Writes records as `write_folder` does."""
    arrays = {name: getattr(records, name) for name in _ARRAYS}
    pieces = {name: iter([array]) for name, array in arrays.items() if array is not None}
    write_folder(folder, pieces, counts=records.counts, draw=records.draw)


def _write_joined(folder: Path, records: Sequence[Records]) -> None:
    """Writes records behind one another."""
    write_folder(
        folder,
        joined_arrays(records),
        counts=joined_counts(records),
        draw=any(one.draw for one in records),
    )


def write_folder(
    folder: Path, arrays: Mapping[str, Iterator[np.ndarray]], *, counts: Counts, draw: bool
) -> None:
    """Writes records, whose arrays come in pieces; a folder that bears its name is complete."""
    with writing(folder):
        # Not tempfile.mkdtemp, whose folders other users of a shared disk may not read.
        partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{_PARTIAL}")
        partial.mkdir(parents=True)
        try:
            for name, pieces in arrays.items():
                _save(partial / f"{name}.npy", pieces)
            sizes = {name: (partial / f"{name}.npy").stat().st_size for name in arrays}
            written = Records(**_mapped(partial, sizes), counts=counts, draw=draw)
            record = {
                "counts": dataclasses.asdict(counts),
                "draw": draw,
                "checksum": written.fingerprint(),
                "longest": written.longest_lengths,
                "sizes": sizes,
            }
            del written
            atomic_write_text(partial / _RECORD, json.dumps(record) + "\n")
            shutil.rmtree(folder, ignore_errors=True)
            try:
                os.replace(partial, folder)
            except OSError:
                if open_folder(folder) is None:  # Or else another process was faster.
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _save(path: Path, pieces: Iterator[np.ndarray]) -> None:
    """Writes an array that comes in pieces as `numpy.save` writes it whole."""
    first = next(pieces, np.zeros(0, np.int32))
    with path.open("wb") as file:
        header = {"descr": first.dtype.str, "fortran_order": False, "shape": (2**62,)}
        np.lib.format.write_array_header_1_0(file, header)  # As long as any other size's.
        count = 0
        for piece in itertools.chain([first], pieces):
            file.write(np.ascontiguousarray(piece).data)
            count += piece.size
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header | {"shape": (count,)})


def _mapped(folder: Path, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Maps arrays into memory.

    Raises:
      ValueError: a file has not the size that it should have.
    """
    arrays = {}
    for name, size in sizes.items():
        path = folder / f"{name}.npy"
        if path.stat().st_size != size:
            raise ValueError(f"{path.name} has not the size that was written")
        arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
    return arrays


def _read_at_random(arrays: Mapping[str, Any]) -> None:
    """Tells the system not to read ahead: the records of a batch lie anywhere in large files."""
    for array in arrays.values():
        mapped = getattr(array, "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_RANDOM"):
            mapped.madvise(mmap.MADV_RANDOM)


def open_folder(folder: Path) -> Records | None:
    """Maps the arrays of a folder; None if it is not there, or is damaged.

    Raises:
      UserError: this user may not read it.
    """
    try:
        if not folder.is_dir():
            return None
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        arrays = _mapped(folder, record["sizes"])
        if sum(record["sizes"].values()) > RANDOM_ABOVE:
            _read_at_random(arrays)
        inputs, targets = record["longest"]
        counts = Counts(**record["counts"])
        return Records(
            **arrays,
            counts=counts,
            draw=bool(record["draw"]),
            longest=(int(inputs), int(targets)),
            checksum=int(record["checksum"]),
        )
    except PermissionError as error:
        raise UserError(
            f"{folder}: cannot be read ({error.strerror}); let its owner give others the right to "
            "read it, or name another RECORDS_CACHE_DIR."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s: is damaged (%s) and is made again.", folder, error)
        return None
