"""Keeps keys and passwords out of what is written and shown. A leaf: the standard library alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

REDACTED = "<redacted>"

_SECRET = re.compile(
    r"(key|token|secrets?|password|passwd|credentials?|authorization|bearer)$", re.IGNORECASE
)
# Names of a tokenizer's own pieces: what stands under them is no secret.
_PIECE = re.compile(r"(bos|eos|pad|unk|sep|cls|mask|stop|start|end)_?token$", re.IGNORECASE)
_DICT_KEY = re.compile(r"""["']([\w.-]+)["']\s*:""")
_SHORTEST = 8


def is_secret(name: str) -> bool:
    """Whether strings under this name must not be shown.

    >>> is_secret("API_KEY"), is_secret("hub.authToken"), is_secret("MAX_TOKENS")
    (True, True, False)
    """
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return any(_SECRET.search(word) for word in words)


def holds_secret(name: str, text: str) -> bool:
    """Whether `name=text` on a command line holds a secret, by its own name or a key in `text`.

    >>> holds_secret("API_KEY", "x"), holds_secret("EXTRA_BODY", "{'api_key': 'x'}")
    (True, True)
    >>> holds_secret("MODEL_DIR", "runs/key")
    False
    """
    return is_secret(name) or any(map(is_secret, _DICT_KEY.findall(text)))


def redact(value: Any, *, secret: bool = False) -> Any:
    """Returns `value` with `<redacted>` in the place of every secret string.

    Args:
      value: strings, numbers, and mappings, lists and tuples of them.
      secret: whether `value` itself stands under a secret name.
    """
    if isinstance(value, str):
        return REDACTED if secret else value
    if isinstance(value, Mapping):
        return {
            key: redact(item, secret=secret or (isinstance(key, str) and is_secret(key)))
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(redact(item, secret=secret) for item in value)
    return value


def secrets_in(value: Any, *, secret: bool = False) -> Iterator[str]:
    """Yields the strings that stand under secret names in nested mappings, lists and tuples."""
    if isinstance(value, str) and secret:
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            named = isinstance(key, str) and is_secret(key) and not _PIECE.search(key)
            yield from secrets_in(item, secret=secret or named)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from secrets_in(item, secret=secret)


class Blotter:
    """Replaces known secrets in text that others wrote.

    Attributes:
      secrets: the strings that are replaced, the longest first.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """Takes the secrets; blank ones count as none."""
        given = {secret.strip() for secret in secrets}
        # "Bearer abc" is a secret because of abc.
        given |= {word for secret in given for word in secret.split() if len(word) >= _SHORTEST}
        self.secrets = sorted(filter(None, given), key=len, reverse=True)
        self._long = [secret for secret in self.secrets if len(secret) >= _SHORTEST]

    def in_message(self, text: str) -> str:
        """Returns an error or a log line without any of the secrets."""
        return _replace(text, self.secrets)

    def in_text(self, text: str) -> str:
        """Returns a model's text without the secrets of at least 8 characters.

        Servers without a real key are asked with words such as `EMPTY`, which a rationale may hold.
        """
        return _replace(text, self._long)

    def in_value(self, value: Any) -> Any:
        """Applies `in_text` to all strings of nested mappings, lists and tuples."""
        if not self._long:
            return value
        if isinstance(value, str):
            return self.in_text(value)
        if isinstance(value, Mapping):
            return {self.in_value(key): self.in_value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.in_value(item) for item in value)
        return value


def _replace(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, "[key]")
    return text
