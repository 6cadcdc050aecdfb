"""Grids of runs: axes, their values, and the runs that they span. Pure Python.

An axis is a gin macro or parameter and its values, or a name of your own whose values are groups of
bindings that belong together:

    SWEEP = {
        'RATIONALE_WEIGHT': [0.0, 0.1, 1.0],
        'SEED': '0:3',  # 0, 1, 2
        'SIZE': {
            'small': {'gin_file': 'models/t5_1_1_small.gin', 'BATCH_SIZE': 64},
            'base': {'gin_file': 'models/t5_1_1_base.gin', 'BATCH_SIZE': 32},
        },
    }
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from sbs_jax.configuration import reader, statements
from sbs_jax.errors import UserError

GIN_FILE = "gin_file"
"""The name of a binding that adds a gin file instead of setting a macro."""

_RANGE = re.compile(r"(-?\d+):(-?\d+)(?::(\d+))?")
_UNSAFE = re.compile(r"[^\w.+-]+")
_LONGEST_NAME = 200  # of a folder; file systems end at 255


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of a grid.

    Attributes:
      name: the name of the macro or parameter, or of the group.
      points: the bindings of each value, by the value's own name.
    """

    name: str
    points: Mapping[str, Mapping[str, Any]]

    @property
    def values(self) -> list[Any]:
        """The values, or the names of groups: what a table shows."""
        return [
            bindings[self.name] if set(bindings) == {self.name} else label
            for label, bindings in self.points.items()
        ]


@dataclasses.dataclass(frozen=True)
class Run:
    """One point of a grid.

    Attributes:
      name: the name of its folder: `rationale_weight=0.1,seed=0`.
      bindings: gin macros and parameters with their values; a string that begins with `@` or `%` is
        a reference. `gin_file` names a file instead.
    """

    name: str
    bindings: Mapping[str, Any]

    @property
    def gin_files(self) -> list[str]:
        """The files that it adds."""
        files = self.bindings.get(GIN_FILE, [])
        return [files] if isinstance(files, str) else list(files)

    @property
    def flags(self) -> list[tuple[str, str]]:
        """Name and text of each `--gin.NAME=TEXT` that it adds."""
        return [
            (name, gin_text(value)) for name, value in self.bindings.items() if name != GIN_FILE
        ]


def parse_axes(sweep: Mapping[str, Any], flags: Sequence[str] = ()) -> list[Axis]:
    """Reads the axes of a grid.

    >>> [axis.values for axis in parse_axes({"SEED": "0:3"}, ["METHOD=sbs,standard"])]
    [[0, 1, 2], ['sbs', 'standard']]

    Args:
      sweep: the macro SWEEP: by name, a list of values, a range `'0:4'`, or a dict of groups.
      flags: `NAME=v1,v2` or `NAME=0:4`; they replace an axis of that name.

    Raises:
      UserError: an axis has no values or the same one twice, or is written otherwise.
    """
    if not isinstance(sweep, Mapping):
        raise UserError(
            f"SWEEP = {sweep!r} must be a dict of names and values, as in "
            "{'RATIONALE_WEIGHT': [0.1, 1.0], 'SEED': '0:4'}."
        )
    axes = {name: _axis(name, values) for name, values in sweep.items()}
    for flag in flags:
        name, equals, text = flag.partition("=")
        if not equals or not text.strip():
            raise UserError(f"--sweep {flag}: write --sweep NAME=v1,v2 or --sweep NAME=0:4.")
        name = name.strip()
        values: str | list[Any] = text.strip()
        if not _RANGE.fullmatch(text.strip()):
            values = [reader.parse_flag_value(name, item)[0] for item in _split(text.strip())]
        axes[name] = _axis(name, values)
    bound: dict[str, str] = {}
    for axis in axes.values():
        for name in {name for point in axis.points.values() for name in point}:
            if name in bound and name != GIN_FILE:
                raise UserError(f"SWEEP: the axes {bound[name]} and {axis.name} both set {name}.")
            bound[name] = axis.name
    return list(axes.values())


def expand(axes: Sequence[Axis]) -> list[Run]:
    """All combinations of the axes' values; the last axis changes fastest.

    Raises:
      UserError: there is no axis, or two runs would have the same folder.
    """
    if not axes:
        raise UserError("There is nothing to sweep: bind SWEEP in a gin file, or give --sweep.")
    runs = []
    for labels in itertools.product(*(axis.points for axis in axes)):
        bindings: dict[str, Any] = {}
        for axis, label in zip(axes, labels, strict=True):
            for name, value in axis.points[label].items():
                if name == GIN_FILE:
                    value = [
                        *bindings.get(GIN_FILE, []),
                        *([value] if isinstance(value, str) else value),
                    ]
                bindings[name] = value
        name = ",".join(
            f"{_short(axis.name)}={label}" for axis, label in zip(axes, labels, strict=True)
        )
        runs.append(Run(name[:_LONGEST_NAME], bindings))
    names = [run.name for run in runs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"SWEEP: two runs would share the folder {twice}; name values in a dict.")
    return runs


def gin_text(value: Any) -> str:
    """A value as gin source; strings that begin with `@` or `%` are references."""
    if isinstance(value, str) and value[:1] in ("@", "%"):
        return value
    return repr(value)


def _axis(name: str, values: Any) -> Axis:
    if isinstance(values, Mapping):
        points = {
            _label(label): {key: _plain(value) for key, value in bindings.items()}
            for label, bindings in values.items()
            if isinstance(bindings, Mapping) and bindings
        }
        if len(points) != len(values):
            raise UserError(f"SWEEP: every value of {name} must be a dict of bindings.")
    else:
        values = _values(name, values)
        points = {_label(value): {name: _plain(value)} for value in values}
        if len(points) != len(values):
            raise UserError(f"SWEEP: {name} has the same value twice: {values!r}.")
    if not points:
        raise UserError(f"SWEEP: {name} has no values.")
    return Axis(name, points)


def _values(name: str, values: Any) -> list[Any]:
    if isinstance(values, str) and (found := _RANGE.fullmatch(values.strip())):
        return list(range(int(found[1]), int(found[2]), int(found[3] or 1)))
    if isinstance(values, list | tuple):
        return list(values)
    raise UserError(
        f"SWEEP: {name} is {values!r}; give a list of values, a range such as '0:4', or a dict of "
        "named groups of bindings."
    )


def _plain(value: Any) -> Any:
    """A value that JSON can hold; references become their source."""
    if isinstance(value, statements.Macro | statements.Reference):
        return repr(value)
    if isinstance(value, tuple):
        return list(value)
    return value


def _label(value: Any) -> str:
    """What a value is called in a folder's name."""
    value = _plain(value)
    if isinstance(value, float):
        text = f"{value:g}"
    elif isinstance(value, str) and value.endswith(".gin"):
        text = PurePosixPath(value).stem
    else:
        text = str(value)
    return _UNSAFE.sub("_", text).strip("_") or "none"


def _short(name: str) -> str:
    return _UNSAFE.sub("_", name.split(".")[-1] if "." in name else name).lower()


def _split(text: str) -> list[str]:
    """Cuts at commas that stand in no bracket and no string."""
    pieces, depth, quote, start = [], 0, "", 0
    for index, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and not depth:
            pieces.append(text[start:index].strip())
            start = index + 1
    return [*pieces, text[start:].strip()]
