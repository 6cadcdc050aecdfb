"""How a student was trained to be asked, and what its answers consist of."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sbs_jax.data.settings import TemplateTexts
from sbs_jax.errors import UserError
from sbs_jax.methods import METHODS, find_method, read_parts
from sbs_jax.metrics import normalize_answer
from sbs_jax.part_templates import fields_of, fill
from sbs_jax.parts import (
    DEFAULT_JOINT_SEPARATOR,
    DEFAULT_LABEL_PREFIX,
    DEFAULT_RATIONALE_INPUT_SEPARATOR,
    DEFAULT_RATIONALE_PREFIX,
    Method,
    Target,
)

Kind = Literal["label", "rationale"]
LABEL_KIND: Kind = "label"
RATIONALE_KIND: Kind = "rationale"

_CHOICE = re.compile(r"\(([a-z])\)\s*(.*?)\s*(?=\([a-z]\)|$)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Prompting(TemplateTexts):
    """The text around an input.

    Attributes:
      method: a key of `methods.METHODS`, or what `parts` are called.
      label_prefix: the task prefix of labels.
      rationale_prefix: the task prefix of rationales.
      prefix_side: `encoder`: the prefix stands before the input; `decoder`: it is what the decoder
        is fed first, and the input stands alone.
      input_frame: the texts before and after every input; see `DataSettings`.
      joint_separator: the text that a `joint` student writes between its rationale and its label.
      rationale_input_separator: the text between input and rationale for `rationale_input`.
      parts: those of a method of the user's own (`methods.read_parts`), of which label and
        rationale are asked for here.

    Raises:
      UserError: the method is unknown, or its parts are not well described.
    """

    method: str = "sbs"
    label_prefix: str = DEFAULT_LABEL_PREFIX
    rationale_prefix: str = DEFAULT_RATIONALE_PREFIX
    prefix_side: str = "encoder"
    input_frame: Sequence[str] = ("", "")
    joint_separator: str = DEFAULT_JOINT_SEPARATOR
    rationale_input_separator: str = DEFAULT_RATIONALE_INPUT_SEPARATOR
    parts: Any = None

    def __post_init__(self) -> None:
        if self.parts is not None:
            object.__setattr__(self, "parts", read_parts(self.parts))
        _ = self.definition  # checks the name

    @property
    def definition(self) -> Method:
        """The parts that the student was trained with."""
        own = None if self.method in METHODS else self.parts
        return find_method(self.method, own)

    def target(self, kind: Kind) -> Target:
        """Returns the target that holds labels, or rationales."""
        return self.definition.target_of(kind)

    def prefix(self, kind: Kind) -> str:
        """Returns the task prefix of labels or of rationales."""
        return fill(self.target(kind).prefix, self.texts)

    def encoder_text(self, kind: Kind, text: str, rationale: str = "") -> str:
        """Returns the encoder's text.

        Args:
          kind: the kind of answer that is asked for.
          text: the input, without prefix.
          rationale: the rationale that the method's label reads (`rationale_input`); without one,
            the text in front of it is left out as well. Further fields that it may read are left
            out.
        """
        asked = self.prefix(kind) if self.prefix_side == "encoder" else ""
        known = {"input": text, "rationale": rationale}
        for between, field in self.target(kind).inputs(self.texts):
            if field is None or field == "input" or known.get(field, "").strip():
                asked += between + known.get(field or "", "")
        before, after = self.input_frame
        return before + asked + after

    def decoder_text(self, kind: Kind) -> str | None:
        """Returns the text that the decoder is fed before it answers; None for none."""
        return self.prefix(kind) if self.prefix_side == "decoder" else None

    @property
    def is_joint(self) -> bool:
        """Whether the student writes its rationale before its label, in one answer."""
        fields = self._answer_fields
        return "rationale" in fields[: fields.index("label")]

    @property
    def explains_itself(self) -> bool:
        """Whether an answer holds a rationale, in front of the label or behind it."""
        return "rationale" in self._answer_fields

    @property
    def is_cascaded(self) -> bool:
        """Whether the student writes its rationale first, and then a label that reads it."""
        return self.definition.is_cascaded

    @property
    def reads_rationales(self) -> bool:
        """Whether the encoder's text that asks for a label holds a rationale."""
        return "rationale" in fields_of(self.target(LABEL_KIND).reads)

    @property
    def separator(self) -> str:
        """What stands in front of the label in the answer of a student that `is_joint`."""
        found = (piece for one in self.target(LABEL_KIND).outputs(self.texts) for piece in one)
        return next(text for text, field in found if field == "label")

    @property
    def behind_label(self) -> str:
        """What stands behind the label in an answer; '' where the answer ends with it."""
        pieces = [piece for one in self.target(LABEL_KIND).outputs(self.texts) for piece in one]
        at = [field for _, field in pieces].index("label")
        return pieces[at + 1][0] if at + 1 < len(pieces) else ""

    def take_apart(self, output: str) -> tuple[str, str]:
        """Returns rationale and label of the answer of a student that `explains_itself`."""
        found = self.target(LABEL_KIND).take_apart(output, self.texts)
        return found.get("rationale", ""), found["label"]

    @property
    def _answer_fields(self) -> list[str]:
        found = (piece for one in self.target(LABEL_KIND).outputs(self.texts) for piece in one)
        return [field for _, field in found if field is not None]


@dataclasses.dataclass(frozen=True)
class PromptingOverrides:
    """Attributes of `Prompting` that a user gives; what is None is as the checkpoint was trained.

    Attributes:
      method: how the student was trained: `sbs`, `standard`, `joint`, `rationale_input`.
      label_prefix: the task prefix of labels.
      rationale_prefix: the task prefix of rationales.
      prefix_side: which side reads the prefixes, `encoder` or `decoder`.

    Raises:
      UserError: method or side is unknown.
    """

    method: str | None = None
    label_prefix: str | None = None
    rationale_prefix: str | None = None
    prefix_side: str | None = None

    def __post_init__(self) -> None:
        known = {
            "METHOD": (self.method, METHODS),
            "PREFIX_SIDE": (self.prefix_side, ("encoder", "decoder")),
        }
        for macro, (value, values) in known.items():
            if value is not None and value not in values:
                raise UserError(f"{macro} = {value!r} is unknown; there are {', '.join(values)}.")


def prompting_from(settings: Mapping[str, Any], **given: Any) -> Prompting:
    """Makes a `Prompting` of the settings that a checkpoint records.

    Args:
      settings: any of the attributes of `Prompting`, and others.
      **given: attributes that override these unless they are None.
    """
    names = {field.name for field in dataclasses.fields(Prompting)}
    found = {name: value for name, value in settings.items() if name in names and value is not None}
    chosen = {name: value for name, value in given.items() if value is not None}
    return Prompting(**(found | chosen))


@dataclasses.dataclass(frozen=True)
class Candidates:
    """A closed label set.

    Attributes:
      texts: the labels, distinct.
      tokens: the ids of each label, EOS included.
    """

    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]

    def find(self, label: str) -> str:
        """Returns the candidate that equals `label` up to case and white space.

        Raises:
          UserError: no candidate does.
        """
        wanted = normalize_answer(label)
        for text in self.texts:
            if text == label or normalize_answer(text) == wanted:
                return text
        raise UserError(
            f"The label {label!r} is none of the candidates {', '.join(map(repr, self.texts))}."
        )


def check_candidates(texts: Sequence[str]) -> tuple[str, ...]:
    """Returns `texts` as a closed label set.

    Raises:
      UserError: there are fewer than two, or one is blank, no text, or there twice.
    """
    labels = tuple(texts)
    for label in labels:
        if not isinstance(label, str) or not label.strip():
            raise UserError(f"A candidate label must be a text that is not blank, not {label!r}.")
        if labels.count(label) > 1:
            raise UserError(f"The candidate label {label!r} is there twice.")
    if len(labels) < 2:
        raise UserError(f"A closed label set needs two labels or more, not {len(labels)}.")
    return labels


def choices_in(text: str) -> tuple[str, ...]:
    """Returns the choices that an input lists itself, as CommonsenseQA's do, each once.

    >>> choices_in('Where? Answer Choices: (a) at home (b) at sea')
    ('at home', 'at sea')

    Raises:
      UserError: it lists none.
    """
    found = _CHOICE.findall(text)
    letters = [letter for letter, _ in found]
    # Of several lists the last: the question may mention letters of its own.
    start = max((i for i, letter in enumerate(letters) if letter == "a"), default=None)
    if start is None or [ord(letter) - 97 for letter in letters[start:]] != list(
        range(len(letters) - start)
    ):
        raise UserError(
            "The input lists no choices '(a) … (b) …', which CANDIDATES = 'choices' reads."
        )
    # 146 of the 10,962 released CommonsenseQA questions list a choice twice.
    return check_candidates(list(dict.fromkeys(choice for _, choice in found[start:])))
