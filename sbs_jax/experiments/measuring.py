"""How large batches are where that depends on the examples: reads the data, trains nothing."""

from __future__ import annotations

import dataclasses

import gin

from sbs_jax.configuration import config as config_lib
from sbs_jax.data import pipeline, registration
from sbs_jax.data import settings as data_settings
from sbs_jax.experiments import single

BATCHES = 8  # that are made


def rows(config: config_lib.GinConfig) -> float:
    """Mean number of rows of a run's first batches.

    Args:
      config: of the run, with EXAMPLES_PER_BATCH; it is put in force in gin.

    Raises:
      UserError: the data cannot be read.
    """
    config.check()
    config.apply()
    arguments = gin.get_bindings("programs.train.train")
    task = single.task_name(arguments)
    size = arguments["model_config"].vocab_size
    current = data_settings.current()
    # A vocabulary that has to be trained goes to the user's cache, not to a folder of the sweep.
    settings = dataclasses.replace(
        current, vocabulary_size=min(current.vocabulary_size, size), model_dir=None
    )
    with data_settings.override(settings):
        registration.import_tasks(arguments.get("mixture_or_task_module"))
        batches = pipeline.TrainBatches(
            pipeline.load_records(task, "train", arguments["feature_lengths"]),
            batch_size=arguments["batch_size"],
            feature_lengths=arguments["feature_lengths"],
            seed=0,
            pack=arguments.get("pack", True),
            examples_per_batch=arguments["examples_per_batch"],
        )
        counts = [len(next(batches)["decoder_target_tokens"]) for _ in range(BATCHES)]
    return sum(counts) / len(counts)
