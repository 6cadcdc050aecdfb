"""CPU seconds a token of a training step of SmolLM2-135M: `python benchmarks/decoder_step.py`.

The weights are the real ones (extra `smollm2`), dequantised to float32; AdamW; rows of 64 input and
64 target tokens, as `[x | p_y y | p_r r]`. One thread, so that CPU seconds are the cost. Printed is
the cost of a token of a row, padding included, and of the step, the median of a few.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import time

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_cpu_multi_thread_eigen=false --xla_force_host_platform_device_count=1"
)

import jax
import numpy as np

from sbs_jax.checkpoints import loading
from sbs_jax.host_memory import keep_freed_memory
from sbs_jax.parts import LABEL, RATIONALE
from sbs_jax.programs.teach import smollm2_path
from sbs_jax.student import Student
from sbs_jax.training import optimizers, placement
from sbs_jax.training.step import make_train_step


def batch_of(rows: int, inputs: int, targets: int, vocab_size: int) -> dict[str, np.ndarray]:
    """Full rows of one example each: x, then a short label and a long rationale."""
    rng = np.random.default_rng(0)
    label = targets // 8
    x = rng.integers(17, vocab_size, (rows, inputs), np.int32)
    goal = rng.integers(17, vocab_size, (rows, targets), np.int32)
    given = np.roll(goal, 1, axis=1)
    given[:, [0, label]] = 0
    second = np.arange(targets) >= label
    return {
        "encoder_input_tokens": x,
        "encoder_segment_ids": np.ones_like(x),
        "decoder_input_tokens": given,
        "decoder_target_tokens": goal,
        "decoder_target_parts": np.broadcast_to(
            np.where(second, RATIONALE, LABEL), goal.shape
        ).astype(np.int32),
        "decoder_segment_ids": np.broadcast_to(1 + second, goal.shape).astype(np.int32),
        "decoder_source_ids": np.ones_like(goal),
    }


def main() -> None:
    """Measures, and prints one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--inputs", type=int, default=64)
    parser.add_argument("--targets", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--product_dtype", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()

    keep_freed_memory()  # as every main of ours
    from sbs_jax.partitioning.mesh import make_mesh

    source = loading.identify(smollm2_path())
    config = dataclasses.replace(source.config, product_dtype=args.product_dtype)
    student = Student(config, make_mesh(devices=jax.devices()[:1]))
    optimizer = optimizers.adamw(1e-5)
    step = placement.jit_train_step(
        student,
        make_train_step(student.apply, optimizer),
        placement.abstract_state(student, optimizer, 0),
    )
    params = loading.load_params(source, student.placed_params)
    state = placement.create_state(student, params, optimizer, 0)
    batch = batch_of(args.rows, args.inputs, args.targets, source.config.vocab_size)
    seconds, losses = [], []
    for _ in range(args.steps + 1):
        before = time.process_time()
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        seconds.append(time.process_time() - before)
    tokens = args.rows * (args.inputs + args.targets)
    median = statistics.median(seconds[1:])
    print(
        f"{student.num_params:,} parameters, {args.rows} rows of {args.inputs} + {args.targets} "
        f"tokens, products of {args.product_dtype}: {median:.2f} CPU s a "
        f"step, {1000 * median / tokens:.2f} CPU ms a token; "
        f"compiling and the first step {seconds[0]:.0f} CPU s; losses {losses[0]:.3f} to "
        f"{losses[-1]:.3f}"
    )


if __name__ == "__main__":
    main()
