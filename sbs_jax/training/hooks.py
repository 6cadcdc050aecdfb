"""Helpers of the loop: a feed of batches, a window of metrics, a meter."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from sbs_jax.closing import Closing
from sbs_jax.errors import UserError
from sbs_jax.metrics import Value

NumpyBatch = Mapping[str, np.ndarray]


class Batches(Protocol):
    """An endless iterator of batches that knows its position."""

    def __next__(self) -> NumpyBatch:
        """The next batch."""
        ...

    def state(self) -> dict[str, Any]:
        """The position behind the last batch given out, as JSON."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to a position that `state` gave."""
        ...


@dataclasses.dataclass(frozen=True)
class Fed:
    """A batch on the devices.

    Attributes:
      batch: global arrays.
      position: `Batches.state()` right behind this batch.
      counts: the numbers that were counted on the numpy batch.
    """

    batch: Any
    position: dict[str, Any]
    counts: dict[str, float]


class Feed(Closing):
    """Makes batches and moves them to the devices ahead of their use, in a thread of its own.

    However far ahead that thread is, each batch carries the position right behind itself.
    """

    def __init__(
        self,
        batches: Batches,
        to_device: Callable[[NumpyBatch], Any],
        count: Callable[[NumpyBatch], dict[str, float]],
        *,
        ahead: int = 2,
    ) -> None:
        """Starts at once.

        Args:
          batches: used by the thread alone until `close`.
          to_device: puts a numpy batch on the mesh.
          count: see `Fed.counts`.
          ahead: how many batches wait on the devices.
        """
        self._batches, self._to_device, self._count = batches, to_device, count
        self._queue: queue.Queue[Fed | BaseException] = queue.Queue(maxsize=ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sbs_jax-feed", daemon=True)
        self._thread.start()

    def __next__(self) -> Fed:
        """The next batch.

        Raises:
          UserError: there are no more.
          BaseException: whatever making it raised.
        """
        item = self._queue.get()
        if isinstance(item, StopIteration):
            raise UserError("The training data ended; training needs an endless iterator.")
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._queue.get_nowait()  # The thread may wait for room.
            self._thread.join(timeout=0.01)

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                batch = next(self._batches)
                position = self._batches.state()
                self._queue.put(Fed(self._to_device(batch), position, self._count(batch)))
        except BaseException as error:
            self._queue.put(error)


def without_empty_parts(metrics: Mapping[str, Value]) -> dict[str, Value]:
    """`metrics` with None instead of the loss and accuracy of a part that has no token."""
    result = dict(metrics)
    for part in parts_in(metrics):
        if result.get(f"{part}_tokens") == 0:
            for name in ("loss", "accuracy"):
                if f"{part}_{name}" in result:
                    result[f"{part}_{name}"] = None
    return result


def parts_in(metrics: Mapping[str, Value]) -> list[str]:
    """The parts of the loss that metrics are of: what has both a loss and a number of tokens."""
    names = (name.removesuffix("_tokens") for name in metrics if name.endswith("_tokens"))
    return [name for name in names if f"{name}_loss" in metrics]


def is_count(name: str) -> bool:
    """Whether a metric counts something, so that steps add up (else their mean is taken)."""
    return name == "examples" or name.endswith(("_tokens", "_targets"))


class Window:
    """Metrics of the steps since the last line of the record, made one line.

    Counts are added up; of the rest, the mean is taken over the steps that have a value. The sums
    go into checkpoints, so that an interrupted run writes the same lines.
    """

    def __init__(self, saved: Mapping[str, Any] | None = None) -> None:
        """Empty, or as `state` gave it."""
        self._sums: dict[str, list[float]] = {
            name: list(pair) for name, pair in (saved or {}).items()
        }

    def add(self, metrics: Mapping[str, Value]) -> None:
        """Adds a step."""
        for name, value in metrics.items():
            pair = self._sums.setdefault(name, [0.0, 0])
            if value is not None:
                pair[0] += float(value)
                pair[1] += 1

    def take(self) -> dict[str, Value]:
        """The line; the window is empty afterwards."""
        line: dict[str, Value] = {}
        for name, (total, steps) in self._sums.items():
            if is_count(name):
                line[name] = int(total) if float(total).is_integer() else total
            else:
                line[name] = total / steps if steps else None
        self._sums = {}
        return line

    def state(self) -> dict[str, list[float]]:
        """The sums, as JSON."""
        return {name: list(pair) for name, pair in self._sums.items()}


MEASURED = (
    "examples_per_second",
    "tokens_per_second",
    "step_seconds",
    "data_wait_seconds",
    "model_flops_per_second",
    "device_memory_bytes",
    "host_memory_bytes",
)
"""What `Meter.take` gives: it depends on the clock and the machine, unlike the rest of a record."""


class Meter:
    """How fast training is, evaluation and saving left out, and how much memory it takes.

    An example is its label, its rationale and its further parts: in a batch there are as many
    examples as targets of the part that has most of them. Tokens are those read and those to be
    written, no padding. The first step is not measured: it holds the compilation.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._flops: float | None = 0.0
        self._reset()

    def add(self, metrics: Mapping[str, Value], flops: float | None = None) -> None:
        """A step is done.

        Args:
          metrics: the metrics of the step that are recorded.
          flops: floating-point operations of the step; None if unknown.
        """
        if self._since is None:
            self._since = time.monotonic()
            self._reset()
            return
        self._steps += 1
        parts = parts_in(metrics)
        self._examples += max([metrics.get(f"{part}_targets") or 0 for part in parts], default=0)
        names = ("input_tokens", *(f"{part}_tokens" for part in parts))
        self._tokens += sum(metrics.get(name) or 0 for name in names)
        self._flops = None if flops is None or self._flops is None else self._flops + flops

    def take(self) -> dict[str, Value]:
        """What was measured since the last call; None if unknown.

        Returns:
          `examples_per_second`, `tokens_per_second`, `step_seconds` (mean), `data_wait_seconds`
          (mean of a step's wait for its batch), `model_flops_per_second`, and the peaks of memory
          so far, `device_memory_bytes` of the first device and `host_memory_bytes`.
        """
        now = time.monotonic()
        seconds = 0.0 if self._since is None else now - self._since
        known = seconds > 0 and self._tokens + self._examples > 0
        steps = self._steps if seconds > 0 else 0
        measured: dict[str, Value] = {
            "examples_per_second": self._examples / seconds if known else None,
            "tokens_per_second": self._tokens / seconds if known else None,
            "step_seconds": seconds / steps if steps else None,
            "data_wait_seconds": self._waited / steps if steps else None,
            "model_flops_per_second": self._flops / seconds if steps and self._flops else None,
            "device_memory_bytes": _device_memory(),
            "host_memory_bytes": _host_memory(),
        }
        if self._since is not None:
            self._since = now
        self._reset()
        return measured

    def _reset(self) -> None:
        self._steps = 0
        self._examples = self._tokens = self._waited = 0.0
        self._flops = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time spent within as waiting for data."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._waited += time.monotonic() - begin

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time spent within."""
        begin = time.monotonic()
        try:
            yield
        finally:
            if self._since is not None:
                self._since += time.monotonic() - begin


def _device_memory() -> int | None:
    """The most bytes of the first device that were ever in use; None where it does not tell."""
    statistics = jax.local_devices()[0].memory_stats()
    return None if statistics is None else statistics.get("peak_bytes_in_use")


def _host_memory() -> int:
    """The most resident bytes that this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
