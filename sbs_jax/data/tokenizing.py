"""Makes the records of a split: reads its examples, tokenizes them, cuts what is too long."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from sbs_jax.data import datasets, token_weights
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.eval_examples import refuse_cuts
from sbs_jax.data.ragged import starts_of
from sbs_jax.data.reading import Columns, read_columns
from sbs_jax.data.record_texts import WEIGHING
from sbs_jax.data.records import (
    Counts,
    Cut,
    Records,
    count_parts,
    cut_sequences,
    find_starts,
    holds_part,
    shared_sources,
)
from sbs_jax.data.release import where as place
from sbs_jax.data.resolving import ResolvedTask
from sbs_jax.parts import LABEL, NAMES, PADDING, RATIONALE


def make_records(task: ResolvedTask, split: str, limits: tuple[int, int]) -> Records:
    """Reads and tokenizes a split of a task; see `pipeline.load_records`.

    Args:
      task: a task, no mixture.
      split: one of its splits.
      limits: the most tokens of inputs and targets.

    Raises:
      UserError: as `pipeline.load_records`.
    """
    settings = task.settings
    input_limit, target_limit = limits
    columns = read_columns(task, split)
    inputs, input_lengths = columns["inputs"]
    targets, target_lengths = columns["targets"]
    cut_inputs = cut_sequences(inputs, input_lengths, input_limit)
    cut_targets = cut_sequences(targets, target_lengths, target_limit)
    if settings.strict_lengths:
        where = f"'{task.name}' ({split})"
        place_of = None
        if task.info is not None and columns["example_count"][0].size:
            place_of = functools.partial(_place_of, task, split, columns["example"][0])
        refuse_cuts(where, "inputs", input_lengths, input_limit, place_of)
        refuse_cuts(where, "targets", target_lengths, target_limit, place_of)
    parts = _spread_parts(*columns["part"], target_lengths)[cut_targets.kept]
    counts = _count(task, columns, parts, cut_targets.offsets)
    counts = dataclasses.replace(counts, cut_inputs=cut_inputs.count, cut_targets=cut_targets.count)
    return Records(
        input_tokens=cut_inputs.tokens,
        input_offsets=cut_inputs.offsets,
        target_tokens=cut_targets.tokens,
        target_parts=parts,
        target_offsets=cut_targets.offsets,
        example=columns["example"][0],
        starts=find_starts(columns["example"][0]),
        counts=counts,
        target_weights=_token_weights(task, columns, target_lengths, cut_targets),
        variant=columns["variant"][0] if columns["variant"][0].size else None,
        draw=split == datasets.TRAIN and settings.rationales_per_epoch == "one",
        source=shared_sources(cut_inputs.tokens, cut_inputs.offsets, columns["example"][0])
        if settings.prefix_side == "decoder"
        else None,
    )


def _token_weights(
    task: ResolvedTask, columns: Columns, target_lengths: np.ndarray, cut: Cut
) -> np.ndarray | None:
    """Returns what the data says that each target token counts; None if it says nothing."""
    specs = columns[WEIGHING][0]
    if not specs.size:
        return None
    encode = task.vocabulary.tokenizer.encode
    whole = [
        token_weights.spread(spec.decode(), int(length), encode)
        for spec, length in zip(specs, target_lengths, strict=True)
    ]
    weights = np.concatenate(whole)[cut.kept]
    weights[cut.offsets[1:] - 1] = 1.0  # EOS, also of one that was cut
    return weights


def _place_of(task: ResolvedTask, split: str, example: np.ndarray, record: int) -> str:
    """Returns the file and the line of a record's example, which is read again for it."""
    info = task.require_info("be read")
    with settings_lib.override(task.settings):
        examples = datasets.load_examples(info.dataset, split)
    return place(examples[int(example[record])])


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
    starts = starts_of(part_lengths)
    repeats[starts[single]] = target_lengths[single]
    return np.repeat(parts, repeats).astype(np.int8)


def _count(
    task: ResolvedTask, columns: Columns, parts: np.ndarray, target_offsets: np.ndarray
) -> Counts:
    """Counts records, and what was dropped: an example gives each record unless that is blank."""
    names = task.method.names
    labels, rationales, *others = count_parts(parts, target_offsets, len(names))
    example_count = columns["example_count"][0]
    examples = int(example_count[0]) if example_count.size else columns["example"][0].size
    counts = Counts(
        examples,
        labels,
        rationales,
        other_records=dict(zip(names[len(NAMES) :], others, strict=True)),
    )
    info = task.info
    if info is None or not example_count.size:
        return counts
    number = columns["example"][0]
    has_label = holds_part(parts, target_offsets, LABEL)
    has_rationale = holds_part(parts, target_offsets, RATIONALE)
    # Blank rationales that were kept consist of EOS alone (after the decoder's prompt).
    tokens = np.add.reduceat(parts != PADDING, target_offsets[:-1]) if parts.size else has_label
    blank = has_rationale & (tokens == 1)
    lacks_rationale = examples - _distinct(number[has_rationale & ~blank])
    lacks_label = examples - _distinct(number[has_label])
    trained = {part.name for part in info.definition.parts}
    if "rationale" in trained:
        counts = dataclasses.replace(counts, blank_rationales=lacks_rationale)
    if "label" in trained and "rationale" not in info.definition.target_of("label").fields:
        counts = dataclasses.replace(counts, blank_labels=lacks_label)
    elif "label" in trained and "rationale" not in trained:
        # One record holds both, and is gone if either is blank.
        counts = dataclasses.replace(counts, blank_rationales=lacks_label)
    return counts


def _distinct(examples: np.ndarray) -> int:
    return int(np.count_nonzero(np.bincount(examples)))
