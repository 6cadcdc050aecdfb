"""The input pipeline: SeqIO task -> tokenized records and texts in memory -> batches.

SeqIO reads, preprocesses and tokenizes; from there on everything is numpy (`records`, `batching`),
so that the order of batches is independent of processes, and resumes to the bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from sbs_jax.data import registration
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.batching import (
    EvalBatches,
    Fill,
    TrainBatches,
    eval_batches,
    measure_fill,
    row_lengths,
)
from sbs_jax.data.eval_examples import EvalExamples, load_eval_examples, refuse_cuts_if_strict
from sbs_jax.data.reading import Columns, read_columns
from sbs_jax.data.records import (
    Counts,
    Records,
    count_parts,
    cut_sequences,
    join_records,
    shared_sources,
)
from sbs_jax.data.tensorflow_setup import seqio
from sbs_jax.data.vocabulary import DatasetVocabulary
from sbs_jax.parts import LABEL, PADDING, RATIONALE

__all__ = [
    "Counts",
    "EvalBatches",
    "EvalExamples",
    "Fill",
    "Records",
    "TrainBatches",
    "eval_batches",
    "load_eval_examples",
    "load_records",
    "load_vocabulary",
    "measure_fill",
]


def load_vocabulary(task_name: str) -> seqio.Vocabulary:
    """Returns the vocabulary of a task's targets, as the settings in force name it.

    It is loaded (or trained) now, and stays what it is when the settings change.

    Raises:
      UserError: the task is unknown, or its vocabulary cannot be read or trained.
    """
    if registration.is_mixture(task_name):
        return registration.mixture_vocabulary(task_name).resolve()
    vocabulary = registration.find_task(task_name).output_features["targets"].vocabulary
    return vocabulary.resolve() if isinstance(vocabulary, DatasetVocabulary) else vocabulary


def load_records(task_name: str, split: str, feature_lengths: Mapping[str, int]) -> Records:
    """Reads and tokenizes one split of a task with the settings in force.

    Sequences longer than their feature length are cut, EOS staying their last token, and counted.

    Args:
      task_name: of a SeqIO task. One that others registered works too: what has no feature ``part``
        is all label. Or of a mixture of our tasks.
      split: ``train``, ``validation`` or ``test``.
      feature_lengths: most tokens of ``inputs`` and ``targets``.

    Returns:
      The records in the order of the examples, and counts. All is in memory.

    Raises:
      UserError: of the reader; unknown task or split; a sequence is too long and
        `DataSettings.strict_lengths` is set.
    """
    if registration.is_mixture(task_name):
        rates = registration.mixture_rates(task_name)
        with shared_vocabulary(task_name):
            tasks = [load_records(task, split, feature_lengths) for task in rates]
        return join_records(tasks, list(rates.values()))
    input_limit, target_limit = row_lengths(feature_lengths)
    task = registration.find_task(task_name)
    registration.check_split(task, split)
    columns = read_columns(task, split)
    inputs, input_lengths = columns["inputs"]
    targets, target_lengths = columns["targets"]
    cut_inputs = cut_sequences(inputs, input_lengths, input_limit)
    cut_targets = cut_sequences(targets, target_lengths, target_limit)
    where = f"'{task_name}' ({split})"
    refuse_cuts_if_strict(where, "inputs", input_lengths, input_limit)
    refuse_cuts_if_strict(where, "targets", target_lengths, target_limit)
    parts = _spread_parts(*columns["part"], target_lengths)[cut_targets.kept]
    counts = _count(task_name, columns, parts, cut_targets.offsets)
    counts = dataclasses.replace(counts, cut_inputs=cut_inputs.count, cut_targets=cut_targets.count)
    return Records(
        input_tokens=cut_inputs.tokens,
        input_offsets=cut_inputs.offsets,
        target_tokens=cut_targets.tokens,
        target_parts=parts,
        target_offsets=cut_targets.offsets,
        example=columns["example"][0],
        counts=counts,
        variant=columns["variant"][0] if columns["variant"][0].size else None,
        draw=split == registration.TRAIN and settings_lib.current().rationales_per_epoch == "one",
        source=shared_sources(cut_inputs.tokens, cut_inputs.offsets, columns["example"][0])
        if settings_lib.current().prefix_side == "decoder"
        else None,
    )


@contextlib.contextmanager
def shared_vocabulary(task_name: str) -> Iterator[None]:
    """Has the tasks of a mixture use its vocabulary inside the ``with`` block; others their own."""
    if not registration.is_mixture(task_name):
        yield
        return
    path = load_vocabulary(task_name).sentencepiece_model_file
    with settings_lib.override(
        dataclasses.replace(settings_lib.current(), vocabulary_path=str(path))
    ):
        yield


def _spread_parts(
    parts: np.ndarray, part_lengths: np.ndarray, target_lengths: np.ndarray
) -> np.ndarray:
    """Returns int8 part codes for each target token.

    A record's part is one code for all its target, or one for each token.
    """
    single = part_lengths == 1
    if not np.all(single | (part_lengths == target_lengths)):
        raise ValueError("the feature `part` must have length 1 or the length of the targets")
    repeats = np.ones(parts.size, np.int64)
    starts = np.cumsum(part_lengths) - part_lengths
    repeats[starts[single]] = target_lengths[single]
    return np.repeat(parts, repeats).astype(np.int8)


def _count(
    task_name: str, columns: Columns, parts: np.ndarray, target_offsets: np.ndarray
) -> Counts:
    """Counts records, and what was dropped: an example gives each record unless that is blank."""
    labels, rationales = count_parts(parts, target_offsets)
    example_count = columns["example_count"][0]
    examples = int(example_count[0]) if example_count.size else columns["example"][0].size
    info = registration.task_info(task_name)
    if info is None or not example_count.size:
        return Counts(examples, labels, rationales)
    part = parts[target_offsets[1:] - 1]
    # Blank rationales that were kept consist of EOS alone (after the decoder's prompt).
    tokens = np.add.reduceat(parts != PADDING, target_offsets[:-1]) if part.size else part
    blank = (part == RATIONALE) & (tokens == 1)
    explained = _distinct(columns["example"][0][(part == RATIONALE) & ~blank])
    labelled = _distinct(columns["example"][0][part == LABEL])
    if info.method == "standard":
        return Counts(examples, labels, rationales, 0, examples - labelled)
    if info.method == "rationale":
        return Counts(examples, labels, rationales, examples - explained)
    if info.method == "sbs":
        return Counts(examples, labels, rationales, examples - explained, examples - labelled)
    # One record holds both, and is gone if either is blank.
    return Counts(examples, labels, rationales, examples - labelled)


def _distinct(examples: np.ndarray) -> int:
    return np.unique(examples).size
