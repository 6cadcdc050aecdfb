"""The examples of a split as evaluation needs them: encoder inputs, texts, gold labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sbs_jax.data import datasets, elements
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.batch_arrays import row_lengths
from sbs_jax.data.datasets import TaskInfo
from sbs_jax.data.record_texts import decoder_prompt, encoder_prefix
from sbs_jax.data.records import cut_sequences
from sbs_jax.data.release import Example, rationale_texts
from sbs_jax.data.release import where as place
from sbs_jax.data.resolving import ResolvedTask
from sbs_jax.data.settings import DataSettings
from sbs_jax.data.vocabulary import EOS_ID
from sbs_jax.errors import UserError
from sbs_jax.part_templates import fields_of, pieces
from sbs_jax.parts import NAMES, Target

EXPRESSION = "expression"
"""Name of the part whose arithmetic votes on the answer, see `sbs_jax.scores.voting`."""


@dataclasses.dataclass(frozen=True)
class EvalExamples:
    """The N examples of a split, to be decoded and scored. Lists have length N.

    Attributes:
      ids: names of the examples.
      inputs: texts, without prefix.
      labels: gold, whatever the task trains on.
      llm_labels: the teacher's, ``''`` where there is none.
      llm_rationales: the teacher's rationales, ``''`` where there is none.
      rationales: people's rationales, ``''`` where there is none.
      references: the rationales that the task trains (the teacher's or people's), all that are not
        blank; the student's are compared with them.
      label_inputs: int32 [N, L], encoder tokens that ask for the label, padded with 0. L is the
        longest of both kinds of inputs, rounded up to a multiple of 16 and at most S.
      rationale_inputs: int32 [N, L], encoder tokens that ask for the rationale, padded with 0.
      label_prompt: int32 [P], what the decoder is given before it writes a label; empty unless the
        prefixes are on its side (`DataSettings.prefix_side`).
      rationale_prompt: int32 [P], what the decoder is given before it writes a rationale.
      scorer: key of `sbs_jax.metrics.SCORERS`; how labels are judged.
      label_set: all labels that there are; () if there is no end to them.
      answer: what the student writes when it is asked for the label.
      texts: the prefixes and separators, see `DataSettings.texts`.
      cut_inputs: how many of the 2 N inputs were longer than S.
      given_rationales: of a method that is decoded in two stages (`parts.Method.is_cascaded`):
        returns the encoder tokens int32 [N, L] that ask for the labels, given the N rationales that
        the student has written. `label_inputs` then hold the inputs without a rationale.
      expression_inputs: int32 [N, L], encoder tokens that ask for the part ``expression``; None
        where the method has none.
      expression_prompt: int32 [P], what the decoder is given before it writes an expression.
    """

    ids: list[str]
    inputs: list[str]
    labels: list[str]
    llm_labels: list[str]
    llm_rationales: list[str]
    rationales: list[str]
    references: list[list[str]]
    label_inputs: np.ndarray
    rationale_inputs: np.ndarray
    label_prompt: np.ndarray
    rationale_prompt: np.ndarray
    scorer: str
    label_set: tuple[str, ...]
    answer: Target
    texts: Mapping[str, str]
    cut_inputs: int
    given_rationales: Callable[[Sequence[str]], np.ndarray] | None = None
    expression_inputs: np.ndarray | None = None
    expression_prompt: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def explains(self) -> bool:
        """Whether the student writes a rationale when it is asked for the label."""
        return any("rationale" in fields_of(part.content) for part in self.answer.parts)

    def take_apart(self, output: str) -> tuple[str | None, str]:
        """Returns the rationale (None if there is none) and the label in a student's output."""
        found = self.answer.take_apart(output, self.texts)
        return found.get("rationale"), found["label"]


def load_eval_examples(
    task: ResolvedTask, split: str, feature_lengths: Mapping[str, int]
) -> EvalExamples:
    """Reads the examples of a split for decoding, with the task's settings.

    They are those of the task's data set: all its tasks are judged on the same examples, with gold
    labels. Blank rationales do not matter here, so no example is left out. Where the label's part
    reads more than the input (the method ``rationale_input``), the inputs that ask for labels hold
    it, the teacher's rationale or a person's as in training.

    Args:
      task: one that `registration.register_dataset` made.
      split: ``train``, ``validation`` or ``test``.
      feature_lengths: ``inputs`` gives S.

    Returns:
      The examples in the order of the file.

    Raises:
      UserError: as for `load_records`, or the task is not one of ours.
    """
    input_limit, _ = row_lengths(feature_lengths)
    info = task.require_info("be scored")
    task.check_split(split)
    settings = task.settings
    with settings_lib.override(settings):
        examples = datasets.load_examples(info.dataset, split)
        method = info.definition
        names = (*NAMES, *((EXPRESSION,) if EXPRESSION in method.names else ()))
        targets = [method.target_of(name) for name in names]
        prompts = [
            np.array(decoder_prompt(settings, target, info.dataset.vocabulary), np.int32)
            for target in targets
        ]
        if "rationale" in fields_of(targets[0].reads) and not method.is_cascaded:
            elements.require_rationales(info, split, examples)
    inputs = [example["input"] for example in examples]
    asked = [
        _asked(info, target, example, settings, "" if method.is_cascaded else None)
        for target in targets
        for example in examples
    ]

    def place_of(index: int) -> str:
        return place(examples[index % len(examples)])  # labels are asked for, then rationales

    where = f"'{task.name}' ({split})"
    tokens, cut = _encode(task, asked, input_limit, where, place_of)
    count = len(inputs)

    def given_rationales(rationales: Sequence[str]) -> np.ndarray:
        asked = [
            _asked(info, targets[0], example, settings, rationale)
            for example, rationale in zip(examples, rationales, strict=False)
        ]
        return _encode(task, asked, input_limit, where, place_of)[0]

    return EvalExamples(
        ids=[example["id"] for example in examples],
        inputs=inputs,
        labels=[example["label"] for example in examples],
        llm_labels=[example.get("llm_label", "") for example in examples],
        llm_rationales=[_first_rationale(example, "llm_rationale") for example in examples],
        rationales=[_first_rationale(example, "rationale") for example in examples],
        references=[
            [text for text in rationale_texts(example.get(info.rationale_key, "")) if text.strip()]
            for example in examples
        ],
        label_inputs=tokens[:count],
        rationale_inputs=tokens[count : 2 * count],
        label_prompt=prompts[0],
        rationale_prompt=prompts[1],
        scorer=info.dataset.scorer,
        label_set=info.dataset.labels,
        answer=targets[0],
        texts=settings.texts,
        cut_inputs=cut,
        given_rationales=given_rationales if method.is_cascaded else None,
        expression_inputs=tokens[2 * count :] if len(targets) > 2 else None,
        expression_prompt=prompts[2] if len(targets) > 2 else None,
    )


def _asked(
    info: TaskInfo,
    target: Target,
    example: Example,
    settings: DataSettings,
    rationale: str | None = None,
) -> str:
    """The encoder's text that asks for a target; a blank field is left out, with its separator.

    `rationale` takes the place of the example's own unless it is None.
    """
    text = encoder_prefix(settings, target)
    for between, field in pieces(target.reads, settings.texts):
        if field == "input":
            text += between + example["input"]
        elif field is None:
            text += between
        elif field == "rationale" and rationale is not None:
            text += between + rationale if rationale.strip() else ""
        elif value := _field(info, example, field):
            text += between + value
    return settings.framed(text)


def _field(info: TaskInfo, example: Example, field: str) -> str:
    """A field that is read besides the input; ``''`` where it is blank."""
    if field == "label":
        value = example["label"]
    elif field == "rationale":
        value = _first_rationale(example, info.rationale_key)
    else:
        value = datasets.own_text(example, field)
    return value if value.strip() else ""


def _first_rationale(example: Example, key: str) -> str:
    return rationale_texts(example.get(key, ""))[0]


def _encode(
    task: ResolvedTask, texts: list[str], limit: int, where: str, place_of: Callable[[int], str]
) -> tuple[np.ndarray, int]:
    """Returns padded tokens int32 [texts, L], EOS included, and how many texts were cut."""
    with settings_lib.override(task.settings):
        info = task.require_info("be evaluated")
        encoded = info.dataset.vocabulary.encode_batch(texts)
    lengths = np.array([len(ids) + 1 for ids in encoded], np.int64)
    if task.settings.strict_lengths:
        refuse_cuts(where, "inputs", lengths, limit, place_of)
    tokens = np.fromiter((token for ids in encoded for token in (*ids, EOS_ID)), np.int32)
    cut = cut_sequences(tokens, lengths, limit)
    lengths = np.diff(cut.offsets)
    width = min(limit, -(-int(lengths.max()) // 16) * 16)
    padded = np.zeros((len(texts), width), np.int32)
    padded[np.arange(width) < lengths[:, None]] = cut.tokens
    return padded, cut.count


def refuse_cuts(
    where: str,
    feature: str,
    lengths: np.ndarray,
    limit: int,
    place_of: Callable[[int], str] | None = None,
) -> None:
    """Raises a `UserError` if a length exceeds `limit`; for `DataSettings.strict_lengths`.

    Args:
      where: the task and the split.
      feature: ``inputs`` or ``targets``.
      lengths: int [R], in tokens.
      limit: the feature's length.
      place_of: returns the file and the line of a sequence, by its index in `lengths`; None if
        they are not known.
    """
    cut = int((lengths > limit).sum())
    if cut:
        first, longest = int(np.argmax(lengths > limit)), int(lengths.argmax())
        places = (
            ""
            if place_of is None
            else f" (the first: {place_of(first)}; the longest: {place_of(longest)})"
        )
        raise UserError(
            f"{cut} of the {lengths.size} {feature} of {where} are longer than TASK_FEATURE_LENGTHS"
            f"['{feature}'] = {limit} (the longest has {lengths.max()} tokens), and STRICT_LENGTHS "
            f"is set{places}."
        )
