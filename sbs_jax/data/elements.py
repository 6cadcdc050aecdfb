"""What a task makes of the examples of a split: the texts that it trains, which it requires."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

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
from sbs_jax.data.release import Example, own_fields, rationale_texts, where
from sbs_jax.data.token_weights import word_weights
from sbs_jax.errors import UserError
from sbs_jax.part_templates import fields_of

log = logging.getLogger(__name__)


def element_key(field: str) -> str:
    """Returns what an element (`read_targets`) calls a field of `parts.Part`'s templates."""
    return {"input": "input", "label": "target_label", "rationale": "target_rationale"}.get(
        field, f"field {field}"
    )


def read_targets(task: TaskInfo, split: str) -> list[dict[str, str | int]]:
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
    examples = load_examples(task.dataset, split)
    if split == TRAIN:
        if task.label_source == TEACHER and "llm_label" not in examples[0]:
            raise _no_completions(task, split)
        if task.uses_rationales:
            require_rationales(task, split, examples)
        require_fields(task, split, examples)
    teacher_labels = split == TRAIN and task.label_source == TEACHER
    known = set(map(metrics.normalize_answer, task.dataset.labels))
    elements: list[dict[str, str | int]] = []
    for number, example in enumerate(examples):
        rationales = rationale_texts(example.get(task.rationale_key, ""))
        label = example["llm_label" if teacher_labels else "label"]
        if known and metrics.normalize_answer(label) not in known:
            label = ""  # the teacher did not decide: nothing to learn from
        texts = {name: own_text(example, name) for name in task.definition.own_fields}
        own = {element_key(name): text for name, text in texts.items()}
        for variant, rationale in enumerate(rationales if task.uses_rationales else rationales[:1]):
            elements.append(
                {
                    "id": example["id"],
                    "input": example["input"],
                    "label": example["label"],
                    "rationale": rationale_texts(example["rationale"])[0],
                    "llm_label": example.get("llm_label", ""),
                    "llm_rationale": rationale_texts(example.get("llm_rationale", ""))[0],
                    "target_label": label,
                    "target_rationale": rationale,
                    "example": number,
                    "variant": variant,
                    **own,
                    **_weights_of(task, example, {"label": label, "rationale": rationale, **texts}),
                }
            )
    return _all_weighed(elements)


WEIGHTS_OF = "weights of "
"""With the name of a field behind it, the key of an element that has its words' weights."""


def _weights_of(task: TaskInfo, example: Example, texts: Mapping[str, str]) -> dict[str, str]:
    """Reads the weights of the words of the fields that the method writes; see `token_weights`."""
    given = own_fields(example)
    found = {}
    for target in task.definition.targets:
        for field in (name for part in target.parts for name in fields_of(part.content)):
            name = f"{field}_weights"
            if given.get(name) is None:
                continue
            place = f"{where(example)}: field '{name}'"
            if (
                field == "rationale"
                and len(rationale_texts(example.get(task.rationale_key, ""))) > 1
            ):
                raise UserError(f"{place} cannot say which of several rationales it weighs.")
            if texts[field].strip():
                found[WEIGHTS_OF + field] = word_weights(given[name], texts[field], place)
    return found


def _all_weighed(elements: list[dict[str, str | int]]) -> list[dict[str, str | int]]:
    """Gives all elements the keys that some of them have weights under."""
    keys = {key for element in elements for key in element if key.startswith(WEIGHTS_OF)}
    if not keys:
        return elements
    none: dict[str, str | int] = dict.fromkeys(sorted(keys), "")
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
        if split == TRAIN and 2 * lacking > len(examples):
            log.warning(
                "%d of the %d training examples of '%s' have no rationale and train none.",
                lacking,
                len(examples),
                name,
            )
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
            f"{_SPLIT_WORDS[split]} examples has one.{hint}"
        )
    if not any("llm_rationale" in example for example in examples):
        raise _no_completions(task, split, people=people)
    raise UserError(
        f"The task '{task.name}' needs the teacher's rationales, but none of the completions for "
        f"the {len(examples)} {_SPLIT_WORDS[split]} examples of '{name}' could be parsed."
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
