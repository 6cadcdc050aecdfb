"""Training speed: sbs_jax's step against the published method in PyTorch, on real examples.

    python benchmarks/train_step.py --release_dir=PATH [--datasets svamp cqa] [--json=FILE]

The peer is the published method: Hugging Face's `T5ForConditionalGeneration`, two padded forward
passes (label and rationale), α-weighted loss with α = 0.5, gradients clipped to norm 1, AdamW. Ours
is the jitted step of `python -m sbs_jax.train`, on packed batches. Both train the same network
(`cpu_small`) from random weights with the same dropout on the same 16 examples a step (an
example is its label and its rationale), in float32, with one thread each on one core, by turns in
this one process. Compilation and making the batches are not timed; the cost of packing is printed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

# Both frameworks read these when they are imported.
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import dataclasses
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.box
import rich.console
import rich.table
import torch
import transformers
from cpu_small import CPU_SMALL
from published_peer import pad_part, peer_model

import sbs_jax.tasks  # noqa: F401 (registers the data sets)
from sbs_jax.data import pipeline, settings
from sbs_jax.data.resolving import resolve_task
from sbs_jax.errors import UserError
from sbs_jax.host_memory import keep_freed_memory
from sbs_jax.models.config import T5Config
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.parts import LABEL, RATIONALE
from sbs_jax.student import Student
from sbs_jax.training import optimizers, placement
from sbs_jax.training.step import Loss, make_train_step

EXAMPLES_PER_STEP = 16
LEARNING_RATE = 5e-5
ALPHA = 0.5
# Shorter rows cost less attention, longer ones waste less of their ends.
ROW_LENGTHS = {
    "svamp": {"inputs": 160, "targets": 128},
    "cqa": {"inputs": 192, "targets": 80},
}

Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass
class Side:
    """One of the two programs that are timed.

    Attributes:
      name: for the table.
      step: trains on the batch of that number; returns the loss.
      fill: share of the positions of its batches that is not padding.
      wall: seconds of each timed block.
      cpu: processor seconds of each timed block, of all threads.
    """

    name: str
    step: Callable[[int], float]
    fill: float
    wall: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)

    def run_block(self, numbers: Sequence[int]) -> list[float]:
        """Trains on some batches, timed; returns the losses."""
        wall, cpu = time.perf_counter(), time.process_time()
        losses = [self.step(number) for number in numbers]
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)
        return losses


def our_side(batches: Sequence[Batch], config: T5Config, seed: int) -> Side:
    """The step that `sbs_jax.programs.train.train` jits, on one device."""
    student = Student(config, make_mesh(devices=jax.devices()[:1]))
    optimizer = optimizers.adamw(LEARNING_RATE)
    step = placement.jit_train_step(
        student,
        make_train_step(
            student.hidden,
            optimizer,
            Loss(rationale_weight=(1 - ALPHA) / ALPHA),
            head=student.head,
        ),
        placement.abstract_state(student, optimizer, seed),
    )
    state = placement.create_state(student, student.init_params(seed), optimizer, seed)

    def train(number: int) -> float:
        nonlocal state
        state, metrics = step(state, jax.device_put(dict(batches[number])))
        return float(metrics["loss"])

    sides = [(batch["encoder_segment_ids"], batch["decoder_segment_ids"]) for batch in batches]
    real = sum(np.count_nonzero(array) for pair in sides for array in pair)
    return Side("sbs_jax", train, real / sum(array.size for pair in sides for array in pair))


def peer_side(batches: Sequence[Batch], config: T5Config, seed: int, attention: str) -> Side:
    """The published method, on the examples that our packed `batches` hold."""
    torch.manual_seed(seed)
    model = peer_model(config, attention).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    padded = [{part: pad_part(batch, part) for part in (LABEL, RATIONALE)} for batch in batches]

    def train(number: int) -> float:
        label = model(**padded[number][LABEL]).loss
        rationale = model(**padded[number][RATIONALE]).loss
        loss = ALPHA * label + (1 - ALPHA) * rationale
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach()) / ALPHA

    parts = [part for batch in padded for part in batch.values()]
    real = sum(int(part["attention_mask"].sum() + (part["labels"] >= 0).sum()) for part in parts)
    size = sum(part["input_ids"].numel() + part["labels"].numel() for part in parts)
    return Side("published, PyTorch", train, real / size)


def make_batches(
    dataset: str, release_dir: str, row_lengths: Mapping[str, int], count: int, seed: int
) -> tuple[list[Batch], float]:
    """Returns packed batches of 16 whole examples, and the seconds that packing one took."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = settings.DataSettings(
            data_dir=release_dir,
            model_dir=folder,
            vocabulary_size=CPU_SMALL.vocab_size,
            keep_blank_rationales=True,  # as the published code: every example has two records
        )
        with settings.override(chosen):
            records = pipeline.load_records(resolve_task(f"{dataset}_sbs"), "train", row_lengths)
    print(f"{dataset}: {records.counts}")
    batches = pipeline.TrainBatches(
        records, pipeline.Batching(row_lengths, examples_per_batch=EXAMPLES_PER_STEP), seed=seed
    )
    start = time.perf_counter()
    made = [next(batches) for _ in range(count)]
    return made, (time.perf_counter() - start) / count


def compare(
    dataset: str, arguments: argparse.Namespace, row_lengths: Mapping[str, int]
) -> dict[str, Any]:
    """Times both sides by turns on one data set."""
    count = arguments.blocks * arguments.steps
    batches, packing = make_batches(
        dataset, arguments.release_dir, row_lengths, count, arguments.seed
    )
    config = dataclasses.replace(CPU_SMALL, dropout_rate=arguments.dropout)
    ours = our_side(batches, config, arguments.seed)
    peer = peer_side(batches, config, arguments.seed, arguments.peer_attention)

    # Our batches have few numbers of rows, and each is compiled once.
    first_of_shape = {len(batch["encoder_segment_ids"]): i for i, batch in enumerate(batches)}
    for number in first_of_shape.values():
        ours.step(number)
    for number in range(arguments.steps):
        peer.step(number)
    for block in range(arguments.blocks):
        numbers = range(block * arguments.steps, (block + 1) * arguments.steps)
        order = (ours, peer) if block % 2 else (peer, ours)
        losses = {side.name: side.run_block(numbers) for side in order}
    examples = EXAMPLES_PER_STEP * arguments.steps
    return {
        "dataset": dataset,
        "row_lengths": dict(row_lengths),
        "shapes": sorted(first_of_shape),
        "steps": count,
        "packing_seconds_per_step": packing,
        "sides": {
            side.name: {
                "examples_per_second": examples / statistics.median(side.wall),
                "examples_per_cpu_second": examples / statistics.median(side.cpu),
                "cpu_seconds_per_step": statistics.median(side.cpu) / arguments.steps,
                "fill": side.fill,
                "last_loss": losses[side.name][-1],
            }
            for side in (ours, peer)
        },
        # Of neighbouring blocks, so that what else the machine does falls on both.
        "ratio_examples_per_second": statistics.median(
            theirs / mine for mine, theirs in zip(ours.wall, peer.wall, strict=True)
        ),
        "ratio_cpu_seconds": statistics.median(
            mine / theirs for mine, theirs in zip(ours.cpu, peer.cpu, strict=True)
        ),
    }


def show(results: Sequence[Mapping[str, Any]], console: rich.console.Console) -> None:
    """Prints the results as a table."""
    table = rich.table.Table(
        "data set", "program", "examples/s", "CPU s/step", "batch fill", "loss",
        title="cpu_small, 16 examples a step, one thread each", box=rich.box.SIMPLE,
    )  # fmt: skip
    for result in results:
        for name, side in result["sides"].items():
            table.add_row(
                result["dataset"],
                name,
                f"{side['examples_per_second']:.1f}",
                f"{side['cpu_seconds_per_step']:.3f}",
                f"{side['fill']:.0%}",
                f"{side['last_loss']:.2f}",
            )
    console.print(table)
    for result in results:
        console.print(
            f"{result['dataset']}: {result['ratio_examples_per_second']:.2f} × the peer's "
            f"examples/s, {result['ratio_cpu_seconds']:.2f} × its CPU seconds; rows a batch "
            f"{result['shapes']}; packing takes "
            f"{result['packing_seconds_per_step'] * 1e3:.1f} ms a step, beside the step"
        )


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--release_dir", required=True, help="the authors' released data: svamp/, cqa/")
    add("--datasets", nargs="+", default=["svamp", "cqa"], choices=sorted(ROW_LENGTHS))
    add("--blocks", type=int, default=6, help="timed blocks of each side")
    add("--steps", type=int, default=5, help="steps in a block")
    add("--dropout", type=float, default=0.1, help="of both sides")
    add("--seed", type=int, default=0)
    add("--peer_attention", default="sdpa", choices=["sdpa", "eager"])
    add("--row_lengths", nargs=2, type=int, metavar=("INPUTS", "TARGETS"), help="of packed rows")
    add("--json", type=Path, help="also write the results here")
    return parser.parse_args(argv)


def main() -> int:
    """Runs the benchmark; returns the exit code."""
    arguments = parse_arguments()
    keep_freed_memory()  # as every main of ours; PyTorch's memory is kept, too
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    try:
        results = []
        for dataset in arguments.datasets:
            lengths = ROW_LENGTHS[dataset]
            if arguments.row_lengths:
                lengths = dict(zip(("inputs", "targets"), arguments.row_lengths, strict=True))
            results.append(compare(dataset, arguments, lengths))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show(results, rich.console.Console(highlight=False, soft_wrap=True))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
