"""Drives plans: asks a backend, retries, and writes completions into the journal.

A request counts as done once its completion is in the journal, and not before.
"""

from __future__ import annotations

import asyncio
import random
import signal
import threading
import time
from collections.abc import Awaitable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sbs_jax.errors import UserError
from sbs_jax.redaction import Blotter
from sbs_jax.teacher.fields import Written
from sbs_jax.teacher.flow import Flow, sleep_or
from sbs_jax.teacher.gate import Gate, Stopped
from sbs_jax.teacher.journal import Journal
from sbs_jax.teacher.plan import Answers, Candidate, RequestPlan, Round
from sbs_jax.teacher.types import (
    AskedExample,
    Backend,
    Completion,
    CompletionRequest,
    Deferred,
    Refused,
    SplitGroup,
    Transient,
)

_SYNC_SECONDS = 5.0
_YIELD_EVERY = 64


class Observer(Protocol):
    """Receives the events of a run; the progress bar is one."""

    def example(self, example: AskedExample, candidates: list[Candidate]) -> None:
        """Is called when an example has everything that it will get in this run."""

    def completion(self, completion: Completion) -> None:
        """Is called when a completion was written into the journal."""

    def note(self, text: str) -> None:
        """Is called with a sentence for the user."""


@dataclass
class RunnerReport:
    """Counts of one run.

    Attributes:
      examples: Examples that the run came to.
      asked: Completions received in this run.
      sent: Calls of the backend (HTTP requests, for a server), retries included.
      reused: Completions that the journal already had.
      row_faults: Rows that the server refuses permanently.
      failed: Rows given up in this run; the next start asks for them again.
      deferred: Requests written into files, to be answered later (`batch_file`).
      retries: Tries after the first one.
      stopped: Why it stopped before the end, or None.
      seconds: Wall time.
    """

    examples: int = 0
    asked: int = 0
    sent: int = 0
    reused: int = 0
    row_faults: int = 0
    failed: int = 0
    deferred: int = 0
    retries: int = 0
    stopped: str | None = None
    seconds: float = 0.0


class _Open(NamedTuple):
    """A round of requests, some of which are not answered yet.

    Attributes:
      wanted: The requests.
      answers: The completions of the requests; None where one is missing.
      mine: Indices of the requests that this example sends.
      others: Index → the completion that another example is waiting for.
    """

    wanted: Round
    answers: Answers
    mine: list[int]
    others: dict[int, asyncio.Future[Completion | None]]


class Runner:
    """Runs a plan over examples."""

    def __init__(
        self,
        plan: RequestPlan,
        backend: Backend,
        journal: Journal,
        flow: Flow,
        observer: Observer,
        blotter: Blotter | None = None,
    ) -> None:
        """Sends nothing yet.

        Args:
          plan: The plan of what is asked for an example.
          backend: Who answers.
          journal: The journal that completions are written to.
          flow: Limits.
          observer: Receives every completion and example.
          blotter: Takes secrets out of what the backend says before it is written or shown.
        """
        self.plan = plan
        self.backend = backend
        self.journal = journal
        self.flow = flow
        self.observer = observer
        self._blotter = blotter or Blotter()
        self.report = RunnerReport()
        self._rng = random.Random()
        self._successes = 0
        self._refused_in_a_row = 0
        self._unclear: list[tuple[CompletionRequest, Completion]] = []
        self._flying: dict[str, asyncio.Future[Completion | None]] = {}
        self._fatal: UserError | None = None

    async def run(self, examples: Iterable[AskedExample]) -> RunnerReport:
        """Asks for everything that the journal lacks.

        Returns:
          The report; `report.stopped` says why when it ended early.

        Raises:
          UserError: the server refuses everything, or the disk is full; what was answered before
            is in the journal.
        """
        started = time.monotonic()
        self._stop = asyncio.Event()
        self._gate = Gate(self.flow, self.journal.totals, self._stop, self.stop, self._fail)
        at_once = max(self.flow.concurrency, self.backend.min_concurrency)
        self._slots = asyncio.Semaphore(at_once)
        # Requests in backoff hold no slot, so a few more examples than slots are kept going.
        self._window = asyncio.Semaphore(at_once + at_once // 4 + 8)
        self._trial = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        syncing = asyncio.create_task(self._sync_now_and_then())
        try:
            await self.backend.start()
            with self._signals():
                await self._feed(examples)
                while self._tasks:
                    await asyncio.wait(self._tasks)
        finally:
            syncing.cancel()
            for task in self._tasks:
                task.cancel()
            await self.backend.close()
            self.report.seconds = time.monotonic() - started
        if self._fatal is None and self._unclear:
            self._fail(UserError(self._unclear[0][1].error or "The server refused."))
        if self._fatal is not None:
            raise self._fatal
        return self.report

    def stop(self, reason: str) -> None:
        """Sends no further requests; those in flight are awaited."""
        if not self._stop.is_set():
            self.report.stopped = reason
            self._stop.set()
            self._gate.release()

    async def _feed(self, examples: Iterable[AskedExample]) -> None:
        for number, example in enumerate(examples, start=1):
            if self._stop.is_set():
                return
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
            self.report.examples += 1
            await self._window.acquire()
            if self._stop.is_set():
                return
            steps = self.plan.whole(example)
            open_round = self._replay(example, steps, None)
            if open_round is None:
                self._window.release()
                continue
            task = asyncio.create_task(self._pursue(example, steps, open_round))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._window.release()
        error = None if task.cancelled() else task.exception()
        if isinstance(error, UserError):
            self._fail(error)
        elif error is not None:  # a fault of ours: end the run rather than lose it in a task
            failed = UserError(f"The teacher failed: {type(error).__name__}: {error}.")
            failed.__cause__ = error
            self._fail(failed)

    def _fail(self, error: UserError) -> None:
        if self._fatal is None:
            self._fatal = UserError(self._blotter.in_message(str(error)))
            self._fatal.__cause__ = error.__cause__
        self.stop("error")

    def _replay(
        self,
        example: AskedExample,
        steps: Generator[Round, Answers, tuple[list[Candidate], Written]],
        answers: Answers | None,
    ) -> _Open | None:
        """Advances `steps` as far as the journal has completions.

        Returns:
          The round at which something is missing; None at the end. What is missing is claimed, so
          that an equal request of another example awaits this one.
        """
        while True:
            try:
                wanted = next(steps) if answers is None else steps.send(answers)
            except StopIteration as end:
                self.observer.example(example, end.value[0])
                return None
            answers = [self.journal.get(request.key) for request in wanted]
            missing = [place for place, answer in enumerate(answers) if answer is None]
            self.report.reused += len(answers) - len(missing)
            if missing:
                break
        mine, others = [], {}
        for place in missing:
            flying = self._flying.get(wanted[place].key)
            if flying is not None:
                others[place] = flying
            else:
                self._flying[wanted[place].key] = asyncio.get_running_loop().create_future()
                mine.append(place)
        return _Open(wanted, answers, mine, others)

    async def _pursue(
        self,
        example: AskedExample,
        steps: Generator[Round, Answers, tuple[list[Candidate], Written]],
        open_round: _Open | None,
    ) -> None:
        """Asks for what an example lacks, round after round."""
        while open_round is not None:
            wanted, answers, mine, others = open_round
            try:
                size = max(1, self.backend.samples_per_request)
                if len(mine) == 1:
                    await self._fill(open_round, mine)
                elif mine:
                    groups = [mine[i : i + size] for i in range(0, len(mine), size)]
                    await _together(self._fill(open_round, group) for group in groups)
                for place, flying in others.items():
                    answers[place] = await asyncio.shield(flying)
            except Stopped:
                return
            finally:
                for place in mine:
                    flying = self._flying.pop(wanted[place].key)
                    if not flying.done():
                        flying.set_exception(Stopped())
                        flying.exception()  # retrieved, in case no example waits for it
            open_round = self._replay(example, steps, answers)

    async def _fill(self, open_round: _Open, places: list[int]) -> None:
        """Asks for the requests at `places`, all samples of one prompt."""
        group = [open_round.wanted[place] for place in places]
        try:
            said = await self._ask(group)
        except SplitGroup:
            if self.backend.samples_per_request > 1:
                self.backend.samples_per_request = 1
                self.observer.note("The server gives one sample per request: asking one by one.")
            await _together(self._fill(open_round, [place]) for place in places)
            return
        for place, completion in zip(places, said, strict=True):
            open_round.answers[place] = completion
            self._flying[open_round.wanted[place].key].set_result(completion)

    async def _ask(self, group: Round) -> list[Completion | None]:
        """Sends a group until it is answered, refused, or given up."""
        tries, counted = 0, 0.0
        while True:
            async with self._slots:
                outcome = None
                if self.backend.one_first and not self._successes:
                    # The first request is sent alone: a wrong key is reported once, not a hundred
                    # times, and the server's prefix cache is warm for the others.
                    async with self._trial:
                        if not self._successes:
                            outcome = await self._try(group, tries + 1)
                if outcome is None:
                    outcome = await self._try(group, tries + 1)
            if not isinstance(outcome, Transient):
                return outcome
            tries += 1
            # A server that is down, or a rate limit, is no fault of this row.
            if not self._gate.breaker.open:
                counted += 1 if outcome.retry_after is None else 0.1
            if counted > self.flow.max_retries:
                self.report.failed += len(group)
                for request in group:
                    error = f"given up after {tries} tries: {outcome}"
                    self._write(request, Completion("", error=error, tries=tries), final=False)
                return [None] * len(group)
            self.report.retries += 1
            await sleep_or(self._stop, self.flow.delay(tries, outcome.retry_after, self._rng))

    async def _try(self, group: Round, tries: int) -> list[Completion | None] | Transient:
        """Sends a group once."""
        await self._gate.wait(group)
        started = time.monotonic()
        self.report.sent += 1
        with self._gate.sending(group) as said:
            try:
                said += await self.backend.complete(group)
            except Transient as error:
                self._gate.breaker.failure(str(error))
                return error
            except Refused as error:
                self._gate.breaker.success()
                return self._refused(group, error, tries)
            except Deferred:
                self.report.deferred += len(group)
                return [None] * len(group)
            seconds = time.monotonic() - started
            for request, completion in zip(group, said, strict=True):
                completion.seconds = completion.seconds or seconds
                completion.tries = tries
                if completion.usage_estimated and not completion.prompt_tokens:
                    completion.prompt_tokens = self._gate.prompt_tokens(request)
                self._write(request, completion)
        self._gate.breaker.success()
        self._refused_in_a_row = 0
        if not self._successes:
            for request, completion in self._unclear:
                self._write(request, completion)
            self._unclear.clear()
        self._successes += len(group)
        self.report.asked += len(group)
        return list(said)

    def _refused(self, group: Round, error: Refused, tries: int) -> list[Completion | None]:
        if error.fatal:
            self._fail(UserError(str(error)))
            raise Stopped
        pairs = [(request, Completion("", error=str(error), tries=tries)) for request in group]
        completions: list[Completion | None] = [completion for _, completion in pairs]
        if not error.row and not (self._successes or self.report.reused):
            # The next request shows whether this concerns one row or all of them.
            if self._unclear:
                self._fail(UserError(str(error)))
                raise Stopped
            self._unclear += pairs
            self.report.row_faults += len(group)
            return completions
        self._refused_in_a_row += 1
        if self._refused_in_a_row > max(50, 4 * self.flow.concurrency):
            self._fail(
                UserError(f"The server has refused {self._refused_in_a_row} rows in a row: {error}")
            )
            raise Stopped
        for request, completion in pairs:
            self._write(request, completion)
        self.report.row_faults += len(group)
        return completions

    def _write(
        self, request: CompletionRequest, completion: Completion, *, final: bool = True
    ) -> None:
        completion.text = self._blotter.in_text(completion.text)
        completion.server = self._blotter.in_value(completion.server)
        if completion.error is not None:
            completion.error = self._blotter.in_message(completion.error)
        self.journal.append(request, completion, final=final)
        self.observer.completion(completion)

    async def _sync_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_SYNC_SECONDS)
            try:
                await asyncio.to_thread(self.journal.sync)
            except UserError as error:
                self._fail(error)
                return

    @contextmanager
    def _signals(self) -> Generator[None, None, None]:
        """Ctrl-C and SIGTERM finish what is in flight; a second one drops it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()

        def asked_to_stop(name: str) -> None:
            if self._stop.is_set():
                self.observer.note("Dropping what is in flight.")
                for task in self._tasks:
                    task.cancel()
                return
            flying = len(self._tasks)
            self.observer.note(
                f"{name}: finishing what is in flight (for {flying} examples); once more drops it."
            )
            self.stop(name)

        caught = (signal.SIGINT, signal.SIGTERM)
        for number in caught:
            loop.add_signal_handler(number, asked_to_stop, signal.Signals(number).name)
        try:
            yield
        finally:
            for number in caught:
                loop.remove_signal_handler(number)


async def _together(work: Iterable[Awaitable[None]]) -> None:
    """Awaits all, also when one fails (what is in flight is to be journaled); then raises."""
    outcomes = await asyncio.gather(*work, return_exceptions=True)
    errors = [outcome for outcome in outcomes if outcome is not None]
    errors.sort(key=lambda error: isinstance(error, Stopped))
    if errors:
        raise errors[0]
