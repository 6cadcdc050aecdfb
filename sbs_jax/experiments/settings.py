"""How a sweep is run; gin/runs/sweep.gin binds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sbs_jax.configuration import config as config_lib
from sbs_jax.configuration import value_types
from sbs_jax.configuration.statements import Macro
from sbs_jax.errors import UserError, require_at_least

SELECTOR = "sbs_jax.experiments.settings.SweepSettings"


@dataclasses.dataclass(frozen=True)
class SweepSettings:
    """How a sweep is run.

    Attributes:
      axes: see `grid.parse_axes`.
      engine: `local` or `slurm`.
      parallel_runs: how many processes train at a time.
      devices_per_run: accelerators that a process is given (virtual CPU devices where there is
        none); None shares out what there is.
      cpus_per_run: CPUs that a process may use; None shares out what there is.
      retries: how often a run that failed is started again.
      vectorize: the most runs that are trained in one program, see `vectorized`; 1 trains each in a
        process of its own.
      halving_factor: of the runs that differ in more than the seed, one in so many goes on at each
        rung; None trains all of them to the end.
      halving_first: the share of TRAIN_STEPS after which the first rung judges, in (0, 1).
      slurm: what `sbatch` is asked for, see `slurm`.
    """

    axes: Mapping[str, Any]
    engine: str = "local"
    parallel_runs: int = 1
    devices_per_run: int | None = None
    cpus_per_run: int | None = None
    retries: int = 1
    vectorize: int = 1
    halving_factor: int | None = None
    halving_first: float = 0.25
    slurm: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        require_at_least(
            1,
            PARALLEL_RUNS=self.parallel_runs,
            DEVICES_PER_RUN=self.devices_per_run,
            CPUS_PER_RUN=self.cpus_per_run,
            VECTORIZE=self.vectorize,
        )
        if self.retries < 0:
            raise UserError(f"RETRIES = {self.retries} must not be negative.")
        require_at_least(2, HALVING_FACTOR=self.halving_factor)
        if not 0.0 < self.halving_first < 1.0:
            raise UserError(f"HALVING_FIRST = {self.halving_first} must lie between 0 and 1.")


def read(config: config_lib.GinConfig) -> SweepSettings:
    """The settings in a parsed configuration; nothing that its files name is imported.

    Raises:
      UserError: a value has the wrong type or is out of its range.
    """
    known = value_types.annotations_of(SweepSettings)
    values: dict[str, Any] = {"axes": {}}
    for binding in config.bindings.values():
        if binding.full_name != SELECTOR:
            continue
        value, macro = config.resolve(binding.value)
        if isinstance(value, Macro):
            raise UserError(f"{binding.place} refers to {value!r}, which is not set.")
        if not value_types.fits(value, known[binding.parameter]):
            raise UserError(
                f"{(macro or binding).place} is {value!r}, but a sweep wants "
                f"{value_types.describe(known[binding.parameter])}."
            )
        values[binding.parameter] = value
    return SweepSettings(**values)


def own_macros(config: config_lib.GinConfig) -> set[str]:
    """Names of the macros that settings of the sweep alone refer to."""
    return {
        binding.value.name
        for binding in config.bindings.values()
        if binding.full_name == SELECTOR and isinstance(binding.value, Macro)
    }
