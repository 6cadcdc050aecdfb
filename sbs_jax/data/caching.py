"""SeqIO's own cache of tokenized tasks: written with Apache Beam, read with USE_CACHED_TASKS.

    CACHE_DIR/svamp_sbs/train.tfrecord-00000-of-00008, info.train.json, stats.train.json, COMPLETED
    CACHE_DIR/svamp_sbs/sbs_jax.json       what it was made of

Everything but the last file is what `seqio_cache_tasks` writes, so SeqIO and T5X read it too. The
last one shows whether a cache is stale: data, vocabulary and settings are compared with what the
run would tokenize now.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sbs_jax.data import elements
from sbs_jax.data.datasets import TaskInfo
from sbs_jax.data.resolving import ResolvedTask
from sbs_jax.data.settings import DataSettings
from sbs_jax.data.tensorflow_setup import seqio
from sbs_jax.errors import UserError
from sbs_jax.files import refuse_remote

ORIGIN = "sbs_jax.json"

# Settings of where things lie, or of which examples there are (their hash is compared), or of what
# is done with the tokens: a cache may outlive their change.
_NOT_TOKENIZED = (
    "data_dir",
    "data_source",
    "rationales_file",
    "train_fraction",
    "train_examples",
    "seed",
    "validation_seed",
    "model_dir",
    "vocabulary_path",
    "vocabulary_size",
    "strict_lengths",
    "rationales_per_epoch",
    "use_cached_tasks",
    "cache_dir",
    "records_cache_dir",
    "records_processes",
)


def cached_task(task: ResolvedTask, split: str) -> seqio.Task:
    """Returns a copy of the SeqIO task that SeqIO reads from the cache (``use_cached=True``).

    Raises:
      UserError: the split is not cached, or was made of other data, vocabulary or settings.
    """
    folder = task_folder(task.settings, task.name)
    again = (
        "run python -m sbs_jax.cache --gin_file=runs/cache.gin with this run's task and its --gin "
        "values for data, or leave USE_CACHED_TASKS out"
    )
    info = Path(seqio.get_cached_info_path(str(folder), split))
    if not (folder / "COMPLETED").is_file() or not info.is_file():
        raise UserError(f"The task '{task.name}' ({split}) is not cached in {folder}; {again}.")
    if task.info is not None:
        changed = _changed(folder / ORIGIN, task, split)
        if changed:
            raise UserError(
                f"The cache of '{task.name}' ({split}) in {folder} is stale, {changed}; {again}."
            )
    copy = task.seqio_task.replace()  # SeqIO's own object remembers the folder that it found first
    with _cache_dirs([str(folder.parent)]):
        copy.assert_cached()
    return copy


def _changed(path: Path, task: ResolvedTask, split: str) -> str:
    """Tells what a cache was made of that is other now; ``''`` if nothing is."""
    try:
        origin: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        then, vocabulary, examples = origin["settings"], origin["vocabulary"], origin["splits"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"for {path.name} does not tell what it was made of"
    for name, value in settings_of(task.settings).items():
        if then.get(name) != value:
            return f"{name.upper()} was {then.get(name)!r} and is {value!r}"
    if vocabulary != vocabulary_hash(task.vocabulary):
        return "the vocabulary is another one"
    if examples.get(split) != examples_hash(task.require_info("be cached"), split):
        return "the examples are others (data files, TRAIN_FRACTION, TRAIN_EXAMPLES or seeds)"
    return ""


def settings_of(settings: DataSettings) -> dict[str, Any]:
    """Returns the settings that decide what the tokens are."""
    values = settings.record() | {"prefix_side": settings.side}
    return {name: values[name] for name in sorted(values) if name not in _NOT_TOKENIZED}


def vocabulary_hash(vocabulary: seqio.Vocabulary) -> str:
    """Returns a hash of the pieces; a vocabulary without pieces gives its description."""
    tokenizer = getattr(vocabulary, "tokenizer", None)
    if tokenizer is None:
        return repr(vocabulary)
    return hashlib.sha256(tokenizer.serialized_model_proto()).hexdigest()


def examples_hash(info: TaskInfo, split: str) -> str:
    """Returns a hash of all texts of a split that a task of ours may use."""
    digest = hashlib.sha256()
    for element in elements.read_targets(info, split):
        digest.update(json.dumps(element, sort_keys=True).encode())
    return digest.hexdigest()


def task_folder(settings: DataSettings, task_name: str) -> Path:
    """Returns the folder of a task in CACHE_DIR, or raises a `UserError` if that is missing."""
    if settings.cache_dir is None:
        raise UserError(
            "CACHE_DIR is missing: give --gin.CACHE_DIR=PATH, the folder of the cached tasks."
        )
    refuse_remote(settings.cache_dir)
    root = Path(settings.cache_dir).expanduser().absolute()
    return root / seqio.get_task_dir_from_name(task_name)


@contextlib.contextmanager
def _cache_dirs(folders: list[str]) -> Iterator[None]:
    before = list(seqio.get_global_cache_dirs())
    seqio.set_global_cache_dirs(folders)
    try:
        yield
    finally:
        seqio.set_global_cache_dirs(before)
