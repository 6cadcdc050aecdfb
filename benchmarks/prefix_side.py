"""What PREFIX_SIDE = 'decoder' saves: each input is encoded once for its label and its rationale.

    python benchmarks/prefix_side.py --release_dir=PATH [--datasets svamp cqa]

The same student (`cpu_small` of `train_step.py`) trains on the same examples, 64 a step, with the
prefixes on either side, by turns in this one process, on one thread, without dropout. It prints
XLA's count of the encoder's operations (forward) and of the whole step's for an example, and
examples per CPU second. Each side has rows of its own lengths, those that it fills best.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["JAX_PLATFORMS"] = "cpu"

import dataclasses
from typing import Any

import jax
import numpy as np
import rich.box
import rich.console
import rich.table
from cpu_small import CPU_SMALL

import sbs_jax.tasks  # noqa: F401 (registers the data sets)
from sbs_jax.data import pipeline, settings
from sbs_jax.data.resolving import resolve_task
from sbs_jax.host_memory import keep_freed_memory
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.student import Student
from sbs_jax.training import optimizers, placement
from sbs_jax.training.step import make_train_step

EXAMPLES_PER_STEP = 64
NETWORK = dataclasses.replace(CPU_SMALL, dropout_rate=0.0)
ROW_LENGTHS = {
    "svamp": {
        "encoder": {"inputs": 160, "targets": 128},
        "decoder": {"inputs": 96, "targets": 144},
    },
    "cqa": {
        "encoder": {"inputs": 192, "targets": 80},
        "decoder": {"inputs": 144, "targets": 112},
    },
}


class Side:
    """A student that trains with the prefixes on one side."""

    def __init__(self, dataset: str, side: str, release_dir: str, steps: int, folder: str) -> None:
        lengths = ROW_LENGTHS[dataset][side]
        chosen = settings.DataSettings(
            data_dir=release_dir, model_dir=folder, vocabulary_size=8192, prefix_side=side
        )
        with settings.override(chosen):
            records = pipeline.load_records(resolve_task(f"{dataset}_sbs"), "train", lengths)
        batches = pipeline.TrainBatches(
            records, pipeline.Batching(lengths, examples_per_batch=EXAMPLES_PER_STEP), seed=0
        )
        self.name = side
        self.batches = [next(batches) for _ in range(steps)]
        self.fill = batches.fill
        self.student = Student(NETWORK, make_mesh(devices=jax.devices()[:1]))
        optimizer = optimizers.adamw(5e-5)
        self.abstract = placement.abstract_state(self.student, optimizer, 0)
        self.state = placement.create_state(self.student, self.student.init_params(0), optimizer, 0)
        self.step = placement.jit_train_step(
            self.student, make_train_step(self.student.apply, optimizer), self.abstract
        )
        self.cpu: list[float] = []
        self.loss = float("nan")

    def flops(self) -> tuple[float, float]:
        """XLA's operations for an example: of the encoder's forward pass, and of the whole step."""

        def encode(params: Any, batch: Any) -> jax.Array:
            model = self.student.model
            tokens, segments = batch["encoder_input_tokens"], batch["encoder_segment_ids"]
            return model.apply({"params": params}, tokens, segments, method="encode")

        encoder, step = [], []
        by_rows = {len(batch["encoder_segment_ids"]): batch for batch in self.batches}
        counted = {}
        for rows, batch in by_rows.items():
            lowered = self.student.jit(encode).lower(self.state.params, dict(batch))
            whole = self.step.lower(self.abstract, dict(batch))
            counted[rows] = [
                lowering.compile().cost_analysis()["flops"] for lowering in (lowered, whole)
            ]
        for batch in self.batches:
            forward, everything = counted[len(batch["encoder_segment_ids"])]
            encoder.append(forward)
            step.append(everything)
        return np.mean(encoder) / EXAMPLES_PER_STEP, np.mean(step) / EXAMPLES_PER_STEP

    def run(self, numbers: range, *, timed: bool = True) -> None:
        """Trains on some batches."""
        start = time.process_time()
        for number in numbers:
            self.state, metrics = self.step(self.state, dict(self.batches[number]))
        self.loss = float(metrics["loss"])
        if timed:
            self.cpu.append((time.process_time() - start) / len(numbers))


def compare(dataset: str, release_dir: str, blocks: int, steps: int) -> list[Side]:
    """Times both sides by turns."""
    with tempfile.TemporaryDirectory() as folder:
        sides = [
            Side(dataset, side, release_dir, blocks * steps, folder)
            for side in ("encoder", "decoder")
        ]
    for side in sides:
        for number in {
            len(b["encoder_segment_ids"]): i for i, b in enumerate(side.batches)
        }.values():
            side.run(range(number, number + 1), timed=False)
    for block in range(blocks):
        for side in sides if block % 2 else reversed(sides):
            side.run(range(block * steps, (block + 1) * steps))
    return sides


def main() -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--release_dir", required=True)
    parser.add_argument("--datasets", nargs="+", default=sorted(ROW_LENGTHS, reverse=True))
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    given = parser.parse_args()
    keep_freed_memory()
    table = rich.table.Table(
        "data set", "PREFIX_SIDE", "rows", "fill", "encoder MFLOP", "step MFLOP", "examples/CPU s",
        "loss",
        title="cpu_small, one thread; operations are for one example", box=rich.box.SIMPLE,
    )  # fmt: skip
    ratios = []
    for dataset in given.datasets:
        sides = compare(dataset, given.release_dir, given.blocks, given.steps)
        counted = [side.flops() for side in sides]
        for side, (encoder, step) in zip(sides, counted, strict=True):
            lengths = ROW_LENGTHS[dataset][side.name]
            table.add_row(
                dataset,
                side.name,
                f"{lengths['inputs']} × {lengths['targets']}",
                f"{side.fill.inputs:.0%}, {side.fill.targets:.0%}",
                f"{encoder / 1e6:.0f}",
                f"{step / 1e6:.0f}",
                f"{EXAMPLES_PER_STEP / statistics.median(side.cpu):.1f}",
                f"{side.loss:.3f}",
            )
        faster = statistics.median(
            ours / theirs for ours, theirs in zip(sides[0].cpu, sides[1].cpu, strict=True)
        )
        ratios.append(
            f"{dataset}: the decoder's side needs {counted[1][0] / counted[0][0]:.2f} of the "
            f"encoder's operations, {counted[1][1] / counted[0][1]:.2f} of the step's, and trains "
            f"{faster:.2f} times the examples per CPU second"
        )
    console = rich.console.Console(highlight=False, soft_wrap=True)
    console.print(table)
    for line in ratios:
        console.print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
