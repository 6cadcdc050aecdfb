"""T5X's trainer and ours on the same work: steps a second, start-up, log lines.

    python benchmarks/t5x.py --release_dir=PATH [--rounds=2] [--json=FILE]

Needs T5X (docs/t5x.md). Each program is started as a user starts it, by turns and `--rounds` times:
the task `svamp_sbs`, the same network (d_model 256, 4+4 layers, 4 heads of 64, MLP 512, vocabulary
2,048), float32, Adafactor, dropout 0.1, batches of 16 packed rows of 128 input and 64 target
tokens, one CPU device, no evaluation. Both are timed alike, from outside: a record of metrics comes
every 10 steps; the time between records is that of 10 steps, and start-up is from the command to
the first record, less 10 steps. CPU seconds, of all threads, say more than the clock where other
programs run besides. Ours keeps compiled programs on disk: `first` starts with none
kept, `again` with those of the run before; T5X keeps none.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import rich.box
import rich.console
import rich.table

import sbs_jax
from sbs_jax.configuration import reader

STEPS, PERIOD = 40, 10
DIMENSIONS = {
    "vocab_size": 2048,
    "emb_dim": 256,
    "num_heads": 4,
    "num_encoder_layers": 4,
    "num_decoder_layers": 4,
    "head_dim": 64,
    "mlp_dim": 512,
}
NETWORK = {
    "t5x": ("from t5x.examples.t5 import network", "network.T5Config", {"dtype": "float32"}),
    "ours": ("from sbs_jax.models import config", "config.T5Config", {}),
}
SHARED = {
    "BATCH_SIZE": 16,
    "TASK_FEATURE_LENGTHS": {"inputs": 128, "targets": 64},
    "TRAIN_STEPS": STEPS,
    "VOCABULARY_SIZE": DIMENSIONS["vocab_size"],
    "DROPOUT_RATE": 0.1,
}


@dataclasses.dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
      seconds_a_step: median over the periods.
      start_up: seconds from the command to the first step.
      cpu_a_step: as `seconds_a_step`, in CPU seconds.
      cpu_start_up: as `start_up`, in CPU seconds.
      log_lines: on standard output and standard error.
    """

    seconds_a_step: float
    start_up: float
    cpu_a_step: float
    cpu_start_up: float
    log_lines: int


def write_network(program: str, folder: Path) -> Path:
    """Writes a gin file with the network's dimensions."""
    statement, configurable, more = NETWORK[program]
    lines = ["from __gin__ import dynamic_registration", statement, f"{configurable}:"]
    if program == "ours":
        lines.insert(0, "include 'models/t5_1_1.gin'")
    lines += [f"  {name} = {value!r}" for name, value in {**DIMENSIONS, **more}.items()]
    path = folder / f"{program}.gin"
    path.write_text("\n".join(lines) + "\n")
    return path


def flags(macros: dict[str, object]) -> list[str]:
    """`{'BATCH_SIZE': 16}` → `['--gin.BATCH_SIZE=16']`."""
    return [f"--gin.{name}={value!r}" for name, value in macros.items()]


def t5x_command(release_dir: str, model_dir: Path, folder: Path) -> list[str]:
    """How T5X is started."""
    macros = SHARED | {
        "MIXTURE_OR_TASK_NAME": "svamp_sbs",
        "DATA_DIR": release_dir,
        "MODEL_DIR": str(model_dir),
        "train.stats_period": PERIOD,
        "train.train_eval_dataset_cfg": None,
        "train.infer_eval_dataset_cfg": None,
        "utils.SaveCheckpointConfig.period": STEPS,
    }
    return [
        sys.executable, "-m", "t5x.train", f"--gin_search_paths={reader.gin_folder()}",
        "--gin_file=t5x/finetune_sbs.gin", f"--gin_file={write_network('t5x', folder)}",
        *flags(macros),
    ]  # fmt: skip


def our_command(release_dir: str, model_dir: Path, folder: Path) -> list[str]:
    """How ours is started."""
    macros = SHARED | {
        "MIXTURE_OR_TASK_NAME": "svamp_sbs",
        "DATA_DIR": release_dir,
        "MODEL_DIR": str(model_dir),
        "LOG_PERIOD": PERIOD,
        "EVAL_SPLITS": [],
        "CHECKPOINT_PERIOD": STEPS,
    }
    files = ("runs/train.gin", "optimizers/adafactor.gin", "tasks/svamp.gin")
    return [
        sys.executable, "-m", "sbs_jax.train", *(f"--gin_file={name}" for name in files),
        f"--gin_file={write_network('ours', folder)}", *flags(macros),
        f"--compilation_cache_dir={folder / 'compiled'}",
    ]  # fmt: skip


def measure(command: Sequence[str], count_records: Callable[[list[str]], int]) -> Measured:
    """Runs a program; `count_records(log lines)` says how many records it has written by now."""
    paths = (str(Path(sbs_jax.__file__).parent.parent), os.environ.get("PYTHONPATH"))
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    began = time.monotonic()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines: list[str] = []
    listener = threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True)
    listener.start()
    clocks: list[tuple[float, float]] = []
    while process.poll() is None:
        now = (time.monotonic() - began, cpu_seconds(process.pid))
        clocks += [now] * (count_records(lines) - len(clocks))
        time.sleep(0.01)
    listener.join()
    if process.returncode or len(clocks) < STEPS // PERIOD - 1:
        raise SystemExit("".join(lines[-30:]) + f"\n{command[2]} failed.")
    steps, starts = [], []
    for times in zip(*clocks, strict=True):
        periods = [after - before for before, after in itertools.pairwise(times)]
        steps.append(statistics.median(periods) / PERIOD)
        starts.append(times[0] - PERIOD * steps[-1])
    return Measured(steps[0], starts[0], steps[1], starts[1], len(lines))


def cpu_seconds(pid: int) -> float:
    """CPU seconds that a process has taken (Linux)."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def t5x_records(model_dir: Path) -> Callable[[list[str]], int]:
    """Counts T5X's records of training, which its log shows."""
    pattern = re.compile(r"\] collection=train .*\bloss=")
    del model_dir
    return lambda lines: sum(bool(pattern.search(line)) for line in list(lines))


def our_records(model_dir: Path) -> Callable[[list[str]], int]:
    """Counts our records of training."""
    path = model_dir / "metrics.jsonl"
    return lambda lines: path.read_text().count("\n") if path.exists() else 0


PROGRAMS = {"t5x": (t5x_command, t5x_records), "ours": (our_command, our_records)}


def main() -> None:
    """Measures, and prints a table of both and of their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--release_dir", required=True, help="the folder of svamp/")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", help="also write the measurements here")
    arguments = parser.parse_args()
    release_dir = str(Path(arguments.release_dir).resolve())
    measured: dict[str, list[Measured]] = {name: [] for name in PROGRAMS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            for name, (command, records) in PROGRAMS.items():
                model_dir = Path(folder) / f"{name}_{number}"
                run = command(release_dir, model_dir, Path(folder))
                measured[name].append(measure(run, records(model_dir)))
                print(name, measured[name][-1], file=sys.stderr)
    theirs, ours = measured["t5x"], measured["ours"]
    rows: dict[str, tuple[float, float]] = {}
    for name, field in (("seconds a step", "seconds_a_step"), ("CPU seconds a step", "cpu_a_step")):
        rows[name] = tuple(
            statistics.median(getattr(run, field) for run in runs) for runs in (theirs, ours)
        )
    for name, field in (("start-up, seconds", "start_up"), ("start-up, CPU s", "cpu_start_up")):
        rows[f"{name} (first)"] = (getattr(theirs[0], field), getattr(ours[0], field))
        if arguments.rounds > 1:
            rows[f"{name} (again)"] = tuple(
                statistics.median(getattr(run, field) for run in runs[1:])
                for runs in (theirs, ours)
            )
    rows["log lines"] = (theirs[0].log_lines, ours[0].log_lines)
    table = rich.table.Table(box=rich.box.MARKDOWN)
    for heading in ("", "T5X", "ours", "T5X ÷ ours"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, (their, our) in rows.items():
        table.add_row(name, f"{their:.4g}", f"{our:.4g}", f"{their / our:.2f}")
    rich.console.Console(width=100).print(table)
    if arguments.json:
        runs = {name: [dataclasses.asdict(run) for run in of] for name, of in measured.items()}
        Path(arguments.json).write_text(json.dumps(runs, indent=2) + "\n")


if __name__ == "__main__":
    main()
