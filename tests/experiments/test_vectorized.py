"""Real runs, tiny: trained together, they leave what they leave alone."""

import contextlib
import json
from types import SimpleNamespace

import gin
import jax
import numpy as np
import optax
import pytest

from sbs_jax.checkpoints import folders, loading, lora
from sbs_jax.errors import UserError
from sbs_jax.experiments import grid, vectorized, worker
from sbs_jax.experiments.runs import SPLITS, Base, SweepFolder
from sbs_jax.partitioning.mesh import MeshSettings
from sbs_jax.student import Student
from sbs_jax.training.optimizers import Optimizer
from tests import processes
from tests.decoder.students import one_device
from tests.decoder.support import save_random

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
        "b": {"RATIONALE_WEIGHT": 2.0, "SEED": 4, "TRAIN_FRACTION": 0.5, "LEARNING_RATE": 0.02},
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


DECODER = (
    TINY.replace("models/t5_1_1.gin", "models/from_checkpoint.gin")
    .replace("from sbs_jax.models import config\n", "")
    .split("config.T5Config")[0]
)


@pytest.fixture(scope="module")
def adapting(base, tmp_path_factory):
    """Runs that train adapters of a small Llama."""
    folder = tmp_path_factory.mktemp("llama")
    save_random("llama-gqa", folder)
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token": "</s>"}))
    (folder / "tiny.gin").write_text(DECODER + "\ninclude 'runs/sweep.gin'\n")
    own = {
        "INITIAL_CHECKPOINT_PATH": repr(str(folder)),
        "LORA_RANK": "2",
        "TASK_FEATURE_LENGTHS": "{'inputs': 320, 'targets': 224}",
        "EXAMPLES_PER_BATCH": "8",
        "EVAL_SPLITS": "[]",
    }
    flags = tuple({**dict(base.flags), **own}.items())
    yield Base((str(folder / "tiny.gin"),), flags=flags, working_dir=str(folder))
    gin.clear_config()


@pytest.mark.slow
@pytest.mark.usefixtures("_stays_here")
def test_adapters_of_a_decoder_are_trained_together_as_alone(adapting, tmp_path, monkeypatch):
    monkeypatch.setattr(MeshSettings, "make", lambda _: one_device())
    lanes = {
        "a": {"RATIONALE_WEIGHT": 0.5, "SEED": 3, "LEARNING_RATE": 0.02},
        "b": {"RATIONALE_WEIGHT": 2.0, "SEED": 4, "LEARNING_RATE": 0.005},
    }
    alone, names = make(adapting, tmp_path / "alone", lanes)
    both, _ = make(adapting, tmp_path / "together", lanes)
    worker.work(both, names, until=0.5)
    worker.work(both, names)
    worker.work(alone, names[1:], until=0.99)  # All steps, but no judgement.
    steps = [[r for r in record(s, names[1]) if r["split"] == "train"] for s in (both, alone)]
    for mine, theirs in zip(*steps, strict=True):
        for key in ("loss", "label_loss", "rationale_loss", "grad_norm", "learning_rate"):
            np.testing.assert_allclose(mine[key], theirs[key], rtol=1e-5, err_msg=key)
    saved = [folders.read_info(folders.find_checkpoint(s.folder(names[1]))) for s in (alone, both)]
    held = [set(info["digests"][folders.PARAMS]) for info in saved]
    assert held[0] == held[1]
    assert all(name.rpartition("/")[2] in (lora.DOWN, lora.UP) for name in held[1])
    of_base = [info["extra"]["metadata"]["lora_base_digest"] for info in saved]
    assert of_base[0] == of_base[1]
    student = Student(loading.identify(alone.folder(names[1])).config, one_device())
    merged = [
        loading.load_params(loading.identify(s.folder(names[1])), student.placed_params)
        for s in (alone, both)
    ]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), *merged)
    assert [both.record(name)["status"] for name in names] == ["done", "done"]
    losses = [both.record(name)[split]["label_loss"] for name in names for split in SPLITS]
    assert len({round(loss, 3) for loss in losses}) == 4


def test_an_optimizer_that_cannot_be_remade_keeps_learning_rates_apart(monkeypatch):
    trained = []

    class RunGroup:
        def __init__(self, lanes):
            trained.append([lane.run.name for lane in lanes])
            raise UserError(f"{lanes[0].run.name} cannot be trained")

    def read(sweep, base, run, *_):
        optimizer = Optimizer(optax.sgd(0.1), lambda step: 0.1)
        return vectorized.Lane(run, SimpleNamespace(optimizer=optimizer, student=None), "")

    monkeypatch.setattr(vectorized, "read_lane", read)
    monkeypatch.setattr(vectorized, "RunGroup", RunGroup)
    monkeypatch.setattr(vectorized.running, "accepted", lambda _: contextlib.nullcontext())
    runs = grid.expand(grid.parse_axes({"LEARNING_RATE": [0.1, 0.2], "SEED": [0, 1]}))
    # What fails does not keep the others from being trained.
    with pytest.raises(UserError, match=r"=0\.1,seed=0 cannot be trained"):
        vectorized.train_and_judge(None, None, runs)
    assert trained == [[run.name for run in runs[:2]], [run.name for run in runs[2:]]]


@pytest.mark.slow
@pytest.mark.usefixtures("_stays_here")
def test_a_lane_that_fails_leaves_the_others_alone(base, tmp_path):
    lanes = {"a": {"RATIONALE_WEIGHT": 1.0}, "b": {"RATIONALE_WEIGHT": 1e38}}
    sweep, names = make(base, tmp_path, lanes)
    with pytest.raises(UserError, match="1 of 2 runs that were trained together failed"):
        worker.work(sweep, names)
    assert sweep.record(names[0])["status"] == "done"
    assert sweep.record(names[1])["status"] == "running"
