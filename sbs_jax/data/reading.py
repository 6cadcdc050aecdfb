"""Reads a split of a SeqIO task into flat numpy arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from sbs_jax.data import caching, preprocessors
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.resolving import ResolvedTask
from sbs_jax.data.tensorflow_setup import tf
from sbs_jax.parts import LABEL

Columns = dict[str, tuple[np.ndarray, np.ndarray]]
"""Flat values and row lengths of each feature."""

_SEQUENCES = ("inputs", "targets", "part")
_SCALARS = ("example", "example_count", "variant", preprocessors.WEIGHING)
_CHUNK = 1024  # records that come out of TensorFlow at a time


def read_columns(task: ResolvedTask, split: str) -> Columns:
    """Reads and tokenizes a split with the task's settings.

    Args:
      task: any SeqIO task. Without a feature ``part`` it is all label, without ``example`` each
        record is an example of its own.
      split: of the task.

    Returns:
      The features that batches are made of, in the order of the task's records; EOS included,
      nothing trimmed.
    """
    chunks: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    with settings_lib.override(task.settings):  # SeqIO's callbacks read the settings in force.
        for chunk in _chunks(task, split):
            for name, value in chunk.items():
                chunks.setdefault(name, []).append(_flat(value))
    none = (np.zeros(0, np.int32), np.zeros(0, np.int64))
    columns = {
        name: tuple(map(np.concatenate, zip(none, *chunks.get(name, []), strict=True)))
        for name in (*_SEQUENCES, *_SCALARS)
    }
    count = columns["inputs"][1].size
    if count and "part" not in chunks:
        columns["part"] = (np.full(count, LABEL), np.ones(count, np.int64))
    if count and "example" not in chunks:
        columns["example"] = (np.arange(count, dtype=np.int32), np.ones(count, np.int64))
    if task.settings.use_cached_tasks and columns["variant"][0].size:
        # Beam wrote them in any order.
        order = np.lexsort((columns["variant"][0], columns["example"][0]))
        columns = {name: _permute(*column, order) for name, column in columns.items()}
    return columns


def _permute(
    flat: np.ndarray, lengths: np.ndarray, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    starts = (np.cumsum(lengths) - lengths)[order]
    lengths = lengths[order]
    before = np.cumsum(lengths) - lengths
    index = np.arange(flat.size) + np.repeat(starts - before, lengths)
    return flat[index], lengths


def _flat(value: tf.Tensor | tf.RaggedTensor) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(value, tf.RaggedTensor):
        return value.flat_values.numpy(), value.row_lengths().numpy()
    value = value.numpy()
    if value.ndim == 1:
        return value, np.ones(value.size, np.int64)
    return value.reshape(-1), np.full(value.shape[0], value.shape[1], np.int64)


def _chunks(task: ResolvedTask, split: str) -> Iterator[Mapping[str, tf.Tensor]]:
    """Yields the features that batches need, of many records at a time."""
    seqio_task, cached = task.seqio_task, task.settings.use_cached_tasks
    if cached:
        seqio_task = caching.cached_task(task, split)
    elif task.info is not None:
        # One of ours: the same as below, without going through the records one by one.
        dataset = preprocessors.finished_batches(
            seqio_task.source.get_dataset(split, shuffle=False),
            task.info.definition,
            seqio_task.output_features,
        )
        yield from dataset.map(_needed)
        return
    dataset = seqio_task.get_dataset(
        sequence_length=None,
        split=split,
        use_cached=cached,
        shuffle=False,
        num_epochs=1,
        trim_output_features=False,
        try_in_mem_cache=False,
    )
    yield from dataset.map(_needed).ragged_batch(_CHUNK)


def _needed(record: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {name: record[name] for name in (*_SEQUENCES, *_SCALARS) if name in record}
