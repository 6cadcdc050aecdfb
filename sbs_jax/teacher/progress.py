"""The progress of the teacher on the terminal: a bar and a few lines."""

from __future__ import annotations

import math
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from sbs_jax.teacher.flow import Flow
from sbs_jax.teacher.plan import Candidate, voted
from sbs_jax.teacher.text import say
from sbs_jax.teacher.types import AskedExample, Completion

_REFRESH_SECONDS = 0.25
_PLAIN_SECONDS = 30.0


class _Rest(ProgressColumn):
    """Rate and time left, over the examples that were really asked for."""

    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("rest", "")))


class Watch:
    """An `Observer` with a rich progress bar (plain lines where there is no terminal).

    Args:
      total: Number of examples, or None when it is not known.
      flow: The settings that hold the prices.
      by_value: How labels are voted.
      console: The console to write to; stderr by default.
    """

    def __init__(
        self, total: int | None, flow: Flow, *, by_value: bool, console: Console | None = None
    ) -> None:
        self.console = console or Console(stderr=True, markup=False)
        self.total = total
        self.flow = flow
        self.by_value = by_value
        self.done = self.asked = self.parsed = self.candidates = 0
        self.right = self.scored = 0
        self.tokens_in = self.tokens_out = 0
        self._started = time.monotonic()
        self._refreshed = 0.0
        self._bar: Progress | None = None

    def __enter__(self) -> Watch:
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("teacher"),
                BarColumn(bar_width=20),
                TextColumn("{task.completed:,.0f}/{task.fields[of]}"),
                TimeElapsedColumn(),
                _Rest(),
                console=self.console,
                auto_refresh=False,
            )
            of = f"{self.total:,}" if self.total is not None else "?"
            self._task = self._bar.add_task("", total=self.total, of=of)
            self._bar.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._refresh(last=True)
        if self._bar is not None:
            self._bar.stop()

    def example(self, example: AskedExample, candidates: list[Candidate]) -> None:
        """Counts an example."""
        self.done += 1
        self.candidates += len(candidates)
        self.parsed += sum(c.parsed for c in candidates)
        # Scoring takes a tenth of the time of a request; beyond two hundred examples, every 16th is
        # enough for a bar. The table at the end counts all of them.
        judged = self.done <= 200 or self.done % 16 == 0
        if judged and example.label and not any(c.missing for c in candidates):
            best = voted(candidates, by_value=self.by_value)
            self.scored += 1
            self.right += bool(best and best.right)
        self._refresh()

    def completion(self, completion: Completion) -> None:
        """Counts a completion."""
        self.asked += 1
        self.tokens_in += completion.prompt_tokens
        self.tokens_out += completion.completion_tokens
        self._refresh()

    def note(self, text: str) -> None:
        """Prints a line above the bar."""
        say(self.console, text)

    def line(self) -> str:
        """Returns the state in one line."""
        seconds = max(1e-9, time.monotonic() - self._started)
        rate = self.asked / seconds
        parts = [f"{rate:.1f}/s" if rate >= 0.1 or not rate else f"{60 * rate:.1f}/min"]
        if self.total and self.done and self.asked:
            left = (self.total - self.done) * seconds / self.done
            parts.append(f"{_clock(left)} left")
        parts.append(f"{_short(self.tokens_in)} in {_short(self.tokens_out)} out")
        cost = self.flow.cost(self.tokens_in, self.tokens_out)
        if cost:
            parts.append(f"cost {cost:.2f}")
        if self.candidates:
            parts.append(f"parsed {self.parsed / self.candidates:.0%}")
        if self.scored:
            parts.append(f"right {self.right / self.scored:.0%}")
        return " · ".join(parts)

    def _refresh(self, *, last: bool = False) -> None:
        now = time.monotonic()
        every = _REFRESH_SECONDS if self._bar is not None else _PLAIN_SECONDS
        if now - self._refreshed < every and not last:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rest=self.line(), refresh=True)
        elif last or self._refreshed:
            of = f"/{self.total:,}" if self.total is not None else ""
            self.note(f"teacher {self.done:,}{of} · {self.line()}")
        self._refreshed = now


def _short(count: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def _clock(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60}h{minutes % 60:02d}" if minutes >= 60 else f"{minutes} min"
