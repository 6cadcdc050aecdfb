import csv
import io
import re
import xml.etree.ElementTree as ElementTree

import pytest

from sbs_jax.reports import curves, drawing, figures, frontier_figure, style, tables
from sbs_jax.reports.aggregate import aggregate
from sbs_jax.reports.make import make_report
from sbs_jax.reports.reading import read_sweep
from tests.reports import synthetic


def _read(*folders):
    return aggregate([read_sweep(folder) for folder in folders])


@pytest.fixture(scope="module")
def drawn(sweeps, tmp_path_factory):
    """Figures of the sweeps by the sweep's name, and the folders that they are in."""
    made = {}
    for name, folder in sweeps.items():
        output = tmp_path_factory.mktemp(name)
        made[name] = {f.name: f for f in figures.draw_all(_read(folder), output)}, output
    return made


@pytest.mark.parametrize(
    ("sweep", "names"),
    [
        ("lambda", ["accuracy_by_rationale_weight", "learning_curves"]),
        ("fractions", ["accuracy_by_training_fraction", "learning_curves"]),
        (
            "sizes",
            [
                "accuracy_by_training_fraction", "accuracy_by_model_size", "frontier",
                "learning_curves",
            ],
        ),
        ("one_seed", ["learning_curves"]),
    ],
)  # fmt: skip
def test_figures_are_made_of_what_was_varied(drawn, sweep, names):
    found, folder = drawn[sweep]
    assert list(found) == names
    files = sorted(path.name for path in folder.iterdir())
    assert files == sorted(f"{name}.{kind}" for name in names for kind in ("png", "svg"))
    for name in names:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")
        assert (folder / f"{name}.svg").read_text() == found[name].svg


def test_losses_of_parts_have_a_panel_each_and_a_table(tmp_path):
    """Whatever a method's parts are called."""
    axes = {"METHOD": ("sbs", "hinted"), "SEED": (0, 1)}
    folder = synthetic.write_sweep(tmp_path / "sweep", axes, parts=("label", "rationale", "hint"))
    results = _read(folder)
    (figure,) = [f for f in figures.draw_all(results, tmp_path) if f.name == "losses_of_parts"]
    assert figure.caption.startswith("Loss of each part on validation, not weighted, means over")
    assert len(re.findall(r'id="axes_\d+"', figure.svg)) == 3
    curve = curves.mean_curve(results.configurations[0], "validation", "hint_loss")
    assert curve[-1] == (500, pytest.approx(2.6), 0.0)
    table = tables.losses_table(results)
    assert table.columns == ("method", "label", "rationale", "hint")
    assert table.rows[1] == (
        "hinted",
        *(f"{value} ± 0.0000" for value in ("0.5000", "1.5000", "2.5000")),
    )
    (row, _) = csv.DictReader(io.StringIO(tables.results_csv(results)))
    assert (row["test_hint_loss"], row["validation_label_loss"]) == ("2.5", "0.5")
    assert table.title in (make_report([folder]).files[2]).read_text()


def test_the_same_numbers_make_the_same_file(sweeps, drawn, tmp_path):
    again = figures.draw_all(_read(sweeps["lambda"]), tmp_path)
    assert again[0].svg == drawn["lambda"][0][again[0].name].svg


def test_captions_say_what_is_seen(drawn):
    found, _ = drawn["fractions"]
    caption = found["accuracy_by_training_fraction"].caption
    assert "means over 3 seeds, bars ± one standard error" in caption
    assert re.search(r"sbs reaches standard's accuracy on all data at \d+ % of it\.", caption)
    found, _ = drawn["sizes"]
    assert "(t5_1_1_small)" in found["accuracy_by_training_fraction"].caption
    assert re.search(r"sbs: the smallest that beats it has 9\.4 M", found["frontier"].caption)
    found, _ = drawn["lambda"]
    assert re.search(r"best on validation: [\d.]+ \(sbs\)", found[next(iter(found))].caption)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ([(10, 40), (50, 60), (100, 80)], 40.0),  # 40 + 20 · 30 / 40 = 55
        ([(10, 60), (50, 70)], 10),
        ([(10, 40), (50, 50)], None),
        ([(10, 40), (50, 55), (100, 50)], 50.0),
        ([(10, 54), (50, 20), (100, 90)], 75.0),
    ],
)
def test_where_a_line_reaches_a_level(line, expected):
    assert figures.crossing(line, 55) == expected


def test_a_crossing_that_never_comes_is_said(tmp_path):
    folder = synthetic.write_sweep(
        tmp_path / "worse",
        {"METHOD": ("standard", "sbs"), "TRAIN_FRACTION": (0.5, 1.0), "SEED": (0, 1)},
        accuracy=lambda s: 0.5 if s["METHOD"] == "sbs" else 0.75,
    )
    figure = figures.draw_fraction(_read(folder), tmp_path)
    assert "sbs does not reach standard's accuracy on all data." in figure.caption


def test_single_runs_have_no_bars_and_say_so(tmp_path):
    folder = synthetic.write_sweep(
        tmp_path / "one", {"METHOD": ("sbs",), "TRAIN_FRACTION": (0.5, 1.0), "SEED": (0,)}
    )
    figure = figures.draw_fraction(_read(folder), tmp_path)
    assert "one seed has no standard error" in figure.caption


def test_other_axes_make_panels(sweeps):
    results = _read(sweeps["sizes"])
    panels = figures.make_panels(results, ("TRAIN_FRACTION",))
    assert [panel.title for panel in panels] == list(synthetic.SIZES)
    assert [list(panel.lines) for panel in panels] == [["standard", "sbs"]] * 3
    panels = figures.make_panels(results, ("MODEL", "parameters"), value="parameters")
    assert [panel.title for panel in panels] == ["data 25 %", "data 100 %"]
    sizes = [c.number("parameters") for c in panels[0].lines["sbs"]]
    assert sizes == sorted(synthetic.SIZES.values())


def test_standard_stands_in_the_panel_of_every_weight(tmp_path):
    folder = synthetic.write_sweep(
        tmp_path / "sbs",
        {"RATIONALE_WEIGHT": (0.3, 1.0), "TRAIN_FRACTION": (0.5, 1.0), "SEED": (0,)},
    )
    standard = synthetic.write_sweep(
        tmp_path / "standard",
        {"METHOD": ("standard",), "TRAIN_FRACTION": (0.5, 1.0), "SEED": (0,)},
    )
    results = _read(folder, standard)
    panels = figures.make_panels(results, ("TRAIN_FRACTION",))
    assert [panel.title for panel in panels] == ["λ 0.3", "λ 1"]
    assert [sorted(panel.lines) for panel in panels] == [["sbs", "standard"]] * 2
    # λ means nothing to it: no line of it against λ, but a level to compare with.
    panels = figures.make_panels(results, ("RATIONALE_WEIGHT",), skip=("standard",))
    assert [list(panel.lines) for panel in panels] == [["sbs"]] * 2
    assert "dashed line is standard" in figures.draw_weight(results, tmp_path).caption


def test_the_frontier_is_the_least_data_of_each_size(sweeps):
    best = {(1e6, 0.5): 0.4, (1e6, 1.0): 0.6, (2e6, 0.25): 0.6, (2e6, 1.0): 0.7, (3e6, 1.0): 0.5}
    assert frontier_figure.frontier(best, 0.5) == [(1e6, 1.0), (2e6, 0.25)]
    assert frontier_figure.frontier(best, 0.9) == []
    results = _read(sweeps["sizes"])
    cells = frontier_figure.best_of_cells(list(results.configurations), "test")
    assert set(cells) == {(s, f) for s in synthetic.SIZES.values() for f in (0.25, 1.0)}


def test_without_a_teacher_there_is_no_frontier(sweeps, tmp_path):
    assert frontier_figure.draw_frontier(_read(sweeps["fractions"]), tmp_path) is None


def test_curves_are_means_at_common_steps(sweeps, tmp_path):
    folder = synthetic.write_sweep(tmp_path / "two", {"SEED": (0, 1)}, examples=4)
    for seed, values in enumerate(([0.2, 0.4, 0.5], [0.4, 0.8])):
        lines = [
            f'{{"step": {10 * (i + 1)}, "split": "validation", "accuracy": {value}}}\n'
            for i, value in enumerate(values)
        ]
        (folder / "runs" / f"seed={seed}" / "metrics.jsonl").write_text("".join(lines))
    (configuration,) = _read(folder).configurations
    curve = curves.mean_curve(configuration)
    assert curve == [(10, pytest.approx(0.3), pytest.approx(0.1)),
                     (20, pytest.approx(0.6), pytest.approx(0.2))]  # fmt: skip


@pytest.mark.parametrize(
    ("sweep", "draw"),
    [
        ("fractions", curves.draw_curves),
        ("fractions", figures.draw_fraction),
        ("sizes", figures.draw_fraction),
        ("sizes", figures.draw_size),
        ("lambda", figures.draw_weight),
        ("sizes", frontier_figure.draw_frontier),
    ],
)
def test_nothing_is_cut_off(sweeps, tmp_path, monkeypatch, sweep, draw):
    """All that is drawn lies within its axes, which panels share: points, and ends of bars."""
    seen = {}

    def keep(figure, axes, *rest):
        seen["axes"] = axes
        return drawing.Drawn("", "", "", "")

    monkeypatch.setattr(drawing, "finish", keep)
    draw(_read(sweeps[sweep]), tmp_path)
    for axes in seen["axes"]:
        points = [point for line in axes.lines for point in line.get_xydata()]
        points += [
            point
            for bars in axes.containers
            for collection in bars.lines[2]
            for segment in collection.get_segments()
            for point in segment
        ]
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        # Lines across the whole panel have x from 0 to 1, in its own units.
        data = [(x, y) for x, y in points if (x, y) == (x, y)]
        assert all(low <= y <= high for _, y in data)
        assert all(left <= x <= right or x in (0, 1) for x, _ in data)
        assert len(data) >= 2


def test_runs_without_records_have_no_curves(sweeps, tmp_path):
    folder = synthetic.write_sweep(tmp_path / "two", {"SEED": (0, 1)}, examples=4)
    for path in folder.glob("runs/*/metrics.jsonl"):
        path.unlink()
    assert curves.draw_curves(_read(folder), tmp_path) is None


def test_inline_figures_have_ids_of_their_own_and_the_pages_colours(drawn):
    found, _ = drawn["sizes"]
    parts = [style.inline_svg(f.svg, f.name, "what &lt;it&gt; shows") for f in found.values()]
    ids = [i for part in parts for i in re.findall(r'\bid="([^"]*)"', part)]
    assert len(set(ids)) == len(ids)
    for part in parts:
        own = set(re.findall(r'\bid="([^"]*)"', part))
        used = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', part)
        assert {a or b for a, b in used} <= own
        assert "var(--ink)" in part
        assert style.INK not in part
        assert "#ffffff" not in part
        root = ElementTree.fromstring(part.replace("xlink:", ""))
        assert root.get("aria-label") == "what <it> shows"
        assert root.get("viewBox")
        assert root.get("width") is None


def test_methods_look_different_in_colour_and_shape():
    looks = [style.look(m) for m in ("standard", "sbs", "joint", "rationale_input")]
    assert len({color for color, _ in looks}) == len({marker for _, marker in looks}) == 4
    assert len(set(style.shades(5))) == 5
    assert len(style.shades(9)) == 9
