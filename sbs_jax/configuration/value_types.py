"""Does a gin value fit the annotation of the parameter that it is bound to?"""

from __future__ import annotations

import collections.abc
import inspect
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# In `Annotated[str, "or None"]`: None may be bound too, and stands for the default.
_OR_NONE = "or None"
_LITERALS = (str, bool, int, float, type(None), dict, list, tuple)


def annotations_of(function: Any) -> dict[str, Any]:
    """Annotations of a function's or a class's parameters; {} where they cannot be evaluated."""
    function = inspect.unwrap(function)
    if inspect.isclass(function) and "__dataclass_fields__" not in vars(function):
        function = function.__init__
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # Any name in an annotation may be missing at run time.
        return {}


def fits(value: Any, annotation: Any) -> bool:
    """Whether a literal may be bound to a parameter so annotated; yes where that cannot be known.

    >>> fits(3, float), fits("3", int | None), fits({"inputs": 64}, dict[str, int])
    (True, False, True)
    """
    if annotation is Any or not isinstance(value, _LITERALS):
        return True  # A reference or an unset macro: gin or the function itself will see.
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is None or annotation is type(None):
        return value is None
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is typing.Literal:
        return value in args
    if origin is typing.Annotated:
        return (value is None and _OR_NONE in args) or fits(value, args[0])
    if origin is typing.Final:
        return fits(value, args[0])
    if annotation is bool:
        return isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is str:
        return isinstance(value, str)
    kind = origin or annotation
    if not isinstance(kind, type) or kind is object or getattr(kind, "_is_protocol", False):
        return True
    if issubclass(kind, os.PathLike):
        return isinstance(value, str)
    if annotation is Callable or origin is collections.abc.Callable:
        return False
    if issubclass(kind, Mapping):
        return isinstance(value, dict) and _items_fit(value, args)
    if kind in (list, tuple) or issubclass(kind, collections.abc.Sequence):
        return isinstance(value, list | tuple) and _elements_fit(value, args)
    if kind in (collections.abc.Iterable, collections.abc.Collection):
        return isinstance(value, list | tuple | dict)
    return isinstance(value, kind)


def describe(annotation: Any) -> str:
    """An annotation in words: `int or None`."""
    if annotation is None or annotation is type(None):
        return "None"
    args = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(arg) for arg in args)
    if origin is typing.Annotated:
        return describe(args[0]) + (" or None" if _OR_NONE in args else "")
    if origin is typing.Literal:
        return "one of " * (len(args) > 1) + ", ".join(map(repr, args))
    names = {
        bool: "True or False",
        int: "a whole number",
        float: "a number",
        str: "a string",
        collections.abc.Callable: "a function",
    }
    kind = origin or annotation
    if kind in names:
        return names[kind]
    if isinstance(kind, type) and issubclass(kind, os.PathLike):
        return "a path"
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "a dict" + _each("value", args[1:])
    if isinstance(kind, type) and issubclass(kind, collections.abc.Sequence):
        return "a list" + _each("item", args[:1])
    return getattr(kind, "__name__", str(kind))


def _each(what: str, annotation: tuple[Any, ...]) -> str:
    return f" (each {what} {describe(annotation[0])})" if annotation not in ((), (Any,)) else ""


def hint(value: Any, annotation: Any) -> str:
    """What to write instead of a value that does not fit, in parentheses, where that is plain."""
    if isinstance(value, str) and value.lower() in ("true", "false", "none"):
        return f" (write {value.capitalize()})"
    if isinstance(value, float) and value.is_integer() and fits(int(value), annotation):
        return f" (write {int(value)})"
    return ""


def _items_fit(value: dict[Any, Any], args: tuple[Any, ...]) -> bool:
    if len(args) != 2:
        return True
    return all(fits(k, args[0]) and fits(v, args[1]) for k, v in value.items())


def _elements_fit(value: Sequence[Any], args: tuple[Any, ...]) -> bool:
    if not args:
        return True
    if len(args) == 1 or args[-1] is Ellipsis:
        return all(fits(item, args[0]) for item in value)
    return len(value) == len(args) and all(map(fits, value, args))
