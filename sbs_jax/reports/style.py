"""How figures look: colours that colour-blind people tell apart, type, files."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from sbs_jax.files import atomic_open, atomic_write_text

INK, GRID, MUTED = "#1f2328", "#d9dde2", "#6b7280"
# Okabe and Ito's colours, without their yellow, which is too pale on white.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f5fc7", "#4d4d4d")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_OF_METHOD = {"sbs": 0, "standard": 1, "joint": 2, "rationale_input": 3}
_LEGEND_ORDER = {"standard": 0, "sbs": 1, "joint": 2, "rationale_input": 3}
# For values that have an order, dark to light: they can be told apart in black and white, too.
_SEQUENCE = ("#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#d8b90b")
DPI = 160

_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # It comes with matplotlib: the same figure everywhere.
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.9,
    "lines.markersize": 6,
    "figure.facecolor": "white",
    "axes.facecolor": "none",
    "text.parse_math": False,  # A name may hold a $.
    "svg.fonttype": "path",
    "svg.hashsalt": "sbs_jax",  # The same file from the same numbers.
}


def style() -> AbstractContextManager[None]:
    """A context in which figures are to be drawn and saved."""
    return rc_context(_RC)


def look(method: str, others: Sequence[str] = ()) -> tuple[str, str]:
    """Colour and marker of a method, always the same; of another name, by its place in `others`."""
    if method in _OF_METHOD:
        place = _OF_METHOD[method]
    else:
        unknown = [name for name in others if name not in _OF_METHOD]
        place = len(_OF_METHOD) + (unknown.index(method) if method in unknown else 0)
    return COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)]


def shades(count: int) -> list[str]:
    """Colours of `count` values that have an order."""
    last = len(_SEQUENCE) - 1
    if count > len(_SEQUENCE):
        return [COLORS[i % len(COLORS)] for i in range(count)]
    return [_SEQUENCE[round(i * last / max(1, count - 1))] for i in range(count)]


def new_figure(panels: int, *, width: float = 6.8) -> tuple[Figure, list[Axes]]:
    """A figure with some panels, at most three in a row; sizes in inches, of one panel."""
    columns = 2 if panels == 4 else min(panels, 3)
    rows = -(-panels // columns)
    height = 4.3
    if columns > 1:
        width, height = 4.2 * columns, 3.5 * rows + 0.4
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel().tolist()
    for unused in axes[panels:]:
        unused.set_visible(False)
    return figure, axes[:panels]


def legend_above(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels, above them, where it hides no data."""
    entries: dict[str, Any] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        return
    labels = sorted(entries, key=lambda label: _LEGEND_ORDER.get(label, len(_LEGEND_ORDER)))
    figure.legend(
        [entries[label] for label in labels],
        labels,
        loc="outside upper left",
        ncols=_legend_columns(labels, figure.get_figwidth()),
        columnspacing=1.6,
        handletextpad=0.6,
    )


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """The most columns that fit into `width` inches; a wider legend would be cut."""
    for columns in range(len(labels), 1, -1):
        rows = -(-len(labels) // columns)
        # Matplotlib fills column after column. A letter takes 0.078 inches, a line and gap 0.6.
        longest = [
            max(map(len, labels[first : first + rows])) for first in range(0, len(labels), rows)
        ]
        if sum(0.078 * length + 0.6 for length in longest) <= width:
            return columns
    return 1


def save(figure: Figure, stem: Path) -> str:
    """Writes `stem.png` and `stem.svg`; returns the SVG's text."""
    with style():
        with atomic_open(stem.with_suffix(".png"), "wb") as file:
            FigureCanvasAgg(figure).print_figure(file, format="png", dpi=DPI)
        text = io.BytesIO()
        FigureCanvasSVG(figure).print_figure(text, format="svg", metadata={"Date": None})
    svg = text.getvalue().decode("utf-8")
    atomic_write_text(stem.with_suffix(".svg"), svg)
    return svg


def inline_svg(svg: str, prefix: str, description: str) -> str:
    """An SVG as a part of a page: ids of its own, ink in the page's colours, a description.

    Args:
      svg: what `save` returned.
      prefix: the prefix of its ids; another one for each figure of a page.
      description: HTML, escaped already, for people who cannot see the figure.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    # A figure's white ground hides the page's; the rest follows the page's theme.
    svg = svg.replace("fill: #ffffff", "fill: var(--ground)")
    svg = svg.replace("stroke: #ffffff", "stroke: var(--ground)")
    names = {INK: "ink", GRID: "grid", MUTED: "muted"}
    names |= {color: f"series-{i}" for i, color in enumerate(COLORS)}
    names |= {color: f"shade-{i}" for i, color in enumerate(_SEQUENCE)}
    for color, name in names.items():
        svg = re.sub(rf"(fill|stroke): {color}\b", rf"\1: var(--{name})", svg)
    # In points. Neither so wide that its letters are huge, nor so narrow that they are tiny.
    found = re.search(r'<svg[^>]*? width="([\d.]+)pt"', svg)
    assert found is not None, "matplotlib writes the width"
    width = float(found[1])
    size = f"min-width: {width:.0f}px; max-width: {1.6 * width:.0f}px"
    head, rest = svg.split(">", 1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)  # The viewBox keeps the proportions.
    head = head.replace("<svg", f'<svg role="img" aria-label="{description}" style="{size}"', 1)
    return f"{head}>{rest}"
