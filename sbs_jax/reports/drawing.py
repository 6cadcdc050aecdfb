"""What all figures of a report share: the size axis, the legend and the files that are written."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sbs_jax.reports import style
from sbs_jax.reports.aggregate import Configuration, format_count, format_setting

MAX_PANELS = 12
"""The most panels of one figure."""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A figure that was made.

    Attributes:
      name: the name of its files, without ending.
      title: a few words.
      caption: sentences that say what the figure shows.
      svg: the text of the SVG file.
    """

    name: str
    title: str
    caption: str
    svg: str


def finish(
    figure: Figure,
    all_axes: Sequence[Axes],
    output_dir: Path,
    name: str,
    title: str,
    caption: str,
) -> Drawn:
    """Adds the legend, and writes the files."""
    for axes in all_axes:
        axes.set_title(textwrap.fill(axes.get_title(loc="left"), 44))
        place = axes.get_subplotspec()
        if place is not None and not place.is_first_col():
            axes.set_ylabel("")
    style.legend_above(figure, all_axes)
    svg = style.save(figure, output_dir / name)
    return Drawn(name, title, caption.strip(), svg)


def size_axis(axes: Axes, configurations: Sequence[Configuration]) -> None:
    """A log axis of sizes with a tick at each that occurs."""
    names: dict[float, str] = {}
    for c in configurations:
        size = c.number("parameters") or 1.0
        model = _shortened(format_setting("MODEL", c.settings.get("MODEL") or ""))
        names[size] = f"{model}\n{format_count(size)}".strip()
    axes.set_xscale("log")
    sizes = sorted(names)
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: names.get(x, format_count(x))))
    low, high = sizes[0], sizes[-1]
    margin = (high / low) ** 0.2 if high > low else 2.0
    axes.set_xlim(low / margin, high * margin)
    axes.set_xlabel("parameters of the student (log scale)")


def _shortened(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:10]}…{name[-10:]}"
