"""Which rationales are kept, given how much each one helps a student (pure Python).

A rationale r of an example (x, y) has the score log p(y | x, r) − log p(y | x), in nats, under a
student: by how much the rationale makes the right answer likelier for that student. Choosing
rationales by what they do for the student follows MoRSD (Yan et al. 2025, arXiv 2509.23574), which
combines its measure of difficulty with filters for correctness and diversity; `sbs_jax.teach` has
filters for correctness (``KEEP_RIGHT``, ``KEEP_CONSISTENT``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sbs_jax.data.rationale_file import rationale_field, texts_of
from sbs_jax.errors import UserError

GOLD, TEACHER = LABEL_SOURCES = ("gold", "teacher")
WEIGHTS = ("sigmoid",)


@dataclasses.dataclass(frozen=True)
class Selection:
    """The rule that rationales are chosen by; all filters that are given must be passed.

    Attributes:
      min_score: rationales with a lower score, in nats, are rejected; None rejects none.
      best: at most so many rationales of each example are kept, those with the highest scores;
        None keeps all.
      share: the share of all rationales of the file that is kept, those with the highest scores,
        in (0, 1]; None keeps all.
      weight: ``sigmoid`` gives each kept rationale the weight 1 / (1 + exp(−score / temperature)),
        which lies in (0, 1); None gives no weights.
      temperature: the temperature of the weight, in nats.

    Raises:
      UserError: a value is out of its range.
    """

    min_score: float | None = None
    best: int | None = None
    share: float | None = None
    weight: str | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for macro, value in (
            ("MIN_SCORE", self.min_score),
            ("WEIGHT_TEMPERATURE", self.temperature),
        ):
            if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
                raise UserError(f"{macro} = {value!r} must be a finite number.")
        if self.best is not None and not (isinstance(self.best, int) and self.best >= 1):
            raise UserError(f"BEST = {self.best!r} must be a whole number from 1, or None.")
        if self.share is not None and not (
            isinstance(self.share, int | float) and 0 < self.share <= 1
        ):
            raise UserError(
                f"KEEP_SHARE = {self.share!r} must be a number above 0 and at most 1, or None."
            )
        if self.weight is not None and self.weight not in WEIGHTS:
            raise UserError(f"WEIGHT = {self.weight!r} must be None or {', '.join(WEIGHTS)}.")
        if self.temperature <= 0:
            raise UserError(f"WEIGHT_TEMPERATURE = {self.temperature} must be above 0.")

    def cutoff(self, scores: Sequence[float]) -> float:
        """Returns the lowest score that `min_score` and `share` let pass.

        Args:
          scores: the scores of all rationales of the file. Rationales that tie with the last one
            that `share` keeps are kept, too.
        """
        lowest = -math.inf if self.min_score is None else float(self.min_score)
        if self.share is not None and scores:
            count = max(1, math.floor(self.share * len(scores) + 0.5))
            lowest = max(lowest, sorted(scores, reverse=True)[count - 1])
        return lowest

    def kept(self, scores: Sequence[float], cutoff: float) -> list[int]:
        """Returns the places of those rationales of one example that are kept, in their order."""
        passed = [place for place, score in enumerate(scores) if score >= cutoff]
        if self.best is not None:
            passed = sorted(passed, key=lambda place: -scores[place])[: self.best]
        return sorted(passed)

    def weight_of(self, score: float) -> float:
        """Returns the weight of a rationale, in (0, 1)."""
        half = math.tanh(score / self.temperature / 2)  # does not overflow, as exp does
        return (1.0 + half) / 2


def rationales_of(row: Mapping[str, Any]) -> list[str]:
    """Returns the rationales of a row of ``rationales.jsonl``; blank ones are left out."""
    return [text for text in texts_of(row) if text.strip()]


def labels_of(row: Mapping[str, Any], source: str) -> list[str]:
    """Returns the label y that each of `rationales_of` is scored by.

    Args:
      row: a row of ``rationales.jsonl``.
      source: ``gold``: its ``label``; ``teacher``: what the teacher said with each rationale.
    """
    texts, labels = texts_of(row), row.get("llm_labels")
    if source == GOLD:
        return [row["label"]] * len(rationales_of(row))
    if isinstance(labels, list) and len(texts) == len(labels):
        return [label for label, text in zip(labels, texts, strict=True) if text.strip()]
    return [row.get("llm_label", "")] * len(rationales_of(row))


def selected_row(
    row: Mapping[str, Any], scores: Sequence[float], selection: Selection, cutoff: float
) -> dict[str, Any]:
    """Returns a row of the new ``rationales.jsonl``.

    Args:
      row: the row that was scored.
      scores: the scores of `rationales_of(row)`, in nats.
      selection: the rule.
      cutoff: see `Selection.cutoff`.

    Returns:
      `row` with the kept rationales alone. ``llm_rationale`` and ``llm_label`` are those of the
      highest score; ``rationale_scores`` holds the scores of the kept ones in the order of
      ``llm_rationales``. With a weight, ``weight`` is that of the one rationale, and
      ``rationale_weights`` gives it to all of its words. An example none of whose rationales is
      kept has an empty rationale, which trains nothing.

    Raises:
      UserError: the rule gives a weight, and several rationales of the row are kept.
    """
    texts, labels = rationales_of(row), labels_of(row, TEACHER)
    places = selection.kept(scores, cutoff)
    new = dict(row)
    best = max(places, key=lambda place: (scores[place], -place), default=None)
    new["llm_rationale"] = "" if best is None else texts[best]
    if best is not None:
        new["llm_label"] = labels[best]
    if isinstance(rationale_field(row), list) or "llm_rationales" in row:
        new["llm_rationales"] = [texts[place] for place in places]
        if isinstance(row.get("llm_labels"), list):
            new["llm_labels"] = [labels[place] for place in places]
    new["rationale_scores"] = [scores[place] for place in places]
    if selection.weight is not None and places:
        if len(places) > 1:
            raise UserError(
                f"WEIGHT = {selection.weight!r}: the example '{row['id']}' keeps {len(places)} "
                "rationales, and only one can have a weight; set BEST = 1."
            )
        new["weight"] = selection.weight_of(scores[places[0]])
        # One span, the whole text: what the loss reads (docs/methods.md, "Weights of words").
        new["rationale_weights"] = [[0, len(new["llm_rationale"]), new["weight"]]]
    return new
