"""A request to stop in order: SIGTERM or Ctrl-C, seen by all processes at the same point."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class StopRequest:
    """SIGTERM or Ctrl-C, seen by all processes at the same step.

    While this context is open, the first signal only asks to stop; a second Ctrl-C interrupts at
    once. Open it early to have a signal count that comes before training.
    """

    def __init__(self, after: str = "this step") -> None:
        """Catches no signal yet.

        Args:
          after: what is still finished, for the sentence that answers Ctrl-C.
        """
        self._after = after
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._depth = 0
        self._flags: Any = None

    def agreed(self, after: Any = None) -> bool:
        """Whether to stop now; every process calls this once a step and gets the same answer.

        With several processes, the answer to a signal comes a step later: their flags travel behind
        the step that is running, and no process waits for them. On CPU all wait: programs that
        communicate are not kept in order there, and two at a time could block each other for ever.

        Args:
          after: results of the step that is running.
        """
        if jax.process_count() == 1:
            return self.signal is not None
        in_order = jax.default_backend() != "cpu"
        if not in_order:
            jax.block_until_ready(after)
        before = self._flags
        mine = np.full((jax.local_device_count(),), self.signal is not None, np.int32)
        mesh = Mesh(np.asarray(jax.devices()), ("all",))
        self._flags = _maximum(
            jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec("all")), mine)
        )
        if not in_order:
            before = self._flags
        return before is not None and bool(jax.device_get(before))

    @property
    def name(self) -> str:
        """What asked to stop, in words."""
        if self.signal is None:
            return "a signal to another process"
        return "Ctrl-C" if self.signal == signal.SIGINT else self.signal.name

    def __enter__(self) -> Self:
        self._depth += 1
        # Python allows handlers in the main thread alone.
        if self._depth == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            for number, handler in self._previous.items():
                # None: a handler that was not set from Python (jax.distributed sets one).
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is None:
            self.signal = signal.Signals(number)
            if number == signal.SIGINT and jax.process_index() == 0:
                # Not print: the signal may have come in the middle of one.
                os.write(2, f"\nStopping after {self._after} (Ctrl-C again: at once).\n".encode())


@jax.jit
def _maximum(flags: jax.Array) -> jax.Array:
    return flags.max()
