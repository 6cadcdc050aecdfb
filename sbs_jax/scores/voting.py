"""The vote between a student's label, its expression and its rationale (pure Python).

Mixed Distillation (Li et al. 2023, arXiv 2312.10730) lets the answers of programs and of
explanations vote. Here a program is an arithmetic expression; a calculator evaluates it, and
nothing that a student writes is ever run.
"""

from __future__ import annotations

from sbs_jax.metrics import evaluate_expression, normalize_answer
from sbs_jax.scores.calculator import last_equation


def vote(label: str, expression: str, rationale: str = "") -> str:
    """Returns the answer that most of up to three voters give.

    They are the label, the value of the expression, and the value of the last equation of the
    rationale; an expression without a value and a rationale without an equation do not vote.
    Without a majority the label is the answer.

    >>> vote("7", "2 + 4", "He has 2. 2 + 4 = 6.")
    '6'
    >>> vote("7", "2 + 4")
    '7'

    Args:
      label: the label as the student wrote it.
      expression: the expression as the student wrote it.
      rationale: the rationale as the student wrote it; '' for none.

    Returns:
      The label itself where it wins, so that it keeps its form; else a number.
    """
    equation = last_equation(rationale)
    values = [evaluate_expression(expression), equation.value if equation else None]
    answers = [label, *(str(value) for value in values if value is not None)]
    keys = [_key(answer) for answer in answers]
    # Of several with the same number of votes the first one wins: the label.
    return max(answers, key=lambda answer: keys.count(_key(answer)))


def _key(answer: str) -> str:
    value = evaluate_expression(answer)
    return normalize_answer(answer) if value is None else str(value)
