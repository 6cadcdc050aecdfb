"""The quickstart with a handful of steps, and the scripts that start it."""

import json
import os
import re
import shutil
import signal
import subprocess

import pytest

from sbs_jax.errors import UNFINISHED
from sbs_jax.programs.quickstart import METHODS, ComparedRun, summarize
from tests import processes
from tests.paths import ROOT

FLAGS = processes.macros(
    TRAIN_STEPS=4, WARMUP_STEPS=1, EVAL_PERIOD=2, TRAIN_PROBLEMS=60, MIN_STEPS=1, MAX_STEPS=1
)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The folder of a quickstart, and what it printed."""
    folder = tmp_path_factory.mktemp("quickstart")
    process = processes.run("quickstart", f"--output_dir={folder}", *FLAGS)
    return folder, process.output


@pytest.mark.slow
def test_it_trains_evaluates_and_reports(quickstart):
    folder, output = quickstart
    results = json.loads((folder / "results.json").read_text())
    assert set(results["methods"]) == set(METHODS)
    assert results["steps"] == 4
    assert results["test_examples"] == 500
    for method in METHODS:
        row = results["methods"][method]
        assert set(row["seeds"]) == {"0", "1"}
        assert row["accuracy"] == pytest.approx(sum(row["seeds"].values()) / 2)
        assert f"{row['accuracy']:.1%} ± {row['standard_error']:.1%}" in output
    assert (folder / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert str(folder / "learning_curves.png") in output
    for words in ("problem:", "right answer:", "standard says:", "sbs says:", "sbs explains:"):
        assert output.count(words) == 4
    assert re.search(r"step 4/4 · loss [\d.]+ · label [\d.]+ · rationale [\d.]+", output)


@pytest.mark.slow
def test_both_methods_are_tested_on_the_problems_that_were_asked_for(quickstart):
    folder, _ = quickstart
    rows = {
        method: ComparedRun(method, 0, folder / f"{method}_seed0").predictions()
        for method in METHODS
    }
    inputs = [row["input"] for row in rows["sbs"]]
    assert inputs == [row["input"] for row in rows["standard"]]
    assert all("rationale" in row for row in rows["sbs"])
    asked = [re.search(r"does (\w+) have", text)[1] for text in inputs]
    sentences = [
        re.search(rf"{name} has [^.]*\.", text)[0] for name, text in zip(asked, inputs, strict=True)
    ]
    assert {sentence.count(",") for sentence in sentences} == {1}  # MAX_STEPS=1


@pytest.mark.slow
def test_a_second_run_reuses_the_first(quickstart):
    folder, first = quickstart
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*_seed*/**/*")}
    again = processes.run("quickstart", f"--output_dir={folder}", *FLAGS)
    assert "All runs are there already" in again.output
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*_seed*/**/*")} == before
    table = "accuracy on 500 held-out problems"
    assert again.output.split(table)[1] == first.split(table)[1]


@pytest.mark.slow
def test_a_signal_ends_it_without_judging_half_a_student(tmp_path):
    flags = [flag.replace("TRAIN_STEPS=4", "TRAIN_STEPS=100000") for flag in FLAGS]
    process = processes.run("quickstart", f"--output_dir={tmp_path}", *flags, wait=False)
    for line in process.stdout:
        if line.startswith("step 2/"):
            process.send_signal(signal.SIGTERM)
            break
    output, errors = process.communicate(timeout=120)
    assert process.returncode == UNFINISHED, errors[-3000:]
    assert "Stopped by SIGTERM" in output
    assert not list(tmp_path.rglob("finished.json"))
    assert not list(tmp_path.rglob("eval_metrics.jsonl"))
    assert not (tmp_path / "results.json").exists()


@pytest.mark.slow
def test_another_configuration_is_not_mixed_with_it(quickstart):
    folder, _ = quickstart
    other = [flag.replace("TRAIN_STEPS=4", "TRAIN_STEPS=5") for flag in FLAGS]
    process = processes.run("quickstart", f"--output_dir={folder}", *other, check=False)
    assert process.returncode == 1
    assert process.errors.count("\n") == 1
    assert "holds a run with another configuration" in process.errors


def test_what_standard_errors_are_made_of(tmp_path):
    runs = [
        ComparedRun(method, seed, tmp_path / f"{method}{seed}")
        for seed in (0, 1)
        for method in METHODS
    ]
    scores = {"standard0": 0.5, "standard1": 0.7, "sbs0": 0.8, "sbs1": 0.8}
    for name, accuracy in scores.items():
        predictions = tmp_path / name / "test" / "predictions"
        predictions.mkdir(parents=True)
        line = {"step": 9, "split": "test", "accuracy": accuracy, "label_loss": 1.0}
        (tmp_path / name / "test" / "eval_metrics.jsonl").write_text(json.dumps(line) + "\n")
        rows = [{"target": target} for target in "1121"]
        if name.startswith("sbs"):
            texts = ("Ana has 3. 3-2=1.", "", "1+1=2.", "2+1=3.")
            rows = [row | {"rationale": text} for row, text in zip(rows, texts, strict=True)]
        (predictions / "test-9.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
        (tmp_path / name / "metrics.jsonl").write_text(
            json.dumps({"step": 1, "split": "train", "examples_per_second": 10.0}) + "\n"
        )
    results = summarize(runs)
    assert results["methods"]["standard"]["accuracy"] == pytest.approx(0.6)
    assert results["methods"]["standard"]["standard_error"] == pytest.approx(0.1)
    assert results["methods"]["standard"]["explained"] is None
    assert results["methods"]["sbs"]["standard_error"] == 0
    assert results["methods"]["sbs"]["explained"] == 0.5
    assert results["most_frequent_answer"] == 0.75


@pytest.mark.parametrize("arguments", [["--seeds=1"], ["--seed=3"], ["x"]])
def test_wrong_arguments_are_one_sentence(arguments, capsys):
    from sbs_jax.programs import quickstart as module

    assert module.main(arguments) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh"])
def test_scripts_without_a_fitting_python_say_so_in_one_sentence(script, tmp_path):
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    old = tmp_path / "python3.10"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(old)}
    done = subprocess.run(
        ["bash", str(tmp_path / "launch" / script)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: sbs_jax needs Python 3.11, 3.12 or 3.13")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / ".venv").exists()
