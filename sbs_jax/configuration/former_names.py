"""Names that gin files of earlier versions use, and what they are called today.

A user's gin file, a saved `config.gin` or a flag may name a module, a function or a parameter by a
former name. `reader` translates it while it parses, before gin sees it, so that such a file means
what it meant when it was written. To keep an old name working, add one line:

* a module, function, class or parameter that moved or was renamed: a line in `MOVED`, from the old
  dotted name to the new one. The longest old name that matches a whole prefix counts, and the
  result is translated again, so the lines of earlier moves stay as they are.
* a parameter of a function that became a field of a dataclass which the function is given: a line
  in `MOVED` from `module.function.parameter` to `module.function.group.field`, where `group` is the
  function's parameter that takes the dataclass; and, once for each group, a line in `BUILT_BY` from
  `module.function.group` to the dataclass. An old file then binds the field, and also binds
  `function.group = @Dataclass()`, as the shipped gin file does.

For example, if `train(fsdp=…)` becomes `train(mesh=Mesh(fsdp=…))`:

    MOVED:    "sbs_jax.programs.train.train.fsdp": "sbs_jax.programs.train.train.mesh.fsdp"
    BUILT_BY: "sbs_jax.programs.train.train.mesh": "sbs_jax.partitioning.mesh.Mesh"
"""

from __future__ import annotations

import dataclasses

MOVED = {
    # The programs, since each command has one file with its name.
    "sbs_jax.trainer": "sbs_jax.programs.train",
    "sbs_jax.teaching": "sbs_jax.programs.teach",
    "sbs_jax.evaluation.evaluate": "sbs_jax.programs.eval",
    "sbs_jax.data.report": "sbs_jax.programs.inspect_task",
    "sbs_jax.data.cache_writer.write_cache": "sbs_jax.programs.cache.write_cache",
    "sbs_jax.checkpoints.exporting": "sbs_jax.programs.export",
    "sbs_jax.checkpoints.loading.model_config": "sbs_jax.checkpoints.networks.model_config",
    "sbs_jax.inference.batch": "sbs_jax.programs.infer",
    "sbs_jax.inference.interactive.interact": "sbs_jax.programs.infer.interact",
    "sbs_jax.inference.serving.run": "sbs_jax.programs.serve",
    # Functions that returned a dataclass; gin builds it itself.
    "sbs_jax.data.settings.data_settings": "sbs_jax.data.settings.DataSettings",
    "sbs_jax.tasks.arithmetic.difficulty": "sbs_jax.tasks.arithmetic.Difficulty",
    "sbs_jax.tasks.coin_flip.sizes": "sbs_jax.tasks.coin_flip.Sizes",
    "sbs_jax.tasks.last_letters.sizes": "sbs_jax.tasks.last_letters.Sizes",
    "sbs_jax.tasks.your_data.files": "sbs_jax.tasks.your_data.Files",
}
_TEACH = "sbs_jax.programs.teach.teach"
MOVED |= {
    # The parameters of teaching that are one session with the teacher.
    f"{_TEACH}.{name}": f"{_TEACH}.session.{name}"
    for name in (
        "output_dir",
        "backend",
        "prompts",
        "sampling",
        "asking",
        "choosing",
        "flow",
        "limit",
        "predictions",
        "preview",
        "offline",
    )
}
_TRAIN = "sbs_jax.programs.train.train"
MOVED |= {
    # The parameters of training, since they are grouped.
    f"{_TRAIN}.{old}": f"{_TRAIN}.config.{new}"
    for old, new in {
        "model_config": "model_config",
        "model_dir": "model_dir",
        "optimizer": "optimizer",
        "train_steps": "train_steps",
        "seed": "seed",
        "mixture_or_task_name": "task.name",
        "mixture_or_task_module": "task.module",
        "method": "task.method",
        "label_source": "task.label_source",
        "rationale_source": "task.rationale_source",
        "feature_lengths": "batching.feature_lengths",
        "batch_size": "batching.batch_size",
        "pack": "batching.pack",
        "examples_per_batch": "batching.examples_per_batch",
        "num_microbatches": "batching.num_microbatches",
        "rationale_weight": "loss.rationale_weight",
        "loss_normalization": "loss.normalization",
        "label_smoothing": "loss.label_smoothing",
        "z_loss": "loss.z_loss",
        "data_parallel": "mesh.data_parallel",
        "model_parallel": "mesh.model_parallel",
        "fsdp": "mesh.fsdp",
        "eval_period": "evaluation.period",
        "eval_steps": "evaluation.steps",
        "eval_splits": "evaluation.splits",
        "eval_batch_size": "evaluation.batch_size",
        "checkpoint_period": "saving.checkpoint_period",
        "keep_checkpoints": "saving.keep_checkpoints",
        "best_metric": "saving.best_metric",
        "best_mode": "saving.best_mode",
        "initial_checkpoint_path": "saving.initial_checkpoint_path",
        "log_period": "saving.log_period",
        "wandb_project": "saving.wandb_project",
    }.items()
}
_OF_TASKS = ("sbs_jax.programs.cache.write_cache", "sbs_jax.programs.inspect_task.inspect_task")
MOVED |= {
    # The parameters that say which task a program reads.
    f"{function}.{old}": f"{function}.task.{new}"
    for function in _OF_TASKS
    for old, new in {
        "mixture_or_task_name": "name",
        "mixture_or_task_module": "module",
        "method": "method",
        "label_source": "label_source",
        "rationale_source": "rationale_source",
    }.items()
}
_EVALUATE = "sbs_jax.programs.eval.evaluate"
MOVED |= {
    # The parameters of evaluation, since they are grouped.
    f"{_EVALUATE}.{old}": f"{_EVALUATE}.config.{new}"
    for old, new in {
        "checkpoint_path": "checkpoint_path",
        "output_dir": "output_dir",
        "model_config": "model_config",
        "inference_dtype": "inference_dtype",
        "mixture_or_task_name": "task.name",
        "mixture_or_task_module": "task.module",
        "trust_modules": "task.trust_modules",
        "feature_lengths": "task.feature_lengths",
        "label_prefix": "task.label_prefix",
        "rationale_prefix": "task.rationale_prefix",
        "prefix_side": "task.prefix_side",
        "validation_seed": "task.validation_seed",
        "vocabulary_path": "task.vocabulary_path",
        "splits": "evaluated.splits",
        "batch_size": "evaluated.batch_size",
        "eval_steps": "evaluated.steps",
        "with_rationales": "evaluated.with_rationales",
        "max_decode_len": "evaluated.max_decode_len",
        "loss_normalization": "evaluated.loss_normalization",
        "data_parallel": "mesh.data_parallel",
        "model_parallel": "mesh.model_parallel",
        "fsdp": "mesh.fsdp",
    }.items()
}
_LOADER = "sbs_jax.inference.loader.Loader"
MOVED |= {
    # The attributes of `Loader`, since they are grouped.
    f"{_LOADER}.{name}": f"{_LOADER}.{group}.{name}"
    for group, names in {
        "mesh": ("data_parallel", "model_parallel", "fsdp"),
        "prompting": ("method", "label_prefix", "rationale_prefix", "prefix_side"),
    }.items()
    for name in names
}
_SERVE = "sbs_jax.programs.serve.serve"
MOVED |= {
    # The parameters of serving that limit requests.
    f"{_SERVE}.{name}": f"{_SERVE}.requests.{name}"
    for name in (
        "max_waiting",
        "max_inputs",
        "max_body_bytes",
        "max_candidates",
        "max_candidate_length",
        "max_delay_ms",
    )
}
_CONFIG = "sbs_jax.programs.train_config.TrainConfig"
_EVAL_CONFIG = "sbs_jax.programs.eval.EvalConfig"
_MESH = "sbs_jax.partitioning.mesh.MeshSettings"
MOVED |= {
    f"sbs_jax.programs.assembly.{name}": f"sbs_jax.programs.train_config.{name}"
    for name in ("EvaluationSettings", "Saving", "TrainConfig")
}
BUILT_BY: dict[str, str] = {
    f"{_TEACH}.session": "sbs_jax.teacher.session.Session",
    f"{_TRAIN}.config": _CONFIG,
    **{
        f"{function}.task": "sbs_jax.data.resolving.TaskChoice"
        for function in (*_OF_TASKS, _CONFIG)
    },
    f"{_CONFIG}.batching": "sbs_jax.data.batching.Batching",
    f"{_CONFIG}.loss": "sbs_jax.training.step.Loss",
    **{f"{function}.mesh": _MESH for function in (_CONFIG, _EVAL_CONFIG, _LOADER)},
    f"{_CONFIG}.evaluation": "sbs_jax.programs.train_config.EvaluationSettings",
    f"{_CONFIG}.saving": "sbs_jax.programs.train_config.Saving",
    f"{_EVALUATE}.config": _EVAL_CONFIG,
    f"{_EVAL_CONFIG}.task": "sbs_jax.programs.eval.EvaluatedTask",
    f"{_EVAL_CONFIG}.evaluated": "sbs_jax.programs.eval.EvaluatedSplits",
    f"{_SERVE}.requests": "sbs_jax.inference.serving.limits.RequestLimits",
    f"{_LOADER}.prompting": "sbs_jax.inference.prompting.PromptingOverrides",
}
GIN_FILES = {"runs/inspect.gin": "runs/inspect_task.gin"}
"""Shipped gin files, by former name."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a binding goes today.

    Attributes:
      function: dotted name of the function or class.
      parameter: the parameter of that function.
      built_by: the functions' parameters that must be bound to a call of a dataclass so that the
        binding takes effect, as `(function, parameter, dataclass)`.
    """

    function: str
    parameter: str
    built_by: tuple[tuple[str, str, str], ...] = ()


def today(name: str) -> str:
    """The present name of a module, function or parameter; `name` itself if it did not move.

    >>> today("sbs_jax.trainer.train")
    'sbs_jax.programs.train.train'
    """
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in MOVED:
            return today(".".join([MOVED[prefix], *parts[length:]]))
    return name


def place(function: str, parameter: str) -> Place:
    """Where a binding of a parameter goes today; unchanged unless a former name is in it."""
    old = f"{function}.{parameter}"
    new = today(old)
    if new == old:
        return Place(function, parameter)
    built_by: list[tuple[str, str, str]] = []
    parts = new.split(".")
    length = 1
    while length < len(parts):
        group = ".".join(parts[:length])
        if group in BUILT_BY:
            built_by.append((*_split(group), BUILT_BY[group]))
            parts = [*BUILT_BY[group].split("."), *parts[length:]]
            length = 0
        length += 1
    return Place(".".join(parts[:-1]), parts[-1], tuple(built_by))


def first(function: str, parameter: str) -> str:
    """The earliest known name of a parameter of today.

    >>> first("sbs_jax.training.step.Loss", "z_loss")
    'sbs_jax.trainer.train.z_loss'
    """
    here = function, parameter
    places = {old: place(*_split(old)) for old in MOVED}
    names = (old for old, found in places.items() if (found.function, found.parameter) == here)
    name = next(names, f"{function}.{parameter}")
    for old, new in MOVED.items():
        if name.startswith(f"{new}."):
            return old + name.removeprefix(new)
    return name


def by_suffix(selector: str) -> str:
    """The full former name of a function that is given by its last words; else `selector`.

    Flags abbreviate: `--gin.trainer.train.seed=1`.

    >>> by_suffix("trainer.train")
    'sbs_jax.trainer.train'
    """
    parts = selector.split(".")
    if len(parts) == 1:  # The name of a function alone: gin finds it where it is today.
        return selector
    names = [old.split(".") for old in MOVED]
    prefixes = {".".join(name[:length]) for name in names for length in range(1, len(name) + 1)}
    for length in range(len(parts), 0, -1):
        head, rest = ".".join(parts[:length]), parts[length:]
        found = {
            ".".join([prefix, *rest]) for prefix in prefixes if f".{prefix}".endswith(f".{head}")
        }
        # Only functions that have moved, or one of whose parameters has.
        found = {
            name
            for name in found
            if today(name) != name or any(old.startswith(f"{name}.") for old in MOVED)
        }
        if len(found) == 1:
            return found.pop()
    return selector


def _split(name: str) -> tuple[str, str]:
    function, _, parameter = name.rpartition(".")
    return function, parameter
