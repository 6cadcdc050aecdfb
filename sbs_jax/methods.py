"""The methods that have a name, and those that the macro PARTS describes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sbs_jax.errors import UserError
from sbs_jax.parts import Method, Part, check_parts

CUSTOM = "custom"
"""Name of the method that PARTS describes where METHOD gives none."""


def read_parts(value: Any) -> tuple[Part, ...]:
    """Reads the macro PARTS, a dict of the parts' attributes by name.

    >>> read_parts({"label": {}, "hint": {"prefix": "hint: ", "weight": 0.5}})[1].weight
    0.5

    Args:
      value: a dict of dicts (of `Part`'s attributes); or a sequence of such dicts that give the
        name, as records of runs hold it; or of parts.

    Raises:
      UserError: it is something else, or a part is not well described; names the part and the key.
    """
    if isinstance(value, Mapping):
        value = [
            {**attributes, "name": name} if isinstance(attributes, Mapping) else (name, attributes)
            for name, attributes in value.items()
        ]
    if not isinstance(value, list | tuple) or not value:
        raise UserError(
            f"PARTS = {value!r} must be a dict of parts by name, as in {{'label': {{}}, 'hint': "
            "{'weight': 0.5}}."
        )
    parts = []
    known = [field.name for field in dataclasses.fields(Part)]
    for one in value:
        if isinstance(one, Part):
            parts.append(one)
            continue
        if not isinstance(one, Mapping):
            raise UserError(
                f"PARTS: the part {one[0] if isinstance(one, tuple) else one!r} must be a dict of "
                f"{', '.join(known[1:])}, which may be empty."
            )
        for key in one:
            if key not in known:
                raise UserError(
                    f"PARTS: the part '{one.get('name')}' has the key {key!r}, but a part has "
                    f"{', '.join(known[1:])}."
                )
        parts.append(Part(**one))
    check_parts(CUSTOM, tuple(parts))
    return tuple(parts)


_LABEL_PART, _RATIONALE_PART = Part("label"), Part("rationale")

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("sbs", (_LABEL_PART, _RATIONALE_PART)),
        Method("standard", (_LABEL_PART,)),
        Method("joint", (Part("label", writes="{rationale}{JOINT_SEPARATOR}{label}"),)),
        Method(
            "rationale_input",
            (Part("label", reads="{input}{RATIONALE_INPUT_SEPARATOR}{rationale}"),),
        ),
        Method("rationale", (_RATIONALE_PART,)),
        Method("weighted_joint", (_RATIONALE_PART, Part("label", after="rationale"))),
    )
}
"""The methods that have a name here (docs/methods.md). The tasks of the first five are registered
with their data set, those of others when they are asked for."""

REGISTERED = tuple(METHODS)[:5]
"""The methods whose tasks are registered with a data set."""


def find_method(name: str, parts: tuple[Part, ...] | None = None) -> Method:
    """Returns the method of a name: the one that `parts` describe, or else one of `METHODS`.

    Args:
      name: METHOD.
      parts: PARTS, read.

    Raises:
      UserError: `parts` are given for a name of the table, or the name is not in it.
    """
    if parts:
        if name in METHODS:
            raise UserError(
                f"METHOD = {name!r} is a method of its own, but PARTS describes another one: give "
                "that another name, or leave METHOD out."
            )
        return Method(name, parts)
    if name not in METHODS:
        raise UserError(f"METHOD = {name!r} is unknown; there are {', '.join(METHODS)}.")
    return METHODS[name]
