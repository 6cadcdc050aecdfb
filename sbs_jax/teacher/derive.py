"""Derives `rationales.jsonl`, which the tasks read, and the teacher's predictions from the journal.

Nothing here asks the teacher: every call gives the same file from the same journal and settings.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from sbs_jax.errors import UserError
from sbs_jax.files import atomic_open
from sbs_jax.teacher import output
from sbs_jax.teacher import plan as plan_lib
from sbs_jax.teacher.choose import Choosing
from sbs_jax.teacher.fields import Written
from sbs_jax.teacher.journal import Journal
from sbs_jax.teacher.plan import Answers, Candidate, RequestPlan, Round
from sbs_jax.teacher.text import clean
from sbs_jax.teacher.types import AskedExample

_EXAMPLES_PER_FAILURE = 3


@dataclass
class Summary:
    """Counts over the derived rows.

    Attributes:
      counts: Counts by name: examples, with_rationale, missing, rejected (parsed, but no candidate
        passed the filters), rationalized, truncated; candidates, and candidates_NAME for parsed,
        unparsed, failed, missing, wrong, inconsistent and truncated.
      scored: Number of examples with a gold label.
      right: Number of those whose voted label agrees with it (unparsed answers are wrong).
      answered: Number of rows that hold an answer of the teacher; see `output.is_answered`.
      failures: A few examples of each kind of failure: id and completion.
    """

    counts: Counter[str] = field(default_factory=Counter)
    scored: int = 0
    right: int = 0
    answered: int = 0
    failures: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Share of scored examples that are right; NaN for none."""
        return self.right / self.scored if self.scored else float("nan")

    @property
    def standard_error(self) -> float:
        """Standard error of `accuracy`, as `metrics.standard_error`."""
        if self.scored < 2:
            return float("nan")
        p = self.accuracy
        return (p * (1 - p) / (self.scored - 1)) ** 0.5

    def as_dict(self) -> dict[str, Any]:
        """Returns it for `run.json` (NaN becomes None)."""
        known = self.scored > 0
        return {
            "counts": dict(sorted(self.counts.items())),
            "scored": self.scored,
            "right": self.right,
            "accuracy": self.accuracy if known else None,
            "standard_error": self.standard_error if self.scored > 1 else None,
            "failures": self.failures,
        }


def replay(
    plan: RequestPlan, journal: Journal, example: AskedExample
) -> tuple[list[Candidate], Written]:
    """Returns the candidates of `example` and its further fields, as the journal holds them."""
    steps: Generator[Round, Answers, tuple[list[Candidate], Written]] = plan.whole(example)
    answers: Answers | None = None
    while True:
        try:
            wanted = next(steps) if answers is None else steps.send(answers)
        except StopIteration as end:
            return end.value
        answers = [journal.get(request.key) for request in wanted]


def derive(
    plan: RequestPlan,
    journal: Journal,
    examples: Iterable[AskedExample],
    choosing: Choosing,
    *,
    predictions: bool = False,
    reached: int | None = None,
) -> Summary:
    """Writes `rationales.incomplete.jsonl` from the journal, atomically; see `output.place`.

    A row of `rationales.jsonl` holds `id`, `input`, `label` (gold, '' if unknown), `llm_label` and
    `llm_rationale` ('' where nothing passed), `llm_rationales` when several are
    kept, the further fields that were asked for, and `flags`.

    Args:
      plan: The prompts and parameters in force.
      journal: The completions of the teacher.
      examples: All examples, in order; streamed.
      choosing: Filters and choice.
      predictions: Also writes the teacher's own answers in the format of `sbs_jax.eval`, as
        `predictions.incomplete.jsonl`.
      reached: How many examples the run came to before it was stopped; None for all. Later ones
        get a row only if the journal has all of their completions: it may, from earlier runs.

    Raises:
      UserError: the files cannot be written.
    """
    summary = Summary()
    names = [output.RATIONALES, *([output.PREDICTIONS] if predictions else [])]
    paths = [output.beside(journal.folder / name, output.INCOMPLETE) for name in names]
    with (
        atomic_open(paths[0], errors="replace") as rationales,
        atomic_open(paths[1], errors="replace") if predictions else nullcontext() as predicted,
    ):
        for place, example in enumerate(examples):
            candidates, fields = replay(plan, journal, example)
            missing = fields.missing or any(c.missing for c in candidates)
            if reached is not None and place >= reached and missing:
                continue
            voted = plan_lib.voted(candidates, by_value=plan.by_value)
            chosen = choosing.choice(candidates, by_value=plan.by_value)
            flags = _flags(candidates, voted, chosen, fields)
            _count(summary, example, candidates, voted, flags, fields)
            _write(rationales, _row(example, chosen, flags, choosing, fields))
            if predicted is not None:
                _write(predicted, _prediction(example, voted, candidates))
    return summary


def _flags(
    candidates: list[Candidate],
    voted: Candidate | None,
    chosen: list[Candidate],
    fields: Written,
) -> dict[str, Any]:
    flags: dict[str, Any] = {
        "samples": len(candidates),
        "parsed": sum(c.parsed for c in candidates),
    }
    if fields.missing or any(c.missing for c in candidates):
        flags["missing"] = True
    errors = [error for error in (*(c.error for c in candidates), fields.error) if error]
    if errors:
        flags["error"] = clean(errors[0])
    if voted is not None and voted.right is not None:
        flags["right"] = voted.right
    if chosen:
        best = chosen[0]
        if best.kind != "rationale":
            flags["rationalized"] = True
        if best.truncated:
            flags["truncated"] = True
        if best.wrong_equations:
            flags["wrong_equations"] = [clean(e) for e in best.wrong_equations[:5]]
    elif flags["parsed"]:
        flags["rejected"] = True
    if fields.rejected:
        flags["rejected_by"] = fields.rejected
    return flags


def _row(
    example: AskedExample,
    chosen: list[Candidate],
    flags: dict[str, Any],
    choosing: Choosing,
    fields: Written,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": clean(example.id),
        "input": clean(example.input),
        "label": clean(example.label),
        "llm_label": chosen[0].label if chosen else "",
        "llm_rationale": chosen[0].rationale if chosen else "",
    }
    if choosing.keep > 1:
        row["llm_rationales"] = [c.rationale for c in chosen]
        row["llm_labels"] = [c.label for c in chosen]
    # What belongs to an explanation that was rejected is not trained either.
    row |= {name: text if chosen else "" for name, text in fields.values.items()}
    row["flags"] = flags
    return row


def _prediction(
    example: AskedExample, voted: Candidate | None, candidates: list[Candidate]
) -> dict[str, Any]:
    first = voted or (candidates[0] if candidates else None)
    return {
        "id": clean(example.id),
        "input": clean(example.input),
        "target": clean(example.label),
        "prediction": voted.label if voted else "",
        "score": int(bool(voted and voted.right)),
        "rationale": first.rationale if first else "",
    }


def _count(
    summary: Summary,
    example: AskedExample,
    candidates: list[Candidate],
    voted: Candidate | None,
    flags: dict[str, Any],
    fields: Written,
) -> None:
    counts = summary.counts
    counts["examples"] += 1
    counts["candidates"] += len(candidates)
    summary.answered += output.is_answered(flags)
    for name, text in fields.values.items():
        counts[f"with_{name}"] += bool(text)
    counts["with_rationale"] += not ("rejected" in flags or not flags["parsed"])
    for name in ("missing", "rejected", "rationalized", "truncated"):
        counts[name] += name in flags
    for candidate in candidates:
        counts["candidates_parsed"] += candidate.parsed
        for failure in _failures(candidate):
            counts[f"candidates_{failure}"] += 1
            kept = summary.failures.setdefault(failure, [])
            if len(kept) < _EXAMPLES_PER_FAILURE and failure != "missing":
                said = candidate.error or candidate.text
                if failure == "inconsistent":
                    said = "; ".join(candidate.wrong_equations[:3]) + " in: " + said
                kept.append({"id": clean(example.id), "text": clean(said[:600])})
    if example.label and "missing" not in flags:
        summary.scored += 1
        summary.right += bool(voted and voted.right)


def _failures(candidate: Candidate) -> list[str]:
    if candidate.missing:
        return ["missing"]
    if candidate.error:
        return ["failed"]
    if not candidate.parsed:
        return ["truncated" if candidate.truncated else "unparsed"]
    wrong = ["wrong"] if candidate.right is False else []
    return [*wrong, "inconsistent"] if candidate.wrong_equations else wrong


def _write(file: Any, row: dict[str, Any]) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")


def stream_examples(source: Callable[[], Iterable[Any]], limit: int = 0) -> Iterator[AskedExample]:
    """Yields examples from rows with `input` and, as far as known, `id` and `label`.

    The id of an example without one is its index, counted from 0.

    Raises:
      UserError: a row has no text in its field `input`.
    """
    for number, row in enumerate(source()):
        if limit and number >= limit:
            return
        text = row.get("input")
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"Example {number} has no text in its field `input`.")
        yield AskedExample(str(row.get("id") or number), text, str(row.get("label") or ""))
