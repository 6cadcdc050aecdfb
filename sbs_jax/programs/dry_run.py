"""What a run would do, as text: model size, mesh, memory of a device, and the first batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from sbs_jax.data.vocabulary import decode_tokens
from sbs_jax.parts import NAMES, part_words
from sbs_jax.programs.assembly import Assembly
from sbs_jax.row_tables import row_shapes

ROWS_SHOWN = 2
SEQUENCES_SHOWN = 16  # of each


def show(run: Assembly, batch: Mapping[str, np.ndarray], console: Console | None = None) -> None:
    """Prints a run's plan; compiles the step to learn its memory, but allocates nothing of it.

    Args:
      run: the run, put together.
      batch: the first batch of the run, numpy.
      console: standard output by default.
    """
    console = console or Console(highlight=False, markup=False)

    def line(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    line(f"model: {run.student.num_params:,} parameters")
    line(f"mesh: {describe_mesh(run.student.mesh)}")
    line(f"{run.task.name}: {run.records.counts}")
    if run.config.evaluation.splits:
        line(f"evaluated: {run.evaluator().size_text}")
    for text in memory_lines(run, batch):
        line(f"memory of a device: {text}")
    decode = functools.partial(decode_tokens, run.task.vocabulary)
    for text in batch_lines(batch, decode, run.task.method.names):
        line(text)
    line("dry run: nothing was trained or written.")


def describe_mesh(mesh: Mesh) -> str:
    """`8 CPU devices (data 4 × model 2)`."""
    devices = mesh.devices.size
    kind = mesh.devices.flat[0].device_kind.upper()
    shape = " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return f"{devices} {kind} device{'s' if devices > 1 else ''} ({shape})"


def memory_lines(run: Assembly, batch: Mapping[str, np.ndarray]) -> list[str]:
    """Bytes on one device: parameters, optimizer, and XLA's plan for the rest of the step."""
    # Training imports this module, but needs none of what reads compiled programs.
    from sbs_jax.planning.compiling import compile_program
    from sbs_jax.planning.report import in_bytes, verdict

    abstract_batch = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in batch.items()
    }
    state = run.abstract_state
    step: Any = run.step_fn  # of `Student.jit`
    compiled = compile_program(
        "train step",
        lambda: step.lower(state, abstract_batch),
        mesh=run.student.mesh,
        params=state.params,
        opt_state=state.opt_state,
    )
    parameters, optimizer = in_bytes(compiled.parameter_bytes), in_bytes(compiled.optimizer_bytes)
    lines = [f"parameters {parameters}, optimizer {optimizer}"]
    if compiled.memory is not None:  # Not every backend has one.
        needed = in_bytes(compiled.memory.temporaries)
        lines.append(f"activations and gradients of a step {needed} (XLA's plan)")
    elif compiled.exhausted is not None:
        lines.append(verdict(compiled))
    return lines


def batch_lines(
    batch: Mapping[str, np.ndarray],
    decode: Callable[[list[int]], str],
    names: Sequence[str] = NAMES,
) -> list[str]:
    """The first rows of a batch as text, a sequence a line; `names` are those of the parts."""
    rows, inputs = batch["encoder_input_tokens"].shape
    targets = batch["decoder_target_tokens"].shape[1]
    filled = np.count_nonzero(batch["encoder_segment_ids"]) / (rows * inputs)
    target_filled = np.count_nonzero(batch["decoder_segment_ids"]) / (rows * targets)
    name = "group" if row_shapes(batch) else "row"
    lines = [
        f"first batch: {rows} {name}{'s' if rows != 1 else ''} of {inputs} input and {targets} "
        f"target tokens, {filled:.0%} and {target_filled:.0%} full"
    ]
    for row in range(min(rows, ROWS_SHOWN)):
        segments = int(batch["decoder_segment_ids"][row].max())
        lines.append(f"{name} {row}: {segments} sequences")
        for segment in range(1, min(segments, SEQUENCES_SHOWN) + 1):
            target = batch["decoder_segment_ids"][row] == segment
            sources = batch.get("decoder_source_ids", batch["decoder_segment_ids"])[row]
            source = batch["encoder_segment_ids"][row] == sources[target][0]
            part = part_words(batch["decoder_target_parts"][row][target], names)
            text = decode(batch["encoder_input_tokens"][row][source].tolist())
            answer = decode(batch["decoder_target_tokens"][row][target].tolist())
            lines.append(f"  {part}: {text!r} → {answer!r}")
    return lines
