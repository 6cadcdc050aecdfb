"""Weights of the words of a target, from a field of the data, spread over tokens. Pure numpy.

A field ``rationale_weights`` (or ``label_weights``, ``hint_weights``: the name of a field that a
part writes, and ``_weights``) says what the words of ``rationale`` count within their part's mean:

    {"rationale": "First, 2 + 3 = 5.", "rationale_weights": [0, 1, 1, 1, 1, 2]}
    {"rationale": "First, 2 + 3 = 5.", "rationale_weights": [[0, 6, 0], [15, 17, 2]]}

The first form has one weight for each word, words being what white space separates; the second has
spans of characters, ``[start, end, weight]`` with `end` excluded, and 1 elsewhere. All tokens of a
word have the same weight: that of the word, or the mean over its characters. Separators and EOS
have the weight 1.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sbs_jax.errors import UserError

PART, PIECE, ITEM = "\x1d", "\x1e", "\x1f"
"""What separates parts, their pieces, and text, field and weights of a piece, in a `spec`."""

_WORD = re.compile(r"\S+")

EncodeFn = Callable[[list[str]], Sequence[Sequence[int]]]


def word_weights(value: Any, text: str, where: str) -> str:
    """Reads the weights of a text's words.

    >>> word_weights([[3, 5, 0.5]], "a  bcde f", "here")
    '[1.0, 0.75, 1.0]'

    Args:
      value: one of the two forms at the head of this module.
      text: the text that they are the weights of.
      where: the file, the line and the field, for errors.

    Returns:
      The weight of each word, as JSON.

    Raises:
      UserError: the value has neither form, or something in it is out of its range.
    """
    words = [match.span() for match in _WORD.finditer(text)]
    if not isinstance(value, list) or not value:
        raise UserError(
            f"{where} must be a list of one weight for each word, or of spans [start, end, weight]."
        )
    if all(isinstance(one, list) and len(one) == 3 for one in value):
        of_chars = np.ones(len(text))
        for start, end, weight in value:
            inside = isinstance(start, int) and isinstance(end, int) and 0 <= start < end
            if not inside or end > len(text):
                raise UserError(
                    f"{where}: the span {[start, end]} does not lie within the {len(text)} "
                    "characters of the text."
                )
            of_chars[start:end] = _checked(weight, where)
        return json.dumps([float(of_chars[start:end].mean()) for start, end in words])
    weights = [_checked(one, where) for one in value]
    if len(weights) != len(words):
        raise UserError(f"{where} has {len(weights)} weights, but the text has {len(words)} words.")
    return json.dumps(weights)


def _checked(weight: Any, where: str) -> float:
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not number or not math.isfinite(weight) or weight < 0:
        raise UserError(f"{where}: the weight {weight!r} must be a number that is not negative.")
    return float(weight)


def spread(spec: str, tokens: int, encode: EncodeFn) -> np.ndarray:
    """Returns the weight of each token of a target, float32 [`tokens`].

    Args:
      spec: of each part its pieces; of each piece the text in front of a field, the field, and its
        words' weights as JSON, or nothing where all are 1. See `PART`.
      tokens: how many the target has, a prompt in front and EOS included.
      encode: the method `encode` of the vocabulary.
    """
    weights = np.concatenate([_of_part(part, encode) for part in spec.split(PART)])
    result = np.ones(tokens, np.float32)
    # EOS is the last one; a prompt of the decoder's, if any, comes first.
    result[tokens - 1 - weights.size : tokens - 1] = weights
    return result


def _of_part(part: str, encode: EncodeFn) -> np.ndarray:
    if not part:
        return np.zeros(0, np.float32)
    text, of_chars = "", []
    for piece in part.split(PIECE):
        between, field, weights = piece.split(ITEM)
        own = np.ones(len(field))
        if weights:
            for match, weight in zip(_WORD.finditer(field), json.loads(weights), strict=True):
                own[slice(*match.span())] = weight
        text += between + field
        of_chars += [np.ones(len(between)), own]
    chars = np.concatenate(of_chars)
    spans = [match.span() for match in _WORD.finditer(text)]
    if not spans:
        return np.ones(len(encode([text])[0]), np.float32)
    whole, *alone = encode([text, *(text[start:end] for start, end in spans)])
    counts = np.array([len(ids) for ids in alone])
    if counts.sum() != len(whole):
        # Words are not tokenized on their own: what the text up to each word's end takes.
        ends = [min(len(ids), len(whole)) for ids in encode([text[:end] for _, end in spans])]
        ends[-1] = len(whole)
        counts = np.diff(np.maximum.accumulate(ends), prepend=0)
    by_word = [chars[start:end].mean() for start, end in spans]
    return np.repeat(by_word, counts).astype(np.float32)
