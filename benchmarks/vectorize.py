"""Measures a sweep trained in one program against the same runs one after another.

    python benchmarks/vectorize.py --runs=8 --steps=60

Both are real sweeps of quickstart students (λ × seeds) through `python -m sbs_jax.sweep`, one
process at a time, with the default devices and `--cpus` CPUs. It prints examples per second while
stepping (compilation, evaluation and saving left out), and the time and the CPU time of the whole
sweep, start-up and compilation included: the latter counts on a machine that others use, too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main():
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=8, help="an even number: two λ, N / 2 seeds")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--cpus", type=int, default=1, help="CPUs of the process")
    parser.add_argument("--gin", action="append", default=[], help="NAME=VALUE, as in BATCH_SIZE=8")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # Both find their programs compiled as little as the other.
        alone = measure(args, Path(folder) / "alone", ())
        together = measure(args, Path(folder) / "together", ("--vectorize",))
    for name, (rate, seconds, cpu) in (("one by one", alone), ("together", together)):
        print(
            f"{name:>11}: {rate:7.1f} examples/s while stepping, {seconds:6.1f} s and "
            f"{cpu:6.1f} CPU seconds in all"
        )
    print(
        f"{'ratio':>11}: {together[0] / alone[0]:7.2f} while stepping, "
        f"{alone[1] / together[1]:.2f} and {alone[2] / together[2]:.2f} in all ({args.runs} runs "
        f"of {args.steps} steps, {args.cpus} CPUs)"
    )


def measure(args, folder, flags):
    """Examples per second of all runs together; seconds and CPU seconds that the sweep took."""
    macros = {
        "TRAIN_STEPS": args.steps,
        "WARMUP_STEPS": 10,
        "BEST_METRIC": None,
        "EVAL_PERIOD": None,
        "LOG_PERIOD": 10,
        **dict(item.split("=", 1) for item in args.gin),
    }
    command = [
        sys.executable,
        "-m",
        "sbs_jax.sweep",
        "--gin_file=examples/quickstart.gin",
        "--gin_file=runs/sweep.gin",
        *(f"--gin.{name}={value}" for name, value in macros.items()),
        "--sweep=RATIONALE_WEIGHT=0.3,1.0",
        f"--sweep=SEED=0:{args.runs // 2}",
        f"--sweep_dir={folder}",
        f"--cpus_per_run={args.cpus}",
        *flags,
    ]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    begun, cpu = time.monotonic(), cpu_seconds()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    seconds = time.monotonic() - begun
    rates = [rate_of(path) for path in folder.glob("runs/*/metrics.jsonl")]
    # Runs of one program step side by side: their rates add up. Alone, each has the machine.
    return (sum(rates) if flags else statistics.mean(rates)), seconds, cpu_seconds() - cpu


def cpu_seconds():
    """CPU time of the processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def rate_of(path):
    """The median rate in a record."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    rates = [line["examples_per_second"] for line in lines if line.get("examples_per_second")]
    return statistics.median(rates)


if __name__ == "__main__":
    main()
