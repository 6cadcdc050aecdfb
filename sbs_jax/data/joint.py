"""Texts in which an input or a label stands beside a rationale (no TensorFlow)."""

from __future__ import annotations

from typing import Protocol


class _Separated(Protocol):
    @property
    def rationale_input_separator(self) -> str: ...


def split_joint(text: str, separator: str) -> tuple[str, str]:
    """Takes a target (or a prediction) of the method ``joint`` apart.

    White space around the separator does not matter: vocabularies may change it.

    >>> split_joint('2 + 3 = 5. Answer: 5', ' Answer: ')
    ('2 + 3 = 5.', '5')
    >>> split_joint('2 + 3 = 5.', ' Answer: ')
    ('2 + 3 = 5.', '')

    Returns:
      The rationale and the label; the label is ``''`` where the separator does not occur.
    """
    rationale, found, label = text.rpartition(separator.strip())
    return (rationale.strip(), label.strip()) if found else (text.strip(), "")


def explained_input(text: str, rationale: str, settings: _Separated) -> str:
    """Returns the input of the method ``rationale_input``, without its prefix.

    Without a rationale it is `text` alone.
    """
    if not rationale.strip():
        return text
    return text + settings.rationale_input_separator + rationale
