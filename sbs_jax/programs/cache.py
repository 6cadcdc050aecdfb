"""Writes a task, tokenized, into SeqIO's cache: `python -m sbs_jax.cache` (gin/runs/cache.gin)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sbs_jax.data import cache_writer, datasets
from sbs_jax.data.resolving import TaskChoice, resolve_task
from sbs_jax.data.tensorflow_setup import seqio


def write_cache(
    *,
    task: TaskChoice,
    splits: Sequence[str] = datasets.SPLITS,
    shards: int = cache_writer.SHARDS,
    writer: str = cache_writer.LOCAL,
) -> None:
    """Writes a task, or each task of a mixture, into CACHE_DIR.

    Args:
      task: a task, a data set or a mixture.
      splits: which are written; one that has no data is left out.
      shards: files of a split.
      writer: ``local`` or ``beam``.

    Raises:
      UserError: see `cache_writer.cache_task`; or the task is unknown.
    """
    for part, _ in resolve_task(task).parts:
        folder = cache_writer.cache_task(part, splits=splits, shards=shards, writer=writer)
        for split in splits:
            stats = Path(seqio.get_cached_stats_path(str(folder), split))
            if stats.is_file():
                records = json.loads(stats.read_text())["examples"]
                print(f"{folder}: {split}, {records} records", flush=True)
