"""One run of a sweep: trained as `sbs_jax.train` does, then its selected checkpoint is judged."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gin

from sbs_jax import metrics
from sbs_jax.checkpoints import folders
from sbs_jax.configuration import config as config_lib
from sbs_jax.configuration import dump
from sbs_jax.data import datasets
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.resolving import ResolvedTask
from sbs_jax.evaluation.evaluator import Evaluator, write_predictions
from sbs_jax.experiments import cost
from sbs_jax.experiments import runs as runs_lib
from sbs_jax.experiments.grid import Run
from sbs_jax.experiments.runs import SweepFolder
from sbs_jax.files import atomic_write_text
from sbs_jax.programs.assembly import Assembly, assemble
from sbs_jax.programs.train import train
from sbs_jax.programs.train_config import TrainConfig


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
    config = apply(base, run, folder)
    require_judged_splits(config)
    finished = train(
        dataclasses.replace(config, train_steps=steps_until(config.train_steps, until)),
        config_text=f"# {run.name}\n\n{dump.config_text()}",
    )
    sweep.write_record(run.name, seconds=round(time.monotonic() - started, 2))
    if finished is None or finished.interrupted:
        raise InterruptedError
    if until < 1.0:
        sweep.write_rung(run.name, until)
    else:
        assembly = assemble(config)
        scores = judge(assembly, judging_evaluator(assembly))
        seconds = time.monotonic() - started
        record(sweep, run.name, base.config(run, folder), assembly, scores, seconds)


def apply(base: runs_lib.Base, run: Run, folder: Path) -> TrainConfig:
    """Puts a run's configuration in force in gin, and returns what gin builds of it."""
    config = base.config(run, folder)
    config.check()
    config.apply()
    return gin.get_bindings(runs_lib.TRAIN)["config"]


def require_judged_splits(config: TrainConfig) -> None:
    """Reads validation and test, so that what is missing ends a run before it is trained.

    Raises:
      UserError: a split cannot be read.
    """
    task = assemble(config, writes=False).task
    if task.info is None:
        return  # A SeqIO task of the user's own, or a mixture: the evaluator reads these.
    with settings_lib.override(task.settings):
        for split in runs_lib.SPLITS:
            datasets.load_examples(task.info.dataset, split)


def steps_until(train_steps: int, share: float) -> int:
    """The step that is `share` of all steps, rounded up."""
    return min(train_steps, max(1, math.ceil(train_steps * share)))


def judging_evaluator(run: Assembly) -> Evaluator:
    """Reads validation and test, whole.

    Raises:
      UserError: a split cannot be read.
    """
    info = run.task.info
    # A target of its own, not the one that the label stands in.
    with_rationales = info is not None and any(
        "rationale" in names and "label" not in names
        for names in ([part.name for part in t.parts] for t in info.definition.targets)
    )
    return run.evaluator(runs_lib.SPLITS, whole=True, with_rationales=with_rationales)


def judge(run: Assembly, evaluator: Evaluator) -> dict[str, dict[str, Any]]:
    """Evaluates the selected checkpoint on validation and test, and writes its predictions.

    The checkpoint is the best one on validation, by the run's BEST_METRIC; without that, the last.

    Args:
      run: a run that has been trained.
      evaluator: the evaluator, from `judging_evaluator`.

    Returns:
      The metrics of both splits, and under `selected` the checkpoint's step.
    """
    folder = run.config.folder
    checkpoint = folders.find_checkpoint(folder / "best" if run.config.best_metric else folder)
    results, predictions = evaluator(run.restored_params(checkpoint))
    write_predictions(folder / "predictions", predictions)
    for split, values in results.items():
        print(f"{split}: accuracy {values['accuracy']:.4f}", flush=True)
    write_teacher(folder.parent.parent, run.task)
    return {**results, "selected": {"step": int(folders.read_info(checkpoint)["step"])}}


def record(
    sweep: SweepFolder,
    name: str,
    config: config_lib.GinConfig,
    run: Assembly,
    scores: Mapping[str, Mapping[str, Any]],
    seconds: float,
) -> None:
    """Writes into run.json that a run is done, its settings and its scores."""
    sweep.write_record(
        name,
        status=runs_lib.DONE,
        settings=_settings(config, run),
        selected_step=scores["selected"]["step"],
        **{split: _score(scores[split]) for split in runs_lib.SPLITS},
        seconds=round(seconds, 2),
    )


def write_teacher(folder: Path, task: ResolvedTask) -> None:
    """Writes teacher.json: how often the teacher's own labels are right on test, if it has any."""
    path = folder / "teacher.json"
    if task.info is None or path.exists():
        return
    dataset = task.info.dataset
    with settings_lib.override(task.settings):
        examples = datasets.load_examples(dataset, "test")
    answered = [example for example in examples if example.get("llm_label")]
    if not answered:
        return
    # An example without an answer counts as wrong.
    right = [int(dataset.score(e.get("llm_label") or "", e["label"])) for e in examples]
    error = metrics.standard_error(right)
    values = {
        "name": "teacher",
        "accuracy": metrics.accuracy(right),
        "standard_error": None if math.isnan(error) else error,
        "n": len(right),
    }
    atomic_write_text(path, json.dumps(values, indent=1) + "\n")


def _settings(config: config_lib.GinConfig, run: Assembly) -> dict[str, Any]:
    info, data = run.task.info, run.task.settings
    return {
        "METHOD": info.method if info else None,
        "LABEL_SOURCE": info.label_source if info else None,
        "RATIONALE_SOURCE": info.rationale_source if info else None,
        "RATIONALE_WEIGHT": run.loss.constant_weight,
        "TRAIN_FRACTION": data.train_fraction,
        "TRAIN_EXAMPLES": data.train_examples,
        "SEED": run.config.seed,
        "MODEL": runs_lib.model_name(config),
        "parameters": cost.num_params(run.config.model_config),
        "task": info.dataset.name if info else run.config.task.name,
        "TRAIN_STEPS": run.config.train_steps,
    }


def _score(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "accuracy": values["accuracy"],
        "standard_error": values["accuracy_stderr"],
        "n": values["examples"],
        "label_loss": values.get("label_loss"),
        "rationale_loss": values.get("rationale_loss"),
        **{name: value for name, value in values.items() if name.endswith("_loss")},
    }
