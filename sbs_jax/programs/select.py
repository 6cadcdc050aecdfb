"""Scores rationales by how much they help a student, keeps the best: `python -m sbs_jax.select`.

Two passes: every rationale's score is written to OUTPUT_DIR/scores.jsonl, where a stopped call goes
on; then OUTPUT_DIR/rationales.jsonl and run.json are derived from the scores, which costs nothing,
so that another rule for the same scores is a matter of seconds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from sbs_jax.data.rationale_file import read_rationales, require_text
from sbs_jax.errors import UserError
from sbs_jax.files import atomic_write_jsonl, atomic_write_text, refuse_remote
from sbs_jax.inference.loader import Loader
from sbs_jax.inference.output import ResumableOutput
from sbs_jax.inference.predictor import Predictor
from sbs_jax.inference.selection import (
    GOLD,
    LABEL_SOURCES,
    Selection,
    labels_of,
    rationales_of,
    selected_row,
)
from sbs_jax.json_files import read_jsonl
from sbs_jax.partitioning.stopping import StopRequest
from sbs_jax.progress import Progress

WINDOW = 16
"""So many batches of rows are scored, sorted by length, and written at a time."""
SCORES, RATIONALES, RUN = "scores.jsonl", "rationales.jsonl", "run.json"
_SECONDS_BETWEEN_LINES = 10.0


def select(
    *,
    loader: Loader,
    selection: Selection,
    rationales_file: str,
    output_dir: str,
    base_checkpoint_path: str | None = None,
    label_source: str = GOLD,
    dry_run: bool = False,
) -> dict[str, Any] | None:
    """Writes `rationales.jsonl`, `run.json` and `scores.jsonl` to a folder.

    The score of a rationale is log p(y | x, r) − log p(y | x) in nats, exact, over the tokens of
    the label and its EOS. SIGTERM and Ctrl-C end it after the rows that are under way; the same
    command goes on from there.

    Args:
      loader: the student that reads x and r (of METHOD = 'rationale_input', as a rule), and x alone
        unless there is a `base_checkpoint_path`.
      selection: which rationales are kept.
      rationales_file: a teacher's `rationales.jsonl`.
      output_dir: it is made, or gone on with.
      base_checkpoint_path: another student that gives log p(y | x), of METHOD = 'standard', say.
      label_source: whose label y is, `gold` or `teacher`.
      dry_run: load the student, show the scores of the first row, write nothing.

    Returns:
      What `run.json` holds; None after a dry run.

    Raises:
      UserError: something the user gave does not work; the sentence says what.
      InterruptedError: a signal asked to stop; what was scored is in `scores.jsonl`.
    """
    if jax.process_count() > 1:
        raise UserError("sbs_jax.select works in one process, on all of its devices.")
    if label_source not in LABEL_SOURCES:
        raise UserError(f"LABEL_SOURCE = {label_source!r} must be {' or '.join(LABEL_SOURCES)}.")
    refuse_remote(output_dir)
    folder = Path(output_dir).expanduser()
    source = Path(rationales_file).expanduser()
    if (folder / RATIONALES).resolve() == source.resolve():
        raise UserError(
            f"OUTPUT_DIR = {output_dir} is the folder of RATIONALES_FILE, which would be "
            "overwritten; name another folder."
        )
    # Before anything slow.
    explained = [bool(rationales_of(row)) for row in read_rows(source, label_source)]
    if not any(explained):
        raise UserError(
            f"RATIONALES_FILE = {rationales_file}: no row has a rationale in 'llm_rationale' or "
            "'llm_rationales', as a teacher writes them."
        )
    total = len(explained)
    reader = loader.load()
    base = reader
    if base_checkpoint_path is not None:
        base = dataclasses.replace(loader, checkpoint_path=base_checkpoint_path).load()
    for student in (reader, base):
        if student.prompting.explains_itself:
            raise UserError(
                f"{student.name}: a student of METHOD = '{student.prompting.method}' writes its "
                "own rationale with the label, so that it cannot be given one; score with one of "
                "METHOD = 'rationale_input'."
            )
    progress = Progress()
    progress.note(f"{reader.name}: {reader.prompting.method}; without rationales: {base.name}")
    if dry_run:
        first = next(read_rows(source, label_source))
        progress.note(f"first row: {json.dumps(_score(reader, base, [first], label_source)[0])}")
        return None
    made_with = {
        **reader.answers_depend_on(),
        "BASE_CHECKPOINT_PATH": base.fingerprint,
        "LABEL_SOURCE": label_source,
        "RATIONALES_FILE": _digest(source),
    }
    path = folder / SCORES
    with (
        StopRequest("these rationales") as stop,
        ResumableOutput(str(path), made_with, checkpoint=reader.name, macro="OUTPUT_DIR") as output,
    ):
        _score_all(reader, base, source, label_source, output, total, progress, stop)
    run = derive(source, path, label_source, selection)
    run |= {
        "rationales_file": rationales_file,
        "label_source": label_source,
        "checkpoint": reader.name,
        "base_checkpoint": base.name,
    }
    atomic_write_text(folder / RUN, json.dumps(run, indent=2, ensure_ascii=False) + "\n")
    counts = run["counts"]
    progress.note(
        f"{counts['rationales']:,} rationales of {counts['examples']:,} examples; kept "
        f"{counts['kept_rationales']:,}, of {counts['kept_examples']:,} examples. "
        f"Written to {folder / RATIONALES}"
    )
    return run


def read_rows(path: Path, label_source: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of a teacher's `rationales.jsonl` that can be scored.

    Raises:
      UserError: the file cannot be read, or a row is malformed, or has no input or no label to
        score its rationales by; names the line.
    """
    for where, row in read_rationales(path):
        require_text(row, "input", where)
        field = "label" if label_source == GOLD else "llm_label"
        if not isinstance(row.get(field, ""), str):
            raise UserError(f"{where}: field '{field}' must be a text.")
        if rationales_of(row) and not row.get(field, "").strip():
            other = "teacher" if label_source == GOLD else "gold"
            raise UserError(
                f"{where}: field '{field}' is empty, and the rationale is scored by the label; "
                f"LABEL_SOURCE = '{other}' takes the other label."
            )
        yield row


def derive(
    source: Path, scores_path: Path, label_source: str, selection: Selection
) -> dict[str, Any]:
    """Writes `rationales.jsonl` beside the scores, atomically.

    Args:
      source: the teacher's file, which the scores are of.
      scores_path: a complete `scores.jsonl`.
      label_source: see `select`.
      selection: the rule.

    Returns:
      Counts, the quartiles of the scores and the rule, as JSON values.
    """
    scored = [row for _, row in read_jsonl(scores_path)]
    scores = [score for row in scored for score in row["scores"]]
    cutoff = selection.cutoff(scores)
    rows = [
        selected_row(row, known["scores"], selection, cutoff)
        for row, known in zip(read_rows(source, label_source), scored, strict=True)
    ]
    atomic_write_jsonl(scores_path.with_name(RATIONALES), rows)
    kept = [len(row["rationale_scores"]) for row in rows]
    return {
        "counts": {
            "examples": len(rows),
            "examples_with_rationale": sum(bool(row["scores"]) for row in scored),
            "rationales": len(scores),
            "helpful_rationales": sum(score > 0 for score in scores),
            "truncated_rationales": sum(sum(row["truncated"]) for row in scored),
            "kept_examples": sum(count > 0 for count in kept),
            "kept_rationales": sum(kept),
        },
        "score_quartiles": statistics.quantiles(scores, n=4) if len(scores) > 1 else None,
        "lowest_kept_score": min(
            (score for row in rows for score in row["rationale_scores"]), default=None
        ),
        "selection": dataclasses.asdict(selection),
    }


def _score_all(
    reader: Predictor,
    base: Predictor,
    source: Path,
    label_source: str,
    output: ResumableOutput,
    total: int,
    progress: Progress,
    stop: StopRequest,
) -> None:
    """Appends the scores of all rows that have none yet."""
    size = WINDOW * reader.row_counts[-1]
    done = sum(1 for _ in output.rows())
    if done < total and done % size:
        # A window is scored whole or not at all: batches, and so bits, depend on it.
        done -= done % size
        output.cut(done)
    rows = itertools.islice(read_rows(source, label_source), done, None)
    begin = last_note = time.monotonic()
    fresh = 0
    while window := list(itertools.islice(rows, size)):
        if stop.agreed():
            progress.note(f"Stopped by {stop.name}; the same command goes on from there.")
            raise InterruptedError(stop.name)
        output.append(_score(reader, base, window, label_source))
        fresh += len(window)
        if time.monotonic() - last_note > _SECONDS_BETWEEN_LINES:
            last_note = time.monotonic()
            rate = fresh / (last_note - begin)
            progress.note(f"{done + fresh:,} of {total:,} examples, {rate:,.1f}/s")
    if done:
        progress.note(f"{done:,} of {total:,} examples had been scored before.")


def _score(
    reader: Predictor, base: Predictor, rows: Sequence[dict[str, Any]], label_source: str
) -> list[dict[str, Any]]:
    """Scores all rationales of some rows.

    Returns:
      For each row its `id`, and lists over its rationales: `scores`, `log_p_with`, `log_p_without`
      (natural logarithms) and `truncated`: whether x and r were cut to fit.
    """
    asked = [
        (place, text, label)
        for place, row in enumerate(rows)
        for text, label in zip(rationales_of(row), labels_of(row, label_source), strict=True)
    ]
    # A label that several rationales share is scored once without them.
    alone = {(place, label): None for place, _, label in asked}
    explained = [reader.ask_explained(rows[place]["input"], text) for place, text, _ in asked]
    plain = [base.ask_explained(rows[place]["input"], "") for place, _ in alone]
    with_rationale = reader.log_probabilities(explained, [label for *_, label in asked])
    without = dict(
        zip(alone, base.log_probabilities(plain, [label for _, label in alone]), strict=True)
    )
    found: list[dict[str, Any]] = [
        {"id": row["id"], "scores": [], "log_p_with": [], "log_p_without": [], "truncated": []}
        for row in rows
    ]
    for (place, _, label), query, given in zip(asked, explained, with_rationale, strict=True):
        bare = without[place, label]
        found[place]["scores"].append(given - bare)
        found[place]["log_p_with"].append(given)
        found[place]["log_p_without"].append(bare)
        found[place]["truncated"].append(query.truncated)
    return found


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
