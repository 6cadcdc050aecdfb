"""What a run costs, from its configuration alone: parameters, tokens and floating-point operations.

Products of matrices are counted, two operations for each multiplication, three times as many for a
step as for a forward pass; what is computed again under `remat` is not.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from sbs_jax.configuration import config as config_lib
from sbs_jax.configuration.statements import Macro, Reference
from sbs_jax.experiments import runs as runs_lib
from sbs_jax.models.configs import KINDS, ModelConfig
from sbs_jax.models.costs import num_params, step_flops

_CONFIGS = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in KINDS.values()}


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a run.

    Attributes:
      parameters: the parameters of the student.
      steps: the steps of training.
      tokens: positions of all batches, inputs and targets, padding included; None where the
        number of rows is not known.
      flops: the FLOPs of training; None where it is not known.
    """

    parameters: int | None
    steps: int
    tokens: int | None
    flops: float | None


def has_fixed_rows(config: config_lib.GinConfig) -> bool:
    """Whether the configuration alone tells how many rows a batch has."""
    return runs_lib.macro(config, "EXAMPLES_PER_BATCH") is None


def estimate(config: config_lib.GinConfig, rows: float | None = None) -> Cost:
    """The cost of a run that a configuration describes; nothing is imported or read for it.

    Args:
      config: the configuration of the run, parsed.
      rows: the rows of a batch, where the configuration does not tell.
    """
    steps = runs_lib.macro(config, "TRAIN_STEPS")
    student = read_student(config)
    lengths = runs_lib.macro(config, "TASK_FEATURE_LENGTHS")
    if has_fixed_rows(config):
        rows = runs_lib.macro(config, "BATCH_SIZE")
    parameters = None if student is None else num_params(student)
    if rows is None or not isinstance(lengths, dict):
        return Cost(parameters, steps, None, None)
    inputs, targets = lengths["inputs"], lengths["targets"]
    flops = None if student is None else steps * step_flops(student, rows, inputs, targets)
    return Cost(parameters, steps, round(steps * rows * (inputs + targets)), flops)


def read_student(config: config_lib.GinConfig) -> ModelConfig | None:
    """The student's dimensions; None where a binding is no plain value."""
    values: dict[str, Any] = {}
    kind: type[ModelConfig] = KINDS["t5"]
    for binding in config.bindings.values():
        if binding.full_name not in _CONFIGS:
            continue
        kind = _CONFIGS[binding.full_name]
        if binding.parameter not in {field.name for field in dataclasses.fields(kind)}:
            continue
        value, _ = config.resolve(binding.value)
        if isinstance(value, Macro | Reference):
            return None
        values[binding.parameter] = tuple(value) if isinstance(value, list) else value
    return kind(**values) if "vocab_size" in values else None


def in_words(count: float | None) -> str:
    """A large number, short: `1.3e+15` as `1.3 P`, `512000` as `512 k`."""
    if count is None:
        return "–"
    for unit in ("", " k", " M", " G", " T", " P", " E"):
        if abs(count) < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g} Z"
