"""What a user sees of a run: a bar on a terminal, some twenty short lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from sbs_jax.closing import Closing
from sbs_jax.metrics import Value
from sbs_jax.parts import NAMES

LINES = 8
"""Lines that a run writes where there is no terminal, besides the first; evaluations as many."""


class Progress(Closing):
    """Shows steps, both losses, examples per second and the time left; process 0 only.

    On a terminal this is a bar that stays in its place. Elsewhere it is a line at the first step
    and at every eighth of the run, however long that is, so that a log stays on one screen.
    """

    def __init__(self, console: Console | None = None, *, enabled: bool | None = None) -> None:
        """Shows nothing yet: `begin` does.

        Args:
          console: standard output by default.
          enabled: whether to show anything; by default on process 0 alone.
        """
        self._console = console or Console(highlight=False, markup=False)
        self._enabled = jax.process_index() == 0 if enabled is None else enabled
        self._bar: RichProgress | None = None
        self._total = self._step = self._first = 0
        self._since: float | None = None
        self._shown: dict[str, int] = {}

    def begin(self, step: int, total: int) -> None:
        """Starts at `step` of `total` steps."""
        self._total, self._step, self._first = total, step, step
        self._shown, self._since = {}, None
        if not (self._enabled and self._console.is_terminal):
            return
        self._bar = RichProgress(
            TextColumn("[bold]{task.fields[what]}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            speed_estimate_period=120.0,
        )
        self._task = self._bar.add_task(
            "train", total=total, completed=step, what="compiling", losses=""
        )
        self._bar.start()

    def train(self, step: int, metrics: Mapping[str, Value]) -> None:
        """A step is done; `metrics` as the loop records them."""
        self._step = step
        if self._since is None:  # The first step holds the compilation: no measure of the rest.
            self._since, self._first = time.monotonic(), step
        losses = _losses(metrics)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, what="training", losses=losses)
        elif self._is_due("train"):
            self._print(f"step {step}/{self._total} · {losses}{self._time_left()}")

    def evaluated(self, step: int, split: str, metrics: Mapping[str, Value]) -> None:
        """An evaluation is done."""
        self._step = step
        if self._is_due(split):
            values = [f"{name} {_short(value)}" for name, value in metrics.items()
                      if isinstance(value, float)]  # fmt: skip
            self._print(f"step {step}/{self._total} · {split}: {', '.join(values[:5])}")

    def note(self, text: str) -> None:
        """Shows a sentence."""
        self._print(text)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, text: str) -> None:
        if self._enabled:
            self._console.print(text, markup=False, soft_wrap=True)

    def _is_due(self, kind: str) -> bool:
        """Whether this is the first time that `kind` comes up in this eighth of the run."""
        eighth = LINES * self._step // max(self._total, 1)
        if eighth <= self._shown.get(kind, -1) and self._step != self._total:
            return False
        self._shown[kind] = eighth
        return True

    def _time_left(self) -> str:
        done = self._step - self._first
        if not done or self._since is None or self._step >= self._total:
            return ""
        seconds = (time.monotonic() - self._since) / done * (self._total - self._step)
        if seconds >= 5400:
            return f" · {seconds / 3600:.1f} h left"
        return f" · {seconds / 60:.0f} min left" if seconds >= 90 else f" · {seconds:.0f} s left"


def _losses(metrics: Mapping[str, Value]) -> str:
    shown = [f"loss {_short(metrics.get('loss'))}"]
    others = [name.removesuffix("_loss") for name in metrics if name.endswith("_loss")]
    for part in dict.fromkeys((*NAMES, *others)):
        if f"{part}_loss" in metrics and part != "z":
            shown.append(f"{part} {_short(metrics[f'{part}_loss'])}")
    if (rate := metrics.get("examples_per_second")) is not None:
        shown.append(f"{_rate(rate)} examples/s")
    return " · ".join(shown)


def _short(value: Value) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def _rate(value: float) -> str:
    """At most three significant digits: `99`, `3.5`, `1,240`."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
