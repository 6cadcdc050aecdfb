"""Training speed: sbs_jax's step against the published method in PyTorch, on real examples.

    python benchmarks/train_step.py --release_dir=PATH [--examples=64] [--prefix_side=decoder]
        [--batches windows padding_free] [--datasets svamp cqa] [--json=FILE]

The peer is the published method: Hugging Face's `T5ForConditionalGeneration`, two padded forward
passes (label and rationale), α-weighted loss with α = 0.5, gradients clipped to norm 1, AdamW. Ours
is the jitted step of `python -m sbs_jax.train`, on packed batches. Both train the same network
(`cpu_small`) from random weights with the same dropout on the same number of examples a step (an
example is its label and its rationale), in float32, with one thread each on one core, by turns in
this one process. Compilation and making the batches are not timed; the cost of packing is printed.

Our rows have the lengths of TASK_FEATURE_LENGTHS = 'auto', unless --row_lengths gives others. With
`--batches exact` (EXAMPLES_PER_BATCH) our steps have the very examples of the peer's; with
`windows` (BATCH_SIZE) as many rows, filled better, hold other numbers of examples from
step to step, and the ratio is that of examples a second. `padding_free` (PADDING_FREE)
has as many examples as these rows would hold if they were full.
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
from sbs_jax.data import auto_lengths, pipeline, settings
from sbs_jax.data.batching import AUTO
from sbs_jax.data.resolving import resolve_task
from sbs_jax.errors import UserError
from sbs_jax.host_memory import keep_freed_memory
from sbs_jax.models.config import T5Config
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.parts import LABEL, RATIONALE
from sbs_jax.student import Student
from sbs_jax.training import optimizers, placement
from sbs_jax.training.step import Loss, make_train_step

LEARNING_RATE = 5e-5
ALPHA = 0.5
DATA_SETS = ("svamp", "cqa")

Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(eq=False)
class Side:
    """One of the programs that are timed.

    Attributes:
      name: for the table.
      step: trains on the batch of that number; returns the loss.
      examples: in the batch of each number.
      fill: share of the positions of its batches that is not padding.
      wall: seconds an example of each timed block.
      cpu: processor seconds an example of each timed block, of all threads.
    """

    name: str
    step: Callable[[int], float]
    examples: Sequence[int]
    fill: float
    wall: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)

    def run_block(self, numbers: Sequence[int]) -> list[float]:
        """Trains on some batches, timed; returns the losses."""
        wall, cpu = time.perf_counter(), time.process_time()
        losses = [self.step(number) for number in numbers]
        examples = sum(self.examples[number] for number in numbers)
        self.wall.append((time.perf_counter() - wall) / examples)
        self.cpu.append((time.process_time() - cpu) / examples)
        return losses


@dataclasses.dataclass
class Made:
    """Batches of one side.

    Attributes:
      batches: packed.
      examples: in each of them.
      lengths: of their rows.
      seconds: that packing one took.
    """

    batches: list[Batch]
    examples: list[int]
    lengths: Mapping[str, int]
    seconds: float

    @property
    def rows(self) -> list[int]:
        """The number of rows of each batch."""
        return [len(batch["encoder_segment_ids"]) for batch in self.batches]

    @property
    def shapes(self) -> list[str]:
        """The shapes of each batch: rows or groups, and tokens of inputs and targets."""
        return [
            " × ".join(map(str, (*batch["encoder_segment_ids"].shape, targets)))
            for batch in self.batches
            for targets in batch["decoder_segment_ids"].shape[1:]
        ]


def our_side(made: Made, config: T5Config, seed: int) -> Side:
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
    batches = made.batches

    def train(number: int) -> float:
        nonlocal state
        state, metrics = step(state, jax.device_put(dict(batches[number])))
        return float(metrics["loss"])

    sides = [(batch["encoder_segment_ids"], batch["decoder_segment_ids"]) for batch in batches]
    real = sum(np.count_nonzero(array) for pair in sides for array in pair)
    size = sum(array.size for pair in sides for array in pair)
    return Side("sbs_jax", train, made.examples, real / size)


def peer_side(made: Made, config: T5Config, seed: int, attention: str) -> Side:
    """The published method, on the examples that packed batches with encoder's prefixes hold."""
    torch.manual_seed(seed)
    model = peer_model(config, attention).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    padded = [
        {part: pad_part(batch, part) for part in (LABEL, RATIONALE)} for batch in made.batches
    ]

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
    return Side("published, PyTorch", train, made.examples, real / size)


def make_batches(
    dataset: str,
    arguments: argparse.Namespace,
    count: int,
    *,
    prefix_side: str,
    rows: int | None = None,
    lengths: Mapping[str, int] | None = None,
    padding_free: bool = False,
) -> Made:
    """Returns packed batches: of so many rows if `rows` says so, else of whole examples."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = settings.DataSettings(
            data_dir=arguments.release_dir,
            model_dir=folder,
            vocabulary_size=CPU_SMALL.vocab_size,
            prefix_side=prefix_side,
            keep_blank_rationales=True,  # as the published code: every example has two records
        )
        with settings.override(chosen):
            task = resolve_task(f"{dataset}_sbs")
            batching = pipeline.Batching(AUTO, examples_per_batch=arguments.examples)
            if lengths is None:
                whole = pipeline.load_whole_records(task, "train")
                lengths = auto_lengths.propose(whole, batching).lengths
            records = pipeline.load_records(task, "train", lengths)
    if rows is None:
        batching = dataclasses.replace(batching, feature_lengths=lengths)
    else:
        batching = pipeline.Batching(lengths, batch_size=rows)
    batching = dataclasses.replace(batching, padding_free=padding_free)
    batches = pipeline.TrainBatches(records, batching, seed=arguments.seed)
    made: list[Batch] = []
    examples = []
    start = time.perf_counter()
    for _ in range(count):
        before = batches.fill.records
        made.append(next(batches))
        examples.append((batches.fill.records - before) // 2)
    return Made(made, examples, lengths, (time.perf_counter() - start) / count)


def compare(dataset: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Times all sides by turns on one data set; returns a result for each kind of our batches."""
    count = arguments.blocks * arguments.steps
    given = arguments.row_lengths
    lengths = dict(zip(("inputs", "targets"), given, strict=True)) if given else None
    side = arguments.prefix_side
    exact = make_batches(dataset, arguments, count, prefix_side=side, lengths=lengths)
    theirs = (
        exact
        if side == "encoder"
        else make_batches(dataset, arguments, count, prefix_side="encoder")
    )
    config = dataclasses.replace(CPU_SMALL, dropout_rate=arguments.dropout)
    products = dataclasses.replace(config, product_dtype=arguments.product_dtype)
    peer = peer_side(theirs, config, arguments.seed, arguments.peer_attention)
    made, ours = {}, {}
    for batches in arguments.batches:
        made[batches] = (
            exact
            if batches == "exact"
            else make_batches(
                dataset,
                arguments,
                count,
                prefix_side=side,
                rows=round(statistics.mean(exact.rows)),
                lengths=exact.lengths,
                padding_free=batches == "padding_free",
            )
        )
        ours[batches] = our_side(made[batches], products, arguments.seed)

    # Our batches have few shapes, and each is compiled once.
    shapes = {}
    for batches, one in ours.items():
        shapes[batches] = {shape: number for number, shape in enumerate(made[batches].shapes)}
        for number in shapes[batches].values():
            one.step(number)
    for number in range(arguments.steps):
        peer.step(number)
    for block in range(arguments.blocks):
        numbers = range(block * arguments.steps, (block + 1) * arguments.steps)
        order = [peer, *ours.values()]
        losses = {each: each.run_block(numbers) for each in order[:: -1 if block % 2 else 1]}
    return [
        {
            "dataset": dataset,
            "prefix_side": side,
            "batches": batches,
            "product_dtype": arguments.product_dtype,
            "row_lengths": dict(exact.lengths),
            "shapes": sorted(shapes[batches]),
            "steps": count,
            "packing_seconds_per_step": made[batches].seconds,
            "sides": {
                each.name: {
                    "examples_per_step": statistics.mean(each.examples),
                    "examples_per_second": 1 / statistics.median(each.wall),
                    "examples_per_cpu_second": 1 / statistics.median(each.cpu),
                    "fill": each.fill,
                    "last_loss": losses[each][-1],
                }
                for each in (one, peer)
            },
            # Of neighbouring blocks, so that what else the machine does falls on both.
            "ratio_examples_per_second": statistics.median(
                theirs / mine for mine, theirs in zip(one.wall, peer.wall, strict=True)
            ),
            "ratio_examples_per_cpu_second": statistics.median(
                theirs / mine for mine, theirs in zip(one.cpu, peer.cpu, strict=True)
            ),
        }
        for batches, one in ours.items()
    ]


def show(results: Sequence[Mapping[str, Any]], console: rich.console.Console) -> None:
    """Prints the results as a table."""
    table = rich.table.Table(
        "data set", "program", "examples a step", "examples/s", "examples/CPU s", "fill", "loss",
        title="cpu_small, one thread each", box=rich.box.SIMPLE,
    )  # fmt: skip
    for result in results:
        for name, side in result["sides"].items():
            table.add_row(
                result["dataset"],
                name,
                f"{side['examples_per_step']:.1f}",
                f"{side['examples_per_second']:.1f}",
                f"{side['examples_per_cpu_second']:.1f}",
                f"{side['fill']:.0%}",
                f"{side['last_loss']:.2f}",
            )
    console.print(table)
    for result in results:
        lengths = result["row_lengths"]
        console.print(
            f"{result['dataset']}, prefixes on the {result['prefix_side']}'s side, "
            f"{result['batches']} batches, products in {result['product_dtype']}: "
            f"{result['ratio_examples_per_second']:.2f} × the peer's examples/s, "
            f"{result['ratio_examples_per_cpu_second']:.2f} × its examples/CPU s; rows of "
            f"{lengths['inputs']} × {lengths['targets']}, {result['shapes']} a batch; packing "
            f"takes {result['packing_seconds_per_step'] * 1e3:.1f} ms a step, beside the step"
        )


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--release_dir", required=True, help="the authors' released data: svamp/, cqa/")
    add("--datasets", nargs="+", default=list(DATA_SETS), choices=DATA_SETS)
    add("--examples", type=int, default=16, help="a step; the published batch has 64")
    kinds = ["exact", "windows", "padding_free"]
    add("--batches", nargs="+", default=["exact"], choices=kinds, help="one after the other")
    add("--prefix_side", default="encoder", choices=["encoder", "decoder"])
    add("--blocks", type=int, default=6, help="timed blocks of each side")
    add("--steps", type=int, default=5, help="steps in a block")
    add("--product_dtype", default="float32", choices=["float32", "bfloat16"], help="of ours alone")
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
        results = [
            result for dataset in arguments.datasets for result in compare(dataset, arguments)
        ]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show(results, rich.console.Console(highlight=False, soft_wrap=True))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
