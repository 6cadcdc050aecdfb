"""The SLURM engine: jobs go through submitit as one array, and are requeued when their time is up.

The sweep's own process only submits and waits. Ctrl-C leaves the jobs in the queue, and the same
command waits for them again; a second Ctrl-C cancels them. It needs the extra `slurm`.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sbs_jax.errors import UNFINISHED, UserError
from sbs_jax.experiments import local
from sbs_jax.experiments.local import Ended, TrainingJob
from sbs_jax.experiments.runs import SweepFolder
from sbs_jax.files import atomic_write_text

POLL_SECONDS = 2.0
_LOST = 3  # polls without a result or a place in the queue, after which a job counts as lost
# SLURM may send submitit's signal to all processes of a job. What is ignored stays so over `exec`.
_IGNORE_USR2 = ("/bin/sh", "-c", "trap '' USR2; exec \"$@\"", "sh")
_REQUEUES = 1000  # time-outs of a job; a long run may need many

PARAMETERS = {
    "partition": "slurm_partition",
    "account": "slurm_account",
    "qos": "slurm_qos",
    "constraint": "slurm_constraint",
    "gpus": "slurm_gpus_per_node",
    "cpus": "cpus_per_task",
    "memory_gb": "mem_gb",
    "signal_seconds": "slurm_signal_delay_s",
    "setup": "slurm_setup",
    "additional": "slurm_additional_parameters",
}
"""What SLURM may hold, and submitit's name for it; besides `hours`, and `cluster`: `local` runs
jobs as processes of this machine, to try a sweep file out."""


class WorkerCall:
    """What a job does: starts a worker and waits for it. submitit pickles it."""

    def __init__(self, command: Sequence[str], log: str) -> None:
        """Starts nothing.

        Args:
          command: the command of the worker.
          log: the file that it prints to.
        """
        self.command, self.log = list(command), log
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Runs the worker; returns its exit code."""
        Path(self.log).parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as output:
            self._process = subprocess.Popen(
                [*_IGNORE_USR2, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            self._await_end()
            return self._process.wait()

    def checkpoint(self) -> Any:
        """Has the worker save and stop; called by submitit when time is up or the node is wanted.

        Returns:
          What the job does when it is requeued: the same.
        """
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.terminate()
            self._await_end()
        return DelayedSubmission(WorkerCall(self.command, self.log))

    def _await_end(self) -> None:
        """Waits for the worker's end; unlike `Popen.wait`, safe in a signal's handler, too."""
        assert self._process is not None
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)


class SlurmEngine:
    """Runs jobs through submitit."""

    def __init__(
        self,
        sweep: SweepFolder,
        settings: Mapping[str, Any],
        *,
        parallel_runs: int,
        note: Callable[[str], None] = print,
    ) -> None:
        """Submits nothing yet.

        Args:
          sweep: the folder of the sweep whose runs are trained.
          settings: the macro SLURM, see `PARAMETERS`.
          parallel_runs: how many jobs of the array run at a time.
          note: shows a sentence.

        Raises:
          UserError: submitit is not installed, or a setting is unknown.
        """
        try:
            import submitit
        except ImportError as error:
            raise UserError(
                "ENGINE = 'slurm' needs submitit: pip install 'sbs_jax[slurm]'."
            ) from error
        self._submitit = submitit
        self._sweep = sweep
        self._note = note
        self._folder = sweep.path / "slurm"
        self._stopping = False
        self._at_work: dict[TrainingJob, Any] = {}
        self._missing: dict[TrainingJob, int] = {}
        self._executor = self._make_executor(dict(settings), parallel_runs)

    def run(
        self,
        jobs: Sequence[TrainingJob],
        *,
        on_start: Callable[[TrainingJob], None],
        on_end: Callable[[Ended], Sequence[TrainingJob]],
        on_tick: Callable[[], None],
    ) -> None:
        """Runs jobs, and those that follow from them; see `LocalEngine.run`."""
        self._attach(jobs)
        self._submit([job for job in jobs if job not in self._at_work])
        started: set[TrainingJob] = set()
        while self._at_work and not self._stopping:
            for job, submitted in list(self._at_work.items()):
                if job not in started and self._log(job).exists():
                    started.add(job)
                    on_start(job)
                code = self._code(job, submitted)
                if code is None:
                    continue
                del self._at_work[job]
                again = [job] if code == UNFINISHED else []
                if not again:
                    again = list(on_end(Ended(job, code, interrupted=False)))
                self._submit(again)
            on_tick()
            if self._at_work:
                time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Leaves the jobs to the queue, and waits for them no longer."""
        self._stopping = True
        self._note("The jobs stay in the queue, and the same command waits for them again.")

    def kill(self) -> None:
        """Cancels all jobs."""
        for submitted in self._at_work.values():
            submitted.cancel()

    def _make_executor(self, settings: dict[str, Any], parallel_runs: int) -> Any:
        cluster = settings.pop("cluster", None)
        hours = settings.pop("hours", 24)
        if unknown := set(settings) - set(PARAMETERS):
            raise UserError(
                f"SLURM: unknown {', '.join(sorted(unknown))}; there are cluster, hours, "
                f"{', '.join(PARAMETERS)} (and `additional` is a dict of sbatch's own)."
            )
        executor = self._submitit.AutoExecutor(
            folder=self._folder / "%j", cluster=cluster, slurm_max_num_timeout=_REQUEUES
        )
        parameters: dict[str, Any] = {"timeout_min": max(1, round(60 * hours))}
        if cluster in (None, "slurm"):
            parameters |= {PARAMETERS[name]: value for name, value in settings.items()}
            parameters |= {
                "name": self._sweep.path.name,
                "nodes": 1,
                "tasks_per_node": 1,
                "slurm_array_parallelism": parallel_runs,
            }
        executor.update_parameters(**parameters)
        return executor

    def _submit(self, jobs: Sequence[TrainingJob]) -> None:
        if not jobs:
            return
        calls = [
            WorkerCall(
                local.worker_command(self._sweep, job, watch_stdin=False), str(self._log(job))
            )
            for job in jobs
        ]
        # A batch is one array.
        with self._executor.batch():
            submitted = [self._executor.submit(call) for call in calls]
        self._at_work |= dict(zip(jobs, submitted, strict=True))
        entries = [
            {"names": job.names, "until": job.until, "job_id": submitted.job_id}
            for job, submitted in self._at_work.items()
        ]
        atomic_write_text(self._folder / "jobs.json", json.dumps(entries, indent=1) + "\n")

    def _attach(self, jobs: Sequence[TrainingJob]) -> None:
        """Takes up the jobs that an earlier call of this command submitted, as far as they live."""
        try:
            known = json.loads((self._folder / "jobs.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        wanted = {(job.names, job.until): job for job in jobs}
        for entry in known:
            job = wanted.get((tuple(entry["names"]), entry["until"]))
            if job is not None and _in_queue(entry["job_id"]):
                self._at_work[job] = self._submitit.SlurmJob(
                    folder=self._folder / "%j", job_id=entry["job_id"], tasks=[0]
                )

    def _code(self, job: TrainingJob, submitted: Any) -> int | None:
        """A job's exit code; None while it waits or works."""
        if not submitted.paths.result_pickle.exists():
            alive = (
                _in_queue(submitted.job_id)
                if isinstance(submitted, self._submitit.SlurmJob)
                else not submitted.done()
            )
            # A file may take its time on a shared file system.
            self._missing[job] = 0 if alive else self._missing.get(job, 0) + 1
            return 1 if self._missing[job] >= _LOST else None
        try:
            return int(submitted.result())
        except Exception as error:  # Whatever the job raised, it has failed.
            self._note(f"{job.names[0]}: {str(error).strip().splitlines()[-1]}")
            return 1

    def _log(self, job: TrainingJob) -> Path:
        return self._sweep.folder(job.names[0]) / "train.log"


def _in_queue(job_id: str) -> bool:
    """Whether SLURM still has a job; yes where it cannot be asked now."""
    try:
        asked = subprocess.run(
            ["squeue", "--noheader", "--format=%T", f"--jobs={job_id}"],
            capture_output=True,
            text=True,
            env=os.environ,
        )
    except OSError:
        return False
    if asked.returncode != 0:
        return "Invalid job id" not in asked.stderr
    ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
    return bool(set(asked.stdout.split()) - ended)
