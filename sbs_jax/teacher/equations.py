"""Do the equations of a rationale hold?

A right label over ``84 / 2 = 40`` is a wrong explanation, and a filter that looks at labels alone
keeps it. Values come from `metrics.evaluate_expression`, never from `eval`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

from sbs_jax import metrics

_MAX_LENGTH = 20_000
_TOKEN = re.compile(
    r"""(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)
      | (?P<times>(?<=[\d)\s])[xX](?=[\s\d($]))
      | (?P<op>[-+*/×·∙÷−–])
      | (?P<open>\()
      | (?P<close>\))
      | (?P<equals>=)
      | (?P<percent>%)
      | (?P<ignored>[$€£]|\\)
      | (?P<word>[^\W\d_]+)
      | (?P<end>[.;:!?\n,≈~])
      | (?P<other>[^\s])
    """,
    re.VERBOSE,
)
_SYMBOL = {"×": "*", "x": "*", "X": "*", "·": "*", "∙": "*", "÷": "/", "−": "-", "–": "-"}
_WORD_OPERATORS = {"times": "*", "plus": "+", "minus": "-"}
# What follows one of these is a part of an amount that we cannot read: "half of 120 - 20 = 40".
_OPAQUE = frozenset(
    (  # noqa: SIM905 (a word list)
        "of half twice double triple third thirds quarter quarters dozen percent squared "
        "cubed mod remainder more less than sqrt log frac"
    ).split()
)
# Words after a number that begin something new, and so are no unit of it.
_NOT_UNITS = frozenset(
    (  # noqa: SIM905 (a word list)
        "and or is are was were so then the that to from in at for equals which we he she "
        "they it a an has had have if by per each with but because leaving gives makes "
        "giving making on into there now as"
    ).split()
)
_ARTICLES = frozenset({"a", "i"})


@dataclass(slots=True)
class _Side:
    """One side of an equation, as far as it was read."""

    pieces: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    start: int = 0
    end: int = 0
    opaque: bool = False

    def add(self, kind: str, piece: str, start: int, end: int) -> None:
        if not self.kinds:
            self.start = start
        self.kinds.append(kind)
        self.pieces.append(piece)
        self.end = end

    @property
    def last(self) -> str:
        return self.kinds[-1] if self.kinds else ""

    @property
    def expression(self) -> str:
        """The arithmetic, without a parenthesis that a remark before it had opened."""
        pieces, depth = [], 0
        for piece in reversed(self.pieces):
            depth += (piece == ")") - (piece == "(")
            if depth < 0:
                break
            pieces.append(piece)
        return "".join(reversed(pieces))

    @property
    def is_fraction(self) -> bool:
        return self.kinds[-3:] == ["number", "op", "number"] and self.pieces[-2] == "/"

    @property
    def judged(self) -> bool:
        return not self.opaque and "number" in self.kinds

    @property
    def computes(self) -> bool:
        return "op" in self.kinds


def wrong_equations(text: str) -> Iterator[str]:
    """Yields the equations in `text` that do not hold, as they are written there.

    A chain ``a = b = c`` is two equations. Units (``7 apples + 5 apples = 12 apples``) and money
    signs are read over. Not judged: a side that is not plain arithmetic (``x = 5``), an equation
    without any operator (``1 dozen = 12 eggs``). A result may be rounded or cut to the decimals
    that it is written with; one without decimals must be exact. Only the first 20,000 characters
    are read; the time is linear.

    >>> list(wrong_equations("84 / 2 = 40. So 40 + 2 = 42."))
    ['84 / 2 = 40']
    """
    text = text[:_MAX_LENGTH]
    for chain in _chains(text):
        for left, right in pairwise(chain):
            if (
                left.judged
                and right.judged
                and (left.computes or right.computes)
                and not _holds(left, right)
            ):
                yield text[left.start : right.end].strip()


def _chains(text: str) -> Iterator[list[_Side]]:
    chain: list[_Side] = []
    side = _Side()
    fresh = True  # nothing of this sentence or line has been read yet

    def finish(opaque_next: bool = False) -> Iterator[list[_Side]]:
        nonlocal chain, side
        if chain:
            done, chain = [*chain, side], []
            yield done
        side = _Side(opaque=opaque_next)

    for match in _TOKEN.finditer(text):
        kind, value, start, end = match.lastgroup, match.group(), match.start(), match.end()
        was_fresh, fresh = fresh, kind == "end"
        complete = side.last in ("number", "close", "unit", "percent")
        if kind == "number":
            if complete:
                yield from finish()
            side.add("number", value.replace(",", ""), start, end)
        elif kind in ("op", "times"):
            _operator(side, chain, kind, value, match, was_fresh)
        elif kind == "open":
            if complete:
                yield from finish()
            side.add("open", "(", start, end)
        elif kind == "close":
            if side.kinds.count("open") > side.kinds.count("close"):
                side.add("close", ")", start, end)
            else:
                yield from finish()
        elif kind == "percent":
            if side.last == "number":
                side.add("percent", "/100", start, end)
        elif kind == "equals":
            chain.append(side)
            side = _Side()
        elif kind == "word":
            word = value.lower()
            if word in _WORD_OPERATORS and complete:
                side.add("op", _WORD_OPERATORS[word], start, end)
            elif word == "of" and (side.last == "percent" or side.is_fraction):
                side.add("op", "*", start, end)
            elif word in ("remainder", "r") and complete and chain:
                chain.clear()
                side = _Side(opaque=True)
            elif word in _OPAQUE or (len(word) == 1 and word not in _ARTICLES):
                yield from finish(opaque_next=True)
            elif complete and side.last != "percent" and word not in _NOT_UNITS:
                side.add("unit", "", side.end, side.end)
            elif side.kinds or chain or side.opaque:
                yield from finish()
        elif kind == "end":
            yield from finish()
        elif kind == "other":
            yield from finish(opaque_next=True)
    yield from finish()


def _operator(
    side: _Side, chain: list[_Side], kind: str, value: str, match: re.Match[str], fresh: bool
) -> None:
    """Adds an operator to `side`, unless it is a bullet or belongs to something unknown."""
    symbol = _SYMBOL.get(value, value)
    if side.kinds:
        side.add("op", symbol, match.start(), match.end())
    elif kind == "op" and symbol == "-" and (chain or fresh):
        # "= -5", "-5 + 3 = -2"; but "- 84 / 2 = 42" is an item of a list.
        if not match.string[match.end() : match.end() + 1].isspace():
            side.add("op", symbol, match.start(), match.end())
    elif not (symbol in "*+" and fresh):
        side.opaque = True


def _holds(left: _Side, right: _Side) -> bool:
    a = metrics.evaluate_expression(left.expression)
    b = metrics.evaluate_expression(right.expression)
    if a is None or b is None or a == b:
        return True
    if right.last == "percent" and a == 100 * b:
        return True
    return any(
        decimals and abs(a - b) < Fraction(1, 10 ** len(decimals))
        for decimals in (_decimals(left), _decimals(right))
    )


def _decimals(side: _Side) -> str:
    """Returns the digits behind the point of a side that is one number, else ''."""
    numbers = [p for p, kind in zip(side.pieces, side.kinds, strict=True) if kind == "number"]
    if len(numbers) != 1:
        return ""
    digits = numbers[0].partition(".")[2]
    return digits + "00" if side.last == "percent" and digits else digits
