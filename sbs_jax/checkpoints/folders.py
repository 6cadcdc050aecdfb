"""Where checkpoints lie: `MODEL_DIR/checkpoint_<step>`, complete or not there at all.

A checkpoint's folder holds

* `params/`: the parameters alone, so that evaluation need not read the rest,
* `training/`: everything else of the state (step, optimizer state, rng),
* `info/`: one JSON object: position in the data, metrics, digests, the run's metadata,
* `commit_success.txt`, which Orbax writes last.

Orbax writes into a folder with `.orbax-checkpoint-tmp` in its name and renames it at the end (on
object stores, where a folder cannot be renamed, the last file alone marks the end).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from sbs_jax import remote
from sbs_jax.errors import UserError

PREFIX = "checkpoint"
PARAMS, TRAINING, INFO = "params", "training", "info"

_COMPLETE_MARK = "commit_success.txt"
_UNFINISHED = ".orbax-checkpoint-tmp"
_NAME = re.compile(rf"{PREFIX}_(0|[1-9]\d*)")


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """`path` as seen from the current folder; URLs (`gs://…`) as they are."""
    text = os.fspath(path)
    if "://" in text:
        return remote.epath_of(text)
    return epath.Path(os.path.abspath(os.path.expanduser(text)))


def same_place(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether two paths lead to the same file or folder, links resolved."""
    first, second = os.fspath(absolute(one)), os.fspath(absolute(other))
    if "://" in first or "://" in second:
        return first.rstrip("/") == second.rstrip("/")
    return Path(first).resolve() == Path(second).resolve()


def complete_checkpoints(model_dir: str | os.PathLike[str]) -> dict[int, epath.Path]:
    """The complete checkpoints below `model_dir`, by step in increasing order."""
    root = absolute(model_dir)
    if not root.is_dir():
        return {}
    found = {}
    for child in root.iterdir():
        if (match := _NAME.fullmatch(child.name)) and (child / _COMPLETE_MARK).exists():
            found[int(match[1])] = child
    return dict(sorted(found.items()))


def find_checkpoint(path: str | os.PathLike[str]) -> epath.Path:
    """The checkpoint that a user means by `path`.

    Args:
      path: a checkpoint's own folder; or a MODEL_DIR, which means its latest checkpoint; or
        `MODEL_DIR/best`, the best one by the metric that the run kept its best by.

    Returns:
      The folder of a complete checkpoint.

    Raises:
      UserError: there is none.
    """
    folder = absolute(path)
    if (folder / PARAMS).is_dir():
        if not (folder / _COMPLETE_MARK).exists():
            raise UserError(f"{folder}: this checkpoint was never finished; choose another one.")
        return folder
    if found := complete_checkpoints(folder):
        return list(found.values())[-1]
    if folder.name == "best" and not folder.exists():
        return _best_checkpoint(folder.parent)
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; expected a MODEL_DIR or a checkpoint in one.")
    raise UserError(
        f"{folder}: holds no complete checkpoint ({PREFIX}_<step>) of sbs_jax; expected a "
        "MODEL_DIR or a checkpoint in one."
    )


def is_complete(checkpoint: epath.Path) -> bool:
    """Whether a checkpoint of ours was written to its end."""
    return (checkpoint / _COMPLETE_MARK).exists()


def read_info(checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object that was saved with a checkpoint.

    Raises:
      UserError: it is missing or damaged.
    """
    # The file's name is Orbax's JsonCheckpointHandler's own.
    file = absolute(checkpoint) / INFO / "metadata"
    try:
        info = json.loads(file.read_text())
        if not (isinstance(info, dict) and {"extra", "metrics", "digests"} <= set(info)):
            raise ValueError("not what was saved")
        # Checkpoints of earlier versions have none.
        if info.get("digest") not in (None, digest_of(info)):
            raise ValueError("not what was saved")
        return info
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: damaged or missing; use another checkpoint.") from error


def digest_of(info: Mapping[str, Any]) -> str:
    """A checksum of the JSON object that is saved with a checkpoint, its own `digest` aside."""
    content = {name: value for name, value in info.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def require_retention(keep: int | None, best_mode: str) -> None:
    """Checks which checkpoints of a run are to be kept.

    Args:
      keep: how many of the latest ones; None keeps all.
      best_mode: whether a larger (`max`) or a smaller (`min`) value of the best metric is better.

    Raises:
      UserError: a value is out of its range.
    """
    if keep is not None and keep < 1:
        raise UserError(f"KEEP_CHECKPOINTS = {keep} must be at least 1 (None keeps all).")
    if best_mode not in ("max", "min"):
        raise UserError(f"BEST_MODE = {best_mode!r} must be 'max' or 'min'.")


def best_of(values: dict[int, float | None], mode: str) -> int | None:
    """The step with the best value, the later one of equals; None where no step has a value."""
    sign = 1.0 if mode == "max" else -1.0
    known = [(sign * value, step) for step, value in values.items() if value is not None]
    return max(known)[1] if known else None


def sweep(model_dir: epath.Path) -> None:
    """Removes what a killed run left: unfinished checkpoints, and ones half removed."""
    for child in model_dir.iterdir():
        unfinished = child.name.startswith(f"{PREFIX}_") and _UNFINISHED in child.name
        half_removed = _NAME.fullmatch(child.name) and not (child / _COMPLETE_MARK).exists()
        if (unfinished or half_removed) and child.is_dir():
            child.rmtree(missing_ok=True)


def set_aside(checkpoint: epath.Path) -> epath.Path:
    """Renames a damaged checkpoint, so that the step can be saved anew and nothing is lost."""
    for number in range(1000):
        name = f"{checkpoint.name}.unreadable" + (f".{number}" if number else "")
        if not (target := checkpoint.parent / name).exists():
            checkpoint.rename(target)
            return target
    raise UserError(f"{checkpoint}: cannot be read; remove it.")


def _best_checkpoint(model_dir: epath.Path) -> epath.Path:
    found = complete_checkpoints(model_dir)
    infos = {step: read_info(folder) for step, folder in found.items()}
    best_by = [info["best_by"] for info in infos.values() if info.get("best_by")]
    if not best_by:
        raise UserError(
            f"{model_dir}: no checkpoint was kept as the best by a metric; name a checkpoint or "
            "the MODEL_DIR itself."
        )
    metric, mode = best_by[-1]
    step = best_of({step: info["metrics"].get(metric) for step, info in infos.items()}, mode)
    if step is None:
        raise UserError(f"{model_dir}: no checkpoint was evaluated by {metric}; name one.")
    return found[step]
