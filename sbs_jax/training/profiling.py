"""Profiles some steps of training: a trace that XProf and TensorBoard show."""

from __future__ import annotations

import contextlib
import os
import re
from typing import Any

import jax

from sbs_jax import remote
from sbs_jax.closing import Closing
from sbs_jax.errors import UserError


class Profile(Closing):
    """Traces a range of steps into a folder: `xprof FOLDER`, or `tensorboard --logdir FOLDER`.

    Every process of a run traces its own devices. Steps are named in the trace. Each traced range
    ends only when its last step has been computed.
    """

    def __init__(self, steps: str | None = None, folder: str | os.PathLike[str] = "") -> None:
        """Starts nothing yet.

        Args:
          steps: `10:15` for steps 10 to 14, counted from 1; None traces none.
          folder: the folder of the trace.

        Raises:
          UserError: `steps` is no such range.
        """
        self._first, self._end = _parse(steps)
        self._folder = os.fspath(folder)
        self._outbox: remote.Outbox | None = None
        self._tracing = False

    @contextlib.contextmanager
    def step(self, number: int) -> Any:
        """Held around the call that starts step `number`."""
        if self._first <= number < self._end and not self._tracing:
            if remote.is_remote(self._folder):
                self._outbox = remote.Outbox(self._folder)
            jax.profiler.start_trace(
                self._folder if self._outbox is None else str(self._outbox.folder)
            )
            self._tracing = True
        if not self._tracing:
            yield
            return
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def end_after(self, number: int, result: Any) -> None:
        """Ends the trace if step `number`, which gives `result`, is its last one."""
        if self._tracing and number + 1 >= self._end:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Writes the trace, if one is under way."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            if self._outbox is not None:
                self._outbox.close()


def _parse(steps: str | None) -> tuple[int, int]:
    if steps is None:
        return 0, 0
    found = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", str(steps))
    if found is None or not 1 <= int(found[1]) < int(found[2]):
        raise UserError(
            f"PROFILE_STEPS = {steps!r} must be a range of steps, FIRST:END, such as '10:15' for "
            "steps 10 to 14."
        )
    return int(found[1]), int(found[2])
