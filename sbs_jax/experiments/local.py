"""The local engine: a pool of processes, each with CPUs and accelerators of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sbs_jax.experiments.runs import SweepFolder
from sbs_jax.experiments.settings import SweepSettings

POLL_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Slot:
    """What one process of the pool may use.

    Attributes:
      cpus: the numbers of its CPUs.
      environment: variables that give it its devices.
    """

    cpus: tuple[int, ...]
    environment: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """What one process does.

    Attributes:
      names: runs, trained together if there are several.
      until: the share of their steps to train.
    """

    names: tuple[str, ...]
    until: float = 1.0


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
      job: the job.
      code: its exit code; negative for a signal.
      interrupted: whether it only stopped because it was asked to.
    """

    job: TrainingJob
    code: int
    interrupted: bool


def plan_slots(
    settings: SweepSettings, *, cpus: Sequence[int], accelerators: Sequence[str]
) -> list[Slot]:
    """Shares out CPUs and accelerators among `parallel_runs` processes.

    With fewer accelerators than are asked for, processes share them, and each its part of their
    memory. Without any, `devices_per_run` makes virtual CPU devices.

    Args:
      settings: how many processes, and what each is given.
      cpus: numbers of those that there are.
      accelerators: ids of those that there are, as CUDA_VISIBLE_DEVICES has them.

    Returns:
      One slot for each process.
    """
    processes = settings.parallel_runs
    cpu_share = min(settings.cpus_per_run or max(1, len(cpus) // processes), len(cpus))
    slots = []
    for index in range(processes):
        mine = tuple(cpus[(index * cpu_share + i) % len(cpus)] for i in range(cpu_share))
        environment: dict[str, str] = {}
        if accelerators:
            count = len(accelerators)
            wanted = min(settings.devices_per_run or max(1, count // processes), count)
            chosen = [accelerators[(index * wanted + i) % count] for i in range(wanted)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
            sharing = -(-processes * wanted // count)
            if sharing > 1:
                environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / sharing:.3f}"
        elif settings.devices_per_run is not None:
            flag = f"--xla_force_host_platform_device_count={settings.devices_per_run}"
            environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
        slots.append(Slot(mine, environment))
    return slots


def find_cpus() -> list[int]:
    """Numbers of the CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def find_accelerators() -> list[str]:
    """Ids of the NVIDIA GPUs that this process may use; jax is not asked, as it would take them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [item for item in visible.split(",") if item.strip() and item != "-1"]
    if os.environ.get("JAX_PLATFORMS", "").lower() == "cpu":
        return []
    return sorted(
        (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")), key=int
    )


class LocalEngine:
    """Runs jobs in processes of this machine, as many at a time as there are slots."""

    def __init__(self, sweep: SweepFolder, slots: Sequence[Slot]) -> None:
        """Starts nothing yet.

        Args:
          sweep: the folder of the sweep whose runs are trained.
          slots: see `plan_slots`.
        """
        self._sweep = sweep
        self._free = list(slots)
        self._at_work: dict[TrainingJob, tuple[subprocess.Popen[bytes], Slot]] = {}
        self._stopping = False

    def run(
        self,
        jobs: Sequence[TrainingJob],
        *,
        on_start: Callable[[TrainingJob], None],
        on_end: Callable[[Ended], Sequence[TrainingJob]],
        on_tick: Callable[[], None],
    ) -> None:
        """Runs jobs in their order, and those that follow from them, until all have ended.

        Args:
          jobs: the jobs to run.
          on_start: called when a job starts.
          on_end: called when a job has ended; returns jobs to run, too: a second attempt, say.
          on_tick: called about twice a second.
        """
        waiting = list(jobs)
        try:
            while (waiting and not self._stopping) or self._at_work:
                while waiting and self._free and not self._stopping:
                    job = waiting.pop(0)
                    self._start(job)
                    on_start(job)
                for ended in self._collect():
                    waiting += on_end(ended)
                on_tick()
                if self._at_work:
                    time.sleep(POLL_SECONDS)
        finally:
            for process, _ in self._at_work.values():
                process.terminate()
            for process, _ in self._at_work.values():
                process.wait()

    def stop(self) -> None:
        """Asks all processes to save and stop, and starts no more."""
        print("Stopping: runs save what they have. (Again: at once.)", file=sys.stderr)
        self._stopping = True
        for process, _ in self._at_work.values():
            process.terminate()

    def kill(self) -> None:
        """Ends all processes at once; what they have saved stays."""
        for process, _ in self._at_work.values():
            process.kill()

    def _start(self, job: TrainingJob) -> None:
        slot = self._free.pop(0)
        # A group's processes write one log: the first run's. The others' refer to it.
        log = self._sweep.folder(job.names[0]) / "train.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        for name in job.names[1:]:
            self._sweep.folder(name).mkdir(parents=True, exist_ok=True)
            link = self._sweep.folder(name) / "train.log"
            with contextlib.suppress(FileExistsError):
                link.symlink_to(os.path.relpath(log, link.parent))
        with log.open("ab") as output:
            process = subprocess.Popen(
                worker_command(self._sweep, job, cpus=slot.cpus),
                # Its end of the pipe closes with this process, however that ends.
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | slot.environment,
                # Ctrl-C is ours to pass on.
                start_new_session=True,
            )
        self._at_work[job] = (process, slot)

    def _collect(self) -> list[Ended]:
        ended = []
        for job, (process, slot) in list(self._at_work.items()):
            code = process.poll()
            if code is None:
                continue
            del self._at_work[job]
            self._free.append(slot)
            ended.append(Ended(job, code, interrupted=self._stopping))
        return ended


def worker_command(
    sweep: SweepFolder, job: TrainingJob, *, cpus: Sequence[int] = (), watch_stdin: bool = True
) -> list[str]:
    """The command of a job's process."""
    command = [sys.executable, "-m", "sbs_jax.experiments.worker", f"--sweep_dir={sweep.path}"]
    if cpus:
        command.append(f"--cpus={','.join(map(str, cpus))}")
    if job.until < 1.0:
        command.append(f"--until={job.until}")
    if watch_stdin:
        command.append("--watch_stdin")
    return [*command, *job.names]
