"""What gin files and flags say, as data: statements that remember where they were written."""

from __future__ import annotations

import dataclasses
from typing import Any

from gin import config_parser

REQUIRED = "gin.REQUIRED"


@dataclasses.dataclass(frozen=True)
class Macro:
    """`%name` on the right-hand side of a binding."""

    name: str

    def __repr__(self) -> str:
        return f"%{self.name}"


@dataclasses.dataclass(frozen=True)
class Reference:
    """`@scope/module.function`, or its call, on the right-hand side of a binding."""

    scoped_selector: str
    evaluate: bool

    @property
    def selector(self) -> str:
        """The name without its scopes."""
        return self.scoped_selector.rsplit("/", 1)[-1]

    def __repr__(self) -> str:
        return f"@{self.scoped_selector}{'()' if self.evaluate else ''}"


@dataclasses.dataclass(frozen=True)
class Location:
    """Where something was written.

    Attributes:
      name: a gin file as the user may name it, or a flag.
      line: line number from 1; None for a flag.
      shipped: whether it is one of sbs_jax's own gin files.
    """

    name: str
    line: int | None = None
    shipped: bool = False

    @property
    def is_default(self) -> bool:
        """Whether it is a file of gin/runs: what these bind are defaults."""
        return self.shipped and self.name.startswith("runs/")

    def __str__(self) -> str:
        return self.name if self.line is None else f"{self.name}, line {self.line}"


@dataclasses.dataclass(frozen=True)
class Binding:
    """One `key = value`.

    Attributes:
      scope: gin scopes joined by `/`, often empty. For a macro, part of its name.
      selector: the configurable, or the macro's name.
      parameter: the configurable's parameter; empty for a macro.
      value: a Python literal that may hold `Macro` and `Reference`.
      source: the place where it was written.
      comment: the comment at the end of its line, without the `#`.
      heading: the comment line that heads it and its neighbours in a file, else the file's name.
      full_name: the configurable's dotted name, as far as the file's imports tell.
      text: what was typed, where it was typed plainly after `--gin.NAME=`.
    """

    scope: str
    selector: str
    parameter: str
    value: Any
    source: Location
    comment: str = ""
    heading: str = ""
    full_name: str = ""
    text: str | None = None

    @property
    def is_macro(self) -> bool:
        """Whether this binds a macro rather than a parameter."""
        return not self.parameter

    @property
    def key(self) -> tuple[str, str, str]:
        """Two bindings with the same key override one another."""
        return self.scope, self.selector if self.is_macro else self.full_name, self.parameter

    @property
    def name(self) -> str:
        """The left-hand side, as it was written."""
        parts = [self.selector, self.parameter] if self.parameter else [self.selector]
        return (f"{self.scope}/" if self.scope else "") + ".".join(parts)

    @property
    def place(self) -> str:
        """Where it was written, and its name: the beginning of a sentence about it."""
        return (
            str(self.source)
            if self.source.name == f"--gin.{self.name}"
            else (f"{self.source}: {self.name}")
        )

    @property
    def is_required(self) -> bool:
        """Whether this only says that somebody has to give a value."""
        return self.value == Macro(REQUIRED)


@dataclasses.dataclass(frozen=True)
class Import:
    """An import statement of a gin file."""

    statement: config_parser.ImportStatement
    source: Location


@dataclasses.dataclass(frozen=True)
class Block:
    """`module.function:`, which heads an indented group of bindings."""

    selector: str
    source: Location


@dataclasses.dataclass(frozen=True)
class GinFile:
    """A parsed file, or the flags of the command line as if they stood in one.

    Attributes:
      name: the name that messages use.
      statements: its statements in their order; an included file is one statement.
    """

    name: str
    statements: tuple[Binding | Import | Block | GinFile, ...]
