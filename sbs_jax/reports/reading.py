"""Reads the folders of sweeps: their runs, finished or not."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from sbs_jax.configuration import former_names
from sbs_jax.errors import UserError
from sbs_jax.json_files import DuplicateKeyError, parse_json, read_jsonl
from sbs_jax.methods import METHODS

SPLITS = ("validation", "test")
DONE, FAILED = "done", "failed"
# What may differ between two runs of one configuration.
_NOT_CONFIGURATION = {"SEED", "MODEL_DIR", "DATA_DIR"}
_TASK = re.compile(rf"(.+?)_({'|'.join(METHODS)})((?:_human)?(?:_teacher)?)")
_LOG_LINES = 3


@dataclasses.dataclass(frozen=True)
class Score:
    """An accuracy, 0 to 1, with its standard error (None for one value) and what it counts.

    `losses` are the losses of the method's parts by name, where they are known.
    """

    accuracy: float
    standard_error: float | None = None
    examples: int | None = None
    name: str = ""
    losses: Mapping[str, float] = dataclasses.field(default_factory=dict, compare=False)


@dataclasses.dataclass(frozen=True)
class RunResult:
    """One run of a sweep.

    Attributes:
      sweep: name of its sweep.
      name: the name of the run, unique in its sweep.
      folder: the MODEL_DIR of the run.
      status: `done`, `failed`, `running`, `missing` or whatever else its record says.
      reason: why it is not done, as far as is known; '' otherwise.
      bindings: the values that the sweep bound for the run.
      settings: METHOD, RATIONALE_WEIGHT, TRAIN_FRACTION, … and the bindings; `task` is the data
        set where METHOD and LABEL_SOURCE say the rest.
      config: parameters and macros in its `config.gin`, as text; {} without that file.
      scores: the scores of `validation` and `test`, as far as there are any.
      selected_step: the selected step of the checkpoint that was judged.
      seconds: the seconds that it took.
    """

    sweep: str
    name: str
    folder: Path
    status: str
    reason: str = ""
    bindings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    config: Mapping[str, str] = dataclasses.field(default_factory=dict)
    scores: Mapping[str, Score] = dataclasses.field(default_factory=dict)
    selected_step: int | None = None
    seconds: float | None = None

    @property
    def seed(self) -> Any:
        """The run's SEED, None if it does not say."""
        return self.settings.get("SEED")

    @property
    def dataset(self) -> str:
        """Name of its data set, '' if it does not say."""
        return str(self.settings.get("task") or "")

    def predictions(self, split: str) -> list[dict[str, Any]] | None:
        """What the student answered; None if there is no such file.

        Raises:
          UserError: the file cannot be read, or a row lacks a field.
        """
        path = self.folder / "predictions" / f"{split}.jsonl"
        if not path.is_file():
            return None
        rows = []
        for line, row in read_jsonl(path):
            for name in ("id", "input", "target", "prediction", "score"):
                if name not in row:
                    raise UserError(f"{path}, line {line}: lacks the field '{name}'.")
            rows.append(row)
        return rows

    def parts(self, split: str) -> list[str]:
        """The parts that its `metrics.jsonl` has losses of, in the order of the file."""
        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            return []
        found: dict[str, None] = {}
        for _, row in _jsonl_but_a_torn_end(path):
            if row.get("split") == split:
                found |= {
                    name.removesuffix("_loss"): None
                    for name, value in row.items()
                    if name.endswith("_loss") and name != "z_loss" and _is_number(value)
                }
        return list(found)

    def metrics(self, split: str, name: str) -> list[tuple[int, float]]:
        """`(step, value)` of a metric in its `metrics.jsonl`, in the order of steps."""
        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            return []
        found: dict[int, float] = {}
        for _, row in _jsonl_but_a_torn_end(path):
            step, value = row.get("step"), row.get(name)
            if row.get("split") == split and _is_number(step) and _is_number(value):
                found[int(step)] = float(value)
        return sorted(found.items())


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep's folder.

    Attributes:
      folder: the sweep's folder.
      name: the sweep's name.
      command: the command that started it.
      axes: the settings that were varied, with their values.
      runs: the runs in the sweep's order.
      teacher: the teacher's own few-shot accuracy, if it is known.
    """

    folder: Path
    name: str
    command: str
    axes: Mapping[str, Sequence[Any]]
    runs: tuple[RunResult, ...]
    teacher: Score | None


def read_sweep(folder: str | os.PathLike[str]) -> Sweep:
    """Reads a sweep's folder.

    A run whose record is missing or broken is one that is not done: it is kept, with the reason.

    Raises:
      UserError: the folder, its `sweep.json` or its `teacher.json` cannot be understood.
    """
    folder = Path(folder).expanduser()
    path = folder / "sweep.json"
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give that of a sweep.")
    if not path.is_file():
        raise UserError(
            f"{folder}: holds no sweep.json; give the folder that python -m sbs_jax.sweep wrote."
        )
    record = _read_object(path)
    planned = record.get("runs")
    if not isinstance(planned, list) or not all(
        isinstance(run, dict) and isinstance(run.get("name"), str) for run in planned
    ):
        raise UserError(f"{path}: 'runs' must be a list of objects, each with a 'name'.")
    axes = record.get("axes", {})
    if not isinstance(axes, dict) or not all(isinstance(v, list) for v in axes.values()):
        raise UserError(f"{path}: 'axes' must be an object of lists.")
    name = str(record.get("name") or folder.resolve().name)
    names = [run["name"] for run in planned]
    for run_name in names:
        if names.count(run_name) > 1:
            raise UserError(f"{path}: two runs have the name '{run_name}'.")
        if Path(run_name).name != run_name or run_name in ("", ".."):
            raise UserError(f"{path}: '{run_name}' is no name of a folder in runs/.")
    teacher = folder / "teacher.json"
    return Sweep(
        folder=folder,
        name=name,
        # A report may be shown to others: where the sweep lay on this machine is left out.
        command=str(record.get("command") or "").replace(str(folder.resolve()), folder.name),
        axes=axes,
        runs=tuple(_read_run(name, folder / "runs" / run["name"], run) for run in planned),
        teacher=_score(teacher, "teacher", _read_object(teacher)) if teacher.is_file() else None,
    )


def split_task_name(task: str) -> tuple[str, str | None, str]:
    """Returns data set, method (None if the name has none) and sources of a task's name.

    >>> split_task_name('svamp_joint_teacher')
    ('svamp', 'joint', '_teacher')
    """
    found = _TASK.fullmatch(task)
    return (found[1], found[2], found[3]) if found else (task, None, "")


def _read_run(sweep: str, folder: Path, planned: Mapping[str, Any]) -> RunResult:
    bindings = planned.get("bindings")
    bindings = dict(bindings) if isinstance(bindings, dict) else {}
    run = RunResult(sweep, planned["name"], folder, "missing", "not started", bindings, bindings)
    path = folder / "run.json"
    if not path.is_file():
        if not folder.is_dir():
            return run
        return dataclasses.replace(run, status="incomplete", reason=_log_end(folder) or "no record")
    try:
        record = _read_object(path)
        status = str(record.get("status") or "incomplete")
        for key in ("bindings", "settings"):
            if not isinstance(record.get(key, {}), dict):
                raise UserError(f"{path}: '{key}' must be an object.")
        settings = bindings | record.get("bindings", {}) | record.get("settings", {})
        scores = {
            split: _score(path, split, record[split])
            for split in SPLITS
            if status == DONE and record.get(split) is not None
        }
        if status == DONE and not scores:
            raise UserError(f"{path}: is done, but has no accuracy.")
    except UserError as error:
        # One broken record must not hide the others.
        return dataclasses.replace(run, status="broken", reason=str(error))
    _fill_in(settings)
    if settings.get("MODEL") is not None:
        settings.pop("gin_file", None)  # That it was added says the same less shortly.
    lines = _LOG_LINES if status == FAILED else 1
    reason = "" if status == DONE else _text(record.get("error")) or _log_end(folder, lines)
    step, seconds = record.get("selected_step"), record.get("seconds")
    return RunResult(
        sweep=sweep,
        name=planned["name"],
        folder=folder,
        status=status,
        reason=reason,
        bindings=bindings,
        settings=settings,
        config=_read_config(folder),
        scores=scores,
        selected_step=int(step) if _is_number(step) else None,
        seconds=float(seconds) if _is_number(seconds) else None,
    )


def _fill_in(settings: dict[str, Any]) -> None:
    """Takes `svamp_sbs_teacher` apart into the data set and what else was not said."""
    dataset, method, sources = split_task_name(str(settings.get("task") or ""))
    if method is None:
        return
    settings["task"] = dataset
    said = {
        "METHOD": method,
        "LABEL_SOURCE": "teacher" if sources.endswith("_teacher") else "gold",
        "RATIONALE_SOURCE": "human" if "_human" in sources else "teacher",
    }
    for name, value in said.items():
        if settings.get(name) is None:
            settings[name] = value


def _score(path: Path, what: str, value: Any) -> Score:
    if not isinstance(value, dict) or not _is_number(value.get("accuracy")):
        raise UserError(f"{path}: '{what}' needs an 'accuracy', a number from 0 to 1.")
    accuracy = float(value["accuracy"])
    if not 0 <= accuracy <= 1:
        raise UserError(f"{path}: the accuracy {accuracy:g} of '{what}' is not from 0 to 1.")
    error, count = value.get("standard_error"), value.get("n")
    return Score(
        accuracy,
        float(error) if _is_number(error) else None,
        int(count) if _is_number(count) else None,
        str(value.get("name") or ""),
        {
            name.removesuffix("_loss"): float(loss)
            for name, loss in value.items()
            if name.endswith("_loss") and _is_number(loss)
        },
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except DuplicateKeyError as error:
        raise UserError(f"{path}: the key {error.args[0]!r} occurs twice.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object.")
    return _without_surrogates(value)


def _without_surrogates(value: Any) -> Any:
    """JSON may hold half a character, which no file of text can."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_without_surrogates(k): _without_surrogates(v) for k, v in value.items()}
    return [_without_surrogates(v) for v in value] if isinstance(value, list) else value


def _read_config(folder: Path) -> dict[str, str]:
    """The assignments in a run's `config.gin`, but for where it lies, as one line each."""
    try:
        text = (folder / "config.gin").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    values: dict[str, str] = {}
    name = None
    for line in text.splitlines():
        if not line.strip() or line.startswith(("#", "import ", "from ", "include ")):
            name = None
        elif line[0].isspace():  # Gin breaks long values so.
            if name is not None:
                values[name] = f"{values[name]} {line.strip()}".strip()
        elif " =" in line:
            written, _, value = line.partition(" =")
            name, built_by = _named_as_today(written)
            values |= built_by
            values[name] = value.strip().rstrip("\\").strip()
    where = {str(folder), str(folder.absolute()), str(folder.resolve())}
    where.add(values.get("MODEL_DIR", "").strip("'\""))
    for key, value in values.items():
        for place in sorted(where - {""}, key=len, reverse=True):
            value = value.replace(place, "MODEL_DIR")
        values[key] = value
    return {key: value for key, value in values.items() if key not in _NOT_CONFIGURATION}


def _named_as_today(name: str) -> tuple[str, dict[str, str]]:
    """The name of an assignment and those that come with it, whatever version wrote the run."""
    scope, slash, selector = name.rpartition("/")
    function, _, parameter = selector.rpartition(".")
    if not function:
        return name, {}
    place = former_names.place(former_names.by_suffix(function), parameter)

    def short(full: str) -> str:
        return ".".join(full.split(".")[-2:])

    built_by = {
        f"{scope}{slash}{short(holder)}.{group}": f"@{short(dataclass)}()"
        for holder, group, dataclass in place.built_by
    }
    return f"{scope}{slash}{short(place.function)}.{place.parameter}", built_by


def _text(value: Any) -> str:
    """A record's error, one text or several lines."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _log_end(folder: Path, lines: int = 1) -> str:
    try:
        text = (folder / "train.log").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def _jsonl_but_a_torn_end(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Rows of `metrics.jsonl`, of which a kill may have torn the last line."""
    rows = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number}: not valid JSON.") from None
        if isinstance(row, dict):
            rows.append((number, row))
    return rows


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
