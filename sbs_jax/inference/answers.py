"""What is asked of a student and what it answers; how arrays become answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sbs_jax.errors import UserError
from sbs_jax.inference.prompting import Candidates, Kind
from sbs_jax.inference.tokenizer import EOS_ID


@dataclasses.dataclass(frozen=True)
class Prediction:
    """An answer.

    Attributes:
      label: the student's.
      confidence: its probability: among the candidates where the label set is closed (softmax over
        their log-probabilities), else that of the written label among all texts. In [0, 1].
      rationale: of a `joint` student, which wrote it before the label; else None.
      alternatives: the best labels with their confidences, best first; the candidates where the
        label set is closed. As many as were asked for, at least one.
      truncated: whether the input was cut to fit.
    """

    label: str
    confidence: float
    rationale: str | None = None
    alternatives: tuple[tuple[str, float], ...] = ()
    truncated: bool = False


@dataclasses.dataclass(frozen=True)
class Rationale:
    """An explanation.

    Attributes:
      text: the student's.
      truncated: whether the input was cut to fit.
    """

    text: str
    truncated: bool = False


@dataclasses.dataclass(frozen=True)
class Saliency:
    """What of an input mattered to a label: gradient × input of the label's log-probability.

    Attributes:
      label: the label in question.
      pieces: what the student read, piece by piece; its prefix and EOS left out.
      scores: of each piece; positive where it speaks for the label, to first order.
    """

    label: str
    pieces: tuple[str, ...]
    scores: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Query:
    """One row of a batch, to be.

    Attributes:
      kind: what is asked for.
      tokens: the encoder's input, EOS included.
      candidates: the query's own closed label set; None is the predictor's (or an open one).
      truncated: whether the input was cut to fit.
      sample: chooses the random numbers of a sampled rationale.
    """

    kind: Kind
    tokens: tuple[int, ...]
    candidates: Candidates | None = None
    truncated: bool = False
    sample: int = 0


class Group(NamedTuple):
    """Queries that one compiled program answers.

    Attributes:
      kind: what is asked for.
      length: encoder tokens of a row.
      own: how many candidates of how many tokens each row brings, (0, 0) where it brings none.
    """

    kind: Kind
    length: int
    own: tuple[int, int]


def make_saliency(
    label: str, pieces: Sequence[tuple[str, int]], scores: np.ndarray, prefix: str
) -> Saliency:
    """Joins tokens to pieces, and leaves out the prefix and EOS."""
    shown: list[tuple[str, float]] = []
    hidden, token = len("".join(prefix.split())), 0
    for text, count in pieces:
        score = float(scores[token : token + count].sum())
        token += count
        # The vocabulary may change white space, but not how many other characters there are.
        kept = text
        if hidden:
            solid = text.lstrip()
            kept = solid[hidden:] if len(solid) > hidden else ""
            hidden = max(0, hidden - len("".join(solid.split())))
            if not kept:
                continue
        shown.append((kept, score))
    if shown and shown[-1][0] == "</s>":
        shown.pop()
    return Saliency(label, tuple(text for text, _ in shown), tuple(score for _, score in shown))


def ranked(query: Query, labels: Sequence[str], scores: np.ndarray, num_best: int) -> Prediction:
    """The best of closed labels, by their log-probabilities [C or more]."""
    scores = scores[: len(labels)].astype(np.float64)
    weights = np.exp(scores - scores.max())
    shares = weights / weights.sum()
    order = np.argsort(-shares, kind="stable")
    pairs = tuple((labels[i], float(shares[i])) for i in order[: max(num_best, 1)])
    return Prediction(*pairs[0], alternatives=pairs, truncated=query.truncated)


def probability(log_probability: float) -> float:
    """A probability in [0, 1], rounding errors aside."""
    return min(1.0, math.exp(min(0.0, float(log_probability))))


def until_end(tokens: np.ndarray) -> list[int]:
    """The tokens up to the first EOS, EOS included, or to the padding."""
    ends = np.flatnonzero(tokens == EOS_ID)
    if ends.size:
        return tokens[: ends[0] + 1].tolist()
    return np.trim_zeros(tokens, "b").tolist()


def padded_candidates(
    sets: Sequence[Sequence[Sequence[int]]], rows: int, shape: tuple[int, int]
) -> np.ndarray:
    """int32 [rows, candidates, tokens], the last set repeated, 0 where there is nothing."""
    padded = np.zeros((rows, *shape), np.int32)
    for row in range(rows):
        for place, ids in enumerate(sets[min(row, len(sets) - 1)]):
            padded[row, place, : len(ids)] = ids
    return padded


def check_fits(candidates: Candidates, shape: tuple[int, int]) -> None:
    """Raises a `UserError` if there are more or longer candidates than `shape` allows."""
    if len(candidates.texts) > shape[0]:
        raise UserError(
            f"{len(candidates.texts)} candidates are more than MAX_CANDIDATES = {shape[0]}."
        )
    for text, ids in zip(candidates.texts, candidates.tokens, strict=True):
        if len(ids) > shape[1]:
            raise UserError(
                f"The candidate {text[:80]!r} has {len(ids)} tokens, more than "
                f"MAX_CANDIDATE_LENGTH = {shape[1]}."
            )
