"""`run.json`: where the rationales of a folder come from."""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import sbs_jax
from sbs_jax.files import atomic_write_text
from sbs_jax.redaction import redact
from sbs_jax.teacher import output
from sbs_jax.teacher.choose import Choosing
from sbs_jax.teacher.derive import Summary
from sbs_jax.teacher.flow import Flow
from sbs_jax.teacher.journal import Journal
from sbs_jax.teacher.plan import RequestPlan
from sbs_jax.teacher.runner import RunnerReport
from sbs_jax.teacher.text import clean
from sbs_jax.teacher.types import Backend

_PACKAGES = ("aiohttp", "jax", "jinja2", "numpy", "tokenizers", "uvloop")
_HISTORY = 100


def write(
    path: Path,
    *,
    plan: RequestPlan,
    backend: Backend,
    choosing: Choosing,
    flow: Flow,
    journal: Journal,
    report: RunnerReport,
    summary: Summary,
    status: str,
    history: Sequence[Any] = (),
) -> dict[str, Any]:
    """Writes `run.json` and returns what it holds; earlier runs stay in its `history`.

    Args:
      path: The file to write; see `output.place`.
      plan: The prompts and parameters in force.
      backend: Who answered.
      choosing: Filters and choice.
      flow: Limits, and the prices that the cost is worked out with.
      journal: The teacher's answers in all runs.
      report: The report of this run.
      summary: Counts over the derived rows.
      status: 'complete', or what is missing and why.
      history: The `this_run` of earlier runs, oldest first.

    Raises:
      UserError: the file cannot be written.
    """
    totals = dataclasses.asdict(journal.totals)
    totals["cost"] = flow.cost(totals["prompt_tokens"], totals["completion_tokens"])
    this_run = dataclasses.asdict(report)
    this_run["ended"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    run: dict[str, Any] = {
        "status": status,
        "model": plan.model,
        "backend": {"name": backend.name, **backend.describe()},
        "prompts": {
            "file": plan.prompts.path.name,
            "sha256": plan.prompts.sha256,
            "style": plan.asking.style,
            "exemplars": len(plan.prompts.exemplars),
            "parser": plan.prompts.parser,
            "metric": plan.prompts.metric,
        },
        "fields": {file.path.name: file.sha256 for file in plan.field_files},
        "sampling": redact(dataclasses.asdict(plan.sampling)),
        "asking": dataclasses.asdict(plan.asking),
        "choosing": dataclasses.asdict(choosing),
        "flow": dataclasses.asdict(flow),
        "versions": _versions(),
        "totals": totals,
        "this_run": this_run,
        "result": summary.as_dict(),
    }
    run["history"] = [*history, this_run][-_HISTORY:]
    text = json.dumps(run, indent=2, default=str)
    atomic_write_text(path, clean(text) + "\n")
    return run


def history(folder: Path) -> list[Any]:
    """Returns the earlier runs of a folder, oldest first: those of its newest `run.json`."""
    for path in (output.beside(folder / output.RUN, output.INCOMPLETE), folder / output.RUN):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["history"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(found, list):
            return found
    return []


def _versions() -> dict[str, str]:
    versions = {"sbs_jax": sbs_jax.__version__, "python": sys.version.split()[0]}
    versions["platform"] = platform.machine()
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
