"""The paper's figures, of what a sweep varied."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter
from matplotlib.transforms import ScaledTranslation

from sbs_jax.reports import curves, drawing, frontier_figure, style
from sbs_jax.reports.aggregate import WITHOUT_RATIONALE_LOSS, Configuration, Mean, Results, describe
from sbs_jax.reports.drawing import MAX_PANELS, Drawn, size_axis
from sbs_jax.reports.tables import matching_standard, teacher_name

_SIZE = ("MODEL", "parameters")


@dataclasses.dataclass(frozen=True)
class Panel:
    """What one panel of a figure shows: its title, and the configurations of each line."""

    title: str
    lines: dict[str, list[Configuration]]


def draw_all(results: Results, output_dir: Path) -> list[Drawn]:
    """Draws what the sweep has the axes for, into `output_dir`, as PNG and SVG."""
    makers: tuple[Callable[[Results, Path], Drawn | None], ...] = (
        draw_weight,
        draw_fraction,
        draw_size,
        frontier_figure.draw_frontier,
        curves.draw_curves,
        curves.draw_losses,
    )
    with style.style():
        drawn = [maker(results, output_dir) for maker in makers]
    return [figure for figure in drawn if figure is not None]


def draw_fraction(results: Results, output_dir: Path) -> Drawn | None:
    """Accuracy against the share of the training data (the paper's Figs. 4 and 5)."""
    panels = make_panels(results, ("TRAIN_FRACTION",))
    if not panels:
        return None
    figure, all_axes = style.new_figure(len(panels))
    sentences = []
    for axes, panel in zip(all_axes, panels, strict=True):
        _lines(axes, results, panel, lambda c: 100 * (c.number("TRAIN_FRACTION") or 0))
        full = [c for c in panel.lines.get("standard", ()) if c.number("TRAIN_FRACTION") == 1.0]
        if full:
            level = 100 * full[0].scores[results.split].mean
            axes.axhline(level, color=style.MUTED, linestyle=(0, (4, 3)), linewidth=1.1,
                         label="standard on 100 % of the data"
                         + (f" ({level:.1f} %)" if len(panels) == 1 else ""))  # fmt: skip
            sentences.append(_crossing(axes, results, panel, level))
        _percent_axis(axes)
        axes.set(title=panel.title, xlabel="training data used, %", ylabel=_accuracy(results))
        _fraction_ticks(axes, panel)
    caption = f"{_points(results)} After the paper's Figures 4 and 5. " + " ".join(
        filter(None, sentences)
    )
    return drawing.finish(figure, all_axes, output_dir, "accuracy_by_training_fraction",
                   "Accuracy against training data", caption)  # fmt: skip


def draw_size(results: Results, output_dir: Path) -> Drawn | None:
    """Accuracy against the student's size (the paper's Figs. 6 and 7)."""
    panels = make_panels(results, _SIZE, value="parameters")
    if not panels:
        return None
    figure, all_axes = style.new_figure(len(panels))
    for axes, panel in zip(all_axes, panels, strict=True):
        _lines(axes, results, panel, lambda c: c.number("parameters") or 0)
        if results.teacher is not None:
            _teacher_line(axes, results)
        size_axis(axes, [c for line in panel.lines.values() for c in line])
        _percent_axis(axes)
        axes.set(title=panel.title, ylabel=_accuracy(results))
    caption = f"{_points(results)} After the paper's Figures 6 and 7. " + (
        "The dotted line is the teacher's own (few-shot) accuracy."
        if results.teacher is not None
        else "The teacher's own accuracy is not known to this sweep."
    )
    return drawing.finish(figure, all_axes, output_dir, "accuracy_by_model_size",
                   "Accuracy against student size", caption)  # fmt: skip


def draw_weight(results: Results, output_dir: Path) -> Drawn | None:
    """Accuracy against λ, whose values stand evenly spaced: 0 has no place on a log axis."""
    panels = make_panels(results, ("RATIONALE_WEIGHT",), skip=WITHOUT_RATIONALE_LOSS)
    if not panels:
        return None
    figure, all_axes = style.new_figure(len(panels))
    sentences = []
    for axes, panel in zip(all_axes, panels, strict=True):
        weights = sorted(
            {c.number("RATIONALE_WEIGHT") or 0.0 for line in panel.lines.values() for c in line}
        )
        # Each value has a place of its own, evenly: 0 has none on a log axis.
        places = {weight: index for index, weight in enumerate(weights)}

        def place_of(c: Configuration, places: dict[float, int] = places) -> float:
            return places[c.number("RATIONALE_WEIGHT") or 0.0]

        _lines(axes, results, panel, place_of)
        some = next(iter(panel.lines.values()))[0]
        sentences.append(_standard_line(axes, results, some))
        sentences += [_chosen(axes, results, line, places) for line in panel.lines.values()]
        axes.xaxis.set_major_locator(FixedLocator(list(places.values())))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda x, _, w=weights: f"{w[round(x)]:g}" if 0 <= x < len(w) else "")
        )
        axes.set_xlim(-0.35, len(weights) - 0.65)
        _percent_axis(axes)
        axes.set(title=panel.title, xlabel="λ, the rationale's weight (places evenly spaced)",
                 ylabel=_accuracy(results))  # fmt: skip
    caption = f"{_points(results)} " + " ".join(dict.fromkeys(filter(None, sentences)))
    return drawing.finish(figure, all_axes, output_dir, "accuracy_by_rationale_weight",
                   "Accuracy against λ", caption)  # fmt: skip


def make_panels(
    results: Results,
    axis: Sequence[str],
    *,
    value: str | None = None,
    skip: Sequence[str] = (),
) -> list[Panel]:
    """The panels of a figure along an axis: a line a method, a panel for all else that varies.

    Args:
      results: the results of the sweep.
      axis: settings that the figure's x axis shows, and that therefore make no panels.
      value: which of them is the number on the axis; the first by default.
      skip: methods that the axis means nothing to.

    Returns:
      Those with at least two values on the axis, the first `MAX_PANELS`; none without such.
    """
    value = value or axis[0]
    shown = [
        c
        for c in results.configurations
        if results.split in c.scores and c.number(value) is not None and c.method not in skip
    ]
    others = [
        name
        for name in results.varied
        if name not in (*axis, "METHOD")
        # Of model and size, one does.
        and not (name == "parameters" and "MODEL" in results.varied)
    ]

    def panel_key(c: Configuration, names: Sequence[str]) -> str:
        return json.dumps([c.settings.get(name) for name in names], sort_keys=True, default=str)

    groups: dict[str, list[Configuration]] = {}
    weighed = [c for c in shown if c.method not in WITHOUT_RATIONALE_LOSS]
    for c in weighed or shown:
        groups.setdefault(panel_key(c, others), []).append(c)
    # λ means nothing to `standard`: it belongs to the panels of all λ, once.
    without_weight = [name for name in others if name != "RATIONALE_WEIGHT"]
    for c in [c for c in shown if c not in weighed] if weighed else []:
        mine = panel_key(c, without_weight)
        matching = [g for g in groups.values() if panel_key(g[0], without_weight) == mine]
        for group in matching:
            same = [o for o in group if o.method == c.method and o.number(value) == c.number(value)]
            if not same:
                group.append(c)
            elif c.number("RATIONALE_WEIGHT") == group[0].number("RATIONALE_WEIGHT"):
                group[group.index(same[0])] = c
        if not matching:
            groups.setdefault(panel_key(c, others), []).append(c)
    panels = []
    for group in groups.values():
        if len({c.number(value) for c in group}) < 2:
            continue
        lines: dict[str, list[Configuration]] = {}
        for c in sorted(group, key=results.configurations.index):
            lines.setdefault(c.method, []).append(c)
        title = describe(group[0], others)
        panels.append(
            Panel(
                title,
                {m: sorted(c, key=lambda c: c.number(value) or 0.0) for m, c in lines.items()},
            )
        )
    return panels[:MAX_PANELS]


def _lines(axes: Axes, results: Results, panel: Panel, x: Callable[[Configuration], float]) -> None:
    methods = sorted({c.method for c in results.configurations})
    for place, (method, line) in enumerate(panel.lines.items()):
        color, marker = style.look(method, methods)
        # A little apart, in points, so that no bar hides another.
        apart = 3.2 * (place - (len(panel.lines) - 1) / 2) / 72
        shifted = axes.transData + ScaledTranslation(apart, 0, axes.figure.dpi_scale_trans)
        means = [c.scores[results.split] for c in line]
        xs, ys = [x(c) for c in line], [100 * mean.mean for mean in means]
        errors = [100 * (mean.standard_error or 0.0) for mean in means]
        # What is shifted does not scale the axes by itself.
        for sign in (-1, 1):
            ends = [y + sign * error for y, error in zip(ys, errors, strict=True)]
            axes.update_datalim(list(zip(xs, ends, strict=True)))
        axes.plot(xs, ys, color=color, marker=marker, label=method or "accuracy",
                  markeredgecolor="white", markeredgewidth=0.8, zorder=3,
                  transform=shifted)  # fmt: skip
        if any(errors):
            axes.errorbar(xs, ys, yerr=errors, fmt="none", ecolor=color, elinewidth=1.2,
                          capsize=3, zorder=2.5, transform=shifted)  # fmt: skip


def _fraction_ticks(axes: Axes, panel: Panel) -> None:
    axes.set_xlim(0, 104)
    fractions = sorted(
        {100 * (c.number("TRAIN_FRACTION") or 0) for line in panel.lines.values() for c in line}
    )
    # At the fractions themselves, unless their numbers would touch.
    if min(high - low for low, high in itertools.pairwise([0.0, *fractions])) >= 8:
        axes.xaxis.set_major_locator(FixedLocator([0.0, *fractions]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def _crossing(axes: Axes, results: Results, panel: Panel, level: float) -> str:
    """Marks where `sbs` reaches the line, and says so."""
    line = [
        (100 * (c.number("TRAIN_FRACTION") or 0), 100 * c.scores[results.split].mean)
        for c in panel.lines.get("sbs", ())
    ]
    where = f" ({panel.title})" if panel.title else ""
    if not line:
        return ""
    place = crossing(line, level)
    if place is None:
        return f"sbs does not reach standard's accuracy on all data{where}."
    if place == line[0][0]:
        return (
            f"sbs on {place:.3g} % of the data, the least that was tried, is already at or above "
            f"standard on all of it{where}."
        )
    axes.plot([place], [level], marker="o", markersize=11, markerfacecolor="none",
              markeredgecolor=style.INK, markeredgewidth=1.3, linestyle="none", zorder=4,
              label="sbs crosses it")  # fmt: skip
    axes.annotate(f"{place:.0f} %", (place, level), xytext=(-8, 9), textcoords="offset points",
                  ha="right", fontsize=9, zorder=5)  # fmt: skip
    return (
        f"On a straight line between the means, sbs reaches standard's accuracy on all data at "
        f"{place:.0f} % of it{where}."
    )


def crossing(line: Sequence[tuple[float, float]], level: float) -> float | None:
    """Where a line of (x, y) first reaches `level`, or None if it never does."""
    if line[0][1] >= level:
        return line[0][0]
    for (x0, y0), (x1, y1) in itertools.pairwise(line):
        if y1 >= level:
            return x0 + (x1 - x0) * (level - y0) / (y1 - y0)
    return None


def _standard_line(axes: Axes, results: Results, like: Configuration) -> str:
    standard = matching_standard(results, like)
    if standard is None or results.split not in standard.scores:
        return ""
    mean = standard.scores[results.split]
    level, error = 100 * mean.mean, 100 * (mean.standard_error or 0.0)
    color, _ = style.look("standard")
    axes.axhline(level, color=color, linestyle=(0, (4, 3)), linewidth=1.3, zorder=2,
                 label="standard")  # fmt: skip
    if error:
        axes.axhspan(level - error, level + error, color=color, alpha=0.12, linewidth=0)
        return "The dashed line is standard, its band one standard error."
    return "The dashed line is standard."


def _chosen(
    axes: Axes, results: Results, line: Sequence[Configuration], places: dict[float, int]
) -> str:
    """Rings the λ that validation chooses."""
    if results.split != "test" or not all("validation" in c.scores for c in line):
        return ""
    best = max(line, key=lambda c: c.scores["validation"].mean)
    weight = best.number("RATIONALE_WEIGHT") or 0.0
    axes.plot([places[weight]], [100 * best.scores["test"].mean], marker="o", markersize=13,
              markerfacecolor="none", markeredgecolor=style.INK, markeredgewidth=1.2,
              linestyle="none", zorder=4, label="chosen on validation")  # fmt: skip
    return f"The ring is the λ that is best on validation: {weight:g} ({best.method})."


def _teacher_line(axes: Axes, results: Results) -> None:
    assert results.teacher is not None
    level = 100 * results.teacher.accuracy
    axes.axhline(level, color=style.INK, linestyle=":", linewidth=1.4,
                 label=f"{teacher_name(results)} itself ({level:.1f} %)")  # fmt: skip


def _percent_axis(axes: Axes) -> None:
    axes.margins(y=0.12)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def _accuracy(results: Results) -> str:
    return f"{results.split} accuracy, %"


def _points(results: Results) -> str:
    means: list[Mean] = [
        c.scores[results.split] for c in results.configurations if results.split in c.scores
    ]
    counts = sorted({mean.n for mean in means})
    if counts == [1]:
        return "Points are single runs: one seed has no standard error."
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    sentence = f"Points are means over {seeds} seeds, bars ± one standard error of the mean."
    return sentence + (" A point without a bar has a single seed." if counts[0] == 1 else "")
