"""Writes SeqIO's cache. See `sbs_jax.data.caching` for what it holds.

Two writers give the same records. ``local`` needs nothing that is not installed and goes through
the records one after the other. ``beam`` is the pipeline of `seqio_cache_tasks`: seqio's transforms
under Apache Beam (the extra ``cache``), which also counts on its own.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sbs_jax.data import caching, datasets, registration
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.resolving import ResolvedTask
from sbs_jax.data.tensorflow_setup import seqio, tf
from sbs_jax.errors import UserError
from sbs_jax.files import atomic_write_text

log = logging.getLogger(__name__)

LOCAL, BEAM = "local", "beam"
SHARDS = 8
"""Files of a split. Several hosts of a T5X run read different ones; our own runs read all."""


def cache_task(
    task: ResolvedTask,
    *,
    splits: Sequence[str] = datasets.SPLITS,
    shards: int = SHARDS,
    writer: str = LOCAL,
) -> Path:
    """Writes a task, tokenized with its settings, into `DataSettings.cache_dir`.

    It replaces what is there of the task. A split that has no data is left out.

    Args:
      task: a task of ours, or another SeqIO task with a `CacheDatasetPlaceholder`.
      splits: which are written, as far as the task has them.
      shards: files of a split.
      writer: ``local`` or ``beam``.

    Returns:
      The task's folder.

    Raises:
      UserError: `writer` is unknown, or Apache Beam not installed; the task cannot be cached;
        CACHE_DIR is missing; or of the reader of the data, if no split can be read.
    """
    if writer not in (LOCAL, BEAM) or shards < 1:
        raise UserError(
            f"WRITER must be 'local' or 'beam', and SHARDS at least 1, not {writer!r} and {shards}."
        )
    write = _write if writer == LOCAL else functools.partial(_write_with_beam, _import_beam_utils())
    if not task.seqio_task.supports_caching:
        raise UserError(
            f"The task '{task.name}' cannot be cached: it has no seqio.CacheDatasetPlaceholder "
            "among its preprocessors."
        )
    settings = dataclasses.replace(task.settings, use_cached_tasks=False)
    task = task.with_settings(settings)
    folder = caching.task_folder(settings, task.name)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    with settings_lib.override(settings):
        found = _readable_splits(task, splits)
        origin = {
            "settings": caching.settings_of(settings),
            "vocabulary": caching.vocabulary_hash(task.vocabulary),
        }
        origin["splits"] = found
        try:
            partial.mkdir(parents=True)
            write(task.seqio_task, list(found), partial, shards)
            (partial / "COMPLETED").touch()
            atomic_write_text(partial / caching.ORIGIN, json.dumps(origin, indent=2) + "\n")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _readable_splits(task: ResolvedTask, splits: Sequence[str]) -> dict[str, str]:
    """Returns the hash of the examples of each split that can be read."""
    found, reason = {}, None
    for split in splits:
        try:
            registration.check_split(task.seqio_task, split)
            found[split] = "" if task.info is None else caching.examples_hash(task.info, split)
        except UserError as error:
            log.warning("%s: %s", split, error)
            reason = reason or error
    if not found:
        raise UserError(f"No split of '{task.name}' can be cached: {reason}") from reason
    return found


def _write(task: seqio.Task, splits: Sequence[str], folder: Path, shards: int) -> None:
    """Writes what the other writer does: TFRecords of tf.train.Example, info and stats."""
    for split in splits:
        prefix = seqio.get_cached_tfrecord_prefix(str(folder), split)
        dataset = task.preprocess_precache(task.source.get_dataset(split, shuffle=False))
        stats: collections.Counter[str] = collections.Counter(examples=0)
        with contextlib.ExitStack() as stack:
            files = [
                stack.enter_context(tf.io.TFRecordWriter(f"{prefix}-{n:05d}-of-{shards:05d}"))
                for n in range(shards)
            ]
            for number, record in enumerate(dataset.as_numpy_iterator()):
                example = seqio.dict_to_tfexample(record)
                files[number % shards].write(example.SerializeToString())
                _count(stats, task.output_features, record)
        info = {
            "num_shards": shards,
            "features": {name: _spec(spec) for name, spec in dataset.element_spec.items()},
            "seqio_version": seqio.__version__,
        }
        for path, values in (
            (seqio.get_cached_info_path(str(folder), split), info),
            (seqio.get_cached_stats_path(str(folder), split), dict(stats)),
        ):
            Path(path).write_text(json.dumps(values, sort_keys=True, indent=2), encoding="utf-8")


def _spec(spec: tf.TensorSpec) -> dict[str, Any]:
    """Tells SeqIO the type of a feature, whose first dimension may have any size."""
    shape = spec.shape.as_list()
    return {"shape": [None, *shape[1:]] if shape else [], "dtype": spec.dtype.name}


def _count(
    stats: collections.Counter[str], features: Mapping[str, seqio.Feature], record: dict[str, Any]
) -> None:
    """Counts records, and the tokens of a feature that are neither padding nor EOS."""
    stats["examples"] += 1
    for name, feature in features.items():
        special = [feature.vocabulary.pad_id, feature.vocabulary.eos_id]
        values = record[name]
        tokens = sum(int(value) not in special for value in values.tolist())
        stats[f"{name}_tokens"] += tokens
        stats[f"{name}_max_tokens"] = max(stats[f"{name}_max_tokens"], tokens)


def _import_beam_utils() -> Any:
    try:
        from seqio import beam_utils
    except ImportError as error:
        raise UserError(
            f"Caching with WRITER = 'beam' needs Apache Beam ({error}); run: "
            "pip install 'sbs_jax[cache]'"
        ) from error
    return beam_utils


def _write_with_beam(
    beam_utils: Any, task: seqio.Task, splits: Sequence[str], folder: Path, shards: int
) -> None:
    """Runs the pipeline of `seqio_cache_tasks`, in this process."""
    import apache_beam as beam
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    # Beam's own threads do not see the settings in force here.
    setup = functools.partial(settings_lib.put_in_force, settings_lib.current())
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        for split in splits:
            read = beam_utils.PreprocessTask(task, split, setup_fn=setup)
            examples = pipeline | f"{split}_read" >> read
            info = beam_utils.GetInfo(shards)
            stats = beam_utils.GetStats(task.output_features)
            files = seqio.get_cached_tfrecord_prefix(str(folder), split)
            _ = examples | f"{split}_write" >> beam_utils.WriteExampleTfRecord(files, shards)
            for name, transform, path in (
                ("info", info, seqio.get_cached_info_path(str(folder), split)),
                ("stats", stats, seqio.get_cached_stats_path(str(folder), split)),
            ):
                _ = (
                    examples
                    | f"{split}_{name}" >> transform
                    | f"{split}_write_{name}" >> beam_utils.WriteJson(path)
                )
