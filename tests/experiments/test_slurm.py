"""The SLURM engine, on submitit's executor for this machine (docs/launch.md: on a real SLURM)."""

import os
import signal
import sys
import threading

import pytest

from sbs_jax.errors import UserError
from sbs_jax.experiments import slurm
from sbs_jax.experiments.runs import SweepFolder
from sbs_jax.experiments.slurm import WorkerCall
from tests.experiments.scripted import attempts, sweep

pytestmark = pytest.mark.usefixtures("scripted_workers")

HERE = "--gin.SLURM={'cluster': 'local'}"


def test_jobs_are_submitted_and_failed_ones_again(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.1)
    code, output = sweep(tmp_path, "--sweep=SEED=0,8", "--engine=slurm", HERE)
    assert code == 0
    assert [len(attempts(tmp_path, f"seed={seed}")) for seed in (0, 8)] == [1, 2]
    assert "seed=8: failed with exit code 1; trying again." in output
    assert (tmp_path / "slurm" / "jobs.json").is_file()


def test_a_call_for_the_end_lets_the_worker_save_and_is_made_again(tmp_path):
    """As submitit does when time is up: from a signal's handler, while the call waits."""
    marks = tmp_path / "marks"
    program = (
        "import pathlib, signal, sys, time\n"
        f"marks = pathlib.Path({str(marks)!r})\n"
        "def save(*_):\n"
        "    marks.write_text('saved'); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "marks.write_text('at work')\n"
        "time.sleep(60)\n"
    )
    call = WorkerCall([sys.executable, "-c", program], str(tmp_path / "train.log"))

    class Requeued(Exception):
        pass

    def handle(*_):
        delayed = call.checkpoint()
        assert delayed.function.command == call.command
        raise Requeued

    def interrupt():
        while not marks.exists() or marks.read_text() != "at work":
            pass
        os.kill(os.getpid(), signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, handle)
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(Requeued):
            call()
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert marks.read_text() == "saved"


def test_the_result_is_the_workers_exit_code(tmp_path):
    log = tmp_path / "new" / "train.log"
    assert WorkerCall([sys.executable, "-c", "print('x'); exit(3)"], str(log))() == 3
    assert log.read_text() == "x\n"


def test_unknown_settings_are_refused(tmp_path):
    with pytest.raises(UserError, match="SLURM: unknown gpu; there are cluster, hours, partition"):
        slurm.SlurmEngine(SweepFolder(tmp_path), {"gpu": 1}, parallel_runs=1)
    with pytest.raises(UserError, match="ENGINE = 'pbs' must be 'local' or 'slurm'"):
        sweep(tmp_path, "--sweep=SEED=0:2", "--engine=pbs")
