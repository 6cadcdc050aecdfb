"""The table at the end of a run, and the same again with `--stats OUTPUT_DIR`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sbs_jax.errors import UserError
from sbs_jax.teacher import output
from sbs_jax.teacher.text import printable, say


def show_stats(folder: str | Path, console: Console | None = None) -> None:
    """Prints what a folder holds, with examples of each kind of failure.

    Raises:
      UserError: it is no folder of the teacher's.
    """
    path = Path(folder) / output.RUN
    console = console or Console(markup=False)
    later = output.beside(path, output.INCOMPLETE)
    run = _read(path)
    show(run, console, failures=True)
    if later.exists():
        status = printable(str(_read(later)["status"]))
        say(console, f"A later run has less than this ({later.name}): {status}")


def _read(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        table(run)
        [(example["id"], example["text"]) for kind in run["result"]["failures"].values()
         for example in kind]  # fmt: skip
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the OUTPUT_DIR of a run."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged; run the teacher again to rewrite it.") from error
    return run


def show(run: dict[str, Any], console: Console, *, failures: bool = False) -> None:
    """Prints the table of `run` (what `run.json` holds)."""
    console.print(table(run))
    if not failures:
        return
    for kind, examples in run["result"]["failures"].items():
        for example in examples:
            name, text = printable(str(example["id"]), 80), printable(str(example["text"]), 500)
            say(console, f"{kind} · {name}\n    {text}")


def table(run: dict[str, Any]) -> Table:
    """Builds the table."""
    result, counts = run["result"], run["result"]["counts"]
    shown = Table(title=None, show_header=False, box=None, pad_edge=False)
    shown.add_column(style="bold")
    shown.add_column()

    def row(name: str, value: object) -> None:
        shown.add_row(name, Text(printable(str(value))))  # Not markup: others wrote it.

    row("teacher", f"{run['model']} ({run['backend']['name']})")
    row("status", run["status"])
    examples = counts.get("examples", 0)
    row("examples", f"{examples:,}")
    row("with rationale", f"{counts.get('with_rationale', 0):,}{_share(counts, 'with_rationale')}")
    candidates = counts.get("candidates", 0)
    for name in ("parsed", "unparsed", "truncated", "inconsistent", "wrong", "failed", "missing"):
        number = counts.get(f"candidates_{name}", 0)
        if number:
            row(f"completions {name}", f"{number:,} of {candidates:,} ({number / candidates:.1%})")
    for name in ("rejected", "rationalized"):
        if counts.get(name):
            row(f"examples {name}", f"{counts[name]:,}{_share(counts, name)}")
    if result["accuracy"] is not None:
        error = result["standard_error"]
        summary = f"{result['accuracy']:.1%}" + (f" ± {error:.1%}" if error is not None else "")
        row("agrees with gold", f"{summary} (standard error; {result['scored']:,} examples)")
    totals = run["totals"]
    estimated = totals["usage_estimated"]
    row(
        "tokens",
        f"{totals['prompt_tokens']:,} in, {totals['completion_tokens']:,} out"
        + (f" ({estimated:,} completions without usage: estimated)" if estimated else ""),
    )
    if totals["cost"]:
        row("cost", f"{totals['cost']:.4f}")
    last = run["this_run"]
    row(
        "last run",
        f"asked {last['asked']:,}, reused {last['reused']:,}, retries {last['retries']:,}, "
        f"{last['seconds']:.1f} s",
    )
    return shown


def _share(counts: dict[str, int], name: str) -> str:
    examples = counts.get("examples", 0)
    return f" ({counts.get(name, 0) / examples:.1%})" if examples else ""
