"""A sweep's folder, and the state of each of its runs. Imports neither jax nor TensorFlow.

SWEEP_DIR/sweep.json             the grid, and what every run shares
SWEEP_DIR/runs/NAME/             MODEL_DIR of a run, as `sbs_jax.train` leaves it, and besides
SWEEP_DIR/runs/NAME/run.json     `status`, settings, and the scores of the selected checkpoint
SWEEP_DIR/runs/NAME/train.log    what the run printed
SWEEP_DIR/runs/NAME/predictions/{validation,test}.jsonl  of the selected checkpoint
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sbs_jax import files
from sbs_jax.configuration import config as config_lib
from sbs_jax.configuration import statements
from sbs_jax.errors import UserError
from sbs_jax.experiments import settings as settings_lib
from sbs_jax.experiments.grid import Axis, Run
from sbs_jax.files import atomic_write_text
from sbs_jax.models.configs import KINDS

TRAIN = "sbs_jax.programs.train.train"
SPLITS = ("validation", "test")
RUNNING, PAUSED, DONE, FAILED, STOPPED = "running", "paused", "done", "failed", "stopped"
_TAIL = 1 << 14  # bytes that are read at the end of a log


@dataclasses.dataclass(frozen=True)
class Base:
    """What all runs of a sweep share: gin files and flags.

    Attributes:
      gin_file: files in their order, as `--gin_file` names them.
      gin_bindings: lines, as `--gin_bindings` gives them.
      flags: name and text of each `--gin.NAME=TEXT`, those of the sweep itself left out.
      gin_search_paths: folders in which files are looked for.
      working_dir: the folder that relative paths start from.
    """

    gin_file: tuple[str, ...]
    gin_bindings: tuple[str, ...] = ()
    flags: tuple[tuple[str, str], ...] = ()
    gin_search_paths: tuple[str, ...] = ()
    working_dir: str = "."

    def config(self, run: Run, model_dir: Path) -> config_lib.GinConfig:
        """The configuration of a run, parsed; the working folder has to be `working_dir`."""
        flags = [*self.flags, *run.flags, ("MODEL_DIR", repr(str(model_dir)))]
        return config_lib.read(
            [*self.gin_file, *run.gin_files],
            self.gin_bindings,
            flags,
            self.gin_search_paths,
            target=TRAIN,
        )

    def arguments(self, run: Run, model_dir: Path) -> list[str]:
        """What `python -m sbs_jax.train` would be given."""
        paths = [f"--gin_search_paths={path}" for path in self.gin_search_paths]
        files = [f"--gin_file={name}" for name in (*self.gin_file, *run.gin_files)]
        lines = [f"--gin_bindings={line}" for line in self.gin_bindings]
        flags = [f"--gin.{name}={text}" for name, text in (*self.flags, *run.flags)]
        return [*files, *paths, *lines, *flags, f"--gin.MODEL_DIR={str(model_dir)!r}"]


@dataclasses.dataclass(frozen=True)
class RunProgress:
    """How far a run is, from its metrics.jsonl.

    Attributes:
      step: the step of the last line.
      loss: the loss of training.
      accuracy: the last accuracy on validation; None before the first evaluation.
    """

    step: int = 0
    loss: float | None = None
    accuracy: float | None = None


class SweepFolder:
    """A sweep's folder."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        files.refuse_remote(path)
        self.path = Path(path).expanduser().absolute()

    def folder(self, name: str) -> Path:
        """MODEL_DIR of the run called `name`."""
        return self.path / "runs" / name

    def write(
        self,
        base: Base,
        axes: Sequence[Axis],
        runs: Sequence[Run],
        *,
        command: str,
    ) -> None:
        """Writes sweep.json, atomically."""
        record = {
            "name": self.path.name,
            "command": command,
            "axes": {axis.name: axis.values for axis in axes},
            "runs": [{"name": run.name, "bindings": dict(run.bindings)} for run in runs],
            "base": dataclasses.asdict(base),
        }
        atomic_write_text(self.path / "sweep.json", json.dumps(record, indent=1) + "\n")

    def read(self) -> tuple[Base, dict[str, Run], dict[str, Any]]:
        """Reads sweep.json: what is shared, the runs by name, and all of it.

        Raises:
          UserError: there is none, or it is damaged.
        """
        path = self.path / "sweep.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            shared = record["base"]
            base = Base(
                gin_file=tuple(shared["gin_file"]),
                gin_bindings=tuple(shared["gin_bindings"]),
                flags=tuple((name, text) for name, text in shared["flags"]),
                gin_search_paths=tuple(shared["gin_search_paths"]),
                working_dir=shared["working_dir"],
            )
            runs = {run["name"]: Run(run["name"], run["bindings"]) for run in record["runs"]}
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: is no sweep ({type(error).__name__}: {error}).") from error
        return base, runs, record

    def record(self, name: str) -> dict[str, Any]:
        """What run.json says; {} where there is none or a kill tore it."""
        try:
            found = json.loads((self.folder(name) / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_record(self, name: str, **values: Any) -> None:
        """Changes values of run.json, atomically."""
        record = self.record(name) | values
        text = json.dumps(record, indent=1) + "\n"
        atomic_write_text(self.folder(name) / "run.json", text)

    def is_done(self, name: str, fingerprint: str) -> bool:
        """Whether this very run has been trained, and judged, and its files are there.

        Raises:
          UserError: the folder holds a run with another configuration.
        """
        record = self.record(name)
        if record.get("fingerprint", fingerprint) != fingerprint:
            raise UserError(
                f"{self.folder(name)}: holds a run with another configuration; choose another "
                "--sweep_dir, or remove that folder."
            )
        predictions = self.folder(name) / "predictions"
        return record.get("status") in (DONE, STOPPED) and (
            record["status"] == STOPPED
            or all((predictions / f"{split}.jsonl").is_file() for split in SPLITS)
        )

    def rung(self, name: str, share: float) -> float | None:
        """Accuracy on validation at a rung of halving; None where the run has not got there."""
        return (self.record(name).get("rungs") or {}).get(f"{share:g}")

    def write_rung(self, name: str, share: float) -> None:
        """Writes down that a run has come to a rung, and its accuracy on validation there."""
        rungs = self.record(name).get("rungs") or {}
        accuracy = self.progress(name).accuracy or 0.0
        self.write_record(name, status=PAUSED, rungs=rungs | {f"{share:g}": accuracy})

    def progress(self, name: str) -> RunProgress:
        """How far a run is."""
        step, loss, accuracy = 0, None, None
        for line in tail(self.folder(name) / "metrics.jsonl"):
            try:
                row = json.loads(line)
                step = max(step, row["step"])
                if row["split"] == "train":
                    loss = row.get("loss")
                elif row["split"] == "validation":
                    accuracy = row.get("accuracy")
            except (ValueError, KeyError, TypeError):
                continue  # Cut at the window's beginning, or being written.
        return RunProgress(step, loss, accuracy)

    def log_lines(self, name: str) -> list[str]:
        """The last eight lines of train.log that are not blank."""
        lines = [line for line in tail(self.folder(name) / "train.log") if line.strip()]
        return lines[-8:]

    @contextlib.contextmanager
    def locked(self, what: str, *, patience: float = 0.0) -> Iterator[None]:
        """Holds `SWEEP_DIR/what.lock`, which the system lets go of when this process dies.

        Raises:
          UserError: another process still has it after `patience` seconds.
        """
        with files.locked(self.path / f"{what}.lock", patience=patience):
            yield


def fingerprint(config: config_lib.GinConfig) -> str:
    """A checksum of what a configuration binds, MODEL_DIR and the sweep's own settings aside."""
    own = settings_lib.own_macros(config) | {"MODEL_DIR"}
    bound = {
        key: repr(binding.value)
        for key, binding in config.by_first_name().items()
        if binding.name not in own and binding.full_name != settings_lib.SELECTOR
    }
    return hashlib.sha256(json.dumps(bound, sort_keys=True).encode()).hexdigest()


def macro(config: config_lib.GinConfig, name: str, default: Any = None) -> Any:
    """The value of a macro, others followed; `default` where it is not bound."""
    if name not in config.macros:
        return default
    return config.resolve(config.macros[name].value)[0]


def model_name(config: config_lib.GinConfig) -> str:
    """The size's name: that of the gin file that binds the dimensions."""
    networks = {kind.__name__ for kind in KINDS.values()}
    for binding in config.bindings.values():
        of_network = binding.full_name.rsplit(".", 1)[-1] in networks
        if of_network and binding.parameter == "emb_dim":
            return Path(binding.source.name).stem
    return "unknown"


def check(config: config_lib.GinConfig) -> None:
    """Checks a run's configuration, and that it selects on validation alone.

    Raises:
      UserError: see `config.check`; or test would be read during training, or validation not.
    """
    config.check()
    splits = macro(config, "EVAL_SPLITS", ["validation"])
    if isinstance(splits, statements.Macro | statements.Reference):
        return
    if "test" in splits:
        raise UserError(
            f"EVAL_SPLITS = {list(splits)}: a sweep selects on validation and reads test once, for "
            "the checkpoint selected; leave 'test' out."
        )
    if "validation" not in splits:
        raise UserError(f"EVAL_SPLITS = {list(splits)}: a sweep selects on 'validation'; add it.")


def tail(path: Path) -> list[str]:
    """The last lines of a text file, the first of which may be cut; none if it is not there."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL))
            return file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []
