"""Compiles students for hardware that is not here, one after another, and prints the table.

    python benchmarks/plans.py --results=plans.jsonl
    python benchmarks/plans.py --results=plans.jsonl --only=v5p --list

Needs the extras `plan-tpu` and `plan-cuda`. Each row of the table is one `python -m sbs_jax.plan`
with the batch of docs/scaling.md: 64 rows of 512 and 256 tokens in all, Adafactor, activations in
bfloat16. A row that was compiled is appended to the file of results and not compiled again, so the
same command goes on where it was stopped; what the compiler refused, and how it crashed, is a
result as well. At the end all of the file's rows are printed as a Markdown table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BATCH = (
    "--gin_file=optimizers/adafactor.gin",
    "--gin_file=tasks/esnli.gin",
    "--gin.TRAIN_STEPS=10",
    "--gin.BATCH_SIZE=64",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 256}",
    "--gin.ACTIVATION_DTYPE=bfloat16",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A student on a target.

    Attributes:
      student: the name of its file in gin/models.
      target: what `--target` is.
      settings: macros besides the batch and, for T5, SCAN_LAYERS.
    """

    student: str
    target: str
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The student and its settings, as the table names them."""
        return ", ".join([self.student, *(f"`{setting}`" for setting in self.settings)])

    def command(self) -> list[str]:
        """The arguments of `python -m sbs_jax.plan`."""
        settings = list(self.settings)
        if self.student.startswith("t5"):
            settings.append("SCAN_LAYERS=True")
        return [
            f"--target={self.target}",
            "--gin_file=runs/train.gin",
            f"--gin_file=models/{self.student}.gin",
            *BATCH,
            *(f"--gin.{setting}" for setting in settings),
        ]


_CUT = ("FSDP=True", "REMAT=minimal")

# What is most worth knowing comes first: one host of each kind, then pods, then single devices.
ROWS = (
    *(
        Row("t5_1_1_base", target)
        for target in ("v4:2x2x1", "v5p:2x2x1", "v6e:2x4", "tpu7x:2x2x1", "a100-80:8", "b200:8")
    ),
    Row("t5_1_1_large", "v4:2x2x1", _CUT),
    Row("t5_1_1_xl", "h100:8", _CUT),
    Row("t5_1_1_xxl", "v5p:4x4x4", _CUT),
    Row("smollm2_135m", "v6e:8x8"),
    Row("t5_1_1_xxl", "tpu7x:2x4x4", _CUT),
    Row("t5_1_1_large", "v5p:2x2x1", _CUT),
    Row("t5_1_1_large", "h100:8", _CUT),
    Row("t5_1_1_xxl", "v6e:8x8", _CUT),
    Row("smollm2_135m", "v5p:4x4x4"),
    Row("t5_1_1_large", "tpu7x:2x2x1", _CUT),
    Row("t5_1_1_large", "v6e:2x4", _CUT),
    Row("smollm2_135m", "h100:8"),
    Row("t5_1_1_xl", "v5e:8x8", _CUT),
    Row("t5_1_1_xxl", "v4:4x4x4", _CUT),
    Row("t5_1_1_xxl", "b200:8", ("FSDP=True", "REMAT=full")),
    Row("t5_1_1_base", "v5p:1x1x1"),
    Row("t5_1_1_base", "h200:1"),
    Row("qwen2_5_0_5b", "v5e:8x8", ("FSDP=True", "REMAT=full")),
    Row("llama3_2_1b", "h100:8", ("FSDP=True", "REMAT=full")),
)


def main() -> None:
    """Compiles what the file of results does not hold yet, and prints all that it holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, metavar="FILE")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose line contains it.")
    parser.add_argument("--list", action="store_true", help="name the rows and compile nothing.")
    flags = parser.parse_args()
    found = read(flags.results)
    for row in ROWS:
        line = f"{row.name} on {row.target}"
        if flags.only not in line:
            continue
        if flags.list:
            print(f"{'done' if key(row) in found else 'open'}  {line}")
        elif key(row) not in found:
            print(line, file=sys.stderr, flush=True)
            found[key(row)] = compile_row(row)
            with flags.results.open("a") as file:
                file.write(json.dumps(found[key(row)]) + "\n")
    if not flags.list:
        print(table(found))


def key(row: Row) -> str:
    """What a row is known by in the file of results."""
    return " ".join(row.command())


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The results that a file holds, by their rows' keys; none if there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {result["row"]: result for result in map(json.loads, lines)}


def compile_row(row: Row) -> dict[str, Any]:
    """Plans one row; `failure` says in a sentence why there is nothing else."""
    result: dict[str, Any] = {"row": key(row), "student": row.name, "target": row.target}
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        done = subprocess.run(
            [sys.executable, "-m", "sbs_jax.plan", *row.command(), f"--json={found}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines()
            return result | {"failure": said[-1] if said else f"exit code {done.returncode}"}
        return result | json.loads(found.read_text())


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The results as the table of docs/scaling.md."""
    from sbs_jax.planning import report

    def cells(result: Mapping[str, Any]) -> dict[str, str]:
        peak, operations, bound, seconds = result.get("failure", ""), "", "", ""
        if not peak:
            peak = result["exhausted"] or ""
            if result["peak_bytes"] is not None:
                memory = report.in_bytes(result["device_memory_bytes"])
                fits = "fits" if result["fits"] else "does not fit"
                peak = f"{report.in_bytes(result['peak_bytes'])} of {memory}: {fits}"
            seconds = f"{result['compile_seconds']:.0f} s"
        if result.get("flops") is not None:
            operations = ", ".join(map(report.in_flops, (result["flops"], result["model_flops"])))
            bound = f"{report.in_seconds(result['bound_seconds'])} by {result['bound_by']}"
        return {
            "student": result["student"],
            "target": f"`{result['target']}`",
            "peak on a device": peak,
            "operations on a device, without recomputation": operations,
            "bound": bound,
            "compiled in": seconds,
        }

    return report.table([cells(result) for result in found.values()])


if __name__ == "__main__":
    main()
