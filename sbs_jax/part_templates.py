"""Templates of parts: texts that name fields of an example, and settings in capital letters.

This module is a leaf: it imports nothing of sbs_jax.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Iterable, Mapping

Pieces = tuple[tuple[str, str | None], ...]


def as_template(text: str) -> str:
    """Returns a template; a single word stands for the field of that name."""
    return f"{{{text}}}" if text.isidentifier() else text


def pieces(template: str, settings: Mapping[str, str]) -> Pieces:
    """Takes a template apart into fields, each with the text in front of it.

    >>> pieces("{rationale}{JOINT_SEPARATOR}{label}", {"JOINT_SEPARATOR": " Answer: "})
    (('', 'rationale'), (' Answer: ', 'label'))

    Args:
      template: see `parts.Part`.
      settings: the texts that stand for names in capital letters.

    Returns:
      Text and field, one after the other; a text at the end has the field None.
    """
    result: list[tuple[str, str | None]] = []
    text = ""
    for literal, name, _, _ in string.Formatter().parse(template):
        text += literal
        if name is None:
            continue
        if name.isupper():
            text += settings[name]
            continue
        result.append((text, name))
        text = ""
    return (*result, (text, None)) if text else tuple(result)


@functools.lru_cache(maxsize=1024)
def fields_of(template: str) -> tuple[str, ...]:
    """Returns the fields that a template names, those of the settings left out."""
    found = (name for _, name, _, _ in string.Formatter().parse(template))
    return tuple(name for name in found if name and not name.isupper())


def fill(template: str, settings: Mapping[str, str]) -> str:
    """Returns a template without fields as a text."""
    return "".join(text for text, _ in pieces(template, settings))


def split_fields(text: str, found: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """Cuts a text at the first occurrences of what stands in front of each field but the first."""
    result: dict[str, str] = {}
    last: str | None = None
    for between, field in found:
        if last is None:
            rest = text
            stripped = between.strip()
            text = rest.removeprefix(stripped) if stripped else rest
        else:
            result[last], _, text = text.partition(between.strip() or "\0")
        if field is None:
            return result
        last = field
    if last is not None:
        result[last] = text
    return result
