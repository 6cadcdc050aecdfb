"""One run of a sweep: trained as `sbs_jax.train` does, then its selected checkpoint is judged."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gin

from sbs_jax import metrics
from sbs_jax.checkpoints import folders
from sbs_jax.configuration import config as config_lib
from sbs_jax.configuration import dump
from sbs_jax.data import registration
from sbs_jax.data import settings as data_settings
from sbs_jax.experiments import cost
from sbs_jax.experiments import runs as runs_lib
from sbs_jax.experiments.grid import Run
from sbs_jax.experiments.runs import SweepFolder
from sbs_jax.files import atomic_write_text
from sbs_jax.programs import eval as evaluation
from sbs_jax.programs.train import train

WITH_RATIONALES = ("sbs", "rationale")
"""Methods whose students are asked for rationales; `joint` writes them anyway."""


def train_and_judge(
    sweep: SweepFolder, base: runs_lib.Base, run: Run, *, until: float = 1.0
) -> None:
    """Trains a run up to a share of its steps; at the end of all, judges it and writes run.json.

    Raises:
      UserError: it cannot be trained.
      InterruptedError: a signal asked to stop.
    """
    folder = sweep.folder(run.name)
    started = time.monotonic() - sweep.record(run.name).get("seconds", 0.0)
    arguments = apply(base, run, folder)
    total = arguments["train_steps"]
    arguments["train_steps"] = steps_until(total, until)
    finished = train(**arguments, config_text=f"# {run.name}\n\n{dump.config_text()}")
    sweep.write_record(run.name, seconds=round(time.monotonic() - started, 2))
    if finished is None or finished.interrupted:
        raise InterruptedError
    if until < 1.0:
        sweep.write_rung(run.name, until)
    else:
        scores = judge(folder, arguments)
        seconds = time.monotonic() - started
        arguments["train_steps"] = total
        record(sweep, run.name, base.config(run, folder), arguments, scores, seconds)


def apply(base: runs_lib.Base, run: Run, folder: Path) -> dict[str, Any]:
    """Puts a run's configuration in force in gin; returns the arguments of `trainer.train`."""
    config = base.config(run, folder)
    config.check()
    config.apply()
    return dict(gin.get_bindings("programs.train.train"))


def steps_until(train_steps: int, share: float) -> int:
    """The step that is `share` of all steps, rounded up."""
    return min(train_steps, max(1, math.ceil(train_steps * share)))


def task_name(arguments: Mapping[str, Any]) -> str:
    """The name of the task that a run trains."""
    registration.import_tasks(arguments.get("mixture_or_task_module"))
    chosen = ("mixture_or_task_name", "method", "label_source", "rationale_source")
    return registration.choose_task(*(arguments.get(key) for key in chosen))


def task_of(arguments: Mapping[str, Any]) -> registration.TaskInfo | None:
    """The task that a run trains; None for a mixture."""
    return registration.task_info(task_name(arguments))


def judge(folder: Path, arguments: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Reads validation and test for the selected checkpoint, and writes its predictions.

    The checkpoint is the best one on validation, by the run's BEST_METRIC; without that, the last.

    Returns:
      The metrics of both splits, and under `selected` the checkpoint's step.
    """
    selected = folder / "best" if arguments.get("best_metric") else folder
    task = task_of(arguments)
    output = folder / "selected"
    results = evaluation.evaluate(
        checkpoint_path=str(selected),
        output_dir=str(output),
        mixture_or_task_module=arguments.get("mixture_or_task_module"),
        splits=runs_lib.SPLITS,
        batch_size=arguments.get("eval_batch_size") or arguments["batch_size"],
        with_rationales=task is not None and task.method in WITH_RATIONALES,
        loss_normalization=arguments.get("loss_normalization", "token_mean"),
        data_parallel=arguments.get("data_parallel", -1),
        model_parallel=arguments.get("model_parallel", 1),
        fsdp=arguments.get("fsdp", False),
    )
    step = int(folders.read_info(folders.find_checkpoint(selected))["step"])
    for split in runs_lib.SPLITS:
        source = output / "predictions" / f"{split}-{step}.jsonl"
        (folder / "predictions").mkdir(exist_ok=True)
        source.replace(folder / "predictions" / f"{split}.jsonl")
    shutil.rmtree(output)
    write_teacher(folder.parent.parent, task, arguments)
    return {**results, "selected": {"step": step}}


def record(
    sweep: SweepFolder,
    name: str,
    config: config_lib.GinConfig,
    arguments: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, Any]],
    seconds: float,
    data: data_settings.DataSettings | None = None,
) -> None:
    """Writes into run.json that a run is done, its settings and its scores."""
    task = task_of(arguments)
    sweep.write_record(
        name,
        status=runs_lib.DONE,
        settings=_settings(config, arguments, task, data or data_settings.current()),
        selected_step=scores["selected"]["step"],
        **{split: _score(scores[split]) for split in runs_lib.SPLITS},
        seconds=round(seconds, 2),
    )


def write_teacher(
    folder: Path, task: registration.TaskInfo | None, arguments: Mapping[str, Any]
) -> None:
    """Writes teacher.json: how often the teacher's own labels are right on test, if it has any."""
    path = folder / "teacher.json"
    if task is None or path.exists():
        return
    examples = registration.load_examples(task.dataset, "test")
    answered = [example for example in examples if example.get("llm_label")]
    if not answered:
        return
    score = metrics.SCORERS[task.dataset.scorer]
    # Whoever does not answer is wrong.
    right = [int(score(e.get("llm_label") or "", e["label"])) for e in examples]
    values = {
        "name": "teacher",
        "accuracy": metrics.accuracy(right),
        "standard_error": _known(metrics.standard_error(right)),
        "n": len(right),
    }
    atomic_write_text(path, json.dumps(values, indent=1) + "\n")


def _settings(
    config: config_lib.GinConfig,
    arguments: Mapping[str, Any],
    task: registration.TaskInfo | None,
    data: data_settings.DataSettings,
) -> dict[str, Any]:
    weight = arguments.get("rationale_weight", 1.0)
    return {
        "METHOD": task.method if task else None,
        "LABEL_SOURCE": task.label_source if task else None,
        "RATIONALE_SOURCE": task.rationale_source if task else None,
        "RATIONALE_WEIGHT": weight if not callable(weight) else None,
        "TRAIN_FRACTION": data.train_fraction,
        "TRAIN_EXAMPLES": data.train_examples,
        "SEED": arguments.get("seed", 0),
        "MODEL": runs_lib.model_name(config),
        "parameters": cost.num_params(arguments["model_config"]),
        "task": task.dataset.name if task else arguments["mixture_or_task_name"],
        "TRAIN_STEPS": arguments["train_steps"],
    }


def _score(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "accuracy": values["accuracy"],
        "standard_error": values["accuracy_stderr"],
        "n": values["examples"],
        "label_loss": values.get("label_loss"),
        "rationale_loss": values.get("rationale_loss"),
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
