"""The program: `python -m sbs_jax.report`."""

import json
import os
import subprocess
import sys

import pytest

from sbs_jax.programs import report
from tests.reports import synthetic


def _run(capsys, *arguments):
    code = report.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_writes_everything_and_says_where(sweeps, tmp_path, capsys):
    code, out, err = _run(capsys, sweeps["sizes"], "--output_dir", tmp_path / "new" / "folder")
    assert (code, err) == (0, "")
    names = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert names == [
        "accuracy_by_model_size.png", "accuracy_by_model_size.svg",
        "accuracy_by_training_fraction.png", "accuracy_by_training_fraction.svg",
        "frontier.png", "frontier.svg", "learning_curves.png", "learning_curves.svg",
        "report.html", "results.csv", "results.md",
    ]  # fmt: skip
    assert "11 files in" in out
    assert "Gain on standard" in out
    markdown = (tmp_path / "new/folder/results.md").read_text()
    assert "### Table 2 of the paper" in markdown
    assert "| standard | t5_1_1_tiny | 9.4 M | 25 % |" in markdown


def test_several_sweeps_are_reported_on_together(sweeps, tmp_path, capsys):
    code, _, _ = _run(
        capsys, sweeps["lambda"], sweeps["fractions"], f"--output_dir={tmp_path}",
        "--examples=none",
    )  # fmt: skip
    assert code == 0
    assert (tmp_path / "accuracy_by_rationale_weight.png").exists()
    assert (tmp_path / "accuracy_by_training_fraction.png").exists()
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<title>lambda and fractions" in text
    # λ = 1 on all data, seeds 0 to 2, is in both.
    assert "3 left out as duplicates" in text


def test_what_is_not_done_is_told_not_hidden(tmp_path, capsys):
    folder = synthetic.write_sweep(tmp_path / "s", {"SEED": (0, 1, 2)}, examples=4)
    path = folder / "runs" / "seed=1" / "run.json"
    path.write_text(json.dumps({"status": "failed", "error": "line one\nout of memory"}))
    code, out, _ = _run(capsys, folder)
    assert code == 0
    assert "failed: seed=1 out of memory" in out
    markdown = (folder / "report/results.md").read_text()
    assert "| seed=1 | failed | line one out of memory |" in markdown
    assert "2 of 3" in markdown


def test_of_many_that_are_not_done_the_first_are_named(tmp_path, capsys):
    folder = synthetic.write_sweep(tmp_path / "s", {"SEED": tuple(range(16))}, examples=4)
    for path in sorted(folder.glob("runs/*/run.json"))[:13]:
        path.unlink()
    _, out, _ = _run(capsys, folder)
    assert out.count("incomplete: seed=") == 10
    assert "… and 3 more that are not done" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: SWEEP_DIR; see --help."),
        (["no/such"], "no/such: there is no such folder; give that of a sweep."),
        (["."], ".: holds no sweep.json; give the folder that python -m sbs_jax.sweep wrote."),
        (["a", "--exmples=none"], "unrecognized arguments: --exmples=none; see --help."),
        (["a", "--examples=some"], "argument --examples: invalid choice"),
        (["a", "a"], "was given twice; give every sweep once."),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = _run(capsys, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_sweep_without_any_result_is_told(tmp_path, capsys):
    folder = synthetic.write_sweep(tmp_path / "s", {"SEED": (0, 1)}, examples=4)
    for path in folder.glob("runs/*/run.json"):
        path.write_text('{"status": "failed", "error": "no\\nspace"}')
    code, _, err = _run(capsys, folder)
    assert code == 1
    assert err == (
        f"error: {folder}: no run is done yet, so there is nothing to report on; 'seed=0' is "
        "failed (no space).\n"
    )


def test_a_folder_that_cannot_be_written_is_told(sweeps, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, _, err = _run(capsys, sweeps["one_seed"], f"--output_dir={tmp_path / 'file'}")
    assert code == 1
    assert "cannot be written" in err
    assert err.count("\n") == 1


def test_runs_as_a_program_without_jax_and_tensorflow(sweeps, tmp_path):
    program = (
        "import sys\n"
        "from sbs_jax.programs.report import main\n"
        "code = main(sys.argv[1:])\n"
        "heavy = {'jax', 'tensorflow', 'seqio', 'torch'} & set(sys.modules)\n"
        "print('loaded:', sorted(heavy))\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(sweeps["one_seed"]), f"--output_dir={tmp_path}"],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("loaded: []\n")
