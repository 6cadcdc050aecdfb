"""Selects the candidates of an example that students are trained on: filters, then a choice.

Both work on the journal, so changing them sends no requests to the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass

from sbs_jax.errors import UserError, require_at_least
from sbs_jax.teacher.plan import Candidate, majority, vote_key

RULES = ("first", "self_consistency", "all", "shortest", "longest", "best_logprob")


@dataclass(frozen=True)
class Choosing:
    """How candidates are filtered and chosen.

    Attributes:
      choose: 'first' candidate; 'self_consistency': the majority label, with the first of its
        rationales (or all of them, see `keep`); 'all': several rationales per example; the
        'shortest' or 'longest' rationale; 'best_logprob': the highest mean log-probability of a
        token.
      keep_right: Whether candidates whose label disagrees with gold are rejected.
      keep_consistent: Whether candidates with an equation that does not hold are rejected.
      keep: Maximum number of rationales of 'all' and 'self_consistency' in `llm_rationales`.
    """

    choose: str = "first"
    keep_right: bool = False
    keep_consistent: bool = False
    keep: int = 1

    def __post_init__(self) -> None:
        if self.choose not in RULES:
            raise UserError(f"CHOOSE = {self.choose!r} must be one of {', '.join(RULES)}.")
        require_at_least(1, KEEP=self.keep)

    def choice(self, candidates: list[Candidate], *, by_value: bool) -> list[Candidate]:
        """Returns the chosen candidates, best first; empty when none passes.

        The rationalized candidate of STaR is considered only when no other candidate passes,
        because it is asked for where the teacher's own answer is wrong.

        Raises:
          UserError: 'best_logprob' without log-probabilities.
        """
        own = [c for c in candidates if c.kind == "rationale"]
        rationalized = [c for c in candidates if c.kind != "rationale"]
        if own and rationalized and not any(c.right for c in own):
            own = []
        for group in (own, rationalized):
            passed = [c for c in group if self._passes(c)]
            if passed:
                return self._pick(passed, by_value=by_value)
        return []

    def _passes(self, candidate: Candidate) -> bool:
        if not candidate.parsed:
            return False
        if self.keep_right and not candidate.right:
            return False
        return not (self.keep_consistent and candidate.wrong_equations)

    def _pick(self, passed: list[Candidate], *, by_value: bool) -> list[Candidate]:
        if self.choose == "first":
            return passed[:1]
        if self.choose == "shortest":
            return [min(passed, key=lambda c: len(c.rationale))]
        if self.choose == "longest":
            return [max(passed, key=lambda c: len(c.rationale))]
        if self.choose == "best_logprob":
            if any(c.logprob is None for c in passed):
                raise UserError(
                    "CHOOSE = 'best_logprob' needs log-probabilities, which these completions do "
                    "not have; ask with LOGPROBS = True, of a server that gives them."
                )
            return [max(passed, key=lambda c: c.logprob or 0.0)]
        if self.choose == "self_consistency" and (most := majority(passed, by_value=by_value)):
            winner = vote_key(most.label, by_value=by_value)
            passed = [c for c in passed if vote_key(c.label, by_value=by_value) == winner]
        return _distinct(passed)[: self.keep]


def _distinct(candidates: list[Candidate]) -> list[Candidate]:
    """Drops candidates whose rationale was there before: they would only repeat it."""
    first: dict[str, Candidate] = {}
    for candidate in candidates:
        first.setdefault(candidate.rationale, candidate)
    return list(first.values())
