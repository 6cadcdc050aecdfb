"""The first pass over a large split: tokenized in pieces, in several processes, resumable.

    RECORDS_CACHE_DIR/.esnli_sbs-train-3f1c....pieces/0000000-32768/    the records of a piece
    RECORDS_CACHE_DIR/.esnli_sbs-train-3f1c....pieces/0000000-32768.npy hashes of ids in the data

Each piece is written as records are (`record_files.write_folder`), so that one that bears its
name is complete: what a killed pass has done is taken over by the next one. Joined, the pieces are
the records that the whole split gives, to the bit, however many processes made them.

Whatever is unusual about a split (an error in a line, an id that occurs twice) makes
`records_of_pieces` give up; the split is then read whole, which says what is wrong with it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from sbs_jax.data import datasets, elements, record_files
from sbs_jax.data.pieces import Piece
from sbs_jax.data.records import Records
from sbs_jax.data.release import Example
from sbs_jax.data.resolving import ResolvedTask
from sbs_jax.data.settings import DataSettings
from sbs_jax.data.tokenizing import make_records
from sbs_jax.errors import UserError
from sbs_jax.files import CannotWrite, atomic_open

log = logging.getLogger(__name__)

ROWS = 32_768
"""The rows of a piece; their examples and records take some 80 MB."""
_WORTH_A_PROCESS = 2  # pieces; it takes as long as making one to start a process


@dataclasses.dataclass(frozen=True)
class Portion:
    """A piece of a split whose records are made together.

    Attributes:
      piece: the rows.
      kept: which of their examples the split has, by number; None if it has all.
    """

    piece: Piece
    kept: np.ndarray | None

    @property
    def name(self) -> str:
        """What the folder of the records is called."""
        return f"{self.piece.part.start:012d}-{self.piece.rows}"


def records_of_pieces(
    task: ResolvedTask, split: str, folder: Path, limits: tuple[int, int]
) -> list[Records]:
    """Reads and tokenizes a split in pieces, those that are there already excepted.

    Args:
      task: a task of ours; its settings say how many processes are at work.
      split: its split.
      folder: keeps the pieces; it bears the name of what they are made of.
      limits: the most tokens of inputs and targets.

    Returns:
      The records of each piece, mapped from files in `folder`; their examples are numbered from 0
      in each. [] where the split is small, or has to be read whole.

    Raises:
      CannotWrite: `folder` cannot be written to; the pieces that are complete stay there.
    """
    info, settings = task.info, task.settings
    if info is None or info.dataset.pieces is None or settings.rationales_file is not None:
        return []
    try:
        portions = _portions(info.dataset, split, settings)
        if len(portions) < 2:
            return []
        # It is trained, if need be, before others look for it.
        vocabulary: Any = task.vocabulary
        path = str(vocabulary.sentencepiece_model_file)
        task = task.with_settings(dataclasses.replace(settings, vocabulary_path=path))
        missing = [portion for portion in portions if _found(folder, portion) is None]
        if len(missing) < len(portions):
            done = len(portions) - len(missing)
            log.info("%s: %d of %d pieces are there.", folder.name, done, len(portions))
        _in_processes(task, split, folder, missing, limits)
        for portion in missing:
            if _found(folder, portion) is None:
                make_portion(task, split, portion, folder, limits)
        records = [_found(folder, portion) for portion in portions]
        ids = [np.load(folder / f"{portion.name}.npy") for portion in portions]
    except CannotWrite:
        raise  # Read whole, the split would be written to the same disk.
    except (UserError, OSError, ValueError) as error:
        log.debug("%s is read whole: %s", task.name, error)
        return []
    found = [one for one in records if one is not None]
    joined = np.concatenate(ids)
    if len(found) < len(portions) or np.unique(joined).size < joined.size:
        return []
    _warn(task, split, portions, found)
    return found


def _portions(dataset: datasets.Dataset, split: str, settings: DataSettings) -> list[Portion]:
    assert dataset.pieces is not None
    held_out = split == datasets.VALIDATION and not dataset.has_validation
    pieces = dataset.pieces.split(datasets.TRAIN if held_out else split, settings, ROWS)
    if len(pieces) < 2:
        return []
    chosen = datasets.chosen_examples(dataset, split, sum(one.rows for one in pieces), settings)
    if chosen is None:
        return [Portion(piece, None) for piece in pieces]
    ends = np.cumsum([piece.rows for piece in pieces])
    kept = [np.flatnonzero(own) for own in np.split(chosen, ends[:-1])]
    if not all(own.size for own in kept):
        return []  # What is left out has to be free of errors, too.
    return [Portion(piece, own) for piece, own in zip(pieces, kept, strict=True)]


def make_portion(
    task: ResolvedTask, split: str, portion: Portion, folder: Path, limits: tuple[int, int]
) -> None:
    """Makes the records of a portion and writes them to `folder`.

    Raises:
      UserError: a line is malformed, or is left out where the split depends on their number; or
        the folder cannot be written to.
    """
    info = task.require_info("be read")
    dataset, pieces = info.dataset, info.dataset.pieces
    assert pieces is not None
    ids: list[bytes] = []

    def load(split: str, settings: DataSettings) -> list[Example]:
        del split
        examples = pieces.load(portion.piece, settings)
        if portion.kept is not None:
            if len(examples) < portion.piece.rows:
                raise UserError(f"{portion.piece.path}: it is not known how many examples it has.")
            examples = datasets.checked(dataset, examples)
        ids.extend(map(_hash, _given_ids(examples, portion.piece.path.stem)))
        return examples if portion.kept is None else [examples[i] for i in portion.kept]

    own = dataclasses.replace(dataset, load=load, own_validation=True)
    settings = dataclasses.replace(task.settings, train_fraction=1.0, train_examples=None)
    part = dataclasses.replace(task, info=dataclasses.replace(info, dataset=own), settings=settings)
    records = make_records(part, split, limits)
    with atomic_open(folder / f"{portion.name}.npy", "wb") as file:
        np.save(file, np.frombuffer(b"".join(ids), np.uint64))
    record_files.write_records(folder / portion.name, records)


def _given_ids(examples: Sequence[Example], stem: str) -> list[str]:
    """The ids of examples that are not made of the file's name and the line, which differ anyway.

    Raises:
      UserError: one looks as if it were.
    """
    read: Sequence[Any] = examples  # Each knows its row.
    found = [one["id"] for one in read if one["id"] != f"{stem}-{one.fields.line}"]
    for identity in found:
        if identity.startswith(f"{stem}-") and identity[len(stem) + 1 :].isdecimal():
            raise UserError(f"the id '{identity}' may be that of another line")
    return found


def _hash(identity: str) -> bytes:
    return hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _found(folder: Path, portion: Portion) -> Records | None:
    if not (folder / f"{portion.name}.npy").is_file():
        return None
    return record_files.open_folder(folder / portion.name)


def _warn(
    task: ResolvedTask, split: str, portions: Sequence[Portion], records: Sequence[Records]
) -> None:
    """Says what reading the split whole would have said."""
    rows = sum(p.piece.rows if p.kept is None else p.kept.size for p in portions)
    examples = sum(one.counts.examples for one in records)
    if examples < rows:
        log.warning("%s: %d of %d lines left out.", portions[0].piece.path, rows - examples, rows)
    info = task.require_info("be read")
    if split == datasets.TRAIN and info.uses_rationales:
        lacking = sum(one.counts.blank_rationales for one in records)
        elements.warn_of_lacking(info, lacking, examples)


@dataclasses.dataclass(frozen=True)
class SplitJob:
    """What a process of `piece_worker` does.

    Attributes:
      modules: are imported first, and register the task's data set.
      task: the name of the task.
      settings: the settings that its data is read with.
      split: its split.
      portions: what is made.
      folder: where it is written.
      limits: the most tokens of inputs and targets.
      parent: the process that waits for it; when that is gone, so is the worker.
    """

    modules: Sequence[str]
    task: str
    settings: DataSettings
    split: str
    portions: Sequence[Portion]
    folder: Path
    limits: tuple[int, int]
    parent: int


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _in_processes(
    task: ResolvedTask,
    split: str,
    folder: Path,
    missing: Sequence[Portion],
    limits: tuple[int, int],
) -> None:
    """Makes portions in several processes; those that fail leave theirs to the caller."""
    info = task.require_info("be read")
    assert info.dataset.pieces is not None
    wanted = task.settings.records_processes or _usable_cpus()
    count = min(wanted, len(missing) // _WORTH_A_PROCESS)
    module = info.dataset.pieces.convert.__module__
    if count < 2 or module == "__main__":  # Which another process would run as a program.
        return
    job = SplitJob(
        modules=[one for one in (task.module, module) if one],
        task=task.name,
        settings=task.settings,
        split=split,
        portions=(),
        folder=folder,
        limits=limits,
        parent=os.getpid(),
    )
    at_work: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
    try:
        for number in range(count):
            said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed below)
            process = subprocess.Popen(
                [sys.executable, "-m", "sbs_jax.data.piece_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=said,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            at_work.append((process, said))
            assert process.stdin is not None
            with process.stdin as pipe:
                pickle.dump(dataclasses.replace(job, portions=missing[number::count]), pipe)
        for process, output in at_work:
            if process.wait():
                output.seek(0)
                last = output.read().decode(errors="replace").strip().splitlines()[-1:]
                log.debug("A process of the first pass ended: %s", "".join(last))
    except (OSError, pickle.PicklingError, TypeError, AttributeError) as error:
        log.debug("The first pass runs in one process: %s", error)
    finally:
        for process, output in at_work:
            process.kill()
            process.wait()
            output.close()
