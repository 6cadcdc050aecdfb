"""The input pipeline: task -> tokenized records and texts in memory -> batches.

`reading` reads and tokenizes; from there on everything is numpy (`records`, `batching`), so that
the order of batches is independent of processes, and resumes to the bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from sbs_jax.data import stored_records
from sbs_jax.data.batch_arrays import Fill, measure_fill, row_lengths
from sbs_jax.data.batching import Batching, EvalBatches, TrainBatches
from sbs_jax.data.eval_examples import EvalExamples, load_eval_examples
from sbs_jax.data.records import UNCUT, Counts, Records
from sbs_jax.data.resolving import ResolvedTask

__all__ = [
    "Batching",
    "Counts",
    "EvalBatches",
    "EvalExamples",
    "Fill",
    "Records",
    "TrainBatches",
    "load_eval_examples",
    "load_records",
    "load_whole_records",
    "measure_fill",
]


def load_records(task: ResolvedTask, split: str, feature_lengths: Mapping[str, int]) -> Records:
    """Reads and tokenizes one split of a task with the task's settings.

    Sequences longer than their feature length are cut, EOS staying their last token, and counted.

    Args:
      task: any SeqIO task, or a mixture of our tasks. All tokens of a task that has no feature
        ``part`` count as label.
      split: ``train``, ``validation`` or ``test``.
      feature_lengths: most tokens of ``inputs`` and ``targets``.

    Returns:
      The records in the order of the examples, and counts. All is in memory, or mapped into it
      from `DataSettings.records_cache_dir`.

    Raises:
      UserError: the data cannot be read; the task has no such split; or a sequence is too long and
        `DataSettings.strict_lengths` is set.
    """
    if task.is_mixture:
        parts = [load_records(part, split, feature_lengths) for part, _ in task.parts]
        return stored_records.join(task.settings, parts, [rate for _, rate in task.parts])
    task.check_split(split)
    return stored_records.load(task, split, row_lengths(feature_lengths))


def load_whole_records(task: ResolvedTask, split: str) -> Records:
    """Reads and tokenizes one split of a task, and cuts nothing; see `load_records`."""
    settings = dataclasses.replace(task.settings, strict_lengths=False)
    lengths = dict(zip(("inputs", "targets"), UNCUT, strict=True))
    return load_records(task.with_settings(settings), split, lengths)
