"""One page that holds everything: `report.html`. It needs no network and no other file."""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from typing import Any

import sbs_jax
from sbs_jax.reports import style
from sbs_jax.reports.aggregate import Results, format_setting
from sbs_jax.reports.examples import script_json
from sbs_jax.reports.figures import Drawn
from sbs_jax.reports.tables import Table

_LONG = 60  # characters
_FIELD = re.compile(r"\$([a-z_]+)\$")
_SURROGATES = re.compile("[\ud800-\udfff]")
# Characters that HTML forbids, and those that turn the direction of the text around them.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def make_page(
    results: Results,
    *,
    main_tables: Sequence[Table],
    losses: Table | None,
    published: Sequence[Table],
    configurations: Table | None,
    runs: Table,
    figures: Sequence[Drawn],
    examples: Sequence[Mapping[str, Any]],
) -> str:
    """The page's HTML.

    Args:
      results: the results that the page shows.
      main_tables: shown first.
      losses: the losses of the parts, shown below the figures; None where they are not known.
      published: the paper's tables.
      configurations: lines of `config.gin` that differ, if any do.
      runs: every run.
      figures: drawn ones.
      examples: see `examples.collect`; without any, the page has no browser of examples.
    """
    script = page_file("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    title = " and ".join(sweep.name for sweep in results.sweeps)
    fields = {
        "title": escape(title),
        "version": escape(sbs_jax.__version__),
        "script_hash": f"sha256-{digest}",
        "css": page_file("page.css"),
        "script": script,
        "summary": _summary(results),
        "main_tables": "\n".join(map(table_html, main_tables)),
        "figures": "\n".join(_figure(figure) for figure in figures)
        or "<p>Nothing was varied that a figure could show.</p>",
        "losses": "" if losses is None else table_html(losses),
        "published": "\n".join(map(table_html, published)),
        "configurations": _configurations(results, configurations),
        "runs": table_html(runs),
        "examples": page_file("examples.html") if examples else _NO_EXAMPLES,
        "data": script_json(list(examples)),
    }
    # One pass: what a field holds is never looked at again.
    return _FIELD.sub(lambda found: fields[found[1]], page_file("page.html"))


_NO_EXAMPLES = "<p>This report was made without examples.</p>"


def escape(text: str) -> str:
    r"""Text for HTML; what HTML cannot hold is shown as a sign.

    >>> escape('<b> & \x00')
    '&lt;b&gt; &amp; ␀'
    """
    return html.escape(_SURROGATES.sub("�", _CONTROLS.sub(_visible, text)))


def table_html(table: Table) -> str:
    """A table with its title and notes."""
    heads = "".join(
        f'<th scope="col"{_numeric(table, i)}>{escape(name)}</th>'
        for i, name in enumerate(table.columns)
    )
    body = "\n".join(
        "<tr>"
        + "".join(
            f"<td{_cell_class(table, i, cell)}>{escape(cell)}</td>" for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in table.rows
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in table.notes)
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{escape(table.title)}">'
        f"<table><caption>{escape(table.title)}</caption>\n<thead><tr>{heads}</tr></thead>\n"
        f'<tbody>\n{body}\n</tbody></table></div>\n<div class="notes">{notes}</div>'
    )


def _summary(results: Results) -> str:
    done = len(results.runs) - len(results.unfinished)
    facts = [f"{done} of {len(results.runs)} runs are done"]
    if results.unfinished:
        counts: dict[str, int] = {}
        for run in results.unfinished:
            counts[run.status] = counts.get(run.status, 0) + 1
        summary = ", ".join(f"{count} {status}" for status, count in counts.items())
        facts.append(f'<a href="#runs">{escape(summary)}</a>')
    if results.duplicates:
        facts.append(f'<a href="#runs">{len(results.duplicates)} left out as duplicates</a>')
    facts.append(f"accuracies are of the {escape(results.split)} split")
    best = max(
        (c for c in results.configurations if "validation" in c.scores),
        key=lambda c: c.scores["validation"].mean,
        default=None,
    )
    lines = [f"<p>{'; '.join(facts)}.</p>"]
    if best is not None and len(results.configurations) > 1:
        chosen = best.scores.get(results.split)
        summary = "" if chosen is None else f": {100 * chosen.mean:.2f} % on {results.split}"
        lines.append(f"<p>Best on validation: {escape(results.label(best) + summary)}.</p>")
    for sweep in results.sweeps:
        if sweep.command:
            lines.append(f"<pre>{escape(sweep.command)}</pre>")
    return "\n".join(lines)


def _figure(figure: Drawn) -> str:
    svg = style.inline_svg(figure.svg, figure.name, escape(f"{figure.title}. {figure.caption}"))
    return (
        f'<figure id="{figure.name}"><h3>{escape(figure.title)}</h3>\n'
        f'<div class="drawing" tabindex="0" role="region" aria-label="{escape(figure.title)}">'
        f"{svg}</div>\n"
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )


def _configurations(results: Results, differing: Table | None) -> str:
    common = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(format_setting(name, value))}</dd>"
        for name, value in results.common_settings.items()
    )
    parts = [f'<h3>The same in all</h3><dl class="settings">{common}</dl>'] if common else []
    if differing is not None:
        parts.append(table_html(differing))
    return "\n".join(parts) or "<p>The runs left no record of their settings.</p>"


def _numeric(table: Table, column: int) -> str:
    return ' class="number"' if column in table.numeric else ""


def _cell_class(table: Table, column: int, text: str) -> str:
    # Numbers and names stay on a line; sentences are broken.
    if column not in table.numeric and (len(text) > _LONG or "\n" in text):
        return ' class="long"'
    return _numeric(table, column)


def _visible(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else "�"


def page_file(name: str) -> str:
    """Returns the text of a file of `page_files/`."""
    folder = importlib.resources.files("sbs_jax.reports") / "page_files"
    return (folder / name).read_text(encoding="utf-8")
