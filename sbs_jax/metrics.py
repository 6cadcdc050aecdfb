"""Scores of answers: normalising, exact match, value of an arithmetic expression, standard error.

Pure Python, and a leaf: no jax, no TensorFlow. Nothing here ever evaluates model output as code:
`evaluate_expression` has a tokenizer and a parser of its own, and bounds on all that it does.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from fractions import Fraction

Value = float | int | None
"""A metric as it is recorded and shown; None where there was nothing to measure."""

VALUE_TOLERANCE = Fraction(1, 10**6)
"""Two values count as equal when they differ by at most this times max(1, |target|)."""

# Bounds of evaluate_expression. Real answers stay far below them; what exceeds them is wrong.
MAX_EXPRESSION_LENGTH = 1000  # characters
MAX_EXPRESSION_DEPTH = 64  # open parentheses and pending operators at one time
MAX_VALUE_BITS = 1024  # of the numerator or the denominator of any intermediate value


def normalize_answer(text: str) -> str:
    """Returns `text` in NFKC form with runs of white space made one space, and stripped.

    This undoes exactly what SentencePiece does to a text between encoding and decoding, so that
    a prediction is compared with its target as the student could have written it. Case and
    punctuation count.
    """
    return " ".join(unicodedata.normalize("NFKC", text).split())


def exact_match(prediction: str, target: str) -> bool:
    """Tells whether both texts are the same after `normalize_answer`."""
    return normalize_answer(prediction) == normalize_answer(target)


def value_match(prediction: str, target: str) -> bool:
    """Tells whether two arithmetic expressions have the same value, up to `VALUE_TOLERANCE`.

    A prediction (or a target) that has no value is wrong.

    >>> value_match('(84 / 2)', '( 84.0 / 2.0 )')
    True
    """
    predicted, wanted = evaluate_expression(prediction), evaluate_expression(target)
    if predicted is None or wanted is None:
        return False
    return abs(predicted - wanted) <= VALUE_TOLERANCE * max(Fraction(1), abs(wanted))


def value_or_text_match(prediction: str, target: str) -> bool:
    """Tells whether a prediction has the target's value; a target without one is compared as text.

    >>> value_or_text_match('(4 + 5)', '9'), value_or_text_match('3:30 p.m.', '3:30 p.m.')
    (True, True)
    """
    if evaluate_expression(target) is None:
        return exact_match(prediction, target)
    return value_match(prediction, target)


SCORERS: dict[str, Callable[[str, str], bool]] = {
    "exact_match": exact_match,
    "value": value_match,
    "value_or_text": value_or_text_match,
}
"""Scorers ``(prediction, target) -> right?`` by name; data sets name theirs when they register."""


BY_VALUE = ("value", "value_or_text")
"""The scorers that compare values; a rationale's sums say something about such answers."""


def accuracy(scores: Sequence[float]) -> float:
    """Returns the share of true `scores`, NaN for none."""
    return sum(map(bool, scores)) / len(scores) if scores else math.nan


def standard_error(scores: Sequence[float]) -> float:
    """Returns the standard error of the mean of `scores`.

    This is the sample standard deviation (n - 1 in the denominator) over sqrt(n); NaN for fewer
    than two scores. For 0/1 scores it is sqrt(p (1 - p) / (n - 1)).
    """
    n = len(scores)
    if n < 2:
        return math.nan
    mean = math.fsum(scores) / n
    return math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / (n - 1) / n)


def evaluate_expression(text: str) -> Fraction | None:
    """Returns the exact value of an arithmetic expression, or None.

    Known are decimal numbers (``84``, ``84.0``, ``.5``, thousands as in ``1,234.5``), ``+ - * /``,
    their typographic forms ``× ÷ −``, unary minus, parentheses and white space. Anything else,
    a division by zero and whatever exceeds the bounds above gives None; this never raises.

    >>> evaluate_expression('( ( 17.0 + 15.0 ) + 2.0 )')
    Fraction(34, 1)
    >>> evaluate_expression('(34 + 40) and (62 - 17)') is None
    True
    """
    if len(text) > MAX_EXPRESSION_LENGTH:
        return None
    tokens = _tokenize(text)
    return None if tokens is None else _evaluate_tokens(tokens)


# A group of thousands must be complete and must not be followed by another digit or group, or else
# the comma separates two answers ("175, 5", "11,21") and the text has no value.
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<thousands>[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9,]))
      | (?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)
      | (?P<operator>[-+*/()×÷−])
    )\s*""",
    re.VERBOSE,
)
_CANONICAL = {"×": "*", "÷": "/", "−": "-"}
_NEGATE = "negate"
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, _NEGATE: 3}


def _tokenize(text: str) -> list[str | Fraction] | None:
    tokens: list[str | Fraction] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            return None
        position = match.end()
        if operator := match["operator"]:
            tokens.append(_CANONICAL.get(operator, operator))
        else:
            digits = match["thousands"] or match["number"]
            value = Fraction(digits.replace(",", "").removesuffix("."))
            if _too_big(value):
                return None
            tokens.append(value)
    return tokens


def _evaluate_tokens(tokens: Sequence[str | Fraction]) -> Fraction | None:
    """Evaluates by operator precedence (Dijkstra's shunting yard): no recursion, one pass."""
    values: list[Fraction] = []
    operators: list[str] = []
    expect_operand = True
    for token in tokens:
        if len(operators) > MAX_EXPRESSION_DEPTH:
            return None
        if isinstance(token, Fraction):
            if not expect_operand:
                return None
            values.append(token)
            expect_operand = False
        elif token == "(":
            if not expect_operand:
                return None
            operators.append(token)
        elif token == ")":
            if expect_operand:
                return None
            while operators and operators[-1] != "(":
                if not _apply(operators.pop(), values):
                    return None
            if not operators:
                return None
            operators.pop()
        elif expect_operand:
            if token != "-":
                return None
            operators.append(_NEGATE)
        else:
            while operators and _PRECEDENCE.get(operators[-1], 0) >= _PRECEDENCE[token]:
                if not _apply(operators.pop(), values):
                    return None
            operators.append(token)
            expect_operand = True
    if expect_operand:
        return None
    while operators:
        operator = operators.pop()
        if operator == "(" or not _apply(operator, values):
            return None
    return values.pop()


def _apply(operator: str, values: list[Fraction]) -> bool:
    """Replaces the operands on top of `values` by the result; False if there is none."""
    right = values.pop()
    if operator == _NEGATE:
        values.append(-right)
        return True
    left = values.pop()
    if operator == "+":
        result = left + right
    elif operator == "-":
        result = left - right
    elif operator == "*":
        result = left * right
    elif right:
        result = left / right
    else:
        return False
    values.append(result)
    return not _too_big(result)


def _too_big(value: Fraction) -> bool:
    return max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_VALUE_BITS
