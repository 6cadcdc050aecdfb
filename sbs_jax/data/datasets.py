"""Data sets and their examples: what is read of a split, and what a task makes of it.

How they become SeqIO tasks, and are found again, is `sbs_jax.data.registration`.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sbs_jax import metrics
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.rationales import join_rationales
from sbs_jax.data.release import Example, LoadFn, own_fields, rationale_texts, where
from sbs_jax.data.settings import DataSettings
from sbs_jax.data.token_weights import word_weights
from sbs_jax.data.vocabulary import EOS_STRING, DatasetVocabulary
from sbs_jax.errors import UserError
from sbs_jax.methods import CUSTOM, find_method
from sbs_jax.part_templates import fields_of, fill
from sbs_jax.parts import Method

JudgeFn = Callable[[], tuple[str, Sequence[str]]]
AbsenceFn = Callable[[str], str]
OriginFn = Callable[[str, DataSettings], Sequence[Path | str]]

log = logging.getLogger(__name__)

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
GOLD, TEACHER, HUMAN = "gold", "teacher", "human"
VALIDATION_SHARE = 0.1
"""The part of the training examples held out where a data set has no validation examples."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A registered data set.

    Attributes:
      name: the first word of the names of its tasks.
      load: reads the examples of a split.
      judge: returns the scorer's name and all labels that occur, () if there is no end to them.
      own_validation: whether `load` knows the split ``validation``.
      vocabulary: the vocabulary of its texts.
      public: whether `load` reads from where `DataSettings.data_source` says.
      origin: names the files and folders that `load` reads, the code that reads them included, and
        values that decide what is read; None if they are not known.
      no_rationales: says of a split in which no example has a rationale where they were looked for;
        None if there is nothing to say.
    """

    name: str
    load: LoadFn
    judge: JudgeFn
    own_validation: bool
    vocabulary: DatasetVocabulary
    public: bool = False
    no_rationales: AbsenceFn | None = None
    origin: OriginFn | None = None

    @property
    def scorer(self) -> str:
        """Key of `sbs_jax.metrics.SCORERS`; how a predicted label is judged."""
        scorer = self.judge()[0]
        if scorer not in metrics.SCORERS:
            raise UserError(
                f"The data set '{self.name}' names the scorer '{scorer}', but there are "
                f"{', '.join(sorted(metrics.SCORERS))}."
            )
        return scorer

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels that occur; () if there is no end to them."""
        return tuple(self.judge()[1])

    def score(self, prediction: str, target: str) -> bool:
        """Tells whether a predicted label is right."""
        return metrics.SCORERS[self.scorer](prediction, target)


@dataclasses.dataclass(frozen=True)
class TaskInfo:
    """What a task trains.

    Attributes:
      name: name of the task.
      dataset: the data set that it reads.
      definition: the method, its name and its parts.
      label_source: whose labels are the training targets, ``gold`` or ``teacher``. Validation and
        test have gold labels always.
      rationale_source: whose rationales are used, ``teacher`` or ``human``.
    """

    name: str
    dataset: Dataset
    definition: Method
    label_source: str
    rationale_source: str = TEACHER

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.definition.name

    @property
    def uses_rationales(self) -> bool:
        """Whether training needs rationales, a person's or the teacher's."""
        return self.definition.uses_rationales

    @property
    def rationale_key(self) -> str:
        """The field of an `Example` that holds the rationales."""
        return "llm_rationale" if self.rationale_source == TEACHER else "rationale"


def load_examples(dataset: Dataset, split: str) -> list[Example]:
    """Reads the examples of a split with the settings in force.

    Args:
      dataset: the data set.
      split: ``train``, ``validation`` or ``test``.

    Returns:
      The examples in the file's order; of ``train``, as many as `DataSettings.train_fraction` or
      `train_examples` say.

    Raises:
      UserError: the data cannot be read, or the split is unknown or empty.
    """
    if split not in SPLITS:
        raise UserError(f"There is no split '{split}'; there are {', '.join(SPLITS)}.")
    settings = settings_lib.current()
    examples = split_examples(dataset, split, settings)
    if split == TRAIN and (settings.train_fraction < 1 or settings.train_examples is not None):
        count = settings.train_examples or math.ceil(len(examples) * settings.train_fraction)
        if count > len(examples):
            raise UserError(
                f"TRAIN_EXAMPLES = {count}, but the data set '{dataset.name}' has only "
                f"{len(examples)} training examples."
            )
        order = np.random.default_rng(settings.seed).permutation(len(examples))
        examples = [examples[index] for index in sorted(order[:count])]
    return examples


def split_examples(dataset: Dataset, split: str, settings: DataSettings) -> list[Example]:
    """Reads a whole split, `DataSettings.train_fraction` or not; see `load_examples`."""
    if dataset.own_validation or split == TEST:
        return _load(dataset, split, settings)
    return hold_out(dataset.name, split, _load(dataset, TRAIN, settings), settings)


def _load(dataset: Dataset, split: str, settings: DataSettings) -> list[Example]:
    source = settings.source_of(dataset.name)
    if source != settings_lib.RELEASE and not dataset.public:
        raise UserError(
            f"DATA_SOURCE = '{source}', but the data set '{dataset.name}' is read in "
            "one way alone; leave DATA_SOURCE out."
        )
    examples = _checked(dataset, dataset.load(split, settings))
    if settings.rationales_file is not None:
        return join_rationales(examples, settings.rationales_file, dataset.name)
    return examples


def hold_out(
    name: str, split: str, examples: list[Example], settings: DataSettings
) -> list[Example]:
    """Returns the ``train`` or ``validation`` part of a data set's training examples."""
    # As Hugging Face's Dataset.train_test_split(test_size=0.1, seed=0), which the published code
    # calls: the same examples are held out.
    held_out = math.ceil(len(examples) * VALIDATION_SHARE)
    order = np.random.default_rng(settings.validation_seed).permutation(len(examples))
    chosen = order[:held_out] if split == VALIDATION else order[held_out:]
    if not len(chosen):
        raise UserError(
            f"The data set '{name}' has {len(examples)} training examples: too few to hold "
            "out a tenth of them for validation."
        )
    return [examples[index] for index in sorted(chosen)]


def _checked(dataset: Dataset, examples: list[Example]) -> list[Example]:
    """Refuses what no data set may hold, and replaces what no target can hold.

    Raises:
      UserError: a label is outside the data set's labels, an id occurs twice, or a text holds a NUL
        character; names the file and the line where they are known.
    """
    labels = dataset.labels
    seen: dict[str, str] = {}
    for example in examples:
        if labels and example["label"] and example["label"] not in labels:
            raise UserError(
                f"{where(example)}: the data set '{dataset.name}', example '{example['id']}': its "
                f"label {example['label']!r} is none of {', '.join(labels)}."
            )
        if example["id"] in seen:
            raise UserError(
                f"{where(example)}: the id '{example['id']}' occurs twice in the data set "
                f"'{dataset.name}' (first: {seen[example['id']]})."
            )
        seen[example["id"]] = where(example)
        for field in ("id", "input", "label"):
            if "\0" in example[field]:
                raise UserError(f"{where(example)}: field '{field}' holds a NUL character.")
    return clean(examples)


def clean(examples: list[Example]) -> list[Example]:
    """Replaces broken Unicode everywhere, and in targets the EOS string and NUL by a space.

    An EOS string in an input stays: data sets join premise and hypothesis with it.
    """
    for example in examples:
        fields: dict[str, Any] = example  # type: ignore[assignment]  # written by computed keys
        for key, value in fields.items():
            clean = _clean_text if key in ("input", "id") else _clean_target
            if isinstance(value, str):
                fields[key] = clean(value)
            elif isinstance(value, list) and all(isinstance(text, str) for text in value):
                fields[key] = list(map(clean, value))
    return examples


def _clean_target(text: str) -> str:
    return _clean_text(text).replace(EOS_STRING, " ").replace("\0", " ")


def _clean_text(text: str) -> str:
    """Replaces what no UTF-8 text can hold (half of a surrogate pair, as JSON may escape it)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode("utf-8")
    return text


def vocabulary_texts(dataset: Dataset) -> list[str]:
    """Returns all training texts of a data set, prefixes included, for training a vocabulary.

    They do not depend on the task or on `DataSettings.train_fraction`, so that the students of one
    data set can be compared. Validation and test texts are not among them.
    """
    settings = settings_lib.current()
    texts = []
    for example in split_examples(dataset, TRAIN, settings):
        texts += (settings.label_prefix + example["input"]).split(EOS_STRING)
        texts.append(settings.rationale_prefix)
        texts.append(example["label"])
        texts += rationale_texts(example["rationale"])
        texts.append(example.get("llm_label", ""))
        texts += rationale_texts(example.get("llm_rationale", ""))
        if settings.parts is not None:
            texts += _own_texts(example, settings)
    return texts


def _own_texts(example: Example, settings: DataSettings) -> list[str]:
    """The texts that parts of the user's own add: their prefixes, and fields of the example."""
    method = find_method(CUSTOM, settings.parts)
    prefixes = [fill(target.prefix, settings.texts) for target in method.targets]
    return prefixes + [own_text(example, field) for field in method.own_fields]


def element_key(field: str) -> str:
    """Returns what an element (`read_targets`) calls a field of `parts.Part`'s templates."""
    return {"input": "input", "label": "target_label", "rationale": "target_rationale"}.get(
        field, f"field {field}"
    )


def own_text(example: Example, field: str) -> str:
    """Returns a field of an example that is not one of the three; ``''`` where there is none.

    Raises:
      UserError: it is neither a text nor a number; names the file and the line.
    """
    value = own_fields(example).get(field)
    if value is None:
        return ""
    if field == "llm_rationale":
        value = rationale_texts(value)[0]
    if isinstance(value, bool | int | float):
        return str(value)
    if not isinstance(value, str):
        raise UserError(
            f"{where(example)}: field '{field}' must be a text, as a part of the method reads or "
            f"writes it, not {type(value).__name__}."
        )
    return _clean_target(value)


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
