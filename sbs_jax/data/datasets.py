"""Data sets and their examples: what is read of a split, checked and held out.

How they become tasks is in `sbs_jax.data.registration`, how they are found again in `registry`, and
what a task makes of the examples in `elements`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from sbs_jax import metrics
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.dataset_vocabulary import DatasetVocabulary
from sbs_jax.data.rationales import join_rationales
from sbs_jax.data.release import Example, LoadFn, own_field, rationale_texts, where
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError
from sbs_jax.methods import CUSTOM, find_method
from sbs_jax.part_templates import fill
from sbs_jax.parts import Method
from sbs_jax.token_ids import EOS_STRING

if TYPE_CHECKING:
    from sbs_jax.data.pieces import Piece

JudgeFn = Callable[[], tuple[str, Sequence[str]]]
AbsenceFn = Callable[[str], str]
OriginFn = Callable[[str, DataSettings], Sequence[Path | str]]
_One = TypeVar("_One")


class Pieces(Protocol):
    """Reads a split in pieces; see `pieces.ReleasePieces`."""

    @property
    def convert(self) -> Callable[..., Any]:
        """The function of the data set that makes examples."""

    def split(self, split: str, settings: DataSettings, rows: int) -> list[Piece]:
        """Returns the pieces of a split, of at most `rows` rows; [] if it is to be read whole."""

    def load(self, piece: Piece, settings: DataSettings) -> list[Example]:
        """Returns the examples of a piece."""


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
      own_validation: whether `load` knows the split ``validation``; or says so when it is called.
      vocabulary: the vocabulary of its texts.
      public: whether `load` reads from where `DataSettings.data_source` says.
      origin: names the files and folders that `load` reads, the code that reads them included, and
        values that decide what is read; None if they are not known.
      pieces: reads the examples of `load` in pieces; None if they are read together only.
      no_rationales: says of a split in which no example has a rationale where they were looked for;
        None if there is nothing to say.
    """

    name: str
    load: LoadFn
    judge: JudgeFn
    own_validation: bool | Callable[[], bool]
    vocabulary: DatasetVocabulary
    public: bool = False
    no_rationales: AbsenceFn | None = None
    origin: OriginFn | None = None
    pieces: Pieces | None = None

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

    @property
    def has_validation(self) -> bool:
        """Whether validation examples are read, rather than held out of the training examples."""
        return self.own_validation() if callable(self.own_validation) else self.own_validation

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
    return _fraction(dataset, examples, settings) if split == TRAIN else examples


def _fraction(dataset: Dataset, examples: list[_One], settings: DataSettings) -> list[_One]:
    """Returns as many of the training examples as the settings say."""
    if settings.train_fraction == 1 and settings.train_examples is None:
        return examples
    count = settings.train_examples or math.ceil(len(examples) * settings.train_fraction)
    if count > len(examples):
        raise UserError(
            f"TRAIN_EXAMPLES = {count}, but the data set '{dataset.name}' has only "
            f"{len(examples)} training examples."
        )
    order = np.random.default_rng(settings.seed).permutation(len(examples))
    return [examples[index] for index in sorted(order[:count])]


def chosen_examples(
    dataset: Dataset, split: str, count: int, settings: DataSettings
) -> np.ndarray | None:
    """Tells which of the examples that `Dataset.load` reads for a split `load_examples` returns.

    Args:
      dataset: the data set.
      split: ``train``, ``validation`` or ``test``.
      count: how many examples `Dataset.load` reads.
      settings: say which are held out and how many are trained.

    Returns:
      bool [`count`]; None if all are returned.

    Raises:
      UserError: there are not as many as the settings ask for.
    """
    whole = dataset.has_validation or split == TEST
    fraction = settings.train_fraction < 1 or settings.train_examples is not None
    if whole and not (split == TRAIN and fraction):
        return None
    found = list(range(count))
    if not whole:
        found = hold_out(dataset.name, split, found, settings)
    if split == TRAIN:
        found = _fraction(dataset, found, settings)
    chosen = np.zeros(count, bool)
    chosen[found] = True
    return chosen


def split_examples(dataset: Dataset, split: str, settings: DataSettings) -> list[Example]:
    """Reads a whole split, `DataSettings.train_fraction` or not; see `load_examples`."""
    if dataset.has_validation or split == TEST:
        return _load(dataset, split, settings)
    return hold_out(dataset.name, split, _load(dataset, TRAIN, settings), settings)


def _load(dataset: Dataset, split: str, settings: DataSettings) -> list[Example]:
    source = settings.source_of(dataset.name)
    if source != settings_lib.RELEASE and not dataset.public:
        raise UserError(
            f"DATA_SOURCE = '{source}', but the data set '{dataset.name}' is read in "
            "one way alone; leave DATA_SOURCE out."
        )
    examples = checked(dataset, dataset.load(split, settings))
    if settings.rationales_file is not None:
        return join_rationales(examples, settings.rationales_file, dataset.name)
    return examples


def hold_out(name: str, split: str, examples: list[_One], settings: DataSettings) -> list[_One]:
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


def checked(dataset: Dataset, examples: list[Example]) -> list[Example]:
    """Refuses what no data set may hold, and replaces what no target can hold.

    Raises:
      UserError: a label is outside the data set's labels, an id occurs twice, or a text holds a NUL
        character; names the file and the line where they are known.
    """
    labels = dataset.labels
    seen: set[str] = set()
    for example in examples:
        identity, label = example["id"], example["label"]
        if labels and label and label not in labels:
            raise UserError(
                f"{where(example)}: the data set '{dataset.name}', example '{identity}': its "
                f"label {label!r} is none of {', '.join(labels)}."
            )
        if identity in seen:
            first = next(one for one in examples if one["id"] == identity)
            raise UserError(
                f"{where(example)}: the id '{identity}' occurs twice in the data set "
                f"'{dataset.name}' (first: {where(first)})."
            )
        seen.add(identity)
        if "\0" in identity or "\0" in example["input"] or "\0" in label:
            texts = {"id": identity, "input": example["input"], "label": label}
            field = next(name for name, text in texts.items() if "\0" in text)
            raise UserError(f"{where(example)}: field '{field}' holds a NUL character.")
    return clean(examples)


def clean(examples: list[Example]) -> list[Example]:
    """Replaces broken Unicode everywhere, and in targets the EOS string and NUL by a space.

    An EOS string in an input stays: data sets join premise and hypothesis with it.
    """
    for example in examples:
        fields: dict[str, Any] = example  # type: ignore[assignment]  # written by computed keys
        for key, value in fields.items():
            if isinstance(value, str):
                clean = _clean_text if key in ("input", "id") else _clean_target
                if (text := clean(value)) is not value:
                    fields[key] = text
            elif isinstance(value, list) and all(isinstance(text, str) for text in value):
                clean = _clean_text if key in ("input", "id") else _clean_target
                fields[key] = list(map(clean, value))
    return examples


def _clean_target(text: str) -> str:
    if not text.isascii():
        text = _clean_text(text)
    if EOS_STRING in text:
        text = text.replace(EOS_STRING, " ")
    return text.replace("\0", " ") if "\0" in text else text


def _clean_text(text: str) -> str:
    """Replaces what no UTF-8 text can hold (half of a surrogate pair, as JSON may escape it)."""
    if text.isascii():
        return text
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


def own_text(example: Example, field: str) -> str:
    """Returns a field of an example that is not one of the three; ``''`` where there is none.

    Raises:
      UserError: it is neither a text nor a number; names the file and the line.
    """
    value = own_field(example, field)
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
