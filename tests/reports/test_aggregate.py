import json
import math
import shutil
import statistics

import pytest

from sbs_jax.reports.aggregate import Mean, aggregate, describe, format_count, format_setting
from sbs_jax.reports.reading import read_sweep
from tests.reports import synthetic


def _read(*folders):
    return aggregate([read_sweep(folder) for folder in folders])


def test_seeds_are_joined_into_mean_and_standard_error(sweeps):
    results = _read(sweeps["lambda"])
    assert results.varied == ("RATIONALE_WEIGHT",)
    assert [c.settings["RATIONALE_WEIGHT"] for c in results.configurations] == [0, 0.1, 0.3, 1, 3]
    for c in results.configurations:
        values = [run.scores["validation"].accuracy for run in c.runs]
        mean = c.scores["validation"]
        assert mean.mean == pytest.approx(statistics.fmean(values), rel=1e-12)
        assert mean.standard_error == pytest.approx(statistics.stdev(values) / math.sqrt(3))
        assert (mean.n, mean.examples, c.planned, c.seeds) == (3, 12, 3, [0, 1, 2])
        assert c.seconds == 61.5


def test_one_seed_has_no_standard_error(sweeps):
    for c in _read(sweeps["one_seed"]).configurations:
        assert c.scores["test"].standard_error is None
        assert c.scores["test"].n == 1
    assert Mean.of([0.5, 0.5]).standard_error == 0


def test_configurations_stand_in_order(sweeps):
    results = _read(sweeps["sizes"])
    assert results.varied == ("METHOD", "MODEL", "parameters", "TRAIN_FRACTION")
    labels = [results.label(c) for c in results.configurations]
    # Models by size, not by name; standard first.
    assert labels[:4] == [
        "standard, t5_1_1_tiny, data 25 %",
        "standard, t5_1_1_tiny, data 100 %",
        "standard, t5_1_1_small, data 25 %",
        "standard, t5_1_1_small, data 100 %",
    ]
    assert len(set(labels)) == 12
    assert results.common_settings["task"] == "svamp"


def test_runs_that_are_not_done_are_counted_where_they_belong(tmp_path):
    folder = synthetic.write_sweep(tmp_path / "small", synthetic.LAMBDA, examples=4)
    shutil.rmtree(folder / "runs" / "rationale_weight=0.3,seed=1")
    for seed in range(3):
        shutil.rmtree(folder / "runs" / f"rationale_weight=3.0,seed={seed}")
    results = _read(folder)
    assert len(results.unfinished) == 4
    counts = [(len(c.runs), c.planned) for c in results.configurations]
    # A configuration without any run has no row; its runs are among the unfinished.
    assert counts == [(3, 3), (3, 3), (2, 3), (3, 3)]


def test_the_same_configuration_and_seed_counts_once(sweeps, tmp_path):
    again = synthetic.write_sweep(
        tmp_path / "again", {"RATIONALE_WEIGHT": (0.3,), "SEED": (2, 3)}, config=True
    )
    results = _read(sweeps["lambda"], again)
    assert [run.name for run in results.duplicates] == ["rationale_weight=0.3,seed=2"]
    assert [len(c.runs) for c in results.configurations] == [3, 3, 4, 3, 3]


def test_runs_that_differ_in_config_gin_alone_are_kept_apart(sweeps, tmp_path):
    other = synthetic.write_sweep(tmp_path / "other", {"RATIONALE_WEIGHT": (0.3,), "SEED": (2, 3)})
    for path in other.glob("runs/*/config.gin"):
        path.write_text(path.read_text().replace("BATCH_SIZE = 64", "BATCH_SIZE = 32"))
    results = _read(sweeps["lambda"], other)
    assert results.duplicates == ()
    assert results.varied == ("RATIONALE_WEIGHT", "BATCH_SIZE")
    labels = [results.label(c) for c in results.configurations]
    assert "λ 0.3, BATCH_SIZE 32" in labels
    assert "λ 0.3, BATCH_SIZE 64" in labels
    assert results.config_differences == {"BATCH_SIZE": ["64", "64", "32", "64", "64", "64"]}


def test_what_follows_from_the_method_is_no_axis(tmp_path):
    folder = synthetic.write_sweep(tmp_path / "s", synthetic.FRACTIONS, examples=4)
    for path in folder.glob("runs/method=joint*/run.json"):
        record = json.loads(path.read_text())
        record["settings"]["TASK_FEATURE_LENGTHS"] = {"inputs": 96, "targets": 64}
        path.write_text(json.dumps(record))
    assert _read(folder).varied == ("METHOD", "TRAIN_FRACTION")


def test_teachers_that_disagree_are_none(sweeps, tmp_path):
    other = synthetic.write_sweep(tmp_path / "other", {"SEED": (0,)}, teacher=0.7)
    assert _read(sweeps["sizes"]).teacher.accuracy == 0.6
    assert _read(sweeps["sizes"], sweeps["lambda"]).teacher.accuracy == 0.6
    assert _read(sweeps["sizes"], other).teacher is None


def test_validation_is_shown_where_test_was_never_read(tmp_path):
    folder = synthetic.write_sweep(tmp_path / "small", {"SEED": (0, 1)}, examples=4)
    for path in folder.glob("runs/*/run.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"test": None}))
    results = _read(folder)
    assert results.split == "validation"
    assert results.varied == ()
    assert results.label(results.configurations[0]) == "sbs"


def test_values_are_written_for_people(sweeps):
    assert format_count(770_000_000) == "770 M"
    assert format_count(11_307_321_344) == "11.3 B"
    assert format_count(999) == "999"
    assert format_setting("TRAIN_FRACTION", 0.125) == "12.5 %"
    assert format_setting("PACK", True) == "true"
    assert format_setting("gin_file", ["a.gin"]) == '["a.gin"]'
    assert format_setting("METHOD", None) == "–"
    c = _read(sweeps["fractions"]).configurations[0]
    assert describe(c, ["METHOD", "TRAIN_FRACTION", "absent"]) == "standard, data 12.5 %"
