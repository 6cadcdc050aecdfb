"""Answers a file, a task, or a person at the terminal: `python -m sbs_jax.infer`."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console
from rich.text import Text

from sbs_jax.errors import UserError, located, require_at_least
from sbs_jax.inference import interactive
from sbs_jax.inference.inputs import Item, read_items, read_task
from sbs_jax.inference.loader import Loader
from sbs_jax.inference.output import ResumableOutput
from sbs_jax.inference.predictor import Predictor
from sbs_jax.metrics import normalize_answer
from sbs_jax.partitioning.stopping import StopRequest
from sbs_jax.progress import Progress

WINDOW = 16
"""So many batches of inputs are held, sorted by length and written at a time."""
_SECONDS_BETWEEN_LINES = 10.0


def infer(
    *,
    loader: Loader,
    output_file: str,
    input_file: str | None = None,
    input_field: str = "input",
    mixture_or_task_name: str | None = None,
    mixture_or_task_module: str | None = None,
    split: str = "test",
    explain: bool = False,
    num_best: int = 1,
    dry_run: bool = False,
) -> int | None:
    """Writes a JSON object a line: `id`, `input`, `label`, `confidence`, `truncated`, ….

    Besides `rationale` with `explain`, `n_best` (labels with confidences, best first) with
    `num_best` above 1, and `target` where the gold label is known. Rows are in the order of the
    inputs. A call that was killed resumes where it was when it is repeated, and ends in the same
    file, bit for bit. SIGTERM and Ctrl-C end it after the inputs that are under way. All processes
    of a run call this together; process 0 writes.

    Args:
      loader: the student.
      output_file: the file of answers; where it exists, the run goes on with it.
      input_file: see `inputs.read_items`.
      input_field: the field of `input_file` that holds the inputs.
      mixture_or_task_name: a task or data set, read where there is no `input_file`.
      mixture_or_task_module: a module that registers it, imported first.
      split: the split of the task.
      explain: also write rationales.
      num_best: how many labels are given, best first.
      dry_run: load the student, show its answer to the first input, write nothing.

    Returns:
      How many rows the file has; None after a dry run.

    Raises:
      UserError: something the user gave does not work; the sentence says what.
      InterruptedError: a signal asked to stop; what was answered is in the file.
    """
    if input_file is None and mixture_or_task_name is None:
        raise UserError("Give INPUT_FILE, or MIXTURE_OR_TASK_NAME with SPLIT.")
    require_at_least(1, NUM_BEST=num_best)
    if input_file is not None and os.path.realpath(input_file) == os.path.realpath(output_file):
        raise UserError(f"OUTPUT_FILE = {output_file}: is the INPUT_FILE; name another.")

    def items() -> Iterator[Item]:
        if input_file is not None:
            return read_items(input_file, input_field)
        assert mixture_or_task_name is not None  # as asked for above
        return read_task(mixture_or_task_name, split, mixture_or_task_module)

    first = next(items(), None)  # before anything slow: the file may not be there
    if first is None:
        raise UserError(f"{input_file or mixture_or_task_name}: holds no inputs.")
    predictor = loader.load()
    progress = Progress()
    progress.note(f"{predictor.name}: {predictor.prompting.method}")
    if dry_run:
        progress.note(f"first input: {first.input}")
        progress.note(f"its answer:  {_start(predictor, [first], 0, explain, num_best)()[0]}")
        return None
    made_with = {"EXPLAIN": explain, "NUM_BEST": num_best, **predictor.answers_depend_on()}
    with StopRequest("these inputs") as stop:
        done, output = _resume(output_file, made_with, predictor.name, items)
        try:
            return _run(predictor, items(), output, done, explain, num_best, progress, stop)
        finally:
            if output is not None:
                progress.note(f"Written to {output.path}")
                output.__exit__(None, None, None)


def interact(*, loader: Loader, explain: bool = True, num_best: int = 1) -> None:
    """Answers each line of standard input until it ends (Ctrl-D).

    Shows the input with the pieces coloured that spoke for the label (green) or against it (red),
    by gradient × input; where there are no colours, it names them.

    Args:
      loader: the student.
      explain: also write rationales.
      num_best: how many labels are given, best first.

    Raises:
      UserError: the student cannot be loaded, or there are several processes.
    """
    if jax.process_count() > 1:
        raise UserError("--interactive works in one process.")
    console = Console(highlight=False, markup=False)
    predictor = loader.load()
    console.print(Text(f"{predictor.name}: type an input, Ctrl-D ends.", style="dim"))
    for line in interactive.read_lines(console):
        try:
            interactive.answer(console, predictor, line, explain, num_best)
        except UserError as error:
            console.print(Text(f"error: {error}", style="red"), soft_wrap=True)


def _run(
    predictor: Predictor,
    items: Iterator[Item],
    output: ResumableOutput | None,
    done: int,
    explain: bool,
    num_best: int,
    progress: Progress,
    stop: StopRequest,
) -> int:
    """Answers all windows but those that are done; `output` is None on other processes than 0."""
    size = WINDOW * predictor.row_counts[-1]
    count, fresh = 0, 0
    begin = last_note = time.monotonic()
    noted = ""
    pending: tuple[int, Callable[[], list[dict[str, Any]]]] | None = None

    def write(window: tuple[int, Callable[[], list[dict[str, Any]]]] | None) -> None:
        nonlocal fresh, last_note, noted
        if window is None:
            return
        rows = window[1]()
        if output is not None:
            output.append(rows)
        fresh += len(rows)
        if time.monotonic() - last_note > _SECONDS_BETWEEN_LINES:
            last_note = time.monotonic()
            noted = f"{window[0] + len(rows):,} inputs, {fresh / (last_note - begin):,.1f}/s"
            progress.note(noted)

    # On CPU, nothing that communicates may run beside the question whether to stop.
    alone = jax.process_count() > 1 and jax.default_backend() == "cpu"
    while True:
        if alone:
            write(pending)
            pending = None
        if stop.agreed():
            write(pending)
            progress.note(f"Stopped by {stop.name}; the same command goes on from there.")
            raise InterruptedError(stop.name)
        try:
            window = list(itertools.islice(items, size))
            first, count = count, count + len(window)
            skipped = window and count <= done
            if not skipped:
                started = _start(predictor, window, first, explain, num_best) if window else None
        except UserError:
            # What is under way is answered and kept where a line of this window is malformed.
            write(pending)
            raise
        if skipped:
            continue
        write(pending)
        if started is None:
            break
        if first < done and output is not None:
            # A window is answered whole or not at all: batches, and so bits, depend on it.
            output.cut(first)
        pending = (first, started)
    seconds = max(time.monotonic() - begin, 1e-9)
    kept = f" ({count - fresh:,} were there)" if fresh < count else ""
    rate = f", {fresh / seconds:,.1f}/s" if fresh else ""
    if (total := f"{count:,} inputs{kept}{rate}") != noted:
        progress.note(total)
    return count


def _start(
    predictor: Predictor, items: Sequence[Item], first: int, explain: bool, num_best: int
) -> Callable[[], list[dict[str, Any]]]:
    """Puts a window under way; `first` is the number of its first input."""
    in_two_stages = predictor.prompting.is_cascaded
    explained = []
    if in_two_stages or (explain and not predictor.prompting.explains_itself):
        explained = [
            predictor.ask_rationale(item.input, sample=first + number)
            for number, item in enumerate(items)
        ]
    written: list[str] = []
    if in_two_stages:  # the label reads what the student has written, whatever the file holds
        written = [answer.text for answer in predictor.run(explained)]
        explained = []
        items = [
            dataclasses.replace(item, rationale=text)
            for item, text in zip(items, written, strict=True)
        ]
    labels = [_ask(predictor, item) for item in items]
    finish_labels = predictor.start_all(labels, num_best=num_best)
    finish_rationales = predictor.start_all(explained)

    def finish() -> list[dict[str, Any]]:
        said = written or [answer.text for answer in finish_rationales()]
        rationales: Sequence[str | None] = said or [None] * len(items)
        rows = []
        for item, answer, rationale in zip(items, finish_labels(), rationales, strict=True):
            row: dict[str, Any] = {
                "id": item.id,
                "input": item.input,
                "label": answer.label,
                "confidence": answer.confidence,
                "truncated": answer.truncated,
            }
            if item.target is not None:
                row["target"] = item.target
            if explain:
                row["rationale"] = answer.rationale if rationale is None else rationale
            if num_best > 1:
                row["n_best"] = [
                    {"label": label, "confidence": value} for label, value in answer.alternatives
                ]
            rows.append(row)
        return rows

    return finish


def _ask(predictor: Predictor, item: Item) -> Any:
    with located(item.where):
        query = predictor.ask_label(item.input, item.candidates, rationale=item.rationale)
        closed = query.candidates or predictor.closed_set
        if closed is not None and item.target is not None:
            closed.find(item.target)
        return query


def _resume(
    path: str, made_with: dict[str, Any], checkpoint: str, items: Callable[[], Iterator[Item]]
) -> tuple[int, ResumableOutput | None]:
    """How many rows are there already, the same number on every process; and process 0's file."""
    output: ResumableOutput | None = None
    done, failed = 0, None
    if jax.process_index() == 0:
        try:
            output = ResumableOutput(path, made_with, checkpoint=checkpoint)
            done = _count_same(output, items())
        except UserError as error:
            failed = error
            if output is not None:
                output.__exit__(None, None, None)
    if jax.process_count() > 1:
        done = int(multihost_utils.broadcast_one_to_all(np.int64(-1 if failed else done)))
    if failed is not None:
        raise failed
    if done < 0:
        raise UserError(f"{path}: process 0 cannot write it; its own message says why.")
    return done, output


def _count_same(output: ResumableOutput, items: Iterator[Item]) -> int:
    """Counts the rows, all of which must be of the first inputs.

    Raises:
      UserError: one is of another input.
    """
    done = 0
    for done, row in enumerate(output.rows(), start=1):
        item = next(items, None)
        if item is None:
            raise UserError(
                f"{output.path}: has more rows than there are inputs now; name another "
                "OUTPUT_FILE, or remove this one to begin anew."
            )
        same_input = normalize_answer(str(row.get("input"))) == normalize_answer(item.input)
        if not same_input or row.get("id") != item.id:
            raise UserError(
                f"{output.path}, line {done}: answers the input {str(row.get('input'))[:60]!r}, "
                f"but {item.where} is {item.input[:60]!r}; name another OUTPUT_FILE, or remove "
                "this one to begin anew."
            )
    return done
