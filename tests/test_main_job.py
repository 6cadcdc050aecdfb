"""The main job as a user runs it: processes, gin flags, files. Slow; one run is shared."""

import json
import random
import signal
import time

import numpy as np
import pytest

from sbs_jax.checkpoints import folders
from sbs_jax.errors import UNFINISHED
from sbs_jax.training.hooks import MEASURED
from tests import processes
from tests.release_layout import write_release

STEPS = 12


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags of a small run on generated data, MODEL_DIR aside."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "tiny.gin").write_text(processes.TINY)
    write_release(folder / "data", train=60, test=10)
    return [
        f"--gin_file={folder / 'tiny.gin'}",
        *processes.macros(
            DATA_DIR=folder / "data",
            TRAIN_STEPS=STEPS,
            BATCH_SIZE=4,
            TASK_FEATURE_LENGTHS="{'inputs': 96, 'targets': 96}",
            RATIONALE_WEIGHT=0.5,
            LEARNING_RATE=0.01,
            EVAL_PERIOD=6,
            CHECKPOINT_PERIOD=3,
            LOG_PERIOD=1,
        ),
    ]


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory):
    """A run that nothing disturbed: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "model"
    process = processes.run("train", *flags, f"--gin.MODEL_DIR={folder}")
    return folder, process.output


def record(folder):
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


def assert_bit_identical(one, two):
    """Every array of the last checkpoint has the same digest (a sum over all of its bits)."""
    infos = [folders.read_info(folders.find_checkpoint(folder)) for folder in (one, two)]
    assert infos[0]["step"] == infos[1]["step"] == STEPS
    assert infos[0]["digests"] == infos[1]["digests"]
    assert infos[0]["extra"]["position"] == infos[1]["extra"]["position"]


@pytest.mark.slow
def test_a_run_leaves_what_the_readme_promises(finished):
    folder, output = finished
    lines = record(folder)
    train = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in train] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if line["split"] == "validation"] == [6, 12]
    for line in train:
        total = line["label_loss"] + 0.5 * line["rationale_loss"]
        np.testing.assert_allclose(line["loss"], total, rtol=1e-6)
        assert line["label_tokens"] > 0
        assert line["rationale_tokens"] > 0
    assert train[-1]["loss"] < train[0]["loss"]
    predictions = (folder / "predictions" / "validation-12.jsonl").read_text().splitlines()
    assert len(predictions) == 6  # a tenth of 60
    assert {"id", "input", "target", "prediction", "score"} <= json.loads(predictions[0]).keys()
    assert "RATIONALE_WEIGHT = 0.5" in (folder / "config.gin").read_text()
    assert list((folder / "tensorboard").glob("events*"))
    assert (folder / "vocabulary" / "spiece.model").is_file()
    assert sorted(path.name for path in folder.glob("checkpoint_*")) != []
    assert len(output.splitlines()) < 40
    assert "blank rationales" in output


@pytest.mark.slow
def test_kill_9_and_resume_ends_bit_identical(flags, finished, tmp_path):
    folder = tmp_path / "model"
    rng = random.Random(0)
    for _ in range(3):
        process = processes.run("train", *flags, f"--gin.MODEL_DIR={folder}", wait=False)
        seen = len(record(folder)) if (folder / "metrics.jsonl").exists() else 0
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            # Let it get some steps further, then kill it, be it stepping, evaluating or saving.
            lines = (
                len((folder / "metrics.jsonl").read_text().splitlines())
                if (folder / "metrics.jsonl").exists()
                else 0
            )
            if lines >= seen + rng.randint(1, 4):
                time.sleep(rng.random() * 0.2)
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    processes.run("train", *flags, f"--gin.MODEL_DIR={folder}")
    assert_bit_identical(folder, finished[0])
    assert record(folder) == record(finished[0])


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_75_and_goes_on(flags, finished, tmp_path):
    folder = tmp_path / "model"
    process = processes.run("train", *flags, f"--gin.MODEL_DIR={folder}", wait=False)
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == UNFINISHED == 75, errors
    assert "same command goes on" in output
    stopped_at = folders.read_info(folders.find_checkpoint(folder))["step"]
    assert 0 < stopped_at < STEPS
    processes.run("train", *flags, f"--gin.MODEL_DIR={folder}")
    assert_bit_identical(folder, finished[0])


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(flags, finished, tmp_path):
    folder = tmp_path / "model"
    address = f"localhost:{processes.free_port()}"
    pair = [
        processes.run(
            "train",
            *flags,
            f"--gin.MODEL_DIR={folder}",
            f"--coordinator_address={address}",
            "--process_count=2",
            f"--process_index={index}",
            wait=False,
        )
        for index in range(2)
    ]
    for process in pair:
        _, errors = process.communicate(timeout=570)
        assert process.returncode == 0, errors[-3000:]
    ours, expected = record(folder), record(finished[0])
    assert len(ours) == len(expected)
    for mine, theirs in zip(ours, expected, strict=True):
        for name in ("loss", "label_loss", "rationale_loss"):
            if name in theirs:
                np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_eval_of_a_checkpoint_repeats_the_run_s_own_evaluation(flags, finished, tmp_path):
    folder, _ = finished
    output = tmp_path / "evaluated"
    data_dir = next(flag for flag in flags if "DATA_DIR" in flag)
    processes.run(
        "eval",
        "--gin_file=runs/eval.gin",
        "--gin_file=tasks/svamp.gin",
        data_dir,
        *processes.macros(
            TASK_FEATURE_LENGTHS="{'inputs': 96, 'targets': 96}",
            CHECKPOINT_PATH=folder,
            EVAL_OUTPUT_DIR=output,
            EVAL_SPLITS="['validation', 'test']",
            WITH_RATIONALES=True,
        ),
    )
    ours = (output / "predictions" / "validation-12.jsonl").read_text().splitlines()
    theirs = (folder / "predictions" / "validation-12.jsonl").read_text().splitlines()
    for mine, expected in zip(map(json.loads, ours), map(json.loads, theirs), strict=True):
        assert mine.pop("rationale") is not None
        mine.pop("llm_rationale", None)  # the teacher's comes with it, where there is one
        assert mine == expected
    assert len((output / "predictions" / "test-12.jsonl").read_text().splitlines()) == 10


@pytest.mark.slow
def test_a_dry_run_prints_the_plan_and_writes_nothing(flags, tmp_path):
    folder = tmp_path / "model"
    process = processes.run("train", *flags, f"--gin.MODEL_DIR={folder}", "--dry_run", devices=4)
    for expected in ("parameters", "data 4 × model 1", "optimizer", "first batch", "'predict: "):
        assert expected in process.output
    assert not folder.exists()
