"""Parsing gin files and `--gin.` flags without importing what they name.

gin's own parser is used, but references are noted down instead of looked up, and every binding
remembers the file and the line that it comes from.
"""

from __future__ import annotations

import difflib
import io
import os
import re
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gin import config_parser

import sbs_jax
from sbs_jax.configuration import former_names
from sbs_jax.configuration.names import Names
from sbs_jax.configuration.statements import (
    Binding,
    Block,
    GinFile,
    Import,
    Location,
    Macro,
    Reference,
)
from sbs_jax.errors import UserError
from sbs_jax.redaction import holds_secret

_BINDING_KEY = re.compile(r"([A-Za-z_]\w*/)*[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def read_files(
    gin_files: Sequence[str],
    bindings: Sequence[str] = (),
    flags: Sequence[tuple[str, str]] = (),
    search_paths: Sequence[str | Path] = (),
) -> list[GinFile]:
    """Parses files and flags.

    Args:
      gin_files: paths, absolute or relative to the working directory, to one of `search_paths` or
        to sbs_jax's own gin folder; the first that exists is taken.
      bindings: lines of gin, from `--gin_bindings`.
      flags: name and text of each `--gin.NAME=TEXT`. Text that is not a gin value counts as a
        string.
      search_paths: folders to look in.

    Returns:
      The files, and after them the flags.

    Raises:
      UserError: a file does not exist or cannot be read, or a line is not gin.
    """
    reader = _Reader([Path("."), *map(Path, search_paths), gin_folder()])
    files = [reader.file(path) for path in gin_files]
    commands: list[Any] = []
    for text in bindings:
        commands += reader.text(text, "--gin_bindings")
    for name, text in flags:
        commands += reader.flag(name, text)
    return [*files, GinFile("the command line", tuple(commands))]


def read_text(text: str, name: str) -> list[GinFile]:
    """Parses gin source that stands in a file of that name.

    Raises:
      UserError: a file that it includes does not exist, or a line is not gin.
    """
    return [GinFile(name, tuple(_Reader([Path("."), gin_folder()]).text(text, name)))]


def gin_folder() -> Path:
    """The folder of sbs_jax's own gin files: `sbs_jax/gin` installed, `gin` in a checkout."""
    for parent in sbs_jax.__path__:
        folder = Path(parent) / "gin"
        if (folder / "runs").is_dir():
            return folder.resolve()
    raise FileNotFoundError("sbs_jax's gin files are not installed")


def shipped_files() -> list[str]:
    """Names of the gin files for sbs_jax's own programs, such as `runs/train.gin`, sorted."""
    folder = gin_folder()
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*.gin"))
    return sorted(name for name in names if not name.startswith("t5x/"))  # for T5X's programs


def parse_flag_value(name: str, text: str) -> tuple[Any, bool]:
    """Reads the value of `--gin.NAME=TEXT`: a gin value if it is one, else a string.

    >>> parse_flag_value("BATCH_SIZE", "16")
    (16, True)
    >>> parse_flag_value("MODEL_DIR", "runs/x")
    ('runs/x', True)
    >>> parse_flag_value("MODEL_DIR", '"runs/x"')
    ('runs/x', False)

    Returns:
      The value, and whether it was typed plainly: then a number may still turn out to be meant as a
      string (a folder called `10`).

    Raises:
      UserError: the text is empty, or starts like a gin value and is none.
    """
    if not text.strip():
        raise UserError(
            f"--gin.{name}= has no value; write --gin.{name}=\"''\" for an empty string."
        )
    try:
        value = _parse_value(text)
    except (SyntaxError, tokenize.TokenError, ValueError) as error:
        if text.lstrip()[0] in "[{('\"@%":
            hidden = holds_secret(name, text)
            shown = "" if hidden else f" {text!r}"
            raise UserError(
                f"--gin.{name}={'' if hidden else text}: the value{shown} is not valid "
                f"gin; check its brackets and quotes (a string that starts with {text.lstrip()[0]} "
                "must be quoted)."
            ) from error
        # The shell leaves a ~ after `=` alone.
        return os.path.expanduser(text), True
    return value, text.lstrip()[0] not in "[{('\"@%"


def nearest(name: str, names: Sequence[str]) -> list[str]:
    """Up to two of `names` that look like `name`, whatever the case, best first."""
    by_lower = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=2, cutoff=0.6)
    return [by_lower[candidate] for candidate in close]


class _Delegate(config_parser.ParserDelegate):
    """Tells gin's parser to note references down instead of looking them up."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Reference:
        return Reference(scoped_configurable_name, evaluate)

    def macro(self, macro_name: str) -> Macro:
        return Macro(macro_name)


class _Reader:
    """Parses files; remembers which are open (circles) and which functions have been named."""

    def __init__(self, search_paths: Sequence[Path]) -> None:
        self._search_paths = search_paths
        self._shipped = search_paths[-1]
        self._open: list[Path] = []
        self._known: set[str] = set()

    def file(self, name: str, included_at: Location | None = None) -> GinFile:
        """Finds and parses one file."""
        path = self._find(name, included_at)
        shipped = path.resolve().is_relative_to(self._shipped)
        shown = path.resolve().relative_to(self._shipped).as_posix() if shipped else str(path)
        if path.resolve() in self._open:
            raise UserError(f"{included_at}: {name} includes itself.")
        try:
            text = path.read_text(encoding="utf-8")
            if "\0" in text:
                raise UserError(f"{path}: the gin file cannot be read (it is not text).")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise UserError(f"{path}: the gin file cannot be read ({reason}).") from error
        self._open.append(path.resolve())
        try:
            return GinFile(shown, tuple(self.text(text, shown, shipped)))
        finally:
            self._open.pop()

    def text(
        self, text: str, name: str, shipped: bool = False
    ) -> Iterator[Binding | Import | Block | GinFile]:
        """Parses gin source, statement by statement."""
        is_flag = name.startswith("--")
        lines = text.splitlines()
        try:
            statements = list(config_parser.ConfigParser(text + "\n", _Delegate()))
        except (SyntaxError, tokenize.TokenError) as error:
            raise _syntax_error(error, name, is_flag, lines) from error
        names = Names(
            [s for s in statements if isinstance(s, config_parser.ImportStatement)], self._known
        )
        for statement in statements:
            line = statement.location.line_num
            source = Location(name, None if is_flag else line, shipped)
            if isinstance(statement, config_parser.ImportStatement):
                yield Import(names.imported(statement), source)
            elif isinstance(statement, config_parser.IncludeStatement):
                yield self.file(statement.filename, source)
            elif isinstance(statement, config_parser.BlockDeclaration):
                selector = names.selector(statement.selector)
                yield from names.new_imports(source)
                yield Block(selector, source)
            else:
                binding = Binding(
                    statement.scope,
                    statement.selector,
                    statement.arg_name,
                    statement.value,
                    source,
                    comment=_comment(lines[line - 1]),
                    heading="" if is_flag else _heading(lines, line - 1) or name,
                )
                translated = list(names.translate(binding))
                yield from names.new_imports(source)
                yield from translated

    def flag(self, name: str, text: str) -> Iterator[Binding]:
        """Parses `--gin.NAME=TEXT`."""
        source = Location(f"--gin.{name}")
        if not _BINDING_KEY.fullmatch(name):
            raise UserError(
                f"--gin.{name}: {name!r} is not the name of a macro or of a parameter; write "
                "--gin.NAME=VALUE or --gin.module.function.parameter=VALUE."
            )
        scope, selector, parameter = config_parser.parse_binding_key(name)
        value, plain = parse_flag_value(name, text)
        text_or_none = text if plain else None
        binding = Binding(scope, selector, parameter, value, source, text=text_or_none)
        return Names((), self._known).translate(binding)

    def _find(self, name: str, included_at: Location | None) -> Path:
        expanded = Path(name).expanduser()
        candidates = [folder / expanded for folder in self._search_paths]
        if name in former_names.GIN_FILES:
            candidates.append(self._shipped / former_names.GIN_FILES[name])
        for path in candidates:
            if path.is_file():
                if path.resolve().parent == gin_folder() / "t5x":
                    raise UserError(
                        f"{name}: is a gin file for T5X's own programs, such as python -m "
                        "t5x.train; docs/t5x.md says how to use it."
                    )
                return path
        where = f"{included_at}: " if included_at else ""
        hint = ""
        if not expanded.is_absolute():
            shipped = [path.as_posix() for path in map(Path, shipped_files())]
            # A file of this very name in another folder is what was meant.
            same_name = [p for p in shipped if Path(p).name == expanded.name]
            others = same_name or nearest(name, shipped)
            looked = [str(folder) for folder in self._search_paths[:-1]]
            hint = f" (looked in {', '.join(looked)} and among sbs_jax's own gin files)"
            hint += f"; did you mean {' or '.join(others[:2])}?" if others else "."
        else:
            hint = "."
        if expanded.is_dir():
            raise UserError(f"{where}the gin file {name!r} is a folder.")
        raise UserError(f"{where}the gin file {name!r} does not exist{hint}")


def _parse_value(text: str) -> Any:
    parser = config_parser.ConfigParser(text, _Delegate())
    value = parser.parse_value()
    end = (tokenize.NEWLINE, tokenize.NL, tokenize.ENDMARKER)
    if parser.current_token.type not in end:
        raise SyntaxError("text after the value")
    return value


def _comment(line: str) -> str:
    try:
        for token in tokenize.generate_tokens(io.StringIO(line.strip()).readline):
            if token.type == tokenize.COMMENT:
                return token.string.lstrip("# ").rstrip()
    except (SyntaxError, tokenize.TokenError):
        pass  # The line opens a bracket that a later line closes.
    return ""


def _heading(lines: Sequence[str], index: int) -> str:
    """The comment that heads a group of lines: one line, after a blank one; empty if none does."""
    for start in range(index - 1, 0, -1):
        line = lines[start]
        if line.startswith("#") and not lines[start - 1].strip():
            return line.lstrip("# ").rstrip(" .")
        if line.startswith("#") or re.match(r"[\w.]+:", line):
            return ""  # a block of comments, or of parameters
    return ""


def _syntax_error(
    error: SyntaxError | tokenize.TokenError, name: str, is_flag: bool, lines: Sequence[str]
) -> UserError:
    if isinstance(error, tokenize.TokenError):
        line = error.args[1][0]
        reason = "a bracket or a string is not closed"
    else:
        line = error.lineno or 1
        token = re.search(r"Failed to parse token '(.*)'", str(error.msg), re.DOTALL)
        reason = (
            f"{token[1]!r} is not a value (a string needs quotes, a macro %, a function @)"
            if token
            else " ".join(str(error.msg).split()).rstrip(".")
        )
        reason = reason[:1].lower() + reason[1:]
    line = min(line, len(lines)) or 1
    content = lines[line - 1].strip() if lines else ""
    shown = "" if holds_secret(content.split("=")[0], content) else f" in `{content}`"
    where = name if is_flag else f"{name}, line {line}"
    return UserError(f"{where}: this is not gin: {reason}{shown}.")
