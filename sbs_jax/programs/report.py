r"""Reports on finished sweeps: tables, figures and a page with the students' answers.

    python -m sbs_jax.report SWEEP_DIR [SWEEP_DIR …] [--output_dir=FOLDER]

writes results.csv, results.md, figures as PNG and SVG, and report.html, which needs no network.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sbs_jax.configuration.flags import Parser
from sbs_jax.errors import with_exit_code
from sbs_jax.reports.examples import RUNS_SHOWN
from sbs_jax.reports.make import Report, make_report

_UNFINISHED_SHOWN = 10


@with_exit_code
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    arguments = _parser().parse_args(argv)
    report = make_report(arguments.sweep_dirs, arguments.output_dir, examples=arguments.examples)
    console = Console(highlight=False, markup=False)
    # A number must not be cut where there is no window that it could be too wide for.
    show(
        report,
        console if console.is_terminal else Console(highlight=False, markup=False, width=200),
    )
    return 0


def show(report: Report, console: Console) -> None:
    """Prints the main tables, what is not done, and where everything is."""
    for table in report.main_tables:
        shown = Table(title=table.title, box=box.SIMPLE_HEAD, title_justify="left")
        for index, name in enumerate(table.columns):
            side: Literal["left", "right"] = "right" if index in table.numeric else "left"
            shown.add_column(Text(name), justify=side, no_wrap=True)
        for row in table.rows:
            shown.add_row(*map(Text, row))
        console.print(shown)
    unfinished = report.results.unfinished
    for run in unfinished[:_UNFINISHED_SHOWN]:
        last = run.reason.strip().splitlines()[-1:]
        console.print(f"{run.status}: {run.name} {' '.join(last)}".rstrip(), markup=False)
    if len(unfinished) > _UNFINISHED_SHOWN:
        console.print(f"… and {len(unfinished) - _UNFINISHED_SHOWN} more that are not done")
    console.print(f"{len(report.files)} files in {report.files[0].parent}:", markup=False)
    console.print("  " + ", ".join(file.name for file in report.files), markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m sbs_jax.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "sweep_dirs", nargs="+", metavar="SWEEP_DIR", help="a folder of python -m sbs_jax.sweep"
    )
    parser.add_argument(
        "--output_dir", metavar="FOLDER", help="default: report in the first SWEEP_DIR"
    )
    parser.add_argument(
        "--examples",
        choices=RUNS_SHOWN,
        default=RUNS_SHOWN[0],
        help="whose answers the page holds: of one seed of each configuration (default), of all, "
        "or of none, so that it shows no text of the data set",
    )
    return parser
