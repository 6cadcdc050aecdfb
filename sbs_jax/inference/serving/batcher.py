"""Dynamic batching: one thread runs the model, behind a bounded queue."""

from __future__ import annotations

import collections
import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

log = logging.getLogger(__name__)

More = Callable[[int], list[Any]]
"""Returns up to so many further jobs of the same group; none if none may join now."""
RunFn = Callable[[list[Any], More], Iterable[list[tuple[int, Any]]]]
"""Answers the jobs of one group, and those that `more` adds: yields answers that are ready, each
with the number of its job in the order in which jobs were given."""


class FullError(Exception):
    """Raised when the queue has no room.

    Attributes:
      retry_after: seconds, at least 1, after which there should be room.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again after {retry_after} s")
        self.retry_after = retry_after


class ClosedError(Exception):
    """Raised when the service is shutting down, or its thread has died."""


@dataclasses.dataclass(frozen=True)
class FinishedBatch:
    """A batch that the thread has run, for metrics.

    Attributes:
      group: the group of its jobs.
      size: the number of its jobs.
      seconds: the time that it took.
      waited: the seconds that the oldest of its jobs had waited.
    """

    group: Hashable
    size: int
    seconds: float
    waited: float


@dataclasses.dataclass
class _Waiting:
    job: Any
    future: Future[Any]
    since: float


class Batcher:
    """Takes jobs from any thread, and runs those of one group together in its own thread.

    While a batch runs, the next one gathers: at low load jobs run alone and at once (but for
    `max_delay`), at high load batches are full. The model may also let jobs of the same group join
    a batch that runs, unless a job of another group has waited longer.
    """

    def __init__(
        self,
        run: RunFn,
        *,
        max_rows: int,
        max_waiting: int,
        max_delay: float,
        on_batch: Callable[[FinishedBatch], None] = lambda batch: None,
    ) -> None:
        """Starts nothing yet.

        Args:
          run: called in the batcher's thread alone.
          max_rows: maximum number of jobs that a batch begins with.
          max_waiting: maximum number of jobs that wait; those that run do not count.
          max_delay: seconds for which a batch that is not full waits for more jobs.
          on_batch: called with every finished batch, in the batcher's thread.
        """
        self._run = run
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._max_delay = max_delay
        self._on_batch = on_batch
        self._changed = threading.Condition()
        self._queues: dict[Hashable, collections.deque[_Waiting]] = {}
        self._count = 0
        self._closing = False
        self._seconds_per_job = 0.0
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """Number of jobs in the queue."""
        return self._count

    @property
    def is_alive(self) -> bool:
        """Whether submitted jobs will be answered."""
        return self._thread is not None and self._thread.is_alive() and not self._closing

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def require_room(self, count: int) -> None:
        """Raises a `FullError` unless `count` more jobs may wait now."""
        if self._count + count > self._max_waiting:
            raise FullError(max(1, math.ceil(self._count * self._seconds_per_job)))

    def submit(self, jobs: Sequence[tuple[Hashable, Any]]) -> list[Future[Any]]:
        """Queues jobs, all of them or none; never waits.

        Args:
          jobs: pairs of a group and what `run` gets.

        Returns:
          A future for each; a cancelled one is not run.

        Raises:
          FullError: they would make more than `max_waiting`.
          ClosedError: `close` was called.
        """
        now = time.monotonic()
        with self._changed:
            if self._closing:
                raise ClosedError
            self.require_room(len(jobs))
            futures = []
            for group, job in jobs:
                waiting = _Waiting(job, Future(), now)
                self._queues.setdefault(group, collections.deque()).append(waiting)
                futures.append(waiting.future)
            self._count += len(jobs)
            self._changed.notify()
        return futures

    def cancel(self, futures: Sequence[Future[Any]]) -> None:
        """Removes jobs from the queue whose client is gone; jobs that are running go on."""
        gone = {id(future) for future in futures if future.cancel()}
        if not gone:
            return
        with self._changed:
            for group, queue in list(self._queues.items()):
                kept = [one for one in queue if id(one.future) not in gone]
                self._count -= len(queue) - len(kept)
                if kept:
                    self._queues[group] = collections.deque(kept)
                else:
                    del self._queues[group]

    def close(self, seconds: float | None = None) -> None:
        """Answers what waits, takes nothing more, and ends the thread.

        Args:
          seconds: the most to wait for it; None waits for all.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(seconds)

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            group, batch = taken
            batch = [one for one in batch if one.future.set_running_or_notify_cancel()]
            if not batch:
                continue
            begin = time.monotonic()
            waited = begin - batch[0].since

            def more(count: int, group: Hashable = group, batch: list[_Waiting] = batch) -> list:
                joining = self._join(group, count)
                batch.extend(joining)
                return [one.job for one in joining]

            try:
                for answers in self._run([one.job for one in batch], more):
                    for number, answer in answers:
                        batch[number].future.set_result(answer)
            except Exception as error:
                # A batch that fails (out of memory, say) fails its own requests, not the service.
                log.exception("a batch of %d failed", len(batch))
                for one in batch:
                    if not one.future.done():
                        one.future.set_exception(error)
                continue
            seconds = time.monotonic() - begin
            per_job = seconds / len(batch)
            self._seconds_per_job += 0.2 * (per_job - self._seconds_per_job)
            self._on_batch(FinishedBatch(group, len(batch), seconds, waited))

    def _join(self, group: Hashable, count: int) -> list[_Waiting]:
        """Takes jobs of `group` that are next in turn, for a batch that runs."""
        with self._changed:
            queue = self._queues.get(group)
            if not queue or group != self._oldest():
                return []
            taken = self._remove(group, count)
        return [one for one in taken if one.future.set_running_or_notify_cancel()]

    def _oldest(self) -> Hashable:
        """The group whose first job has waited longest: none is starved."""
        return min(self._queues, key=lambda key: self._queues[key][0].since)

    def _remove(self, group: Hashable, count: int) -> list[_Waiting]:
        queue = self._queues[group]
        taken = [queue.popleft() for _ in range(min(count, len(queue)))]
        if not queue:
            del self._queues[group]
        self._count -= len(taken)
        return taken

    def _take(self) -> tuple[Hashable, list[_Waiting]] | None:
        """Waits for a batch; None once the batcher is closed and nothing waits."""
        with self._changed:
            while True:
                if not self._queues:
                    if self._closing:
                        return None
                    self._changed.wait()
                    continue
                group = self._oldest()
                queue = self._queues[group]
                left = queue[0].since + self._max_delay - time.monotonic()
                if len(queue) < self._max_rows and left > 0 and not self._closing:
                    self._changed.wait(left)
                    continue
                return group, self._remove(group, self._max_rows)
