"""The record of a run: `MODEL_DIR/metrics.jsonl`, TensorBoard's events, and trackers if asked."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

import jax

from sbs_jax import remote
from sbs_jax.closing import Closing
from sbs_jax.errors import UserError
from sbs_jax.files import atomic_write_text
from sbs_jax.metrics import Value
from sbs_jax.training.tensorboard import SummaryWriter

FILE_NAME = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"

SEND_SECONDS = 30.0
"""How long a line of metrics.jsonl may be missing in a remote MODEL_DIR."""


class Tracker(Protocol):
    """A service that shows the metrics of runs: Weights & Biases, MLflow, or one of your own."""

    def begin(self, model_dir: str | os.PathLike[str]) -> None:
        """Opens the run of this MODEL_DIR, or continues it."""
        ...

    def write(self, step: int, split: str, values: Mapping[str, Value]) -> None:
        """Records the metrics of one split at a step; None is a metric without a value."""
        ...

    def close(self) -> None:
        """Ends the run."""
        ...


class MetricsWriter(Closing):
    """Appends lines to `metrics.jsonl` and scalars to TensorBoard; only process 0 writes.

    A line is `{"step": 20, "split": "train", "loss": 2.5, "rationale_loss": null, …}`: floats with
    nine significant digits (a float32 comes back exactly), null for what has no value or is not
    finite. Every line is flushed, so a killed process leaves at most its last line torn. Objects of
    a store cannot grow: in a remote MODEL_DIR the files are replaced by longer ones before each
    checkpoint, at the end, and every `SEND_SECONDS`.
    """

    def __init__(
        self,
        model_dir: str | os.PathLike[str],
        *,
        tensorboard: bool = True,
        trackers: Sequence[Tracker] = (),
        enabled: bool | None = None,
    ) -> None:
        """Opens nothing yet: `begin` does.

        Args:
          model_dir: the folder of `metrics.jsonl` and `tensorboard/`.
          tensorboard: whether to write events, too.
          trackers: services that are sent the same; opened and closed here.
          enabled: whether to write at all; by default on process 0 alone.
        """
        self._path = remote.place(model_dir) / FILE_NAME
        self._outbox: remote.Outbox | None = None
        self._with_tensorboard = tensorboard
        self._trackers = tuple(trackers)
        self._enabled = jax.process_index() == 0 if enabled is None else enabled
        self._file: TextIO | None = None
        self._events: SummaryWriter | None = None

    @property
    def path(self) -> Path:
        """`MODEL_DIR/metrics.jsonl`."""
        return self._path

    def begin(self, after_step: int | None) -> None:
        """Opens the files; what is recorded of later steps, and a torn last line, is dropped.

        Args:
          after_step: the step that the run goes on from; None for a new run, which drops all.

        Raises:
          UserError: the file cannot be written, or a line of it (the last aside) is not JSON.
        """
        if not self._enabled:
            return
        folder = self._path.parent
        if remote.is_remote(folder):
            self._outbox = remote.Outbox(str(folder))
            folder = self._outbox.folder
        self._written = folder / FILE_NAME
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)
            for stale in folder.glob(f".{FILE_NAME}.*.tmp"):
                stale.unlink(missing_ok=True)  # A kill during the rewriting below leaves one.
            if self._path.exists():
                old = self._path.read_bytes().decode("utf-8", errors="replace")
                kept = "" if after_step is None else _lines_until(after_step, old, self._path)
                if kept != old or self._outbox is not None:
                    atomic_write_text(self._written, kept)
            self._file = self._written.open("a", encoding="utf-8")
        if self._with_tensorboard:
            # TensorBoard hides the events of a step from `purge_step` on that lie in older files.
            self._events = SummaryWriter(
                str(folder / TENSORBOARD_FOLDER),
                purge_step=0 if after_step is None else after_step + 1,
                # Files are named by the second: one started in the same second would be lost.
                filename_suffix=f".{time.time_ns()}",
            )
        for tracker in self._trackers:
            tracker.begin(self._path.parent)

    def write(self, step: int, split: str, values: Mapping[str, Value]) -> None:
        """Records the metrics of one split (`train`, `validation`, …) at a step.

        Raises:
          UserError: the file cannot be written, or somebody removed it meanwhile.
        """
        if self._file is None:
            return
        line: dict[str, Any] = {"step": step, "split": split}
        for name, value in values.items():
            line[name] = _json_number(value)
            if self._events is not None and line[name] is not None:
                self._events.add_scalar(f"{split}/{name}", line[name], step)
        with self._writing():
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self._outbox is not None:
            self._outbox.send(after=SEND_SECONDS)
        elif not self._path.exists():
            raise UserError(
                f"{self._path}: is gone; MODEL_DIR was removed or moved while the run was writing "
                "there. Put it back, or start again in a new MODEL_DIR."
            )
        for tracker in self._trackers:
            tracker.write(step, split, {name: line[name] for name in values})

    def sync(self) -> None:
        """Makes sure that all lines are on disk: no checkpoint may be ahead of its record."""
        if self._file is not None:
            with self._writing():
                os.fsync(self._file.fileno())
        if self._events is not None:
            self._events.flush()
        if self._outbox is not None:
            self._outbox.send()

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # Every line was flushed; `write` raised the error.
                self._file.close()
            self._file = None
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._outbox is not None:
            outbox, self._outbox = self._outbox, None
            outbox.close()
        if self._enabled:
            for tracker in self._trackers:
                tracker.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written ({error.strerror}).") from error


def _lines_until(step: int, text: str, path: Path) -> str:
    """The lines of `text` that belong to steps up to `step`."""
    lines = text.splitlines(keepends=True)
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            if not line.endswith("\n"):
                raise ValueError("torn")
            of_step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number == len(lines):
                break  # Torn by a kill; it is written again.
            raise UserError(
                f"{path}, line {number}: not a line of metrics; remove it, then start again."
            ) from error
        if of_step <= step:
            kept.append(line)
    return "".join(kept)


def _json_number(value: Value) -> Value:
    if value is None or isinstance(value, int):
        return value
    number = float(value)
    return float(f"{number:.9g}") if math.isfinite(number) else None
