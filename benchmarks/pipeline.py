"""Measures the data room alone: tokenizing at start-up, and batches a second against steps.

    python benchmarks/pipeline.py [--examples 10000] [--batch_size 64] [--steps 40]

Needs no data: the examples are generated word problems. The last line is JSON. A training step that
takes no time would get `batches_per_second`; the quickstart's own step, on one device, takes
`quickstart_steps_per_second` of its `quickstart_batches_per_second`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time

import gin
import jax

import sbs_jax.tasks.arithmetic  # noqa: F401  (registers the data set)
from sbs_jax.data import pipeline
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.cache_writer import cache_task
from sbs_jax.data.resolving import resolve_task
from sbs_jax.data.settings import DataSettings
from sbs_jax.models.config import T5Config
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.student import Student
from sbs_jax.training import optimizers, placement
from sbs_jax.training.step import make_train_step

LENGTHS = {"inputs": 256, "targets": 128}
QUICKSTART_LENGTHS = {"inputs": 96, "targets": 48}
QUICKSTART_EXAMPLES = 32  # of a batch
# gin/models/quickstart.gin, without dropout as there.
QUICKSTART = T5Config(
    vocab_size=512,
    emb_dim=128,
    num_heads=4,
    num_encoder_layers=2,
    num_decoder_layers=1,
    head_dim=32,
    mlp_dim=256,
    mlp_activations=("gelu", "linear"),
    logits_via_embedding=False,
    dropout_rate=0.0,
)


def main() -> None:
    """Prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    flags = parser.parse_args()
    gin.bind_parameter("Difficulty.train_examples", flags.examples)
    with tempfile.TemporaryDirectory() as folder:
        settings = DataSettings(model_dir=folder, vocabulary_size=2048, cache_dir=folder)
        with settings_lib.override(settings):
            result, records = measure_start(flags)
        small = DataSettings(model_dir=f"{folder}/small", vocabulary_size=QUICKSTART.vocab_size)
        with settings_lib.override(small):
            quickstart = pipeline.load_records(
                resolve_task("arithmetic_sbs"), "train", QUICKSTART_LENGTHS
            )
    batches = pipeline.TrainBatches(
        records, pipeline.Batching(LENGTHS, batch_size=flags.batch_size), seed=0
    )
    result["batch_size"] = flags.batch_size
    result["batches_per_second"] = round(batches_per_second(batches), 1)
    print(f"fill: {batches.fill}")
    batches = pipeline.TrainBatches(
        quickstart,
        pipeline.Batching(
            QUICKSTART_LENGTHS,
            batch_size=QUICKSTART_EXAMPLES,
            examples_per_batch=QUICKSTART_EXAMPLES,
        ),
        seed=0,
    )
    result["quickstart_batches_per_second"] = round(batches_per_second(batches), 1)
    result["quickstart_steps_per_second"] = round(steps_per_second(batches, flags.steps), 1)
    print(json.dumps(result))


def measure_start(flags: argparse.Namespace) -> tuple[dict[str, float], pipeline.Records]:
    """Returns the seconds of vocabulary, tokenizing, writing and reading a cache; and records."""
    clock = [(time.perf_counter(), time.process_time())]

    def lap() -> tuple[float, float]:
        clock.append((time.perf_counter(), time.process_time()))
        return tuple(round(now - then, 2) for now, then in zip(*clock[:-3:-1], strict=True))

    _ = resolve_task("arithmetic_sbs").vocabulary
    vocabulary, _ = lap()
    records = pipeline.load_records(resolve_task("arithmetic_sbs"), "train", LENGTHS)
    tokenize, cpu = lap()
    cache_task(resolve_task("arithmetic_sbs"), splits=["train"])
    write, _ = lap()
    with settings_lib.override(dataclasses.replace(settings_lib.current(), use_cached_tasks=True)):
        pipeline.load_records(resolve_task("arithmetic_sbs"), "train", LENGTHS)
    read, read_cpu = lap()
    return {
        "examples": flags.examples,
        "records": len(records),
        "tokens": records.input_tokens.size + records.target_tokens.size,
        "vocabulary_seconds": vocabulary,
        "tokenize_seconds": tokenize,
        "tokenize_cpu_seconds": cpu,
        "write_cache_seconds": write,
        "read_cache_seconds": read,
        "read_cache_cpu_seconds": read_cpu,
    }, records


def batches_per_second(batches: pipeline.TrainBatches, seconds: float = 3.0) -> float:
    """Takes batches for that long, after a first one."""
    next(batches)
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        next(batches)
        count += 1
    return count / (time.perf_counter() - begin)


def steps_per_second(batches: pipeline.TrainBatches, steps: int) -> float:
    """Trains the quickstart's network on one device, batches made beforehand."""
    student = Student(QUICKSTART, make_mesh(devices=jax.devices()[:1]))
    optimizer = optimizers.adamw(1e-3)
    step = placement.jit_train_step(
        student,
        make_train_step(student.apply, optimizer),
        placement.abstract_state(student, optimizer, 0),
    )
    state = placement.create_state(student, student.init_params(0), optimizer, 0)
    made = [dict(next(batches)) for _ in range(steps + 5)]
    begin = 0.0
    for number, batch in enumerate(made):
        if number == 5:  # compiled, and warm
            begin = time.perf_counter()
        state, metrics = step(state, jax.device_put(batch))
        jax.block_until_ready(metrics["loss"])
    return steps / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
