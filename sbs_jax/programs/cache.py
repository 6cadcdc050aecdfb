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
    mixture_or_task_name: str,
    mixture_or_task_module: str | None = None,
    method: str | None = None,
    label_source: str | None = None,
    rationale_source: str | None = None,
    splits: Sequence[str] = datasets.SPLITS,
    shards: int = cache_writer.SHARDS,
    writer: str = cache_writer.LOCAL,
) -> None:
    """Writes a task, or each task of a mixture, into CACHE_DIR.

    Args:
      mixture_or_task_name: a task, a data set or a mixture.
      mixture_or_task_module: a module that registers it, imported first.
      method: see `choosing.choose_task`.
      label_source: see `choosing.choose_task`.
      rationale_source: see `choosing.choose_task`.
      splits: which are written; one that has no data is left out.
      shards: files of a split.
      writer: ``local`` or ``beam``.

    Raises:
      UserError: see `cache_writer.cache_task`; or the task is unknown.
    """
    choice = TaskChoice(
        mixture_or_task_name, mixture_or_task_module, method, label_source, rationale_source
    )
    for task, _ in resolve_task(choice).parts:
        folder = cache_writer.cache_task(task, splits=splits, shards=shards, writer=writer)
        for split in splits:
            stats = Path(seqio.get_cached_stats_path(str(folder), split))
            if stats.is_file():
                records = json.loads(stats.read_text())["examples"]
                print(f"{folder}: {split}, {records} records", flush=True)
