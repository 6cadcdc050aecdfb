"""Two prediction files of the same examples: is one student better? `sbs_jax.eval --compare`."""

from __future__ import annotations

import dataclasses
import os

import numpy as np

from sbs_jax import metrics
from sbs_jax.errors import UserError
from sbs_jax.files import read_jsonl


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The result of a paired bootstrap.

    Attributes:
      examples: in both files.
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


def compare_files(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    *,
    samples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compares the scores of two prediction files, example by example (Koehn 2004).

    Args:
      first: a file that evaluation wrote: `id` and `score` in each row.
      second: another, of the same examples in any order.
      samples: resamplings of the examples.
      seed: the seed of the resampling.

    Raises:
      UserError: a file cannot be read, or the examples differ.
    """
    a, b = _scores(first), _scores(second)
    for one, other, where in ((a, b, second), (b, a, first)):
        missing = [name for name in one if name not in other]
        if missing:
            raise UserError(
                f"{where}: lacks {len(missing)} of the other file's examples, such as "
                f"'{missing[0]}'; both have to be predictions for the same split."
            )
    x = np.array([a[name] for name in a], np.float64)
    y = np.array([b[name] for name in a], np.float64)
    return bootstrap(x, y, samples=samples, seed=seed)


def bootstrap(
    first: np.ndarray, second: np.ndarray, *, samples: int = 10_000, seed: int = 0
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
    found = difference.mean()
    extreme = np.abs(means - found) >= abs(found) - 1e-12
    low, high = np.quantile(means, [0.025, 0.975])
    return Comparison(
        examples=difference.size,
        first=float(first.mean()),
        second=float(second.mean()),
        first_stderr=metrics.standard_error(first.tolist()),
        second_stderr=metrics.standard_error(second.tolist()),
        low=float(low),
        high=float(high),
        # One more, of the sample itself: no finite number of samples shows p = 0.
        p_value=float((extreme.sum() + 1) / (samples + 1)),
    )


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
