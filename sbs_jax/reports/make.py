"""Makes a report: reads sweeps, writes tables, figures and the page."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from sbs_jax.errors import UserError
from sbs_jax.files import atomic_write_text
from sbs_jax.reports import examples as examples_lib
from sbs_jax.reports import tables
from sbs_jax.reports.aggregate import Results, aggregate
from sbs_jax.reports.published import published_tables
from sbs_jax.reports.reading import read_sweep


@dataclasses.dataclass(frozen=True)
class Report:
    """What was made.

    Attributes:
      results: the results that it shows.
      main_tables: the results, and what rationales gain.
      files: the files that were written.
    """

    results: Results
    main_tables: tuple[tables.Table, ...]
    files: tuple[Path, ...]


def make_report(
    sweep_dirs: Sequence[str | os.PathLike[str]],
    output_dir: str | os.PathLike[str] | None = None,
    *,
    examples: examples_lib.Choice = "one_seed",
) -> Report:
    """Writes `results.csv`, `results.md`, figures as PNG and SVG, and `report.html`.

    Args:
      sweep_dirs: folders of sweeps, at least one; several are reported on together.
      output_dir: made if need be; `report` in the first sweep's folder by default.
      examples: whose predictions the page holds: of one seed of each configuration, of all seeds,
        or of none.

    Raises:
      UserError: a folder is no sweep's, no run of them is done, or nothing can be written.
    """
    if not sweep_dirs:
        raise UserError("Give at least one folder of a sweep.")
    resolved = [Path(folder).expanduser().resolve() for folder in sweep_dirs]
    for folder in resolved:
        if resolved.count(folder) > 1:
            raise UserError(f"{folder}: was given twice; give every sweep once.")
    results = aggregate([read_sweep(folder) for folder in sweep_dirs])
    if not results.configurations:
        raise UserError(_nothing_done(results))
    target = (
        Path(sweep_dirs[0]).expanduser() / "report"
        if output_dir is None
        else Path(output_dir).expanduser()
    )
    try:
        return _write(results, target, examples)
    except OSError as error:
        raise UserError(
            f"{error.filename or target}: cannot be written ({error.strerror})."
        ) from error


def _write(results: Results, target: Path, choice: examples_lib.Choice) -> Report:
    # Matplotlib takes a second to import: a mistake is reported before that.
    from sbs_jax.reports.figures import draw_all
    from sbs_jax.reports.page import make_page

    collected = examples_lib.collect(results, choice)
    main_tables = (tables.results_table(results), *tables.gain_tables(results))
    losses = tables.losses_table(results)
    published = published_tables(results)
    runs = tables.runs_table(results)
    target.mkdir(parents=True, exist_ok=True)
    figures = draw_all(results, target)
    page = make_page(
        results,
        main_tables=main_tables,
        losses=losses,
        published=published,
        configurations=tables.differing_lines_table(results),
        runs=runs,
        figures=figures,
        examples=collected,
    )
    not_done = tuple((run.name, run.status, run.reason) for run in results.unfinished)
    unfinished = tables.Table("Not done", ("run", "status", "remark"), not_done)
    texts = {
        "results.csv": tables.results_csv(results),
        "results.md": "\n".join(
            [
                table.markdown()
                for table in (*main_tables, *([losses] if losses else []), *published)
            ]
            + ([unfinished.markdown()] if unfinished.rows else [])
        ),
        "report.html": page,
    }
    for name, text in texts.items():
        atomic_write_text(target / name, text)
    drawn = [target / f"{figure.name}.{kind}" for figure in figures for kind in ("png", "svg")]
    return Report(results, main_tables, (*(target / name for name in texts), *drawn))


def _nothing_done(results: Results) -> str:
    folders = ", ".join(str(sweep.folder) for sweep in results.sweeps)
    first = results.unfinished[0] if results.unfinished else None
    summary = f"; '{first.name}' is {first.status}" if first else ""
    if first and first.reason:
        summary += f" ({' '.join(first.reason.split())})"
    return f"{folders}: no run is done yet, so there is nothing to report on{summary}."
