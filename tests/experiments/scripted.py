"""Sweeps whose workers are scripted (fake_worker.py): processes are real, training is not."""

import io

from rich.console import Console

from sbs_jax.experiments import sweeping

FILES = ["--gin_file=examples/quickstart.gin", "--gin_file=runs/sweep.gin"]


def sweep(folder, *flags):
    """Runs a sweep; returns its exit code and what it printed."""
    console = Console(file=io.StringIO(), width=200)
    code = sweeping.run([*FILES, f"--sweep_dir={folder}", *flags], console)
    return code, console.file.getvalue()


def attempts(folder, name):
    """A line for each time that the run `name` was started."""
    path = folder / "runs" / name / "attempts"
    return path.read_text().splitlines() if path.exists() else []
