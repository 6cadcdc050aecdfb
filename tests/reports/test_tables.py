import csv
import io
import statistics

import pytest

from sbs_jax.reports import tables
from sbs_jax.reports.aggregate import Mean, aggregate
from sbs_jax.reports.reading import read_sweep
from tests.reports import synthetic


def _read(*folders):
    return aggregate([read_sweep(folder) for folder in folders])


def test_the_results_say_mean_error_and_seeds(sweeps):
    results = _read(sweeps["fractions"])
    table = tables.results_table(results)
    assert table.columns == ("method", "data", "test, %", "validation, %", "seeds", "seconds")
    assert [row[:2] for row in table.rows[:5]] == [
        ("standard", "12.5 %"), ("standard", "25 %"), ("standard", "50 %"),
        ("standard", "100 %"), ("sbs", "12.5 %"),
    ]  # fmt: skip
    mean = results.configurations[0].scores["test"]
    assert table.rows[0][2] == f"{100 * mean.mean:.2f} ± {100 * mean.standard_error:.2f}"
    assert table.rows[0][4] == "3"
    assert "Test has 12 examples, validation has 12 examples." in table.notes


def test_one_seed_says_that_it_has_no_error(sweeps):
    results = _read(sweeps["one_seed"])
    table = tables.results_table(results)
    assert all(row[1].endswith("(one seed: no standard error)") for row in table.rows)
    assert any("single seed" in note for note in table.notes)
    (table,) = tables.gain_tables(results)
    (gain,) = table.rows
    assert gain[-1] == "one seed cannot tell"
    assert gain[2] == "–"


def test_csv_holds_the_numbers_in_full(sweeps):
    results = _read(sweeps["sizes"])
    rows = list(csv.DictReader(io.StringIO(tables.results_csv(results))))
    assert len(rows) == 12
    for row, c in zip(rows, results.configurations, strict=True):
        assert float(row["test_mean"]) == c.scores["test"].mean
        assert float(row["validation_standard_error"]) == c.scores["validation"].standard_error
        assert (row["test_n"], row["planned"], row["seeds"], row["sweeps"]) == (
            "2", "2", "0 1", "sizes",
        )  # fmt: skip
        assert int(row["parameters"]) == synthetic.SIZES[row["MODEL"]]


def test_csv_leaves_absent_values_empty(sweeps):
    (row, _) = csv.DictReader(io.StringIO(tables.results_csv(_read(sweeps["one_seed"]))))
    assert row["test_standard_error"] == ""
    assert row["test_mean"] != ""


def test_gains_are_paired_by_seed(sweeps):
    results = _read(sweeps["fractions"])
    by = {(c.method, c.settings["TRAIN_FRACTION"]): c for c in results.configurations}
    (table,) = tables.gain_tables(results)
    assert [row[0] for row in table.rows][:2] == ["sbs, data 12.5 %", "sbs, data 25 %"]
    pairs = tables.paired_differences(by["standard", 0.5], by["sbs", 0.5], "test")
    expected = [
        sbs.scores["test"].accuracy - standard.scores["test"].accuracy
        for sbs, standard in zip(by["sbs", 0.5].runs, by["standard", 0.5].runs, strict=True)
    ]
    assert pairs == expected
    assert table.rows[2][1].startswith(f"{100 * statistics.fmean(expected):+.2f} ± ")


def test_only_common_seeds_are_paired(sweeps, tmp_path):
    # The same seeds of `sbs`, and one that `standard` lacks.
    folder = synthetic.write_sweep(
        tmp_path / "more", {"METHOD": ("sbs",), "TRAIN_FRACTION": (0.5,), "SEED": (5,)}
    )
    results = _read(sweeps["fractions"], folder)
    by = {(c.method, c.settings["TRAIN_FRACTION"]): c for c in results.configurations}
    assert len(by["sbs", 0.5].runs) == 4
    assert len(tables.paired_differences(by["standard", 0.5], by["sbs", 0.5], "test")) == 3


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.1, 0.11, 0.12], "better"),
        ([-0.1, -0.11, -0.12], "worse"),
        # Above two standard errors, but three seeds do not show it.
        ([0.01, 0.05, 0.06], "not told apart"),
        ([0.05], "one seed cannot tell"),
        ([0.005, 0.005], "two seeds cannot tell"),
        ([0.005, 0.005, 0.005], "no spread: not judged"),
    ],
)
def test_verdicts_follow_students_interval(values, verdict):
    assert tables.verdict_of(Mean.of(values)) == verdict


def test_students_quantiles():
    # From a table of Student's t: 2.571 with 5 degrees of freedom, 2.048 with 28.
    low, high = tables.interval_of(Mean(0.0, 1.0, 6))
    assert (low, high) == (-2.571, 2.571)
    assert tables.interval_of(Mean(0.0, 1.0, 29))[1] == pytest.approx(2.048, abs=0.02)


def test_standard_without_a_weight_of_its_own_is_found(sweeps, tmp_path):
    folder = synthetic.write_sweep(
        tmp_path / "more", {"METHOD": ("standard",), "RATIONALE_WEIGHT": (1.0,), "SEED": (0, 1, 2)}
    )
    results = _read(sweeps["lambda"], folder)
    on_standard, on_zero = tables.gain_tables(results)
    assert len(on_standard.rows) == 5
    assert len(on_zero.rows) == 4


def test_weights_are_compared_with_none(sweeps):
    results = _read(sweeps["lambda"])
    (table,) = tables.gain_tables(results)
    assert table.title == "Gain on λ = 0, points of test accuracy"
    assert [row[0] for row in table.rows] == ["λ 0.1", "λ 0.3", "λ 1", "λ 3"]
    zero, best = results.configurations[0], results.configurations[3]
    gains = [
        b.scores["test"].accuracy - a.scores["test"].accuracy
        for a, b in zip(zero.runs, best.runs, strict=True)
    ]
    assert table.rows[2][1].startswith(f"{100 * statistics.fmean(gains):+.2f} ± ")


def test_markdown_is_not_broken_by_a_value():
    table = tables.Table("a|b", ("x", "y"), (("1|2", "line\nline <b>"),), frozenset({1}), ("n|",))
    assert table.markdown().splitlines() == [
        "### a\\|b", "", "| x | y |", "|---|---:|", "| 1\\|2 | line line &lt;b> |", "", "n\\|",
    ]  # fmt: skip


def test_every_run_is_listed(sweeps, tmp_path):
    again = synthetic.write_sweep(tmp_path / "again", {"RATIONALE_WEIGHT": (0.3,), "SEED": (2,)})
    table = tables.runs_table(_read(sweeps["lambda"], again))
    assert len(table.rows) == 16
    assert table.columns[0] == "sweep"
    assert table.rows[-1][-1] == "left out: another run has the same configuration and seed"


def test_lines_of_config_gin_that_differ_are_shown(sweeps):
    table = tables.differing_lines_table(_read(sweeps["fractions"]))
    assert table.columns == ("configuration", "METHOD")
    assert table.rows[0] == ("standard, data 12.5 %", "'standard'")
    assert tables.differing_lines_table(_read(sweeps["lambda"])) is None
