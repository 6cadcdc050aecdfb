"""Shows a task as a student sees it: `python -m sbs_jax.inspect_task`."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from sbs_jax import metrics
from sbs_jax.data import auto_lengths, datasets, pipeline
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.batch_arrays import row_lengths
from sbs_jax.data.batching import AUTO, Batching
from sbs_jax.data.datasets import TaskInfo
from sbs_jax.data.records import Records, cut_sequences
from sbs_jax.data.release import Example
from sbs_jax.data.resolving import ResolvedTask, TaskChoice, resolve_task
from sbs_jax.data.vocabulary import Vocabulary, decode_tokens
from sbs_jax.errors import UserError
from sbs_jax.parts import part_words

_EXAMPLES = 5
"""How many examples of a split are shown unless the user says."""
LABELS_SHOWN = 10
PERCENTILES = (50, 90, 99, 100)


def inspect_task(
    *,
    task: TaskChoice,
    feature_lengths: Mapping[str, int] | Literal["auto"],
    splits: Sequence[str] = datasets.SPLITS,
    examples: int = _EXAMPLES,
) -> None:
    """Prints what `report` says.

    Args:
      task: a task, a data set or a mixture.
      feature_lengths: row lengths in tokens, of `inputs` and `targets`; or `auto`, for those that
        the first split proposes.
      splits: which are shown; for one that cannot be read, the reason is printed.
      examples: how many are shown of the first split, as text and tokens.

    Raises:
      UserError: the task is unknown, or none of its splits can be read.
    """
    for line in report(resolve_task(task), feature_lengths, splits=splits, examples=examples):
        print(line, flush=True)


def report(
    task: ResolvedTask,
    feature_lengths: Mapping[str, int] | Literal["auto"],
    *,
    splits: Sequence[str] = datasets.SPLITS,
    examples: int = _EXAMPLES,
) -> Iterator[str]:
    """Yields lines about a task, or about each task of a mixture.

    Raises:
      UserError: see `inspect_task`.
    """
    if feature_lengths != AUTO:
        row_lengths(feature_lengths)
    if task.is_mixture:
        total = sum(rate for _, rate in task.parts)
        shares = ", ".join(f"{part.name} {rate / total:.1%}" for part, rate in task.parts)
        yield f"{task.name}: a mixture of {shares}"
    for part, _ in task.parts:
        info = part.require_info("be inspected")
        yield from _report_task(part, info, feature_lengths, splits, examples)


def _report_task(
    task: ResolvedTask,
    info: TaskInfo,
    lengths: Mapping[str, int] | Literal["auto"],
    splits: Sequence[str],
    examples: int,
) -> Iterator[str]:
    yield (
        f"{info.name}: data set {info.dataset.name}, method {info.method}, labels "
        f"{info.label_source}"
        + (f", rationales {info.rationale_source}" if info.uses_rationales else "")
        + f", judged by {info.dataset.scorer}"
    )
    vocabulary: Any = task.vocabulary
    yield f"vocabulary: {vocabulary.vocab_size} pieces, {vocabulary.sentencepiece_model_file}"
    shown = False
    reason: UserError | None = None
    for split in splits:
        yield ""
        try:
            with settings_lib.override(task.settings):
                read = datasets.load_examples(info.dataset, split)
            # Lengths as they are: what would be cut is counted below.
            records = pipeline.load_whole_records(task, split)
        except UserError as error:
            yield f"{split}: {error}"
            reason = reason or error
            continue
        proposals: dict[bool, auto_lengths.Proposal] = {}
        if len(records) and (not shown or isinstance(lengths, str)):
            strict = task.settings.strict_lengths
            proposals = {
                pack: auto_lengths.propose(records, Batching(AUTO, pack=pack), cut_nothing=strict)
                for pack in (True, False)
            }
        if isinstance(lengths, str) and proposals:
            lengths = proposals[True].lengths
        yield from _report_split(info, split, read, records, lengths)
        for pack, proposal in proposals.items():
            yield f"  'auto' {'with' if pack else 'without'} packing: {proposal}"
        if not shown and examples:
            yield from _show_examples(records, examples, vocabulary, task.method.names)
        shown = True
    if not shown:
        raise UserError(f"No split of '{info.name}' can be read: {reason}") from reason


def _report_split(
    info: TaskInfo,
    split: str,
    examples: Sequence[Example],
    records: Records,
    lengths: Mapping[str, int] | Literal["auto"],
) -> Iterator[str]:
    counts = records.counts
    others = "".join(f"{count} {name} records, " for name, count in counts.other_records.items())
    yield (
        f"{split}: {counts.examples} examples, {counts.label_records} label and "
        f"{counts.rationale_records} rationale records, {others}"
        f"{counts.blank_rationales} blank rationales, {counts.blank_labels} blank labels"
    )
    if len(records):
        assert not isinstance(lengths, str)  # The records have proposed some.
        yield from _report_lengths(records, lengths, info.definition.names)
    labels = collections.Counter(example["label"] for example in examples)
    most = ", ".join(
        f"{label!r} {count} ({count / len(examples):.1%})"
        for label, count in labels.most_common(LABELS_SHOWN)
    )
    more = len(labels) - LABELS_SHOWN
    yield f"  labels: {most}" + (f" and {more} others" if more > 0 else "")
    yield f"  teacher: {_teacher(info, examples)}"


def _report_lengths(
    records: Records, lengths: Mapping[str, int], names: Sequence[str]
) -> Iterator[str]:
    parts = records.target_parts[records.target_offsets[1:] - 1]
    found = {"inputs": records.input_lengths}
    for part, name in enumerate(names, start=1):
        if (parts == part).any():
            found[f"{name} targets"] = records.target_lengths[parts == part]
    for name, values in found.items():
        limit = lengths[name.split()[-1]]
        at = ", ".join(
            f"{percent} % {value:.0f}"
            for percent, value in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)
        )
        yield f"  tokens of {name}: {at}; {int((values > limit).sum())} cut at {limit}"
    for pack in (True, False):
        fill = pipeline.measure_fill(_cut(records, lengths), lengths, pack)
        yield f"  rows {'with' if pack else 'without'} packing: {fill.rows}, {fill}"


def _teacher(info: TaskInfo, examples: Sequence[Example]) -> str:
    if not any("llm_label" in example for example in examples):
        return "no labels"
    # Examples without a gold label cannot be judged.
    judged = [ex for ex in examples if ex["label"]]
    if not judged:
        return "no gold labels to judge it by"
    scores = [int(info.dataset.score(ex.get("llm_label", ""), ex["label"])) for ex in judged]
    unparsed = sum(not ex.get("llm_label", "") for ex in judged)
    return (
        f"accuracy {metrics.accuracy(scores):.4f} ± {metrics.standard_error(scores):.4f} "
        f"({sum(scores)} of {len(scores)}), {unparsed} unparsed"
    )


def _cut(records: Records, lengths: Mapping[str, int]) -> Records:
    inputs = cut_sequences(records.input_tokens, records.input_lengths, lengths["inputs"])
    targets = cut_sequences(records.target_tokens, records.target_lengths, lengths["targets"])
    return dataclasses.replace(
        records,
        input_tokens=inputs.tokens,
        input_offsets=inputs.offsets,
        target_tokens=targets.tokens,
        target_offsets=targets.offsets,
        target_parts=records.target_parts[targets.kept],
        target_weights=None,  # rows are only counted
        longest=None,
    )


def _show_examples(
    records: Records,
    count: int,
    vocabulary: Vocabulary,
    names: Sequence[str],
) -> Iterator[str]:
    starts = records.example_starts
    for number in range(min(count, starts.size - 1)):
        yield f"  example {records.example[starts[number]] + 1}"
        for record in range(starts[number], starts[number + 1]):
            inputs = records.input_tokens[slice(*records.input_offsets[record : record + 2])]
            own = slice(*records.target_offsets[record : record + 2])
            targets = records.target_tokens[own]
            part = part_words(records.target_parts[own].tolist(), names)
            for name, tokens in ((f"{part} input", inputs), (f"{part} target", targets)):
                yield f"    {name}: {decode_tokens(vocabulary, tokens)!r}"
                yield f"      {' '.join(map(vocabulary.tokenizer.id_to_piece, tokens.tolist()))}"
