"""Sanitizes text of LLMs and servers before it goes into a file or onto a terminal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# C0 but \t \n, DEL, C1, surrogates, bidirectional overrides: no rationale needs them, and
# NUL, lone surrogates and escapes break tokenizers, UTF-8 files and terminals.
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]"
)
_LINE_BREAKS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_SHOWN = 2000
"""How many characters of a text a terminal shows unless the caller says."""


def clean(text: str) -> str:
    """Returns `text` as plain text for files that others read.

    Unusual line breaks become newlines, control characters and lone surrogates are dropped. The
    journal keeps the original.
    """
    if text.isascii() and text.isprintable():
        return text
    return _FORBIDDEN.sub("", _LINE_BREAKS.sub("\n", text))


def printable(text: str, limit: int = _SHOWN) -> str:
    """Returns `text` for a terminal: as `clean`, and shortened to `limit` characters."""
    shown = clean(text[: limit + 1])
    if len(text) > limit:
        shown = f"{shown[:limit]} … ({len(text):,} characters)"
    return shown


def say(console: Console, text: str, limit: int = _SHOWN, **options: Any) -> None:
    """Prints `text`, which may hold names and words of others: `printable`, and never markup."""
    console.print(printable(text, limit), markup=False, highlight=False, **options)
