"""What a task makes of the examples of a split: the texts that it trains, which it requires."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from sbs_jax import metrics
from sbs_jax.data.datasets import (
    HUMAN,
    TEACHER,
    TEST,
    TRAIN,
    VALIDATION,
    TaskInfo,
    load_examples,
    own_text,
)
from sbs_jax.data.release import Example, own_field, own_fields, rationale_texts, where
from sbs_jax.data.token_weights import word_weights
from sbs_jax.errors import UserError
from sbs_jax.part_templates import fields_of

log = logging.getLogger(__name__)

Element = dict[str, str | int]


def element_key(field: str) -> str:
    """Returns what an element (`read_targets`) calls a field of `parts.Part`'s templates."""
    return {"input": "input", "label": "target_label", "rationale": "target_rationale"}.get(
        field, f"field {field}"
    )


def read_targets(task: TaskInfo, split: str) -> list[Element]:
    """Reads a split as a task sees it.

    Returns:
      For each example its texts, the texts ``target_label`` and ``target_rationale`` that the
      task trains, its number ``example`` and the number ``variant`` of its rationale. The teacher's
      texts are ``''`` where there are no completions. Further fields that the method's parts name
      stand under `element_key`. An example with several rationales is repeated, once with each.

    Raises:
      UserError: the data cannot be read; or the task needs completions or rationales that are not
        there.
    """
    return list(stream_targets(task, split).elements)


class Stream(NamedTuple):
    """What `read_targets` returns, one element after the other.

    Attributes:
      elements: can be gone through once. Examples are let go of as their elements are taken.
      examples: how many examples there are.
      weighs: whether the data weigh words, so that all elements have keys with `WEIGHTS_OF`.
    """

    elements: Iterable[Element]
    examples: int
    weighs: bool


def stream_targets(task: TaskInfo, split: str) -> Stream:
    """Reads a split as `read_targets` does, without holding all of its elements."""
    examples = load_examples(task.dataset, split)
    if split == TRAIN:
        if task.label_source == TEACHER and "llm_label" not in examples[0]:
            raise _no_completions(task, split)
        if task.uses_rationales:
            require_rationales(task, split, examples)
        require_fields(task, split, examples)
    count, written = len(examples), _written_fields(task)
    weights = [f"{field}_weights" for field in written]
    weighed = any(own_field(example, name) is not None for example in examples for name in weights)
    elements = _elements(task, split, examples, written if weighed else ())
    if not weighed:
        return Stream(elements, count, weighs=False)
    listed = _all_weighed(list(elements))
    weighs = any(key.startswith(WEIGHTS_OF) for key in (listed or [{}])[0])
    return Stream(listed, count, weighs)


def _elements(
    task: TaskInfo, split: str, examples: list[Example], weighed: Sequence[str]
) -> Iterator[Element]:
    """Yields the elements of examples, and empties their list meanwhile."""
    teacher_labels = split == TRAIN and task.label_source == TEACHER
    known = set(map(metrics.normalize_answer, task.dataset.labels))
    spelt = set(task.dataset.labels)  # As most are, which need not be normalised.
    own_names, several = task.definition.own_fields, task.uses_rationales
    examples.reverse()
    for number in range(len(examples)):
        example = examples.pop()
        human = rationale_texts(example["rationale"])
        teacher = rationale_texts(example.get("llm_rationale", ""))
        rationales = human if task.rationale_key == "rationale" else teacher
        label = example["llm_label" if teacher_labels else "label"]
        if known and label not in spelt and metrics.normalize_answer(label) not in known:
            label = ""  # the teacher did not decide: nothing to learn from
        texts = {name: own_text(example, name) for name in own_names}
        for variant, rationale in enumerate(rationales if several else rationales[:1]):
            element: Element = {
                "id": example["id"],
                "input": example["input"],
                "label": example["label"],
                "rationale": human[0],
                "llm_label": example.get("llm_label", ""),
                "llm_rationale": teacher[0],
                "target_label": label,
                "target_rationale": rationale,
                "example": number,
                "variant": variant,
            }
            for name, text in texts.items():
                element[element_key(name)] = text
            if weighed:
                given = {"label": label, "rationale": rationale, **texts}
                element.update(_weights_of(task, example, weighed, given))
            yield element


WEIGHTS_OF = "weights of "
"""Followed by the name of a field, the key under which an element has the weights of its words."""


def _written_fields(task: TaskInfo) -> tuple[str, ...]:
    """The fields that the method writes."""
    parts = (part for target in task.definition.targets for part in target.parts)
    return tuple(dict.fromkeys(field for part in parts for field in fields_of(part.content)))


def _weights_of(
    task: TaskInfo, example: Example, fields: Sequence[str], texts: Mapping[str, str]
) -> dict[str, str]:
    """Reads the weights of the words of the fields that the method writes; see `token_weights`."""
    found = {}
    for field in fields:
        name = f"{field}_weights"
        value = own_field(example, name)
        if value is None:
            continue
        place = f"{where(example)}: field '{name}'"
        if field == "rationale" and len(rationale_texts(example.get(task.rationale_key, ""))) > 1:
            raise UserError(f"{place} cannot say which of several rationales it weighs.")
        if texts[field].strip():
            found[WEIGHTS_OF + field] = word_weights(value, texts[field], place)
    return found


def _all_weighed(elements: list[Element]) -> list[Element]:
    """Gives all elements the keys that some of them have weights under."""
    keys = {key for element in elements for key in element if key.startswith(WEIGHTS_OF)}
    if not keys:
        return elements
    none: Element = dict.fromkeys(sorted(keys), "")
    return [none | element for element in elements]


def require_fields(task: TaskInfo, split: str, examples: Sequence[Example]) -> None:
    """Raises a `UserError` if no example has a field that the method's parts name."""
    for field in task.definition.own_fields:
        if any(own_text(example, field).strip() for example in examples):
            continue
        parts = [
            part.name
            for target in task.definition.targets
            for part in target.parts
            if field in target.fields
        ]
        seen = dict.fromkeys(name for example in examples for name in own_fields(example))
        raise UserError(
            f"METHOD '{task.method}' needs the field '{field}' (PARTS: {', '.join(parts)}), but "
            f"none of the {len(examples)} {_SPLIT_WORDS[split]} examples of '{task.dataset.name}' "
            f"has it ({where(examples[0])}); their fields are {', '.join(seen)}."
        )


def require_rationales(task: TaskInfo, split: str, examples: Sequence[Example]) -> None:
    """Raises a `UserError` if `examples` have none of the rationales that a task uses.

    Logs a warning if more than half of the training examples have none.
    """
    lacking = sum(not rationale_texts(ex.get(task.rationale_key, ""))[0] for ex in examples)
    name = task.dataset.name
    if lacking < len(examples):
        if split == TRAIN:
            warn_of_lacking(task, lacking, len(examples))
        return
    people = any(rationale_texts(example["rationale"])[0] for example in examples)
    found = task.dataset.no_rationales
    hint = "" if found is None else f" {found(split)}"
    if task.rationale_source == HUMAN:
        raise UserError(
            f"The task '{task.name}' needs people's rationales, but the data set '{name}' has none "
            f"({split}); RATIONALE_SOURCE = 'teacher' takes the teacher's.{hint}"
        )
    if hint:
        raise UserError(
            f"The task '{task.name}' needs rationales, but none of the {len(examples)} "
            f"{_SPLIT_WORDS[split]} examples has one (METHOD = 'standard' trains labels alone)."
            f"{hint}"
        )
    if not any("llm_rationale" in example for example in examples):
        raise _no_completions(task, split, people=people)
    raise UserError(
        f"The task '{task.name}' needs the teacher's rationales, but none of the completions for "
        f"the {len(examples)} {_SPLIT_WORDS[split]} examples of '{name}' could be parsed."
    )


def warn_of_lacking(task: TaskInfo, lacking: int, examples: int) -> None:
    """Logs a warning if more than half of the training examples have no rationale."""
    if 2 * lacking > examples:
        log.warning(
            "%d of the %d training examples of '%s' have no rationale and train none.",
            lacking,
            examples,
            task.dataset.name,
        )


def _no_completions(task: TaskInfo, split: str, *, people: bool = False) -> UserError:
    human = "RATIONALE_SOURCE = 'human' takes people's rationales, and " if people else ""
    name = task.dataset.name
    return UserError(
        f"The task '{task.name}' needs the teacher's completions, but the data set "
        f"'{name}' has none for its {_SPLIT_WORDS[split]} examples (the release keeps them in "
        f"DATA_DIR/{name}/llm/{split}_CoT_0.json and so on, files of your own in llm_label and "
        "llm_rationale, and RATIONALES_FILE names what sbs_jax.teach wrote for these very ids); "
        f"{human}'{name}_standard' trains without."
    )


_SPLIT_WORDS = {TRAIN: "training", VALIDATION: "validation", TEST: "test"}
