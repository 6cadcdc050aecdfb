"""Records as files: a folder of flat arrays that are mapped into memory. Pure numpy.

    FOLDER/input_tokens.npy, target_tokens.npy, ...
    FOLDER/records.json        counts, checksum, the files' sizes

A folder that bears its name is complete: it is written beside its place, and then renamed.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import mmap
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sbs_jax.data.records import Counts, Records, joined_arrays, joined_counts
from sbs_jax.errors import UserError
from sbs_jax.files import atomic_write_text, writing

log = logging.getLogger(__name__)

_RECORD = "records.json"
PARTIAL = ".partial"
"""How the name of a folder ends before it is complete."""
RANDOM_ABOVE = 1 << 30
"""Bytes. Smaller files are soon in the system's memory whole, the quicker the more it reads ahead.
Of 10 GB, not yet in memory, 20 batches made it read 109 GB that way, and 0.4 GB without."""
_ARRAYS = tuple(
    field.name for field in dataclasses.fields(Records) if field.type.startswith("np.ndarray")
)


def write_records(folder: Path, records: Records) -> None:
    """Writes records as `write_folder` does."""
    arrays = {name: getattr(records, name) for name in _ARRAYS}
    pieces = {name: iter([array]) for name, array in arrays.items() if array is not None}
    write_folder(folder, pieces, counts=records.counts, draw=records.draw)


def write_joined(folder: Path, records: Sequence[Records]) -> None:
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
        partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{PARTIAL}")
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
