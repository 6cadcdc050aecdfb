"""One session with the teacher: everything of this room put together.

`Session` is the whole configuration, which gin builds (`gin/runs/teach.gin`); `teach` runs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import itertools
import logging
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.text import Text

from sbs_jax.errors import UserError
from sbs_jax.files import atomic_open, refuse_remote
from sbs_jax.redaction import Blotter, secrets_in
from sbs_jax.teacher import derive as derive_lib
from sbs_jax.teacher import output, provenance, stats
from sbs_jax.teacher.choose import Choosing
from sbs_jax.teacher.fields import FieldFile, load_field_files
from sbs_jax.teacher.flow import Flow
from sbs_jax.teacher.journal import Journal
from sbs_jax.teacher.plan import Asking, RequestPlan
from sbs_jax.teacher.progress import Watch
from sbs_jax.teacher.prompts import PromptFile, load_prompts
from sbs_jax.teacher.runner import Runner, RunnerReport
from sbs_jax.teacher.sampling import Sampling
from sbs_jax.teacher.text import printable, say
from sbs_jax.teacher.types import Backend

log = logging.getLogger(__name__)
T = TypeVar("T")

COMPLETE = "complete"
"""The status of a run that lacks nothing."""

ExamplesFn = Callable[[], Iterable[Mapping[str, Any]]]
"""Gives the examples anew at each call: rows with `id`, `input`, `label`."""


@dataclasses.dataclass(frozen=True)
class Session:
    """What a teacher is asked for; gin builds it (``gin/runs/teach.gin``).

    Attributes:
      output_dir: The folder of this teacher and data set.
      backend: Who answers.
      prompts: A prompt file, or the name of a shipped one; None where the data set decides.
      fields: Field files, or names of shipped ones: what else the teacher writes of each example.
      sampling: How the teacher samples.
      asking: How examples are asked.
      choosing: Filters and choice, applied to the journal.
      flow: Limits.
      limit: Only so many examples; 0 takes all.
      predictions: Also writes the teacher's answers as `sbs_jax.eval` writes a student's.
      preview: Prints so many prompts with their token counts, sends nothing, writes nothing.
      offline: Only derives from the journal; what is missing stays missing.
    """

    output_dir: str
    backend: Backend
    prompts: str | None = None
    fields: Sequence[str] = ()
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    asking: Asking = dataclasses.field(default_factory=Asking)
    choosing: Choosing = dataclasses.field(default_factory=Choosing)
    flow: Flow = dataclasses.field(default_factory=Flow)
    limit: int = 0
    predictions: bool = False
    preview: int = 0
    offline: bool = False


def teach(session: Session, source: ExamplesFn, console: Console | None = None) -> dict[str, Any]:
    """Turns examples into rationales and labels.

    Asks for what the journal in the session's folder lacks, then derives `rationales.jsonl` and
    `run.json`.

    Args:
      session: Who is asked, how, and what is kept.
      source: Gives the examples; called twice, and streamed.
      console: The console to write to; stderr by default.

    Returns:
      What `run.json` holds ({} for a preview).

    Raises:
      UserError: a mistake in the settings, or a server that refuses everything; what was answered
        before that is saved.
    """
    console = console or Console(stderr=True, markup=False)
    if session.choosing.choose == "best_logprob" and not session.sampling.logprobs:
        raise UserError("CHOOSE = 'best_logprob' needs LOGPROBS = True.")
    if session.prompts is None:
        raise UserError("PROMPTS is missing: name a prompt file, or a shipped one (svamp).")
    file = load_prompts(session.prompts)
    field_files = load_field_files(session.fields)
    plan = RequestPlan(
        file,
        session.sampling,
        session.asking,
        model=session.backend.model,
        field_files=field_files,
    )
    if session.preview:
        _preview(plan, session.backend, source, session.preview, console)
        return {}
    refuse_remote(session.output_dir)
    with Journal(Path(session.output_dir)) as journal:
        if journal.dropped_bytes:
            say(console, f"Dropped a torn last line of {journal.path} (the last run was killed).")
        if journal.totals.damaged_lines:
            say(
                console,
                f"{journal.totals.damaged_lines} damaged lines of {journal.path} are ignored; "
                "their completions are asked for again.",
            )
        begun_empty = journal.is_empty
        asked_with: tuple[PromptFile | FieldFile, ...] = (file, *field_files)
        for kept in asked_with:
            _keep_prompt_file(Path(session.output_dir), kept)
        report, failure = RunnerReport(), None
        if not session.offline:
            report, failure = _run(plan, session, journal, source, console)
        examples = derive_lib.stream_examples(source, session.limit)
        # A run that ended early never looked at the rest: what no run has answered is left out
        # rather than called missing.
        reached = report.examples if report.stopped or failure else None
        if begun_empty and reached is not None:
            examples = itertools.islice(examples, reached)
        try:
            summary = derive_lib.derive(
                plan,
                journal,
                examples,
                session.choosing,
                predictions=session.predictions,
                reached=reached,
            )
        except UserError as error:
            # What went wrong first says more (the disk was full already, say).
            raise failure or error from error
        status = _status(report, summary, failure)
        history = provenance.history(Path(session.output_dir))
        placed = output.place(
            Path(session.output_dir), answered=summary.answered, complete=status == COMPLETE
        )
        run = provenance.write(
            placed.run,
            plan=plan,
            backend=session.backend,
            choosing=session.choosing,
            flow=session.flow,
            journal=journal,
            report=report,
            summary=summary,
            status=status,
            history=history,
        )
    stats.show(run, console)
    if placed.note:
        say(console, placed.note)
    if failure is not None:
        raise failure
    _say_how_to_go_on(run, placed.rationales, session.offline, console)
    return run


def _run(
    plan: RequestPlan, session: Session, journal: Journal, source: ExamplesFn, console: Console
) -> tuple[RunnerReport, UserError | None]:
    total = _total(source, session.limit)
    with Watch(total, session.flow, by_value=plan.by_value, console=console) as watch:
        # The backend blots out its own key; this is what the user put into the body.
        blotter = Blotter(secrets_in(plan.sampling.extra_body))
        runner = Runner(plan, session.backend, journal, session.flow, watch, blotter)
        try:
            run_async(runner.run(derive_lib.stream_examples(source, session.limit)))
        except UserError as error:
            return runner.report, error
    return runner.report, None


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine, on uvloop where it is installed (a fifth less CPU time per request)."""
    try:
        import uvloop
    except ImportError:
        run = asyncio.run
    else:
        run = uvloop.run
    with _rare_garbage_collection():
        return run(work)


@contextlib.contextmanager
def _rare_garbage_collection() -> Generator[None, None, None]:
    """Looks for cyclic garbage seldom.

    Every request in flight is a few hundred small objects, which Python's default looks through
    every 700 allocations: that is a sixth of the client's CPU time. Hardly any of them lie in
    cycles.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def _total(source: ExamplesFn, limit: int) -> int | None:
    try:
        number = len(source)  # type: ignore[arg-type]
    except TypeError:
        return limit or None
    return min(number, limit) if limit else number


def _status(report: RunnerReport, summary: derive_lib.Summary, failure: UserError | None) -> str:
    if failure is not None:
        return f"stopped: {printable(str(failure), 300)}"
    if report.stopped:
        return f"stopped: {report.stopped}"
    if report.deferred:
        return f"waiting for {report.deferred} results"
    missing = summary.counts.get("missing", 0)
    return f"incomplete: {missing} examples lack a completion" if missing else COMPLETE


def _say_how_to_go_on(
    run: dict[str, Any], rationales: Path, offline: bool, console: Console
) -> None:
    if run["status"] == COMPLETE:
        say(console, f"Rationales: {rationales}")
    elif not run["this_run"]["deferred"]:
        again = "without --offline the same command" if offline else "the same command"
        say(
            console,
            f"{run['status']}. Everything answered so far is saved; {again} goes on from there. "
            f"Rationales so far: {rationales}",
        )


def _keep_prompt_file(folder: Path, file: PromptFile | FieldFile) -> None:
    """Keeps the prompt file beside what it has made; its hash is its name."""
    copy = folder / "prompts" / f"{file.path.stem}.{file.sha256[:12]}.yaml"
    if not copy.exists():
        with atomic_open(copy, "wb") as target:
            target.write(file.path.read_bytes())


def _preview(
    plan: RequestPlan, backend: Backend, source: ExamplesFn, number: int, console: Console
) -> None:
    stop = plan.stop(plan.style.stop)
    for place, example in enumerate(derive_lib.stream_examples(source, number), start=1):
        prompt = plan.prompt(example)
        tokens, exact = backend.count_tokens(prompt)
        about = "" if exact else "about "
        shown = printable(example.id, 60)
        console.rule(Text(f"prompt {place}: example {shown}, {about}{tokens} tokens"))
        if isinstance(prompt, str):
            text = prompt
        else:
            text = "\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in prompt)
        say(console, text, 10**6, soft_wrap=True)
    later = [field.name for file in plan.field_files for field in file.fields]
    if later:
        say(console, f"asked after the answer: {', '.join(later)}")
    console.rule(Text(f"stop: {list(stop)}; nothing was sent"))
