"""What a user sees of a sweep: a table that stays in its place on a terminal, lines elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sbs_jax.experiments.runs import RunProgress

WAITING, RUNNING, DONE, FAILED, STOPPED = "waiting", "running", "done", "failed", "stopped"
_COLORS = {WAITING: "dim", RUNNING: "cyan", DONE: "green", FAILED: "red", STOPPED: "yellow"}
_ROWS = 30  # of the table; a longer sweep shows those that are at work first


@dataclasses.dataclass
class RunRow:
    """What is known of a run.

    Attributes:
      status: one of the words above.
      progress: steps, loss, accuracy on validation.
      total: steps of the whole run.
      score: the selected checkpoint's accuracy on validation, once known.
    """

    status: str = WAITING
    progress: RunProgress = dataclasses.field(default_factory=RunProgress)
    total: int = 0
    score: float | None = None


class LiveTable:
    """Shows the runs of a sweep."""

    def __init__(self, names: Sequence[str], console: Console | None = None) -> None:
        """Shows nothing before it is entered.

        Args:
          names: the names of the runs.
          console: standard output by default.
        """
        self.rows: dict[str, RunRow] = {name: RunRow() for name in names}
        self._console = console or Console(highlight=False, markup=False)
        self._live: Live | None = None

    def change(self, name: str, status: str, **values: object) -> None:
        """Sets a run's status and other attributes; without a terminal, prints a line."""
        row = self.rows[name]
        changed = row.status != status
        row.status = status
        for key, value in values.items():
            setattr(row, key, value)
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        elif changed:
            self.note(f"[{self._done()}/{len(self.rows)}] {name}: {_in_words(row)}")

    def refresh(self, progress: Mapping[str, RunProgress]) -> None:
        """Takes over how far runs are."""
        for name, value in progress.items():
            self.rows[name].progress = value
        if self._live is not None:
            self._live.update(self._table(), refresh=True)

    def note(self, text: str) -> None:
        """Shows a sentence, above the table."""
        self._console.print(text, markup=False, soft_wrap=True)

    def _done(self) -> int:
        return sum(row.status in (DONE, FAILED, STOPPED) for row in self.rows.values())

    def _table(self) -> Table:
        table = Table(title=f"{self._done()} of {len(self.rows)} runs ended", box=None)
        for name in ("run", "status", "step", "loss", "validation"):
            table.add_column(name, justify="left" if name in ("run", "status") else "right")
        order = {RUNNING: 0, FAILED: 1, DONE: 2, STOPPED: 2, WAITING: 3}
        shown = sorted(self.rows.items(), key=lambda item: order[item[1].status])
        for name, row in shown[:_ROWS]:
            accuracy = row.progress.accuracy if row.score is None else row.score
            table.add_row(
                Text(name),
                Text(row.status, style=_COLORS[row.status]),
                f"{row.progress.step}/{row.total}" if row.progress.step else "",
                "" if row.progress.loss is None else f"{row.progress.loss:.3f}",
                "" if accuracy is None else f"{accuracy:.1%}",
            )
        if len(shown) > _ROWS:
            table.caption = f"and {len(shown) - _ROWS} more"
        return table

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(self._table(), console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _in_words(row: RunRow) -> str:
    if row.status in (DONE, STOPPED) and row.score is not None:
        return f"{row.status}, accuracy on validation {row.score:.1%}"
    return row.status
