"""Learning curves, from the runs' `metrics.jsonl`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from sbs_jax import metrics
from sbs_jax.parts import NAMES
from sbs_jax.reports import drawing, style
from sbs_jax.reports.aggregate import Configuration, Results, describe

_LINE_AXES = ("RATIONALE_WEIGHT", "METHOD", "MODEL", "parameters", "TRAIN_FRACTION")

Curve = list[tuple[int, float, float | None]]


def draw_curves(results: Results, output_dir: Path) -> drawing.Drawn | None:
    """Validation accuracy against training steps, a line a configuration; None without records."""
    line_axis = _line_axis(results)
    lines = [
        (_panel_title(results, c, line_axis), c, mean_curve(c, "validation", "accuracy", 100.0))
        for c in results.configurations
    ]
    return _draw(
        results,
        lines,
        output_dir,
        "learning_curves",
        "Learning curves",
        "validation accuracy, %",
        "Accuracy on validation during training",
    )


def draw_losses(results: Results, output_dir: Path) -> drawing.Drawn | None:
    """The loss of each part against training steps, a panel a part; None without records.

    They are those of validation where it was evaluated at least twice, else of training.
    """
    line_axis = _line_axis(results)
    for split, where in (("validation", "on validation"), ("train", "in training")):
        parts = dict.fromkeys(
            part for c in results.configurations for run in c.runs for part in run.parts(split)
        )
        lines = [
            (f"{part}, {panel}" if panel else part, c, mean_curve(c, split, f"{part}_loss"))
            for part in (*(n for n in NAMES if n in parts), *(n for n in parts if n not in NAMES))
            for c in results.configurations
            for panel in [_panel_title(results, c, line_axis)]
        ]
        drawn = _draw(
            results,
            lines,
            output_dir,
            "losses_of_parts",
            "Losses of the parts",
            f"loss {where}, nats a token",
            f"Loss of each part {where}, not weighted",
        )
        if drawn is not None:
            return drawn
    return None


def _draw(
    results: Results,
    lines: Sequence[tuple[str, Configuration, Curve]],
    output_dir: Path,
    name: str,
    title: str,
    axis: str,
    what: str,
) -> drawing.Drawn | None:
    """Draws each line in the panel of its title; returns None if no line has two points."""
    panels: dict[str, list[tuple[Configuration, Curve]]] = {}
    for panel, c, curve in lines:
        if len(curve) > 1:
            panels.setdefault(panel, []).append((c, curve))
    if not panels:
        return None
    line_axis = _line_axis(results)
    left_out = max(0, len(panels) - drawing.MAX_PANELS)
    panels = dict(list(panels.items())[: drawing.MAX_PANELS])
    figure, all_axes = style.new_figure(len(panels))
    values = list(
        dict.fromkeys(json.dumps(c.settings.get(line_axis)) for c in results.configurations)
    )
    shades = style.shades(len(values))
    methods = sorted({c.method for c in results.configurations})
    for axes, (panel, shown) in zip(all_axes, panels.items(), strict=True):
        for c, curve in shown:
            if line_axis in ("METHOD", ""):
                color, marker = style.look(c.method, methods)
                label = c.method or "all runs"
            else:
                value = values.index(json.dumps(c.settings.get(line_axis)))
                color, marker = shades[value], style.MARKERS[value % len(style.MARKERS)]
                label = describe(c, [line_axis])
            steps = [step for step, _, _ in curve]
            means = [mean for _, mean, _ in curve]
            axes.plot(
                steps, means, color=color, label=label, linewidth=1.7, zorder=3, marker=marker,
                markersize=5, markeredgecolor="white", markeredgewidth=0.7,
                markevery=max(1, len(steps) // 8),
            )  # fmt: skip
            errors = [error or 0.0 for _, _, error in curve]
            if any(errors):
                low = [mean - error for mean, error in zip(means, errors, strict=True)]
                high = [mean + error for mean, error in zip(means, errors, strict=True)]
                axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        axes.set(title=panel, xlabel="training step", ylabel=axis)
    # All panels share an axis: it may be fixed only when all is drawn.
    for axes in all_axes:
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
    caption = (
        f"{what}, means over seeds; bands are ± one standard error where there are several seeds."
    )
    if left_out:
        caption += f" {left_out} further panels are left out."
    return drawing.finish(figure, all_axes, output_dir, name, title, caption)


def mean_curve(
    configuration: Configuration,
    split: str = "validation",
    name: str = "accuracy",
    scale: float = 1.0,
) -> Curve:
    """`(step, mean, standard error)` of a metric, at the steps that every seed has it of."""
    curves = [dict(run.metrics(split, name)) for run in configuration.runs]
    curves = [curve for curve in curves if curve]
    if not curves:
        return []
    result: Curve = []
    for step in sorted(set.intersection(*map(set, curves))):
        values = [scale * curve[step] for curve in curves]
        stderr = metrics.standard_error(values)
        mean = math.fsum(values) / len(values)
        result.append((step, mean, None if math.isnan(stderr) else stderr))
    return result


def _line_axis(results: Results) -> str:
    """The setting whose values are the lines of a panel; '' if nothing varies."""
    # λ makes lines when it alone varies; with several methods, these do.
    if "METHOD" in results.varied:
        return "METHOD"
    return next((name for name in _LINE_AXES if name in results.varied), "")


def _panel_title(results: Results, c: Configuration, line_axis: str) -> str:
    names = [name for name in results.varied if name != line_axis]
    if "MODEL" in results.varied:
        names = [name for name in names if name != "parameters"]
    return describe(c, names)
