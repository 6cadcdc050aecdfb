"""Reads a split through SeqIO: tasks that others registered, and SeqIO's cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from sbs_jax.data import caching
from sbs_jax.data.reading import SCALARS, SEQUENCES, Columns
from sbs_jax.data.resolving import ResolvedTask
from sbs_jax.data.tensorflow_setup import tf

_CHUNK = 1024  # records that come out of TensorFlow at a time


def read(task: ResolvedTask, split: str) -> Iterator[Columns]:
    """Yields the features of a split that batches need, of many records at a time."""
    cached = task.settings.use_cached_tasks
    seqio_task = caching.cached_task(task, split) if cached else task.seqio_task
    dataset = seqio_task.get_dataset(
        sequence_length=None,
        split=split,
        use_cached=cached,
        shuffle=False,
        num_epochs=1,
        trim_output_features=False,
        try_in_mem_cache=False,
    )
    for chunk in dataset.map(_needed).ragged_batch(_CHUNK):
        yield {name: _flat(value) for name, value in chunk.items()}


def _needed(record: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {name: record[name] for name in (*SEQUENCES, *SCALARS) if name in record}


def _flat(value: tf.Tensor | tf.RaggedTensor) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(value, tf.RaggedTensor):
        return value.flat_values.numpy(), value.row_lengths().numpy()
    value = value.numpy()
    if value.ndim == 1:
        return value, np.ones(value.size, np.int64)
    return value.reshape(-1), np.full(value.shape[0], value.shape[1], np.int64)
