"""A process of a sweep: trains the runs that it is named, judges them, and writes down the scores.

    python -m sbs_jax.experiments.worker --sweep_dir=PATH [--cpus=0,1] RUN_NAME …

Engines start it. Several runs are trained together, see `vectorized`. It exits with 0 when all are
done, and with `UNFINISHED` when a signal asked it to stop: what is done is saved, and the same
command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from sbs_jax.configuration.process import enable_compilation_cache
from sbs_jax.errors import UNFINISHED, with_exit_code
from sbs_jax.experiments import runs as runs_lib
from sbs_jax.experiments.runs import SweepFolder
from sbs_jax.host_memory import keep_freed_memory

_PATIENCE = 60.0  # seconds for an orphan of a killed sweep to save and go


@with_exit_code
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m sbs_jax.experiments.worker")
    parser.add_argument("--sweep_dir", required=True)
    parser.add_argument("--cpus", default="", help="numbers of the CPUs to use; all by default")
    parser.add_argument("--until", type=float, default=1.0, help="share of the steps to train")
    parser.add_argument("--watch_stdin", action="store_true", help="stop when stdin is closed")
    parser.add_argument("names", nargs="+", metavar="RUN_NAME")
    arguments = parser.parse_args(argv)
    if arguments.cpus and hasattr(os, "sched_setaffinity"):
        # Before jax makes its threads: as many as there are CPUs that it may use.
        os.sched_setaffinity(0, {int(cpu) for cpu in arguments.cpus.split(",")})
    if arguments.watch_stdin:
        threading.Thread(target=stop_without_parent, daemon=True).start()
    try:
        work(SweepFolder(arguments.sweep_dir), arguments.names, until=arguments.until)
    except InterruptedError:
        return UNFINISHED
    return 0


def work(sweep: SweepFolder, names: Sequence[str], *, until: float = 1.0) -> None:
    """Trains and judges runs.

    Args:
      sweep: the sweep of the runs.
      names: one is trained as `sbs_jax.train` does, several in one program.
      until: the share of TRAIN_STEPS at which to stop for now; the schedules are those of the whole
        run. Only at 1 are the runs judged on test and done.

    Raises:
      UserError: a run cannot be trained.
      InterruptedError: a signal asked to stop.
    """
    base, all_runs, _ = sweep.read()
    os.chdir(base.working_dir)
    keep_freed_memory()
    enable_compilation_cache()
    for name in names:
        config = base.config(all_runs[name], sweep.folder(name))
        sweep.write_record(
            name,
            status=runs_lib.RUNNING,
            bindings=dict(all_runs[name].bindings),
            fingerprint=runs_lib.fingerprint(config),
        )
    with contextlib.ExitStack() as locks:
        for name in names:
            lock = str(Path("runs") / name / "run")
            locks.enter_context(sweep.locked(lock, patience=_PATIENCE))
        from sbs_jax.experiments import single, vectorized  # They load TensorFlow.

        if len(names) == 1:
            single.train_and_judge(sweep, base, all_runs[names[0]], until=until)
        else:
            chosen = [all_runs[name] for name in names]
            vectorized.train_and_judge(sweep, base, chosen, until=until)


def stop_without_parent() -> None:
    """Asks this process to save and stop once the engine that started it is gone."""
    # Not sys.stdin: a thread that holds its lock would keep the interpreter from ending.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
