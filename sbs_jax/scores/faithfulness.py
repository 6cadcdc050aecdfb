"""Does a student's rationale imply the label that it gave?"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sbs_jax.metrics import BY_VALUE, SCORERS
from sbs_jax.scores.calculator import last_equation

_NOT_NEGATED = r"(?<!\bnon-)(?<!\bnon )"


def implied_label(rationale: str, scorer: str, labels: Sequence[str] = ()) -> str | None:
    """Returns the label that a rationale implies; None where it implies none.

    Of labels from a closed set it is the one mentioned last, as whole words in any case
    (``non-entailment`` does not mention ``entailment``). Of values it is the recomputed result of
    the last equation. Otherwise it is what stands behind the last ``answer
    is`` or ``Answer:``, up to the end of the sentence.

    >>> implied_label('It is 2 + 3 = 6.', 'value')
    '5'
    >>> implied_label('A nap is sleep: it is Entailment.', '', ['neutral', 'entailment'])
    'entailment'
    """
    if labels:
        by_lower_case = {label.lower(): label for label in labels}
        pattern = "|".join(re.escape(label) for label in sorted(by_lower_case, key=len)[::-1])
        mentioned = re.findall(rf"{_NOT_NEGATED}(?<!\w)(?:{pattern})(?!\w)", rationale.lower())
        return by_lower_case[mentioned[-1]] if mentioned else None
    if scorer in BY_VALUE:
        equation = last_equation(rationale)
        return str(equation.value) if equation else None
    stated = re.findall(r"[Aa]nswer(?: is|:)\s+([^\n]+?)\.?(?=\s*$|\.\s)", rationale)
    return stated[-1].strip() if stated else None


def agreements(
    rationales: Sequence[str], answers: Sequence[str], scorer: str, labels: Sequence[str] = ()
) -> list[int]:
    """Returns 1 or 0 for each rationale that implies a label: whether the answer agrees with it."""
    scores = []
    for rationale, answer in zip(rationales, answers, strict=True):
        implied = implied_label(rationale, scorer, labels)
        if implied is not None:
            scores.append(int(SCORERS[scorer](answer, implied)))
    return scores
