"""Sweeps whose workers are scripted: processes are real, training is not."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from sbs_jax.errors import UserError
from sbs_jax.experiments import planning, sweeping
from sbs_jax.experiments.grid import Run
from sbs_jax.experiments.local import TrainingJob
from sbs_jax.experiments.runs import SweepFolder
from tests.experiments.scripted import attempts, sweep

pytestmark = pytest.mark.usefixtures("scripted_workers")


def test_a_sweep_runs_all_and_the_same_command_runs_nothing(tmp_path):
    axes = ["--sweep=RATIONALE_WEIGHT=0.25,0.5", "--sweep=SEED=0:2", "--parallel_runs=2"]
    code, output = sweep(tmp_path, *axes)
    assert code == 0
    assert "4 runs, 0 done already" in output
    assert "rationale_weight=0.5,seed=1: done, accuracy on validation 50.0%" in output
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert record["axes"] == {"RATIONALE_WEIGHT": [0.25, 0.5], "SEED": [0, 1]}
    assert record["runs"][1] == {
        "name": "rationale_weight=0.25,seed=1",
        "bindings": {"RATIONALE_WEIGHT": 0.25, "SEED": 1},
    }
    code, output = sweep(tmp_path, *axes)
    assert code == 0
    assert "4 runs, 4 done already" in output
    assert all(len(attempts(tmp_path, run["name"])) == 1 for run in record["runs"])


def test_only_what_is_missing_or_broken_runs_again(tmp_path):
    axes = ["--sweep=SEED=0:4"]
    sweep(tmp_path, *axes)
    (tmp_path / "runs/seed=1/run.json").write_text('{"status": "do')  # torn
    (tmp_path / "runs/seed=2/predictions/test.jsonl").unlink()
    SweepFolder(tmp_path).write_record("seed=3", status="running")
    code, output = sweep(tmp_path, *axes)
    assert code == 0
    assert "1 done already" in output
    assert [len(attempts(tmp_path, f"seed={seed}")) for seed in range(4)] == [1, 2, 2, 2]


def test_a_failed_run_is_retried_then_reported_and_the_others_go_on(tmp_path):
    code, output = sweep(tmp_path, "--sweep=SEED=7,8,0", "--retries=2")
    assert code == 1
    assert [len(attempts(tmp_path, f"seed={seed}")) for seed in (7, 8, 0)] == [3, 2, 1]
    assert "seed=7: failed with exit code 1. The last lines of its train.log:" in output
    assert "    error: seed=7 cannot be trained" in output
    assert "2 of 3 runs are done; failed: seed=7." in output
    record = SweepFolder(tmp_path).record("seed=7")
    assert record["status"] == "failed"
    assert record["error"] == ["error: seed=7 cannot be trained"] * 3


def test_of_a_group_only_the_failed_runs_are_tried_again(tmp_path):
    code, _ = sweep(tmp_path, "--sweep=SEED=0,7,8", "--vectorize")
    assert code == 1
    assert [len(attempts(tmp_path, f"seed={seed}")) for seed in (0, 7, 8)] == [1, 2, 2]


def test_another_configuration_in_the_same_folder_is_refused(tmp_path):
    sweep(tmp_path, "--sweep=SEED=0:1")
    with pytest.raises(UserError, match="holds a run with another configuration"):
        sweep(tmp_path, "--sweep=SEED=0:1", "--gin.TRAIN_STEPS=5")
    code, _ = sweep(tmp_path, "--sweep=SEED=0:1", "--gin.RETRIES=3")  # the sweep's own setting
    assert code == 0


def test_two_sweeps_in_one_folder_are_refused(tmp_path):
    with SweepFolder(tmp_path).locked("sweep"), pytest.raises(UserError, match="another process"):
        sweep(tmp_path, "--sweep=SEED=0:1")


def test_ctrl_c_stops_the_runs_and_the_same_command_goes_on(tmp_path):
    def interrupt():
        while not attempts(tmp_path, "seed=9"):
            time.sleep(0.02)
        time.sleep(0.3)  # Until the worker listens to signals.
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    code, output = sweep(tmp_path, "--sweep=SEED=0,9,1")
    assert code == 130
    assert "the same command goes on" in output
    assert [len(attempts(tmp_path, f"seed={seed}")) for seed in (0, 9, 1)] == [1, 1, 0]


def test_workers_end_when_their_sweep_is_killed(tmp_path):
    """With kill -9 nothing can be passed on: the real worker sees that its stdin is closed."""
    program = (
        "import os, sys, threading, time\n"
        "from sbs_jax.experiments import worker\n"
        "threading.Thread(target=worker.stop_without_parent, daemon=True).start()\n"
        "print('up', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"up\n"
    process.stdin.close()
    assert process.wait(timeout=30) == -signal.SIGTERM


def test_a_dry_run_lists_runs_and_costs_and_writes_nothing(tmp_path):
    folder = tmp_path / "sweep"
    console = Console(file=io.StringIO(), width=200)
    flags = ["--gin_file=examples/svamp_t5_1_1_tiny.gin", "--gin_file=runs/sweep.gin"]
    sweeping.run(
        [*flags, f"--sweep_dir={folder}", "--sweep=SEED=0:3", "--vectorize=2", "--dry_run"], console
    )
    output = console.file.getvalue()
    assert "seed=2" in output
    assert "1.84 M" in output
    assert "3 runs, 3 to run, 1,500 steps" in output
    assert "Trained together: 2, 1." in output
    assert not folder.exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--sweep=RATIONALE_WEIGT=1"], "did you mean RATIONALE_WEIGHT"),
        ([], "There is nothing to sweep"),
        (["--sweep=SEED=0:2", "--gin.EVAL_SPLITS=['test']"], "reads test once"),
        (["--sweep=SEED=0:2", "--gin.EVAL_SPLITS=[]"], "selects on 'validation'"),
        (["--sweep=RETRIES=1,2"], "RETRIES is the sweep's own"),
        (["--sweep=SEED=0:2", "--gin.PARALLEL_RUNS=x"], "a sweep wants a whole number"),
        (["--sweep=SEED=0:2", "--sweep_dri=x"], "unknown flag"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path, flags, sentence):
    with pytest.raises(UserError, match=sentence):
        sweep(tmp_path / "new", *flags)
    assert not (tmp_path / "new").exists()


def test_halving_ends_the_worse_configurations_early(tmp_path):
    flags = [
        "--sweep=RATIONALE_WEIGHT=0.1,0.4,0.2,0.3",
        "--sweep=SEED=0:2",
        "--gin.HALVING_FACTOR=2",
    ]
    code, output = sweep(tmp_path, *flags)
    assert code == 0
    assert "After 25% of the steps, 2 configurations go on (4 of 8 runs)." in output
    assert "After 50% of the steps, 1 configurations go on (2 of 4 runs)." in output
    assert "8 of 8 runs are done (6 ended early)." in output
    shares = {
        weight: [
            line.split()[0] for line in attempts(tmp_path, f"rationale_weight={weight},seed=1")
        ]
        for weight in (0.1, 0.2, 0.3, 0.4)
    }
    assert shares == {
        0.1: ["0.25"],
        0.2: ["0.25"],
        0.3: ["0.25", "0.5"],
        0.4: ["0.25", "0.5", "1"],
    }
    record = SweepFolder(tmp_path).record("rationale_weight=0.3,seed=0")
    assert (record["status"], record["stopped_at"]) == ("stopped", 0.5)
    assert "test" not in record
    code, output = sweep(tmp_path, *flags)
    assert code == 0
    assert "8 runs, 8 done already" in output
    assert len(attempts(tmp_path, "rationale_weight=0.4,seed=1")) == 3


def test_runs_of_one_shape_are_trained_together():
    runs = [
        Run(f"{method}{weight}{seed}", {"METHOD": method, "RATIONALE_WEIGHT": weight, "SEED": seed})
        for method in ("sbs", "joint")
        for weight in (0.1, 1.0)
        for seed in (0, 1)
    ]
    together = planning.make_jobs(runs, 3)
    assert [len(job.names) for job in together] == [3, 1, 3, 1]
    assert planning.make_jobs(runs, 1) == [TrainingJob((run.name,)) for run in runs]


def test_weights_of_parts_of_ones_own_are_trained_together():
    runs = [
        Run(f"{weight}{size}", {"HINT_WEIGHT": weight, "SIZE": size})
        for size in (1, 2)
        for weight in (0.1, 1.0)
    ]
    assert [len(job.names) for job in planning.make_jobs(runs, 4)] == [2, 2]


def test_a_schedule_of_lambda_is_trained_alone():
    runs = [
        Run("a", {"RATIONALE_WEIGHT": "@schedules.linear_ramp()"}),
        Run("b", {"RATIONALE_WEIGHT": 1.0}),
    ]
    assert [job.names for job in planning.make_jobs(runs, 9)] == [("a",), ("b",)]


def test_the_sweeps_own_process_takes_no_device():
    program = (
        "import sys; import sbs_jax.experiments.worker\n"
        "from sbs_jax.programs import frontier, sweep\n"
        "print([name for name in ('jax', 'tensorflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
