"""Looking functions and parameters up as gin does, but saying what is wrong."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import gin.config

from sbs_jax.configuration.reader import nearest
from sbs_jax.configuration.statements import Binding, Import, Location, Macro, Reference
from sbs_jax.errors import UserError

_REGISTRY = gin.config._REGISTRY


def run_import(context: gin.config.ParseContext, statement: Import) -> None:
    """Imports what a gin file imports, or raises a `UserError`."""
    try:
        context.process_import(statement.statement)
    except ImportError as error:
        raise UserError(
            f"{statement.source}: `{statement.statement.format()}` fails "
            f"({first_line(error)}); check the spelling, and that the module is installed."
        ) from error
    except (SyntaxError, ValueError) as error:
        if isinstance(error, SyntaxError) and error.filename not in (None, statement.source.name):
            where = f"{error.filename}, line {error.lineno}: {error.msg}"
        else:
            where = first_line(error)
        raise UserError(
            f"{statement.source}: `{statement.statement.format()}` fails ({where})."
        ) from error


def find(
    context: gin.config.ParseContext, selector: str, source: Location
) -> gin.config.Configurable:
    """Looks a function or class up as gin does, but says what is wrong."""
    first = selector.split(".")[0]
    hint = ""
    try:
        found = context.get_configurable(selector)
        if found is not None:
            return found
        # Without dynamic registration, and on the command line.
        length = selector.count(".") + 1
        names = {".".join(name.split(".")[-length:]) for name, _ in _REGISTRY.items()}
        others = nearest(selector, sorted(names))
        hint = f"did you mean {' or '.join(others)}?" if others else "no gin file mentions it."
    except KeyError:
        meant = " or ".join(sorted(_REGISTRY.matching_selectors(selector)))
        raise UserError(f"{source}: {selector} may mean {meant}; write it out.") from None
    except NameError:
        imported = sorted(name for name in context._symbol_table if name != "gin")
        others = nearest(first, imported)
        hint = f"{first} is not imported in this file"
        hint += f"; did you mean {others[0]}?" if others else "."
    except AttributeError:
        hint = _missing_attribute(context, selector)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{source}: {selector} cannot be used: {first_line(error)}.") from error
    raise UserError(f"{source}: there is no {selector}: {hint}")


def check_parameter(configurable: gin.config.Configurable, binding: Binding) -> None:
    """Raises a `UserError` if a function has no such parameter."""
    if gin.config._might_have_parameter(configurable.wrapper, binding.parameter):
        return
    names = list(parameters(configurable.wrapped))
    others = nearest(binding.parameter, names)
    hint = f"did you mean {' or '.join(others)}?" if others else f"it has {', '.join(names)}."
    raise UserError(
        f"{binding.source}: {binding.selector} has no parameter {binding.parameter}; {hint}"
    )


def to_gin(context: gin.config.ParseContext, value: Any, source: Location) -> Any:
    """Replaces our notes of references by gin's own."""
    if isinstance(value, Macro):
        return gin.config.ParserDelegate().macro(value.name)
    if isinstance(value, Reference):
        find(context, value.selector, source)
        return gin.config.ConfigurableReference(value.scoped_selector, value.evaluate)
    if isinstance(value, dict):
        return {
            to_gin(context, key, source): to_gin(context, item, source)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(to_gin(context, item, source) for item in value)
    return value


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The named parameters of a function or of a class's constructor."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    signature = inspect.signature(function)
    return {n: p for n, p in signature.parameters.items() if p.kind not in kinds}


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, without a full stop."""
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else repr(error)


def _missing_attribute(context: gin.config.ParseContext, selector: str) -> str:
    first, *rest = selector.split(".")
    value = context._symbol_table[first]
    path = first
    for name in rest:
        if not hasattr(value, name):
            callables = [n for n in dir(value) if not n.startswith("_")]
            others = nearest(name, callables)
            return f"{path} has no {name}" + (f"; did you mean {others[0]}?" if others else ".")
        value = getattr(value, name)
        path += f".{name}"
    return f"{path} cannot be configured."
