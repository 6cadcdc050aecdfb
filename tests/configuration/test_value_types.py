from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from sbs_jax.configuration import value_types
from sbs_jax.configuration.statements import Macro


@pytest.mark.parametrize(
    ("value", "annotation", "fits"),
    [
        (1, int, True),
        (True, int, False),
        (1.0, int, False),
        (1, float, True),
        (True, float, False),
        ("1", float, False),
        (1, bool, False),
        (False, bool, True),
        ("x", str, True),
        (1, str, False),
        (None, int | None, True),
        ("1", int | None, False),
        ("x", str | os.PathLike[str], True),
        ("x", Path, True),
        (3, Path, False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        ({"inputs": 3}, Mapping[str, int], True),
        ({"inputs": "3"}, Mapping[str, int], False),
        ([], dict, False),
        (["a"], Sequence[str], True),
        (("a", 1), Sequence[str], False),
        ("a", Sequence[str], False),
        (("a", 1), tuple[str, int], True),
        (("a",), tuple[str, ...], True),
        (0.1, float | Callable[[int], float], True),
        ("0.1", float | Callable[[int], float], False),
        (3, ValueError, False),
        (Macro("X"), int, True),
        (3, Any, True),
        ("x", "not evaluated", True),
    ],
)
def test_fits(value, annotation, fits):
    assert value_types.fits(value, annotation) is fits


def test_annotations_of_functions_and_dataclasses():
    from tests.configuration import toy

    assert value_types.annotations_of(toy.Model)["width"] is int
    assert value_types.annotations_of(toy.slow)["rate"] is float

    def broken(x: Missing): ...

    assert value_types.annotations_of(broken) == {}


def test_describe_and_hint():
    assert value_types.describe(int | None) == "a whole number or None"
    assert value_types.describe(Literal["a", "b"]) == "one of 'a', 'b'"
    assert value_types.describe(Literal["auto"]) == "'auto'"
    assert value_types.describe(Mapping[str, int]) == "a dict (each value a whole number)"
    assert value_types.describe(Sequence[str]) == "a list (each item a string)"
    assert value_types.describe(dict) == "a dict"
    assert value_types.hint("false", bool) == " (write False)"
    assert value_types.hint(1e3, int) == " (write 1000)"
    assert value_types.hint("x", bool) == ""
