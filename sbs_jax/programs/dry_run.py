"""What a run would do, as text: model size, mesh, memory of a device, the first batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from sbs_jax.parts import PART_NAMES
from sbs_jax.student import Student
from sbs_jax.training.state import TrainState

ROWS_SHOWN = 2


def show(
    student: Student,
    abstract_state: TrainState,
    step_fn: Callable[..., Any],
    batch: Mapping[str, np.ndarray],
    decode: Callable[[list[int]], str],
    console: Console | None = None,
) -> None:
    """Prints a run's plan; compiles the step to learn its memory, but allocates nothing of it.

    Args:
      student: the network on its mesh.
      abstract_state: of the run.
      step_fn: the jitted step.
      batch: the first batch, numpy.
      decode: token ids to text.
      console: standard output by default.
    """
    console = console or Console(highlight=False, markup=False)

    def line(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    line(f"model: {student.num_params:,} parameters")
    line(f"mesh: {describe_mesh(student.mesh)}")
    for text in memory_lines(student, abstract_state, step_fn, batch):
        line(f"memory of a device: {text}")
    for text in batch_lines(batch, decode):
        line(text)
    line("dry run: nothing was trained or written.")


def describe_mesh(mesh: Mesh) -> str:
    """`8 CPU devices (data 4 × model 2)`."""
    devices = mesh.devices.size
    kind = mesh.devices.flat[0].device_kind.upper()
    shape = " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return f"{devices} {kind} device{'s' if devices > 1 else ''} ({shape})"


def memory_lines(
    student: Student,
    abstract_state: TrainState,
    step_fn: Callable[..., Any],
    batch: Mapping[str, np.ndarray],
) -> list[str]:
    """Bytes on one device: parameters, optimizer, and what XLA says that the step needs besides."""
    abstract_batch = {
        key: jax.ShapeDtypeStruct(value.shape, value.dtype) for key, value in batch.items()
    }
    params = _device_bytes(abstract_state.params)
    optimizer = _device_bytes(abstract_state.opt_state)
    lines = [f"parameters {_bytes(params)}, optimizer {_bytes(optimizer)}"]
    analysis = step_fn.lower(abstract_state, abstract_batch).compile().memory_analysis()
    if analysis is not None:  # Not every backend tells.
        needed = _bytes(analysis.temp_size_in_bytes)
        lines.append(f"activations and gradients of a step {needed} (XLA's plan)")
    return lines


def batch_lines(batch: Mapping[str, np.ndarray], decode: Callable[[list[int]], str]) -> list[str]:
    """The first rows of a batch as text, a sequence a line."""
    rows, inputs = batch["encoder_input_tokens"].shape
    targets = batch["decoder_target_tokens"].shape[1]
    filled = np.count_nonzero(batch["encoder_segment_ids"]) / (rows * inputs)
    target_filled = np.count_nonzero(batch["decoder_segment_ids"]) / (rows * targets)
    lines = [
        f"first batch: {rows} rows of {inputs} input and {targets} target tokens, "
        f"{filled:.0%} and {target_filled:.0%} full"
    ]
    for row in range(min(rows, ROWS_SHOWN)):
        segments = int(batch["decoder_segment_ids"][row].max())
        lines.append(f"row {row}: {segments} sequences")
        for segment in range(1, segments + 1):
            target = batch["decoder_segment_ids"][row] == segment
            sources = batch.get("decoder_source_ids", batch["decoder_segment_ids"])[row]
            source = batch["encoder_segment_ids"][row] == sources[target][0]
            part = PART_NAMES[int(batch["decoder_target_parts"][row][target][-1])]
            text = decode(batch["encoder_input_tokens"][row][source].tolist())
            answer = decode(batch["decoder_target_tokens"][row][target].tolist())
            lines.append(f"  {part}: {text!r} → {answer!r}")
    return lines


def _device_bytes(tree: Any) -> int:
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _bytes(count: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
