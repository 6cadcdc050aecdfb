"""The calculator of Magister et al. (2022, arXiv 2212.08410): a student's own sums, done right.

An equation is an arithmetic expression, ``=`` and a number. It may be written as people write sums
in a solution, as those of GSM8K do (`_arithmetic` has the rules):

    30 snakes * 3 birds/snake = 90 snakes
    He spent a total of $28 - $8 on soft drinks = $20.
    25% of 60 x 1 1/2 hours = 22.5

Nothing is ever run as Python: `sbs_jax.metrics.evaluate_expression` computes the value.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from sbs_jax.metrics import evaluate_expression, value_match

LONGEST = 400
"""Characters before an equals sign in which an expression is looked for."""

_ANNOTATION = re.compile(r"<<([^<>=]{1,400})=([^<>=]{0,400})>>")
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_STATED = re.compile(
    rf"\s*(?P<number>-?\s*[$€£]?\s*-?(?>{_DIGITS})(?:/(?>[0-9]+)(?![.,]?[0-9]))?)"
    r"(?P<percent>\s*%|\s+percent\b)?(?![xX](?![A-Za-z]))(?P<unit>[A-Za-z](?![A-Za-z]))?"
)
_OPERATION = re.compile(r"[0-9)]\s*[-+*/×÷−]")
_TOKEN = re.compile(
    rf"""
      (?P<ordinal>[0-9]+(?:st|nd|rd|th)\b)
    | (?P<mixed>[0-9]+\s+(?:and\s+)?[0-9]{{1,2}}/[0-9]{{1,3}}(?![0-9/.]))
    | (?P<number>(?:{_DIGITS})(?P<percent>\s*%|\s+percent\b)?(?P<attached>[A-Za-wyz](?![A-Za-z]))?)
    | (?P<compound>(?<=[A-Za-z0-9])-(?=[A-Za-z]))
    | (?P<per>/\s*[A-Za-z])
    | (?P<times>[*×·⋅∗]|[xX](?=\s*[(\[$€£.0-9])|(?<=\s)[xX](?=\s+[A-Za-z]{{2}})
        |(?:times|multiplied\ by)(?=\s+[(\[$€£.0-9]))
    | (?P<divide>//?|÷|divided\ by\b)
    | (?P<plus>\+|plus\b)
    | (?P<minus>[-−–]|minus\b)
    | (?P<open>[(\[])
    | (?P<close>[)\]])
    | (?P<unknown>[xX](?![A-Za-z]))
    | (?P<of>of(?=\s+(?:the\s+)?[$€£.0-9]))
    | (?P<word>[^\W\d_]+(?:['’][^\W\d_]+)*)
    | (?P<stop>[.!?](?=\s+[^a-z\s])|[;:\n]|,(?![0-9]))
    | (?P<broken>[,^<>√²³])
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_SIGN = re.compile(r"=|\bequals?\b(?:\s+to\b)?")
_REMARK = re.compile(r"\([^()0-9=]*\)")
_UNKNOWN = "?"
_OPERATORS = {"times": "*", "divide": "/", "plus": "+", "minus": "-", "of": "*"}


class Equation(NamedTuple):
    """An equation in a text.

    Attributes:
      stated: the number behind the equals sign, as it stands there.
      value: the value of the expression before it.
    """

    stated: str
    value: Fraction


def last_equation(text: str) -> Equation | None:
    """Returns the last equation of `text` that has an operation in it; None if there is none.

    Where there is any calculator annotation, ``<<48/2=24>>``, equations without one count only in
    the lines behind the last of them; GSM8K's solutions have one step a line.

    >>> last_equation('She sold 48 / 2 = 25 in May.')
    Equation(stated='25', value=Fraction(24, 1))
    >>> last_equation('It took 8 games x 4 hours of practice = 30 hours.')
    Equation(stated='30', value=Fraction(32, 1))
    """
    annotated = list(_ANNOTATION.finditer(text))
    behind = text[annotated[-1].end() :].partition("\n")[2] if annotated else text
    if (plain := next(_plain_equations(behind), None)) is not None:
        return plain
    for match in reversed(annotated):
        expression, stated = match[1].replace("$", " "), match[2]
        value = evaluate_expression(expression)
        if value is not None and _OPERATION.search(expression):
            return Equation(stated.strip(), value)
    return None


def recalculated(rationale: str, answer: str) -> str:
    """Returns `answer`, or the right result of the rationale's last equation if it copies it.

    >>> recalculated('48 / 2 = 25.', '25'), recalculated('48 / 2 = 25.', '7')
    ('24', '7')
    """
    equation = last_equation(rationale)
    if equation is None or not value_match(answer, equation.stated):
        return answer
    return str(equation.value)


def _plain_equations(text: str) -> Iterator[Equation]:
    """Yields the equations of a text, the last one first."""
    signs = [(0, 0), *(match.span() for match in _SIGN.finditer(text))]
    for (_, previous), (start, end) in reversed(list(itertools.pairwise(signs))):
        stated = _STATED.match(text, end)
        if stated is None:
            continue
        value = _value(text[max(previous, start - LONGEST) : start].rstrip(), stated)
        if value is not None:
            yield Equation(stated["number"].replace("$", "").strip(), value)


def _value(before: str, stated: re.Match[str]) -> Fraction | None:
    """Returns the value of the expression at the end of `before`, None if there is none.

    A per cent sign is read in two ways: as a hundredth (``20% * 50 = 10``) and as a unit
    (``100% - 40% = 60%``). The reading that gives the stated number is taken, and the more usual
    one if none does.
    """
    shown = evaluate_expression(re.sub(r"[$€£\s]", "", stated["number"]))
    percent = stated["percent"] is not None
    readings = []
    for hundredths in (not percent, percent):
        for expression in _arithmetic(before, stated["unit"], hundredths=hundredths):
            value = evaluate_expression(expression)
            if value is not None and _OPERATION.search(expression):
                readings.append(value * 100 if percent and hundredths else value)
                break
    return next((value for value in readings if value == shown), readings[0] if readings else None)


def _arithmetic(text: str, unit: str | None, *, hundredths: bool) -> Iterator[str]:
    """Yields what may be the arithmetic expression at the end of a text, the longest one first.

    Words are units and are passed over, and so is a slash before a word (``3 birds/snake``), a
    hyphen within one (``8-inch``), ordinals and signs of money. ``x`` between two operands is a
    multiplication sign, and ``of`` behind a fraction or per cent is one, too. An expression starts
    anew at the end of a sentence or a clause, and where two numbers follow one another
    (``after 2 days 3 + 4``). A letter that stands for a number makes an expression unknown:
    ``x`` where an operand is expected, and ``3y`` unless the stated number has the same letter.

    Args:
      text: before an equals sign.
      unit: the letter behind the stated number, if there is one.
      hundredths: read ``20%`` as ``20/100``.
    """
    pieces: list[str] = []
    expects_operand = True
    is_share = False  # whether the last operand is a fraction or per cent
    previous_end = 0  # of the operand before, without white space
    for match in _TOKEN.finditer(_REMARK.sub(" ", text)):
        kind, adjoins = match.lastgroup, match.start() == previous_end
        kind = "number" if kind in ("percent", "attached") else kind
        if kind in ("word", "compound", "per", "ordinal", "other") or (
            kind == "of" and not is_share
        ):
            continue
        if kind in ("number", "mixed"):
            if not expects_operand:
                pieces = []
            is_share = bool(match["percent"]) or kind == "mixed" or pieces[-1:] == ["/"]
            is_known = match["attached"] in (None, unit)
            pieces.append(_operand(match, hundredths=hundredths) if is_known else _UNKNOWN)
            expects_operand, previous_end = False, match.end()
        elif kind == "open":
            if not expects_operand:
                if adjoins:
                    pieces.append("*")  # 8(26)
                else:
                    pieces = []
            pieces.append("(")
            expects_operand = True
        elif kind == "close":
            pieces.append(")")
        elif kind == "minus" and not pieces and match.string[match.end() :][:1].isspace():
            continue  # the mark of a list
        elif kind in _OPERATORS:
            pieces.append(_OPERATORS[kind])
            expects_operand = True
        elif kind == "stop":
            pieces, expects_operand = [], True
        else:
            pieces.append(_UNKNOWN)
            expects_operand = kind == "broken"
    for start in range(len(pieces) if _UNKNOWN not in pieces else 0):
        yield "".join(pieces[start:])


def _operand(match: re.Match[str], *, hundredths: bool) -> str:
    if match["mixed"]:
        whole, *_, fraction = match["mixed"].split()
        return f"({whole}+{fraction})"
    found = re.match(_DIGITS, match["number"])
    assert found is not None, "a number begins with digits"
    digits = found[0]
    return f"({digits}/100)" if match["percent"] and hundredths else digits
