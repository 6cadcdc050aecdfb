"""Queries to a student and its answers, and how the arrays of programs become answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sbs_jax.errors import UserError
from sbs_jax.inference.prompting import Candidates, Kind


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer to a query for a label.

    Attributes:
      label: the student's label.
      confidence: the probability of the label, in [0, 1]: among the candidates if the label set is
        closed (softmax over their log-probabilities), else among all texts.
      rationale: the rationale that the student wrote in one answer with the label, as `joint` ones
        and `answer_first` ones do, or before a label that reads it; else None. It is '' where a
        closed label set holds a better label than the one that the rationale was written for.
      alternatives: the best labels with their confidences, best first; the candidates if the label
        set is closed. As many as were asked for, at least one.
      truncated: whether the input was cut to fit.
    """

    label: str
    confidence: float
    rationale: str | None = None
    alternatives: tuple[tuple[str, float], ...] = ()
    truncated: bool = False


@dataclasses.dataclass(frozen=True)
class Rationale:
    """The answer to a query for a rationale.

    Attributes:
      text: the student's rationale.
      truncated: whether the input was cut to fit.
    """

    text: str
    truncated: bool = False


@dataclasses.dataclass(frozen=True)
class Saliency:
    """How much each piece of an input mattered to a label.

    Attributes:
      label: the label.
      pieces: the text that the student read, in pieces, without its prefix and EOS.
      scores: gradient × input of the label's log-probability for each piece; positive if the piece
        speaks for the label, to first order.
    """

    label: str
    pieces: tuple[str, ...]
    scores: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Query:
    """A tokenized question to the student, which becomes one row of a batch.

    Attributes:
      kind: the kind of answer that is asked for.
      tokens: the encoder's input, EOS included.
      candidates: the query's own closed label set; None if it has that of the predictor, which may
        be open.
      truncated: whether the input was cut to fit.
      sample: selects the random numbers of a sampled rationale.
    """

    kind: Kind
    tokens: tuple[int, ...]
    candidates: Candidates | None = None
    truncated: bool = False
    sample: int = 0


class QueryGroup(NamedTuple):
    """What the queries of a batch have in common: one compiled program answers them.

    Attributes:
      kind: the kind of answer that is asked for.
      length: encoder tokens of a row.
      own: the number of candidates that each row brings and their number of tokens; (0, 0) if rows
        bring none.
    """

    kind: Kind
    length: int
    own: tuple[int, int]


def make_saliency(
    label: str, pieces: Sequence[tuple[str, int]], scores: np.ndarray, prefix: str
) -> Saliency:
    """Sums the scores of tokens over pieces, and leaves out the prefix and EOS."""
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
    """Returns the best labels of a closed set, by their log-probabilities [C or more]."""
    scores = scores[: len(labels)].astype(np.float64)
    weights = np.exp(scores - scores.max())
    shares = weights / weights.sum()
    order = np.argsort(-shares, kind="stable")
    pairs = tuple((labels[i], float(shares[i])) for i in order[: max(num_best, 1)])
    return Prediction(*pairs[0], alternatives=pairs, truncated=query.truncated)


def probability(log_probability: float) -> float:
    """Returns exp of a log-probability, clipped to [0, 1] against rounding errors."""
    return min(1.0, math.exp(min(0.0, float(log_probability))))


def padded_candidates(
    sets: Sequence[Sequence[Sequence[int]]], rows: int, shape: tuple[int, int]
) -> np.ndarray:
    """Returns int32 [rows, candidates, tokens], padded with 0, the last set repeated."""
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
