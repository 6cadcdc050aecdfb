"""Takes a target apart in which a label stands behind a rationale (no TensorFlow)."""

from __future__ import annotations


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
