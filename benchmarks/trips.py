"""Counts how far values travel through `sbs_jax/` in a training run, for docs/architecture.md.

    python benchmarks/trips.py [--show]

A tiny run on generated problems: two steps and an evaluation, on one device. A hook of
`sys.setprofile` notes every call of a function in `sbs_jax/` that is given the value as an argument
(`self` not counted). A stay is a sequence of such calls within one file, a return a stay in a file
that had one before. `--show` also prints the calls. One line of JSON for each value.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import gin

import sbs_jax
from sbs_jax.configuration import config as config_lib
from sbs_jax.data.resolving import ResolvedTask
from sbs_jax.programs.train import train

ROOT = f"{Path(sbs_jax.__file__).parent}/"
GIN_FILE = "examples/quickstart.gin"
MACROS = {
    "TRAIN_STEPS": "2",
    "EVAL_STEPS": "1",
    "EVAL_BATCH_SIZE": "8",
    "TRAIN_PROBLEMS": "64",
}


def main() -> None:
    """Trains once, and prints a line for each value."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--show", action="store_true", help="print the calls, too")
    show = parser.parse_args().show
    with tempfile.TemporaryDirectory() as folder:
        macros = MACROS | {"MODEL_DIR": repr(f"{folder}/run")}
        config_lib.read([GIN_FILE], flags=list(macros.items())).apply()
        config = gin.get_bindings("programs.train.train")["config"]
        lengths = dict(config.batching.feature_lengths)
        values: dict[str, Callable[[Any], bool]] = {
            "the task's name": lambda value: isinstance(value, str) and value == config.task.name,
            "the resolved task": lambda value: isinstance(value, ResolvedTask),
            "the row lengths": lambda value: isinstance(value, dict) and value == lengths,
        }
        calls: dict[str, list[tuple[str, str]]] = {name: [] for name in values}
        with noted(values, calls):
            train(config)
    for name, trip in calls.items():
        print(json.dumps({"value": name} | summary(trip)))
        if show:
            print("".join(f"  {file} {function}\n" for file, function in trip), end="")


@contextlib.contextmanager
def noted(
    values: dict[str, Callable[[Any], bool]], calls: dict[str, list[tuple[str, str]]]
) -> Iterator[None]:
    """Notes, within it, the file and the function of each call that is given one of the values."""

    def hook(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(ROOT):
            return
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        given = [frame.f_locals.get(name) for name in names if name not in ("self", "cls")]
        for name, is_it in values.items():
            if any(map(is_it, given)):
                calls[name].append((code.co_filename.removeprefix(ROOT), code.co_qualname))

    threading.setprofile(hook)
    sys.setprofile(hook)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def summary(trip: list[tuple[str, str]]) -> dict[str, int]:
    """Calls, functions, files, stays and returns of a value's trip."""
    files = [file for file, _ in trip]
    stays = sum(here != before for before, here in zip([None, *files], files, strict=False))
    return {
        "calls": len(trip),
        "functions": len(set(trip)),
        "files": len(set(files)),
        "stays": stays,
        "returns": stays - len(set(files)),
    }


if __name__ == "__main__":
    main()
