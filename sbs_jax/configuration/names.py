"""What the names in one gin file mean: by its imports, with former names turned into today's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from gin import config_parser

from sbs_jax.configuration import former_names
from sbs_jax.configuration.statements import Binding, Import, Location, Reference


class Names:
    """What the names in one gin file mean, by its imports; former names become today's.

    Args:
      imports: all import statements of the file.
      known: full names of the functions that were bound so far, in any file; is added to.
    """

    def __init__(self, imports: Sequence[config_parser.ImportStatement], known: set[str]) -> None:
        self._known = known
        # What the file says: bound name to module.
        self._modules = {
            statement.bound_name(): (
                statement.module
                if statement.is_from or statement.alias
                else statement.module.split(".")[0]
            )
            for statement in imports
        }
        # What gin is given: module to the words by which its functions are found.
        self._bound = {
            statement.module: statement.bound_name()
            for statement in imports
            if (statement.is_from or statement.alias)
            and former_names.today(statement.module) == statement.module
        }
        self._new: list[config_parser.ImportStatement] = []

    def imported(self, statement: config_parser.ImportStatement) -> config_parser.ImportStatement:
        """The import statement, of the module's present name."""
        module = former_names.today(statement.module)
        if module == statement.module:
            return statement
        return self._import(module, statement.location)

    def new_imports(self, source: Location) -> Iterator[Import]:
        """Imports that the names given out since the last call need besides the file's own."""
        new, self._new = self._new, []
        return (Import(statement, source) for statement in new)

    def selector(self, selector: str) -> str:
        """How gin finds a function or a class: `selector`, unless that is a former name."""
        full = self._full_name(selector)
        function = former_names.today(full)
        self._known.add(function)
        return selector if function == full else self._short(function, selector)

    def translate(self, binding: Binding) -> Iterator[Binding]:
        """The binding with its full name, and what else an earlier version's file means by it."""
        value = self._translate_value(binding.value)
        if binding.is_macro:
            self._known.add(binding.selector)
            yield dataclasses.replace(binding, value=value, full_name=binding.selector)
            return
        full = self._full_name(binding.selector)
        place = former_names.place(full, binding.parameter)
        for function, parameter, built_by in place.built_by:
            # As if the shipped file stood here, which binds the same.
            yield Binding(
                binding.scope,
                self._short(function, binding.selector),
                parameter,
                Reference(self._short(built_by, binding.selector), evaluate=True),
                dataclasses.replace(binding.source, shipped=True),
                full_name=function,
            )
        self._known.add(place.function)
        selector = binding.selector
        if place.function != full:
            selector = self._short(place.function, selector)
        yield dataclasses.replace(
            binding,
            selector=selector,
            parameter=place.parameter,
            value=value,
            full_name=place.function,
        )

    def _translate_value(self, value: Any) -> Any:
        if isinstance(value, Reference):
            *scopes, selector = value.scoped_selector.split("/")
            return Reference("/".join([*scopes, self.selector(selector)]), value.evaluate)
        if isinstance(value, dict):
            translate = self._translate_value
            return {translate(key): translate(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._translate_value(item) for item in value)
        return value

    def _full_name(self, selector: str) -> str:
        first, *rest = selector.split(".")
        if first in self._modules:
            return ".".join([self._modules[first], *rest])
        matches = [k for k in self._known if k == selector or k.endswith("." + selector)]
        if matches:
            return matches[0] if len(matches) == 1 else selector
        return former_names.by_suffix(selector)

    def _short(self, function: str, written: str) -> str:
        """How gin finds a function of that full name, where the file wrote `written`."""
        if written.split(".")[0] not in self._modules:
            return function  # A flag, or a file without imports: gin searches what it knows.
        module, _, name = function.rpartition(".")
        if module not in self._bound:
            self._new.append(self._import(module, config_parser.Location("", 0, 0, "")))
        return f"{self._bound[module]}.{name}"

    def _import(
        self, module: str, location: config_parser.Location
    ) -> config_parser.ImportStatement:
        name = module.rpartition(".")[2]
        taken = name in self._bound.values() or self._modules.get(name, module) != module
        self._bound.setdefault(module, module if taken else name)
        # Not `as` another name: gin would know the functions by that name, on the command line too.
        return config_parser.ImportStatement(module, self._bound[module] == name, None, location)
