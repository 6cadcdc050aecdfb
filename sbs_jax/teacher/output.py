"""What is derived from the journal, and which of two versions of it stands under its own name.

`rationales.jsonl`, `predictions.jsonl` and `run.json` belong together. A new version of them is
first written beside, as `rationales.incomplete.jsonl` and so on, and takes the place of the old one
when it is at least as complete: a run that fails at its start never shrinks good output.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sbs_jax.files import writing

RATIONALES = "rationales.jsonl"
PREDICTIONS = "predictions.jsonl"
RUN = "run.json"
INCOMPLETE = "incomplete"
PREVIOUS = "previous"


@dataclass(frozen=True)
class Placed:
    """Where the version that was just derived is to be found.

    Attributes:
      rationales: The file of its rationales.
      run: The path at which its `run.json` is to be written.
      note: A sentence for the user where an older version was kept; '' otherwise.
    """

    rationales: Path
    run: Path
    note: str = ""


def beside(path: Path, word: str) -> Path:
    """Returns the name of another version of `path`.

    >>> beside(Path("out/run.json"), "previous").name
    'run.previous.json'
    """
    return path.with_name(f"{path.stem}.{word}{path.suffix}")


def is_answered(flags: Mapping[str, Any]) -> bool:
    """Whether a row with these `flags` holds what the teacher said.

    Rows that lack a completion and rows that the server refused do not.
    """
    refused = "error" in flags and not flags.get("parsed")
    return "missing" not in flags and not refused


def count_answered(path: Path) -> int:
    """Returns how many rows of a file of rationales are answered; 0 where there is no file."""
    count = 0
    try:
        with open(path, "rb") as file:
            for line in file:
                try:
                    count += is_answered(json.loads(line)["flags"])
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue  # A damaged line is no answer.
    except FileNotFoundError:
        return 0
    return count


def place(folder: Path, *, answered: int, complete: bool) -> Placed:
    """Gives the version that was written beside its own name, if it may have it.

    Args:
      folder: OUTPUT_DIR, which holds the new version as `*.incomplete.*`.
      answered: How many of the new version's rows are answered.
      complete: Whether nothing that the settings ask for is missing.

    Returns:
      Where everything is now. A complete version replaces the old one always; where the old one
      has more answers (the run was limited to fewer examples, say), that one stays beside as
      `*.previous.*`. An incomplete version with fewer answers stays beside as `*.incomplete.*`.

    Raises:
      UserError: the folder cannot be written.
    """
    current = folder / RATIONALES
    before = count_answered(current)
    if before > answered and not complete:
        return Placed(
            beside(current, INCOMPLETE),
            beside(folder / RUN, INCOMPLETE),
            f"{current} holds {before:,} answered examples of an earlier run and stays as it is; "
            f"what this run has ({answered:,}) is in {beside(current, INCOMPLETE)}.",
        )
    note = ""
    with writing(folder):
        if before > answered:
            for path in (current, folder / PREDICTIONS, folder / RUN):
                if path.exists():
                    _keep(path, beside(path, PREVIOUS))
            note = (
                f"The earlier {current.name} had more answered examples ({before:,}, now "
                f"{answered:,}); it is kept as {beside(current, PREVIOUS)}."
            )
        for path in (current, folder / PREDICTIONS):
            if beside(path, INCOMPLETE).exists():
                os.replace(beside(path, INCOMPLETE), path)
        beside(folder / RUN, INCOMPLETE).unlink(missing_ok=True)
    return Placed(current, folder / RUN, note)


def _keep(path: Path, other: Path) -> None:
    """Gives a file a second name, so that it is never without its first, whenever a kill comes."""
    temporary = other.with_name(f".{other.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, temporary)
    os.replace(temporary, other)
