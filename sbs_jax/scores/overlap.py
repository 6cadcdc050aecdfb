"""How much two texts have in common: ROUGE-L and chrF, for rationales."""

from __future__ import annotations

import collections
import re

MOST_WORDS = 1000
"""Words of a text that `rouge_l` looks at; the time is their square."""


def rouge_l(text: str, reference: str) -> float:
    """Returns the F1 of the longest common subsequence of words, 0 to 1 (Lin 2004).

    The value is that of the package `rouge_score` (``rougeL``, without stemming) for texts of up to
    `MOST_WORDS` words. Words are runs of ASCII letters and digits in lower case, as there: all
    other characters separate words, so that `chrf` is the score for texts in other scripts. Where
    neither text has a word, the score is 1 if the texts are equal and 0 if not.

    >>> rouge_l('the cat sat', 'the cat is here')
    0.5714285714285715
    """
    a, b = (re.findall(r"[a-z0-9]+", t.lower())[:MOST_WORDS] for t in (text, reference))
    if not a or not b:
        return float(text == reference)
    row = [0] * (len(b) + 1)
    for word in a:
        previous = 0
        for j, other in enumerate(b, start=1):
            above = row[j]
            row[j] = previous + 1 if word == other else max(above, row[j - 1])
            previous = above
    common = row[-1]
    if not common:
        return 0.0
    precision, recall = common / len(a), common / len(b)
    return 2 * precision * recall / (precision + recall)


def chrf(text: str, reference: str, *, order: int = 6, beta: float = 2.0) -> float:
    """Returns the F-score of character n-grams, 0 to 1 (Popović 2015), white space left out.

    Precision and recall are means over n = 1 to `order`, as far as both texts have n-grams; recall
    counts `beta` times as much.

    >>> chrf('abc', 'abc'), chrf('abc', 'xyz')
    (1.0, 0.0)
    """
    a, b = ("".join(t.split()) for t in (text, reference))
    if not a or not b:
        return float(a == b)
    precisions, recalls = [], []
    for n in range(1, min(order, len(a), len(b)) + 1):
        of_a, of_b = _ngrams(a, n), _ngrams(b, n)
        common = (of_a & of_b).total()
        precisions.append(common / of_a.total())
        recalls.append(common / of_b.total())
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    if not precision + recall:
        return 0.0
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall)


def _ngrams(text: str, n: int) -> collections.Counter[str]:
    return collections.Counter(text[i : i + n] for i in range(len(text) - n + 1))
