"""The configuration that gin files and flags give: checked first, then handed over to gin.

gin-config reports a mistake as an exception from deep inside, binds unused macros in silence, and
does not say where a value came from. `GinConfig.check` finds what shows without importing anything:
misspelt macros, missing ones, and values that a later file resets. `GinConfig.apply` then imports
the modules that the files name and binds everything in gin.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import gin.config

from sbs_jax.configuration import data_settings, former_names, lookup, reader, value_types
from sbs_jax.configuration.dump import format_value
from sbs_jax.configuration.reader import nearest
from sbs_jax.configuration.statements import (
    REQUIRED,
    Binding,
    Block,
    GinFile,
    Import,
    Macro,
    Reference,
)
from sbs_jax.errors import UserError

PROGRAMS = "sbs_jax.programs"
"""The package whose modules hold the functions that commands call."""


def read(
    gin_files: Sequence[str],
    bindings: Sequence[str] = (),
    flags: Sequence[tuple[str, str]] = (),
    search_paths: Sequence[str | Path] = (),
    *,
    target: str = "",
    programs: str = PROGRAMS,
) -> GinConfig:
    """Parses files and flags, as `reader.read_files`, without importing what they name."""
    files = reader.read_files(gin_files, bindings, flags, search_paths)
    return GinConfig(files, target, programs)


class GinConfig:
    """Parsed gin files and flags, in the order in which they apply.

    Attributes:
      files: the files of the command line, then its flags.
      target: dotted name of the function that is going to be called; empty for any.
      bindings: the bindings that count, by key: the last of each, except that neither
        `%gin.REQUIRED` nor a default of gin/runs takes an earlier value away. So the order in which
        files are named does not matter for those.
      used_macros: names of the macros that can have an effect: a parameter refers to them, through
        other macros or not, of a function that is called.
      called: names, without their modules, of the functions that will run: `target`, those that
        a binding that counts refers to, and those that no gin file refers to at all, because
        Python code calls them. Functions of the package `programs` that nothing refers to are the
        targets of other commands (one configuration may serve several), so they are not called.
    """

    def __init__(
        self, files: Sequence[GinFile], target: str = "", programs: str = PROGRAMS
    ) -> None:
        self.files = tuple(files)
        self.target = target
        self.bindings: dict[tuple[str, str, str], Binding] = {}
        self._resets: list[tuple[Binding, Binding]] = []
        self._ever_called: set[str] = set()
        self._ever_referred: set[str] = set()
        for binding in self._all_bindings():
            self._ever_called.update(_references(binding.value))
            self._ever_referred.update(_macros(binding.value))
            earlier = self.bindings.get(binding.key)
            if earlier is not None and _is_default_beside(binding, earlier):
                self.bindings[binding.key] = _commented(earlier, binding)
                continue
            if earlier is not None:
                if _takes_back(binding, earlier):
                    self._resets.append((binding, earlier))
                binding = _commented(binding, earlier)
            self.bindings[binding.key] = binding
        self.used_macros, self.called = self._follow(programs)

    @property
    def macros(self) -> dict[str, Binding]:
        """The macros by name, in the order of their first binding."""
        return {b.name: b for b in self.bindings.values() if b.is_macro}

    def by_first_name(self) -> dict[str, Binding]:
        """The bindings that count, each by its scope and the earliest name of its parameter.

        Bindings that only hand a dataclass to a function are left out, so that a configuration has
        the same names, and checksums the same value, in every version.
        """
        result = {}
        for (scope, name, parameter), binding in self.bindings.items():
            if f"{name}.{parameter}" in former_names.BUILT_BY:
                continue
            if parameter:
                name, _, parameter = former_names.first(name, parameter).rpartition(".")
            result[f"{scope}/{name}/{parameter}"] = binding
        return result

    def is_live(self, binding: Binding) -> bool:
        """Whether a binding can have an effect."""
        if binding.is_macro:
            return binding.name in self.used_macros
        return _last(binding.full_name) in self.called

    def missing(self) -> list[Binding]:
        """The bindings that still ask for a value."""
        return [b for b in self.bindings.values() if b.is_required and self.is_live(b)]

    def check(self) -> None:
        """Looks for the mistakes that show without importing anything.

        Raises:
          UserError: nothing configures the target, a macro is bound but unused (misspelt, most
            likely), a REQUIRED value is missing, macros refer to one another in a circle, or one
            of sbs_jax's own files resets a value that the user's own file gave before.
        """
        if self.target and not any(b.full_name == self.target for b in self.bindings.values()):
            files = _shipped_files_with(rf"^{re.escape(_last(self.target, 2))}\b")
            raise UserError(
                f"Nothing configures {self.target}; "
                f"give a gin file that does, such as --gin_file={files[0] if files else 'FILE'}."
            )
        self._check_circles()
        self._check_unused()
        if self._resets:
            later, earlier = self._resets[0]
            raise UserError(
                f"{earlier.place} is set here, but {later.source}, which is read "
                f"later, sets it again; name {later.source.name} before {earlier.source.name}, so "
                "that your own value wins."
            )
        missing = self.missing()
        if missing:
            summary = "; ".join(
                f"{b.name} ({b.source}{': ' + b.comment if b.comment else ''})" for b in missing
            )
            raise UserError(
                f"Not set, but required: {summary}. Give {'it' if len(missing) == 1 else 'each'} "
                f"as --gin.NAME=VALUE (here --gin.{missing[0].name}=…) or in a gin file."
            )

    def apply(self) -> None:
        """Imports what the files import, and binds everything in gin, which is cleared before.

        Raises:
          UserError: an import fails, a function or a parameter does not exist, a macro is referred
            to but not bound, or a value has the wrong type; with the file and the line.
        """
        gin.clear_config()
        data_settings.install()
        bound: list[tuple[Binding, gin.config.Configurable]] = []
        for file in self.files:
            self._apply_file(file, bound)
        self._check_references()
        self._check_types(bound)
        # Not gin.finalize, which objects to unset macros even where nothing needs them.
        gin.config._set_config_is_locked(True)

    def resolve(self, value: Any) -> tuple[Any, Binding | None]:
        """Follows macros: the value behind `value`, and the binding that gave it, if a macro."""
        binding = None
        while isinstance(value, Macro) and value.name in self.macros:
            binding = self.macros[value.name]
            value = binding.value
        return value, binding

    def _is_other_target(self, binding: Binding, programs: str) -> bool:
        """Whether a parameter is that of another command's function; see `called`."""
        return (
            self.target not in ("", binding.full_name)
            and binding.full_name.rpartition(".")[0].rpartition(".")[0] == programs
            and _last(binding.full_name) not in self._ever_called
        )

    def _follow(self, programs: str) -> tuple[set[str], set[str]]:
        """Finds `used_macros` and `called`."""
        by_function: dict[str, list[Binding]] = {}
        for binding in self.bindings.values():
            if not binding.is_macro and not self._is_other_target(binding, programs):
                by_function.setdefault(_last(binding.full_name), []).append(binding)
        macros = self.macros
        used: set[str] = set()
        called: set[str] = set()
        queue: list[tuple[str, str]] = [
            ("function", name) for name in by_function if name not in self._ever_called
        ]
        while queue:
            kind, name = queue.pop()
            if name in (called if kind == "function" else used):
                continue
            if kind == "function":
                called.add(name)
                values = [binding.value for binding in by_function.get(name, ())]
            else:
                used.add(name)
                values = [macros[name].value] if name in macros else []
            for value in values:
                queue += [("macro", macro) for macro in _macros(value)]
                queue += [("function", function) for function in _references(value)]
        return used, called

    def _apply_file(
        self, file: GinFile, bound: list[tuple[Binding, gin.config.Configurable]]
    ) -> None:
        with gin.config._parse_scope() as context:
            for statement in file.statements:
                if isinstance(statement, GinFile):
                    self._apply_file(statement, bound)
                elif isinstance(statement, Import):
                    lookup.run_import(context, statement)
                elif isinstance(statement, Block):
                    lookup.find(context, statement.selector, statement.source)
                elif statement.is_macro:
                    if self._counts(statement):
                        value = lookup.to_gin(context, statement.value, statement.source)
                        gin.bind_parameter((statement.name, "gin.macro", "value"), value)
                else:
                    configurable = lookup.find(context, statement.selector, statement.source)
                    lookup.check_parameter(configurable, statement)
                    if self._counts(statement):
                        key = statement.scope, statement.selector, statement.parameter
                        value = lookup.to_gin(context, statement.value, statement.source)
                        gin.bind_parameter(key, value)
                        bound.append((statement, configurable))
            gin.config._IMPORTS.update(context.imports)

    def _counts(self, binding: Binding) -> bool:
        """Whether a binding gives a value that no other one replaces."""
        return not binding.is_required and self.bindings[binding.key].source == binding.source

    def _all_bindings(self) -> Iterator[Binding]:
        def walk(file: GinFile) -> Iterator[Binding]:
            for statement in file.statements:
                if isinstance(statement, GinFile):
                    yield from walk(statement)
                elif isinstance(statement, Binding):
                    yield statement

        for file in self.files:
            yield from walk(file)

    def _check_circles(self) -> None:
        macros = self.macros
        done: set[str] = set()

        def visit(name: str, trail: list[str]) -> None:
            if name in trail:
                circle = " -> ".join(f"%{step}" for step in [*trail[trail.index(name) :], name])
                raise UserError(f"{macros[name].place} refers to itself: {circle}.")
            if name in macros and name not in done:
                for other in _macros(macros[name].value):
                    visit(other, [*trail, name])
                done.add(name)

        for name in macros:
            visit(name, [])

    def _check_unused(self) -> None:
        used = self.used_macros
        idle = [b for b in self.macros.values() if b.name not in used and not b.is_required]
        # What a file sets may be idle because its user was replaced, by another optimizer, say; and
        # a shipped file may set what only another shipped file uses. On the command line it is a
        # mistake, and so is a name that nothing ever refers to.
        shipped = shipped_macros() if any(b.source.shipped for b in idle) else frozenset()
        for binding in idle:
            in_file = binding.source.line is not None
            if in_file and binding.name in self._ever_referred:
                continue
            if binding.source.shipped and binding.name in shipped:
                continue
            others = nearest(binding.name, sorted(used))
            if binding.name in self._ever_referred:
                hint = "the function that it is for is not called."
            elif others:
                hint = f"did you mean {' or '.join(others)}?"
            else:
                hint = "--help lists the names that do."
            raise UserError(f"{binding.place} is set, but nothing in this run uses it; {hint}")

    def _check_types(self, bound: Sequence[tuple[Binding, gin.config.Configurable]]) -> None:
        """Holds literals against annotations; turns numbers that are meant as strings into them."""
        annotations: dict[Any, dict[str, Any]] = {}
        for binding, configurable in bound:
            if not self.is_live(binding):
                continue
            value, macro = self.resolve(binding.value)
            function = configurable.wrapped
            if function not in annotations:
                annotations[function] = value_types.annotations_of(function)
            annotation = annotations[function].get(binding.parameter, Any)
            if value_types.fits(value, annotation):
                continue
            origin = macro or binding
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and origin.text and value_types.fits(origin.text, annotation):
                # `--gin.MODEL_DIR=10` names a folder.
                self.bindings[origin.key] = dataclasses.replace(origin, value=origin.text)
                if origin.is_macro:
                    gin.bind_parameter((origin.name, "gin.macro", "value"), origin.text)
                else:
                    key = origin.scope, configurable.selector, origin.parameter
                    gin.bind_parameter(key, origin.text)
                continue
            raise UserError(
                f"{origin.place} is {format_value(origin)}, but {binding.selector} wants "
                f"{value_types.describe(annotation)} for {binding.parameter}"
                f"{value_types.hint(value, annotation)}."
            )

    def _check_references(self) -> None:
        macros = self.macros
        for binding in filter(self.is_live, self.bindings.values()):
            for name in _macros(binding.value):
                if name in macros or gin.config._CONSTANTS.matching_selectors(name):
                    continue
                files = _shipped_files_with(rf"^{re.escape(name)}\s*=(?!\s*%gin\.REQUIRED)")
                others = nearest(name, [m for m in macros if m != binding.name])
                if files:
                    hint = f"add a file that sets it, such as --gin_file={files[0]}"
                elif others:
                    hint = f"did you mean %{others[0]}?"
                else:
                    hint = f"give it as --gin.{name}=VALUE"
                raise UserError(
                    f"{binding.place} refers to %{name}, which is not set; "
                    f"{hint}{'' if hint.endswith('?') else '.'}"
                )


def _walk(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(key)
            yield from _walk(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _walk(item)


def _macros(value: Any) -> Iterator[str]:
    return (v.name for v in _walk(value) if isinstance(v, Macro) and v.name != REQUIRED)


def _references(value: Any) -> Iterator[str]:
    return (_last(v.selector) for v in _walk(value) if isinstance(v, Reference))


def _last(dotted: str, count: int = 1) -> str:
    return ".".join(dotted.split(".")[-count:])


def _commented(binding: Binding, other: Binding) -> Binding:
    """`binding` with what `other` says of the same name, where it says nothing itself."""
    both = [b for b in (binding, other) if b.heading]
    return dataclasses.replace(
        binding,
        comment=binding.comment or other.comment,
        heading=next((b.heading for b in both if b.heading != b.source.name), binding.heading),
    )


def _is_default_beside(binding: Binding, earlier: Binding) -> bool:
    """Whether a binding gives way to one before it, which is not how gin has it."""
    if binding.is_required:
        return True
    return binding.source.is_default and not earlier.source.is_default and not earlier.is_required


def _takes_back(later: Binding, earlier: Binding) -> bool:
    """Whether a shipped file resets what a user's file or flag said before it."""
    return (
        later.source.shipped
        and not earlier.source.shipped
        and not earlier.is_required
        and later.value != earlier.value
    )


def shipped_macros() -> frozenset[str]:
    """Every macro that some shipped file refers to."""
    names: set[str] = set()
    for name in reader.shipped_files():
        text = (reader.gin_folder() / name).read_text(encoding="utf-8")
        names.update(re.findall(r"%((?:\w+/)*\w+)", text))
    return frozenset(names)


def _shipped_files_with(pattern: str) -> list[str]:
    """Shipped files in which a line matches a regular expression."""
    return [
        name
        for name in reader.shipped_files()
        if re.search(
            pattern, (reader.gin_folder() / name).read_text(encoding="utf-8"), re.MULTILINE
        )
    ]
