"""How many rows batches have where that depends on the examples; reads the data, trains nothing."""

from __future__ import annotations

import dataclasses

import gin

from sbs_jax.configuration import config as config_lib
from sbs_jax.experiments import runs as runs_lib
from sbs_jax.programs.assembly import assemble

BATCHES = 8  # that are made


def rows(config: config_lib.GinConfig) -> float:
    """Mean number of rows of a run's first batches.

    Args:
      config: the configuration of the run, with EXAMPLES_PER_BATCH; it is put in force in gin.

    Raises:
      UserError: the data cannot be read.
    """
    config.check()
    config.apply()
    # One seed for all runs, so that an estimate does not depend on SEED.
    run = dataclasses.replace(gin.get_bindings(runs_lib.TRAIN)["config"], seed=0)
    assembly = assemble(run, writes=False)
    batches = assembly.batches(row_multiple=1)
    if batches.sizes is not None:
        # As many rows as would have room for these tokens.
        lengths = assembly.batching.lengths
        sizes = batches.sizes
        return max(sizes.inputs / lengths["inputs"], sizes.targets / lengths["targets"])
    counts = [len(next(batches)["decoder_target_tokens"]) for _ in range(BATCHES)]
    return sum(counts) / len(counts)
