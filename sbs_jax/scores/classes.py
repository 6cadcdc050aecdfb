"""Scores of answers from a closed set of labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sbs_jax.metrics import normalize_answer

OTHER = "other"
"""What a prediction that is no label counts as in the confusion matrix."""


def confusion_matrix(
    predictions: Sequence[str], targets: Sequence[str], labels: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Counts by target and prediction: ``matrix[target][prediction]``, `OTHER` included.

    Raises:
      ValueError: a target is no label.
    """
    known = {normalize_answer(label): label for label in labels}
    matrix = {target: dict.fromkeys([*labels, OTHER], 0) for target in labels}
    for prediction, target in zip(predictions, targets, strict=True):
        if normalize_answer(target) not in known:
            raise ValueError(f"{target!r} is none of the labels")
        row = matrix[known[normalize_answer(target)]]
        row[known.get(normalize_answer(prediction), OTHER)] += 1
    return matrix


def class_accuracies(matrix: dict[str, dict[str, int]]) -> dict[str, float | None]:
    """Returns the share of each label's examples that were answered right; None for no example."""
    return {
        label: row[label] / sum(row.values()) if sum(row.values()) else None
        for label, row in matrix.items()
    }


def macro_f1(matrix: dict[str, dict[str, int]]) -> float:
    """Returns the mean F1 of all labels; a label that neither occurs nor is predicted is left out.

    >>> macro_f1({'a': {'a': 1, 'b': 1, 'other': 0}, 'b': {'a': 0, 'b': 2, 'other': 0}})
    0.7333333333333334
    """
    scores = []
    for label, row in matrix.items():
        right = row[label]
        wanted = sum(row.values())
        predicted = sum(other[label] for other in matrix.values())
        if wanted + predicted:
            scores.append(2 * right / (wanted + predicted))
    return sum(scores) / len(scores) if scores else 0.0


def class_accuracy_errors(matrix: dict[str, dict[str, int]]) -> dict[str, float | None]:
    """Returns the standard errors of `class_accuracies`; None for fewer than two examples.

    They are those of a mean of 0 and 1 over the class's own n examples, sqrt(p (1 - p) / (n - 1)),
    as `sbs_jax.metrics.standard_error` gives them.
    """
    errors: dict[str, float | None] = {}
    for label, row in matrix.items():
        n = sum(row.values())
        p = row[label] / n if n else 0.0
        errors[label] = math.sqrt(p * (1 - p) / (n - 1)) if n > 1 else None
    return errors


def macro_f1_error(matrix: dict[str, dict[str, int]]) -> float:
    """Returns the standard error of `macro_f1`, by bootstrap over the examples.

    F1 is no mean over examples, so that it has no simple formula. 1,000 times as many examples
    as there are get drawn with replacement, which is a multinomial draw of the matrix's cells; the
    result is the standard deviation of their macro-F1s (NaN for fewer than two examples). The seed
    is always 0.
    """
    labels = list(matrix)
    answers = [*labels, OTHER]
    counts = np.array([[matrix[label][answer] for answer in answers] for label in labels])
    total = int(counts.sum())
    if total < 2:
        return math.nan
    drawn = np.random.default_rng(0).multinomial(total, counts.ravel() / total, size=1000)
    drawn = drawn.reshape(-1, *counts.shape)
    right = np.diagonal(drawn[:, :, : len(labels)], axis1=1, axis2=2)
    sizes = drawn.sum(axis=2) + drawn[:, :, : len(labels)].sum(axis=1)
    scores = np.divide(2 * right, sizes, out=np.zeros(right.shape), where=sizes > 0)
    return float((scores.sum(axis=1) / (sizes > 0).sum(axis=1)).std(ddof=1))
