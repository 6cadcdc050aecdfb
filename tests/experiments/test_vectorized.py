"""Real runs, tiny: trained together, they leave what they leave alone."""

import json

import gin
import numpy as np
import pytest

from sbs_jax.checkpoints import folders
from sbs_jax.errors import UserError
from sbs_jax.experiments import grid, worker
from sbs_jax.experiments.runs import Base, SweepFolder
from tests import processes

STEPS = 6
TINY = processes.TINY.replace("tasks/svamp.gin", "tasks/arithmetic.gin")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gin")
    (folder / "tiny.gin").write_text(TINY + "\ninclude 'runs/sweep.gin'\n")
    macros = {
        "TRAIN_STEPS": STEPS,
        "EXAMPLES_PER_BATCH": 16,
        "TRAIN_PROBLEMS": 64,
        "LEARNING_RATE": 0.01,
        "EVAL_PERIOD": 3,
        "EVAL_BATCH_SIZE": 16,
        "arithmetic.Difficulty.validation_examples": 16,
        "arithmetic.Difficulty.test_examples": 16,
        "LOG_PERIOD": 1,
        "TASK_FEATURE_LENGTHS": "{'inputs': 96, 'targets': 48}",
    }
    flags = tuple((name, str(value)) for name, value in macros.items())
    yield Base((str(folder / "tiny.gin"),), flags=flags, working_dir=str(folder))
    gin.clear_config()


def make(base, folder, lanes):
    """A sweep's folder and its runs' names."""
    axes = grid.parse_axes({"LANE": lanes})
    sweep, runs = SweepFolder(folder), grid.expand(axes)
    sweep.write(base, axes, runs, command="")
    return sweep, [run.name for run in runs]


@pytest.fixture
def _stays_here(monkeypatch):
    monkeypatch.chdir(".")  # Workers change the folder.


def record(sweep, name):
    lines = (sweep.folder(name) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.usefixtures("_stays_here")
def test_a_missing_test_split_is_found_before_a_run_is_trained(tmp_path):
    (tmp_path / "tiny.gin").write_text(
        processes.TINY.replace("tasks/svamp.gin", "tasks/your_data.gin")
        + "\ninclude 'runs/sweep.gin'\n"
    )
    rows = [{"input": f"{i} and 1?", "label": str(i), "rationale": "count"} for i in range(9)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    macros = {"TRAIN_FILE": str(tmp_path / "train.jsonl"), "TRAIN_STEPS": 2}
    flags = tuple((name, repr(value)) for name, value in macros.items())
    base = Base((str(tmp_path / "tiny.gin"),), flags=flags, working_dir=str(tmp_path))
    sweep, (name,) = make(base, tmp_path / "sweep", {"a": {"SEED": 3}})
    with pytest.raises(UserError, match="no test examples: give"):
        worker.work(sweep, [name])
    assert not (sweep.folder(name) / "metrics.jsonl").exists()
    gin.clear_config()


@pytest.mark.slow
@pytest.mark.usefixtures("_stays_here")
def test_runs_trained_together_are_what_they_are_alone(base, tmp_path):
    lanes = {
        "a": {"RATIONALE_WEIGHT": 0.0, "SEED": 3},
        "b": {"RATIONALE_WEIGHT": 2.0, "SEED": 4, "TRAIN_FRACTION": 0.5},
    }
    alone, names = make(base, tmp_path / "alone", lanes)
    both, _ = make(base, tmp_path / "together", lanes)
    # Stopped half-way and gone on with, too.
    worker.work(both, names, until=0.5)
    assert "test" not in both.record(names[0])
    worker.work(both, names)
    for name in names[1:]:
        worker.work(alone, [name])
        expected, found = alone.record(name), both.record(name)
        assert found["status"] == "done"
        for key in ("settings", "bindings", "fingerprint", "selected_step"):
            assert found[key] == expected[key]
        for split in ("validation", "test"):
            assert found[split]["n"] == expected[split]["n"] > 0
            for key in ("label_loss", "rationale_loss"):
                np.testing.assert_allclose(found[split][key], expected[split][key], rtol=1e-5)
            path = f"predictions/{split}.jsonl"
            rows = [(sweep.folder(name) / path).read_text() for sweep in (alone, both)]
            assert len(rows[0].splitlines()) == expected[split]["n"]
            assert "rationale" in json.loads(rows[0].splitlines()[0])
        for mine, theirs in zip(record(both, name), record(alone, name), strict=True):
            assert (mine["step"], mine["split"]) == (theirs["step"], theirs["split"])
            for key in ("loss", "label_loss", "rationale_loss", "grad_norm"):
                if theirs.get(key) is not None:
                    np.testing.assert_allclose(mine[key], theirs[key], rtol=1e-5, err_msg=key)
        infos = [folders.read_info(folders.find_checkpoint(s.folder(name))) for s in (alone, both)]
        assert infos[0]["step"] == infos[1]["step"] == STEPS
        assert infos[0]["extra"]["position"]["data"] == infos[1]["extra"]["position"]["data"]
        files = [{path.name for path in s.folder(name).iterdir()} for s in (alone, both)]
        assert files[0] == files[1]
    assert json.loads((tmp_path / "together" / "teacher.json").read_text())["accuracy"] == 1.0


@pytest.mark.slow
@pytest.mark.usefixtures("_stays_here")
def test_a_lane_that_fails_leaves_the_others_alone(base, tmp_path):
    lanes = {"a": {"RATIONALE_WEIGHT": 1.0}, "b": {"RATIONALE_WEIGHT": 1e38}}
    sweep, names = make(base, tmp_path, lanes)
    with pytest.raises(UserError, match="1 of 2 runs that were trained together failed"):
        worker.work(sweep, names)
    assert sweep.record(names[0])["status"] == "done"
    assert sweep.record(names[1])["status"] == "running"
