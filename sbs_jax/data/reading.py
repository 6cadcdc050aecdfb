"""Reads and tokenizes a split of a task into flat numpy arrays.

Our own tasks need no TensorFlow: their records are made and tokenized here, and are those that
SeqIO would give, to the bit. SeqIO reads tasks of others, and its cache (`seqio_reading`).
"""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from sbs_jax.data import record_texts
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.dataset_vocabulary import DatasetVocabulary
from sbs_jax.data.datasets import TaskInfo
from sbs_jax.data.elements import Stream, stream_targets
from sbs_jax.data.ragged import spans, starts_of
from sbs_jax.data.resolving import ResolvedTask
from sbs_jax.data.settings import DataSettings
from sbs_jax.parts import LABEL, PADDING, Method

Columns = dict[str, tuple[np.ndarray, np.ndarray]]
"""Flat values and row lengths of each feature."""

SEQUENCES = ("inputs", "targets", "part")
SCALARS = ("example", "example_count", "variant", record_texts.WEIGHING)
CHUNK = 16_384  # elements whose records are tokenized at a time


def read_columns(task: ResolvedTask, split: str) -> Columns:
    """Reads and tokenizes a split with the task's settings.

    Args:
      task: any SeqIO task. Without a feature ``part`` it is all label, without ``example`` each
        record is an example of its own.
      split: the split of the task.

    Returns:
      The features that batches are made of, in the order of the task's records; EOS included,
      nothing trimmed.

    Raises:
      UserError: the data cannot be read.
    """
    # SeqIO's callbacks read the settings in force.
    with settings_lib.override(task.settings), _uncollected():
        if task.info is None or task.settings.use_cached_tasks:
            from sbs_jax.data import seqio_reading

            chunks = seqio_reading.read(task, split)
        else:
            task.info.dataset.vocabulary.resolve()
            chunks = tokenized(task.info, stream_targets(task.info, split), task.settings)
        columns = joined(chunks)
    count = columns["inputs"][1].size
    if count and not columns["part"][1].size:
        columns["part"] = (np.full(count, LABEL), np.ones(count, np.int64))
    if count and not columns["example"][1].size:
        columns["example"] = (np.arange(count, dtype=np.int32), np.ones(count, np.int64))
    if task.settings.use_cached_tasks and columns["variant"][0].size:
        # Beam wrote them in any order.
        order = np.lexsort((columns["variant"][0], columns["example"][0]))
        columns = {
            name: _permute(*column, order) if column[1].size else column
            for name, column in columns.items()
        }
    return columns


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Lets no garbage collector look, again and again, through millions of examples."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def joined(chunks: Iterable[Columns]) -> Columns:
    """Puts the columns of several chunks behind one another."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for chunk in chunks:
        for name, column in chunk.items():
            found.setdefault(name, []).append(column)
    none = (np.zeros(0, np.int32), np.zeros(0, np.int64))
    columns: dict[str, Any] = {
        name: tuple(map(np.concatenate, zip(none, *found.get(name, []), strict=True)))
        for name in (*SEQUENCES, *SCALARS)
    }
    return columns


def tokenized(task: TaskInfo, stream: Stream, settings: DataSettings) -> Iterator[Columns]:
    """Yields the records of elements, tokenized, many at a time.

    Args:
      task: a task of ours.
      stream: the stream, from `elements.stream_targets`.
      settings: the settings of the data; they are in force.
    """
    vocabulary, method = task.dataset.vocabulary, task.definition
    make = record_texts.RecordMaker(method, settings, weighs=stream.weighs)
    finish = _Finish(method, settings, vocabulary)
    elements = iter(stream.elements)
    while chunk := list(itertools.islice(elements, CHUNK)):
        records, numbers = [], []
        for element in chunk:
            found = list(make(element))
            records += found
            numbers += [int(element["example"])] * len(found)
        if records:
            columns = {
                "inputs": vocabulary.encode_flat([record.inputs for record in records]),
                **finish(records),
                "example": _scalars(numbers),
                "example_count": _scalars(np.full(len(records), stream.examples)),
                "variant": _scalars([record.variant for record in records]),
            }
            if stream.weighs:
                specs = np.array([record.weighing.encode() for record in records], object)
                columns[record_texts.WEIGHING] = (specs, np.ones(len(records), np.int64))
            yield columns


class _Finish:
    """Tokenizes targets: each part by itself, EOS at the end, the decoder's prompt in front.

    The prompt is of no part, and EOS of the last one. Where there is no prompt and each target has
    one part, the part is one code for all its tokens.
    """

    def __init__(
        self, method: Method, settings: DataSettings, vocabulary: DatasetVocabulary
    ) -> None:
        self._vocabulary = vocabulary
        self._prompts = {
            target.codes: record_texts.decoder_prompt(settings, target, vocabulary)
            for target in method.targets
        }
        self._plain = settings.prefix_side != "decoder" and not method.shares_targets

    def __call__(self, records: Sequence[record_texts.RecordTexts]) -> Columns:
        counts = np.array([len(record.targets) for record in records], np.int64)
        texts = [text for record in records for text in record.targets]
        flat, lengths = self._vocabulary.encode_flat(texts)
        codes = np.array([code for record in records for code in record.target.codes], np.int32)
        if self._plain:
            return {"targets": (flat, lengths), "part": (codes, np.ones(codes.size, np.int64))}
        last = np.zeros(lengths.size, bool)
        last[np.cumsum(counts) - 1] = True
        # Each part came with EOS, which stays behind the last one alone.
        ends = np.cumsum(lengths) - 1
        kept = np.ones(flat.size, bool)
        kept[ends[~last]] = False
        parts = np.repeat(codes, lengths)
        tokens, parts = flat[kept], parts[kept]
        own = np.add.reduceat(lengths - ~last, starts_of(counts))
        prompts = [self._prompts[record.target.codes] for record in records]
        before = np.array([len(prompt) for prompt in prompts], np.int64)
        given = np.repeat(np.tile([True, False], len(records)), np.stack([before, own], 1).ravel())
        targets, spread = np.empty(given.size, np.int32), np.full(given.size, PADDING, np.int32)
        targets[given] = [token for prompt in prompts for token in prompt]
        targets[~given], spread[~given] = tokens, parts
        return {"targets": (targets, before + own), "part": (spread, before + own)}


def _scalars(values: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.array(values, np.int32), np.ones(len(values), np.int64)


def _permute(
    flat: np.ndarray, lengths: np.ndarray, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    starts, lengths = starts_of(lengths)[order], lengths[order]
    return flat[spans(starts, lengths)], lengths
