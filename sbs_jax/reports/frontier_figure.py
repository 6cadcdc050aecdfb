"""The least data and the smallest student that beat the teacher (the paper's Figs. 8 and 9)."""

from __future__ import annotations

from pathlib import Path

from matplotlib.ticker import FixedLocator, FuncFormatter

from sbs_jax.reports import drawing, style
from sbs_jax.reports.aggregate import Configuration, Results, format_count


def draw_frontier(results: Results, output_dir: Path) -> drawing.Drawn | None:
    """Draws which students beat the teacher, by size and training data; None without a teacher.

    The sweep needs two sizes or two shares of the training data.
    """
    teacher = results.teacher
    if teacher is None:
        return None
    shown = [
        c
        for c in results.configurations
        if results.split in c.scores and c.number("parameters") and c.number("TRAIN_FRACTION")
    ]
    if len({_cell(c) for c in shown}) < 2:
        return None
    methods = list(dict.fromkeys(c.method for c in shown))
    figure, all_axes = style.new_figure(len(methods), width=6.4)
    sentences = []
    fractions = sorted({100 * (c.number("TRAIN_FRACTION") or 0) for c in shown})
    for axes, method in zip(all_axes, methods, strict=True):
        color, marker = style.look(method, methods)
        mine = [c for c in shown if c.method == method]
        best = best_of_cells(mine, results.split)
        for beaten in (True, False):
            cells = [
                cell for cell, accuracy in best.items() if (accuracy > teacher.accuracy) == beaten
            ]
            axes.plot(
                [size for size, _ in cells], [100 * fraction for _, fraction in cells],
                linestyle="none", marker=marker, markersize=9,
                markerfacecolor=color if beaten else "none", markeredgecolor=color,
                markeredgewidth=1.5, zorder=3,
            )  # fmt: skip
        line = frontier(best, teacher.accuracy)
        if line:
            axes.plot([size for size, _ in line], [100 * fraction for _, fraction in line],
                      color=color, linestyle="--", linewidth=1.3, zorder=2)  # fmt: skip
            size, fraction = line[0]
            sentences.append(
                f"{method}: the smallest that beats it has {format_count(size)} parameters, with "
                f"{100 * fraction:g} % of the data."
            )
        else:
            sentences.append(f"{method}: none of these students beats it.")
        drawing.size_axis(axes, shown)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(FixedLocator(fractions))
        axes.yaxis.set_minor_locator(FixedLocator([]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.set_ylim(fractions[0] / 1.3, fractions[-1] * 1.3)
        # Colours stand for methods, which the titles name.
        for face, label in ((style.MUTED, "beats the teacher"), ("none", "does not")):
            axes.plot([], [], linestyle="none", marker="o", markersize=9, markerfacecolor=face,
                      markeredgecolor=style.MUTED, markeredgewidth=1.5, label=label)  # fmt: skip
        axes.set(title=method, ylabel="training data used, % (log scale)")
    caption = (
        f"Which students have a mean {results.split} accuracy above the teacher's "
        f"{100 * teacher.accuracy:.2f} %; "
        "the dashed line joins the least data for each size. Of several λ the one that is best on "
        f"validation counts. After the paper's Figures 8 and 9. {' '.join(sentences)}"
    )
    return drawing.finish(figure, all_axes, output_dir, "frontier", "Beating the teacher", caption)


def best_of_cells(
    configurations: list[Configuration], split: str
) -> dict[tuple[float, float], float]:
    """Accuracy by (parameters, fraction); of several, that of the best on validation."""
    chosen: dict[tuple[float, float], Configuration] = {}

    def judge(c: Configuration) -> float:
        return c.scores.get("validation", c.scores[split]).mean

    for c in configurations:
        if _cell(c) not in chosen or judge(c) > judge(chosen[_cell(c)]):
            chosen[_cell(c)] = c
    return {cell: c.scores[split].mean for cell, c in chosen.items()}


def frontier(best: dict[tuple[float, float], float], level: float) -> list[tuple[float, float]]:
    """The least fraction that beats `level`, for each size that does, by size."""
    least: dict[float, float] = {}
    for (size, fraction), accuracy in best.items():
        if accuracy > level:
            least[size] = min(fraction, least.get(size, fraction))
    return sorted(least.items())


def _cell(c: Configuration) -> tuple[float, float]:
    return (c.number("parameters") or 0.0, c.number("TRAIN_FRACTION") or 0.0)
