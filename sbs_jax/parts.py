"""The parts of a target, the methods that are sets of parts, and the prefixes that ask for them.

A *part* says which of the losses a target token belongs to: the label's or the rationale's (Hsieh
et al. 2023, Eq. 3), or that of any further part of a method. A *method* is a set of parts;
`sbs_jax.methods` has the table of those that have a name.
This module is a leaf: everything may import it.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sbs_jax.errors import UserError
from sbs_jax.part_templates import Pieces, as_template, fields_of, pieces, split_fields

PADDING = 0
"""Part code of a padding token: it belongs to no loss."""

LABEL = 1
"""Part code of a token of the label (answer), its EOS included."""

RATIONALE = 2
"""Part code of a token of the rationale (explanation), its EOS included. Further parts of a method
have the codes from 3 on, in their order."""

PART_NAMES = {LABEL: "label", RATIONALE: "rationale"}

NAMES = tuple(PART_NAMES.values())
"""The parts that every program knows, used or not, in the order of their codes from 1 on."""

DEFAULT_LABEL_PREFIX = "predict: "
"""Prefix of the published code; the paper's own is ``[label] ``."""

DEFAULT_RATIONALE_PREFIX = "explain: "
"""Prefix of the published code; the paper's own is ``[rationale] ``."""

DEFAULT_JOINT_SEPARATOR = " Answer: "
"""Text between rationale and label of a `joint` student."""

DEFAULT_RATIONALE_INPUT_SEPARATOR = " explanation: "
"""Text between input and rationale of a `rationale_input` student."""


Weight = float | Callable[[Any], Any] | None

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TAKEN = ("z", "input", "target", "source", "grad")  # z_loss, input_tokens, … are metrics already
_NORMALIZATIONS = ("token_mean", "example_mean")


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a method: what it is made of, and what it counts in the loss.

    Parts are equal if they are made of the same: weight and normalisation are compared nowhere.

    `prefix`, `reads`, `writes` and `separator` are texts in which ``{field}`` stands for a field of
    an example and ``{LABEL_PREFIX}``, ``{RATIONALE_PREFIX}``, ``{JOINT_SEPARATOR}`` and
    ``{RATIONALE_INPUT_SEPARATOR}`` for those settings. A single word is the field of that name. The
    field ``label`` is the label that is trained (LABEL_SOURCE), ``rationale`` the rationale that is
    trained (RATIONALE_SOURCE); any other one is a text of the data's own, such as ``hint``.

    Attributes:
      name: lower-case letters, digits and underscores; metrics are called ``NAME_loss`` and so on.
      prefix: the task prefix that asks for the target. None is LABEL_PREFIX for a target that holds
        the part ``label``, RATIONALE_PREFIX for one of ``rationale``, and ``NAME: `` otherwise.
      reads: the pieces that the input is made of.
      writes: what the part consists of; None is the field of the part's own name.
      weight: what the part's mean counts in the loss, a constant or a schedule of the step; None is
        RATIONALE_WEIGHT for the part ``rationale`` and 1 for any other one.
      normalization: ``token_mean`` or ``example_mean``; None is that of the loss.
      after: name of the part that stands in front of this one in the same target; None begins a
        target, and only such a part has a prefix and an input.
      separator: with `after`, the text in front of this part; its tokens are this part's. None is
        JOINT_SEPARATOR for the label, RATIONALE_INPUT_SEPARATOR for the rationale, and `` NAME: ``
        otherwise.
    """

    name: str
    prefix: str | None = None
    reads: str = "input"
    writes: str | None = None
    weight: Weight = dataclasses.field(default=None, compare=False)
    normalization: str | None = dataclasses.field(default=None, compare=False)
    after: str | None = None
    separator: str | None = None

    @property
    def content(self) -> str:
        """What the part writes, with the separator in front of it."""
        writes = as_template(self.writes or self.name)
        if self.after is None:
            return writes
        default = {
            "label": "{JOINT_SEPARATOR}",
            "rationale": "{RATIONALE_INPUT_SEPARATOR}",
        }.get(self.name, f" {self.name}: ")
        return (default if self.separator is None else self.separator) + writes

    def record(self) -> dict[str, str | None]:
        """Returns what the part is made of as JSON, without weight and normalisation."""
        fields = (field.name for field in dataclasses.fields(self) if field.compare)
        return {name: getattr(self, name) for name in fields}


@dataclasses.dataclass(frozen=True)
class Target:
    """One target of a method, of one or more parts one behind the other, and what asks for it.

    Attributes:
      parts: the parts in the order in which they are written.
      codes: the part code of each.
    """

    parts: tuple[Part, ...]
    codes: tuple[int, ...]

    @property
    def prefix(self) -> str:
        """The template of the task prefix."""
        head = self.parts[0]
        if head.prefix is not None:
            return head.prefix
        if any(part.name == "label" for part in self.parts):
            return "{LABEL_PREFIX}"
        return "{RATIONALE_PREFIX}" if head.name == "rationale" else f"{head.name}: "

    @property
    def reads(self) -> str:
        """The template of the input, without the prefix."""
        return as_template(self.parts[0].reads)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of an example that the target or its input holds, in their order."""
        templates = (self.reads, *(part.content for part in self.parts))
        return tuple(dict.fromkeys(field for text in templates for field in fields_of(text)))

    def inputs(self, settings: Mapping[str, str]) -> Pieces:
        """Returns the pieces of the input, without the prefix; see `pieces`."""
        return pieces(self.reads, settings)

    def outputs(self, settings: Mapping[str, str]) -> tuple[Pieces, ...]:
        """Returns the pieces of each part of the target; see `pieces`."""
        return tuple(pieces(part.content, settings) for part in self.parts)

    def take_apart(self, text: str, settings: Mapping[str, str]) -> dict[str, str]:
        """Takes a target, or what a student wrote for one, apart into its fields.

        The label is what follows the last occurrence of the text in front of it. White space around
        such texts does not matter: vocabularies may change it.

        >>> from sbs_jax.methods import METHODS
        >>> target = METHODS["joint"].target_of("label")
        >>> target.take_apart("2 + 3 = 5. Answer: 5", {"JOINT_SEPARATOR": " Answer: "})
        {'rationale': '2 + 3 = 5.', 'label': '5'}

        Args:
          text: the decoded target.
          settings: see `pieces`.

        Returns:
          The text of each field. What does not occur is ``''``. A text in which nothing separates
          fields belongs to the first one.
        """
        found = [piece for one in self.outputs(settings) for piece in one]
        names = [field for _, field in found if field is not None]
        if len(found) == 1 and not found[0][0]:
            return {names[0]: text}
        at = next((i for i, (_, field) in enumerate(found) if field == "label"), 0)
        in_front, label = "", text
        if found[at][0].strip():
            in_front, between, label = text.rpartition(found[at][0].strip())
            if not between:
                in_front, label = text, ""
        elif at:
            in_front, label = text, ""
        result = split_fields(in_front, found[:at]) | split_fields(
            label, [("", found[at][1]), *found[at + 1 :]]
        )
        return {name: result.get(name, "").strip() for name in names}


@dataclasses.dataclass(frozen=True)
class Method:
    """A set of parts.

    Attributes:
      name: what METHOD calls it; it also stands in the names of its tasks (``svamp_joint``).
      parts: the parts in the order in which an example gives them.

    Raises:
      UserError: the parts contradict each other.
    """

    name: str
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        check_parts(self.name, self.parts)

    @property
    def names(self) -> tuple[str, ...]:
        """`NAMES`, and the further parts: the part with code c is entry c - 1."""
        return names_of(self.parts)

    @functools.cached_property
    def targets(self) -> tuple[Target, ...]:
        """The targets that an example gives, in the order of their first parts."""
        names = self.names
        followed = {part.after: part for part in self.parts if part.after is not None}
        targets = []
        for part in self.parts:
            if part.after is not None:
                continue
            chain = [part]
            while chain[-1].name in followed:
                chain.append(followed[chain[-1].name])
            codes = tuple(names.index(one.name) + 1 for one in chain)
            targets.append(Target(tuple(chain), codes))
        return tuple(targets)

    def target_of(self, name: str) -> Target:
        """Returns the target that holds a part; of ``label`` and ``rationale`` always one.

        A method that does not train the label, or the rationale, is still asked for it in the way
        of ``sbs``.

        Args:
          name: the name of the part.
        """
        for target in self.targets:
            if any(part.name == name for part in target.parts):
                return target
        return Target((Part(name),), (names_of(()).index(name) + 1,))

    @functools.cached_property
    def fields(self) -> tuple[str, ...]:
        """All fields of an example that are read or written."""
        return tuple(dict.fromkeys(name for target in self.targets for name in target.fields))

    @property
    def own_fields(self) -> tuple[str, ...]:
        """The fields that are not an example's input, label or rationale."""
        return tuple(name for name in self.fields if name not in ("input", *NAMES))

    @property
    def uses_rationales(self) -> bool:
        """Whether an example's rationale is read or written."""
        return "rationale" in self.fields

    @property
    def is_cascaded(self) -> bool:
        """Whether the label reads the rationale that the student itself writes for another target.

        Such a student is decoded in two stages: first its rationale, then the label given that.
        """
        label = self.target_of("label")
        return "rationale" in fields_of(label.reads) and any(
            part.name == "rationale"
            for target in self.targets
            if target != label
            for part in target.parts
        )

    @property
    def shares_targets(self) -> bool:
        """Whether several parts stand in one target."""
        return any(part.after is not None for part in self.parts)


def names_of(parts: Iterable[Part]) -> tuple[str, ...]:
    """Returns `NAMES` and the names of further parts; a part's code is its place from 1 on."""
    return (*NAMES, *(part.name for part in parts if part.name not in NAMES))


def part_words(codes: Iterable[int], names: Sequence[str] = NAMES) -> str:
    """Names the parts of a target by the codes of its tokens.

    >>> part_words([0, 2, 2, 1, 1])
    'rationale + label'
    """
    return " + ".join(names[code - 1] for code in dict.fromkeys(map(int, codes)) if code != PADDING)


def check_parts(method: str, parts: tuple[Part, ...]) -> None:
    """Raises a `UserError` if parts are not well described, or contradict each other."""
    if not isinstance(method, str) or not _NAME.fullmatch(method):
        raise UserError(
            f"METHOD = {method!r}: a method's name has lower-case letters, digits and underscores."
        )
    names = [part.name for part in parts]
    for part in parts:
        where = f"PARTS: the part '{part.name}'"
        if not isinstance(part.name, str) or not _NAME.fullmatch(part.name) or part.name in _TAKEN:
            raise UserError(
                f"PARTS: {part.name!r} cannot be a part's name; take lower-case letters, digits "
                f"and underscores, and none of {', '.join(_TAKEN)}."
            )
        if names.count(part.name) > 1:
            raise UserError(f"{where} is there twice.")
        for attribute in ("prefix", "reads", "writes", "separator"):
            _check_template(f"{where}, '{attribute}'", getattr(part, attribute))
        if part.normalization not in (None, *_NORMALIZATIONS):
            raise UserError(
                f"{where}, 'normalization' = {part.normalization!r} is unknown; choose one of "
                f"{', '.join(_NORMALIZATIONS)}."
            )
        weight = part.weight
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not callable(weight) and weight is not None and not (number and weight >= 0):
            raise UserError(
                f"{where}, 'weight' = {weight!r} must be a number that is not negative."
            )
        if part.name == "label" and "label" not in fields_of(as_template(part.writes or "label")):
            raise UserError(
                f"{where} is what is scored: 'writes' = {part.writes!r} must hold {{label}}."
            )
        if part.after is None:
            if part.separator is not None:
                raise UserError(f"{where} has a 'separator', but no 'after' that it goes with.")
            continue
        if part.after not in names or part.after == part.name:
            raise UserError(
                f"{where}, 'after' = {part.after!r} is no other part; there are {', '.join(names)}."
            )
        if part.prefix is not None or part.reads != "input":
            raise UserError(
                f"{where} stands after '{part.after}' in one target: 'prefix' and 'reads' belong "
                "to the first part of it."
            )
        rivals = [one.name for one in parts if one.after == part.after]
        if len(rivals) > 1:
            raise UserError(f"PARTS: {' and '.join(rivals)} both stand after '{part.after}'.")
    if parts and not any(part.after is None for part in parts):
        raise UserError("PARTS: every part has an 'after', so no target has a beginning.")
    _check_circles(parts)


def _check_circles(parts: tuple[Part, ...]) -> None:
    after = {part.name: part.after for part in parts}
    for part in parts:
        name: str | None = part.name
        for _ in parts:
            name = after[name] if name is not None else None
        if name is not None:
            raise UserError(f"PARTS: the part '{part.name}' stands after itself, by 'after'.")


_SETTINGS = ("LABEL_PREFIX", "RATIONALE_PREFIX", "JOINT_SEPARATOR", "RATIONALE_INPUT_SEPARATOR")


def _check_template(where: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise UserError(f"{where} = {value!r} must be a text.")
    try:
        found = [name for _, name, _, _ in string.Formatter().parse(value) if name is not None]
    except ValueError as error:
        raise UserError(f"{where} = {value!r} cannot be read ({error}).") from error
    for name in found:
        if not name.isidentifier() or (name.isupper() and name not in _SETTINGS):
            raise UserError(
                f"{where} = {value!r}: {{{name}}} is neither a field nor one of "
                f"{', '.join(_SETTINGS)}."
            )
    if where.endswith(("'prefix'", "'separator'")):
        if any(not name.isupper() for name in found):
            raise UserError(f"{where} = {value!r} must not name a field of an example.")
    elif not value.isidentifier() and not fields_of(value):
        raise UserError(f"{where} = {value!r} names no field of an example, as {{input}} does.")
