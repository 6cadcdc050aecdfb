"""Predictions for the same examples: is one student, or method, better? `sbs_jax.eval --compare`.

Two files are compared by a paired bootstrap over their examples. Several runs a side, of which each
has a partner on the other (the same seed, say), are compared by one over runs and examples: the
runs that there are, too, are a sample of those that there might be.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sbs_jax import metrics
from sbs_jax.errors import UserError
from sbs_jax.json_files import read_jsonl

_SAMPLES = 10_000
"""How often a bootstrap draws."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The result of a paired bootstrap.

    Attributes:
      examples: the number of examples in both files.
      first: accuracy of the first file.
      second: the second of the second.
      first_stderr: standard error of `first`.
      second_stderr: the standard error of `second`.
      low: 2.5 % quantile of the difference second - first.
      high: 97.5 % quantile.
      p_value: two-sided: how often a resampled difference, moved to mean 0, is as large as the
        one that was found.
    """

    examples: int
    first: float
    second: float
    first_stderr: float
    second_stderr: float
    low: float
    high: float
    p_value: float

    def __str__(self) -> str:
        return (
            f"A {self.first:.4f} ± {self.first_stderr:.4f}, B {self.second:.4f} ± "
            f"{self.second_stderr:.4f} on {self.examples} examples\n"
            f"B - A {self.second - self.first:+.4f}, 95 % interval [{self.low:+.4f}, "
            f"{self.high:+.4f}], p = {self.p_value:.4f} (paired bootstrap)"
        )


@dataclasses.dataclass(frozen=True)
class RunsComparison:
    """The result of a paired bootstrap over runs and examples.

    Attributes:
      pairs: the prediction files of each pair of runs.
      examples: the number of examples in every file.
      first: accuracy of each run of the first side.
      second: the second of each run of the second side.
      low: 2.5 % quantile of the difference of the means second - first.
      high: 97.5 % quantile.
      p_value: two-sided; see `Comparison`.
    """

    pairs: tuple[tuple[str, str], ...]
    examples: int
    first: tuple[float, ...]
    second: tuple[float, ...]
    low: float
    high: float
    p_value: float

    def __str__(self) -> str:
        lines = [
            f"A {a:.4f}, B {b:.4f}, B - A {b - a:+.4f}: {x}, {y}"
            for (x, y), a, b in zip(self.pairs, self.first, self.second, strict=True)
        ]
        first, second = np.mean(self.first), np.mean(self.second)
        return "\n".join(
            [
                *lines,
                f"A {first:.4f}, B {second:.4f}: means of {len(lines)} runs on {self.examples} "
                "examples",
                f"B - A {second - first:+.4f}, 95 % interval [{self.low:+.4f}, {self.high:+.4f}], "
                f"p = {self.p_value:.4f} (paired bootstrap of runs and examples)",
            ]
        )


def compare(first: str, second: str) -> Comparison | RunsComparison:
    """Compares two sides, each of one run or of several.

    Args:
      first: a prediction file, or a MODEL_DIR, which stands for its latest predictions for the test
        split; or a pattern of such paths (``runs/standard-*``).
      second: the same of the other side. Its runs are the partners of the first side's in the
        order of their names, with numbers in them in the order of their values.

    Raises:
      UserError: nothing is there, the sides have different numbers of runs, or see `compare_files`.
    """
    sides = _files(first), _files(second)
    if len(sides[0]) != len(sides[1]):
        raise UserError(
            f"{first} are {len(sides[0])} runs and {second} are {len(sides[1])}: each needs a "
            "partner on the other side, one of the same seed."
        )
    if len(sides[0]) == 1:
        return compare_files(sides[0][0], sides[1][0])
    return compare_runs(list(zip(*sides, strict=True)))


def compare_runs(
    pairs: Sequence[tuple[str | os.PathLike[str], str | os.PathLike[str]]],
) -> RunsComparison:
    """Compares the scores of pairs of prediction files of the same examples.

    Args:
      pairs: a file of each side, as evaluation writes them, for each pair of runs.

    Raises:
      UserError: a file cannot be read, or the examples differ.
    """
    names = list(_scores(pairs[0][0]))
    scores = np.array(
        [[_scores_of(names, pairs[0][0], path) for path in pair] for pair in pairs], np.float64
    )
    low, high, p_value = bootstrap_runs(scores[:, 1] - scores[:, 0])
    return RunsComparison(
        pairs=tuple((str(a), str(b)) for a, b in pairs),
        examples=scores.shape[-1],
        first=tuple(scores[:, 0].mean(-1).tolist()),
        second=tuple(scores[:, 1].mean(-1).tolist()),
        low=low,
        high=high,
        p_value=p_value,
    )


def bootstrap_runs(
    difference: np.ndarray, *, samples: int = _SAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """Resamples differences of scores, float [runs, examples], runs and examples together.

    Each of the `samples` draws both with replacement.

    Returns:
      The 95 % interval of their mean, and the p-value of the mean that was found.
    """
    runs, examples = difference.shape
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    for number in range(samples):
        chosen = rng.integers(0, runs, runs), rng.integers(0, examples, examples)
        means[number] = difference[np.ix_(*chosen)].mean()
    return _interval(means, difference.mean())


def compare_files(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> Comparison:
    """Compares the scores of two prediction files, example by example (Koehn 2004).

    Args:
      first: a file that evaluation wrote: `id` and `score` in each row.
      second: another, of the same examples in any order.

    Raises:
      UserError: a file cannot be read, or the examples differ.
    """
    a = _scores(first)
    y = np.array(_scores_of(list(a), first, second), np.float64)
    return bootstrap(np.array(list(a.values()), np.float64), y)


def bootstrap(
    first: np.ndarray, second: np.ndarray, *, samples: int = _SAMPLES, seed: int = 0
) -> Comparison:
    """Compares paired scores, float [N] each; see `compare_files`."""
    difference = second - first
    rng = np.random.default_rng(seed)
    means = np.array(
        [
            difference[rng.integers(0, difference.size, difference.size)].mean()
            for _ in range(samples)
        ]
    )
    low, high, p_value = _interval(means, difference.mean())
    return Comparison(
        examples=difference.size,
        first=float(first.mean()),
        second=float(second.mean()),
        first_stderr=metrics.standard_error(first.tolist()),
        second_stderr=metrics.standard_error(second.tolist()),
        low=low,
        high=high,
        p_value=p_value,
    )


def _interval(means: np.ndarray, found: float) -> tuple[float, float, float]:
    """The 95 % interval of resampled differences, and the p-value of the one that was found."""
    extreme = np.abs(means - found) >= abs(found) - 1e-12
    low, high = np.quantile(means, [0.025, 0.975])
    # One more, of the sample itself: no finite number of samples shows p = 0.
    return float(low), float(high), float((extreme.sum() + 1) / (means.size + 1))


def _files(side: str) -> list[str]:
    """The prediction files of a side; see `compare`."""
    found = [side] if os.path.exists(side) else glob.glob(side)
    if not found:
        raise UserError(f"{side}: nothing is there; name prediction files or MODEL_DIRs.")
    files = []
    for path in sorted(found, key=_by_value):
        if os.path.isdir(path):
            own = [str(file) for file in Path(path).glob("predictions/test-*.jsonl")]
            if not own:
                raise UserError(
                    f"{path}: has no predictions/test-*.jsonl; evaluate its test split first, or "
                    "name prediction files."
                )
            path = max(own, key=_by_value)
        files.append(path)
    return files


def _by_value(name: str) -> list[tuple[int, str]]:
    """Sorts names so that 2 comes before 10."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", name)]


def _scores_of(
    names: Sequence[str], first: str | os.PathLike[str], path: str | os.PathLike[str]
) -> list[float]:
    """The scores of a file for the examples `names`, which are those of the file `first`."""
    scores = _scores(path)
    known = set(names)
    missing = (
        [name for name in names if name not in scores],
        [name for name in scores if name not in known],
    )
    for where, lacks in zip((path, first), missing, strict=True):
        if lacks:
            raise UserError(
                f"{where}: lacks {len(lacks)} of the other file's examples, such as "
                f"'{lacks[0]}'; both have to be predictions for the same split."
            )
    return [scores[name] for name in names]


def _scores(path: str | os.PathLike[str]) -> dict[str, float]:
    scores: dict[str, float] = {}
    for line, row in read_jsonl(path):
        if "id" not in row or isinstance(row.get("score"), bool | str | None | list | dict):
            raise UserError(f"{path}, line {line}: needs the fields 'id' and 'score' (a number).")
        if str(row["id"]) in scores:
            raise UserError(f"{path}, line {line}: the example '{row['id']}' occurs twice.")
        scores[str(row["id"])] = float(row["score"])
    if not scores:
        raise UserError(f"{path}: holds no predictions.")
    return scores
