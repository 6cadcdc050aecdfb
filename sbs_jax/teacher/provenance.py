"""`run.json`: where the rationales of a folder come from."""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import sbs_jax
from sbs_jax.files import atomic_write_text
from sbs_jax.teacher.choose import Choosing
from sbs_jax.teacher.derive import Summary
from sbs_jax.teacher.flow import Flow
from sbs_jax.teacher.journal import Journal
from sbs_jax.teacher.plan import Plan
from sbs_jax.teacher.runner import Report
from sbs_jax.teacher.text import clean
from sbs_jax.teacher.types import Backend

FILE_NAME = "run.json"
_PACKAGES = ("aiohttp", "jax", "jinja2", "numpy", "tokenizers", "uvloop")
_HISTORY = 100


def write(
    folder: Path,
    *,
    plan: Plan,
    backend: Backend,
    choosing: Choosing,
    flow: Flow,
    journal: Journal,
    report: Report,
    summary: Summary,
    status: str,
) -> dict[str, Any]:
    """Writes `run.json` and returns what it holds; earlier runs stay in its `history`."""
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
        "sampling": dataclasses.asdict(plan.sampling),
        "asking": dataclasses.asdict(plan.asking),
        "choosing": dataclasses.asdict(choosing),
        "flow": dataclasses.asdict(flow),
        "versions": _versions(),
        "totals": totals,
        "this_run": this_run,
        "result": summary.as_dict(),
    }
    run["history"] = [*_history(folder / FILE_NAME), this_run][-_HISTORY:]
    text = json.dumps(run, indent=2, default=str)
    atomic_write_text(folder / FILE_NAME, clean(text) + "\n")
    return run


def _history(path: Path) -> list[Any]:
    try:
        history = json.loads(path.read_text(encoding="utf-8")).get("history", [])
    except (OSError, ValueError, AttributeError):
        return []
    return history if isinstance(history, list) else []


def _versions() -> dict[str, str]:
    versions = {"sbs_jax": sbs_jax.__version__, "python": sys.version.split()[0]}
    versions["platform"] = platform.machine()
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
