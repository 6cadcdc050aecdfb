"""Evaluates a saved student: `python -m sbs_jax.eval` (gin/runs/eval.gin binds the arguments)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from sbs_jax import remote
from sbs_jax.checkpoints import loading, networks
from sbs_jax.data import choosing, pipeline, registration, registry
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.batching import AUTO
from sbs_jax.data.resolving import ResolvedTask, TaskChoice, resolve_task
from sbs_jax.data.settings import DataSettings
from sbs_jax.data.vocabulary import require_fit
from sbs_jax.errors import UserError
from sbs_jax.evaluation.evaluator import Evaluator, Value, write_predictions
from sbs_jax.files import atomic_write_text
from sbs_jax.losses import Normalization
from sbs_jax.methods import read_parts
from sbs_jax.models.interface import ModelConfig, default_prefix_side
from sbs_jax.partitioning.mesh import MeshSettings
from sbs_jax.progress import Progress
from sbs_jax.student import Student

__all__ = ["Evaluator", "evaluate"]

PredictionsFn = Callable[[Mapping[str, Sequence[Mapping[str, Any]]]], None]
"""Takes the rows of predictions by split; see `evaluator.Evaluation`."""

# Settings of the evaluation itself; all others are taken from the checkpoint.
_OWN_SETTINGS = {"data_dir", "model_dir", "strict_lengths"}


def evaluate(
    *,
    checkpoint_path: str,
    output_dir: str | None,
    mixture_or_task_name: str | None = None,
    mixture_or_task_module: str | None = None,
    trust_modules: bool = False,
    feature_lengths: Mapping[str, int] | Literal["auto"] | None = None,
    model_config: ModelConfig | None = None,
    inference_dtype: str | None = None,
    splits: Sequence[str] = ("test",),
    batch_size: int = 32,
    eval_steps: int | None = None,
    with_rationales: bool = False,
    max_decode_len: int | None = None,
    loss_normalization: Normalization = "token_mean",
    label_prefix: str | None = None,
    rationale_prefix: str | None = None,
    prefix_side: str | None = None,
    validation_seed: int | None = None,
    vocabulary_path: str | None = None,
    data_parallel: int = -1,
    model_parallel: int = 1,
    fsdp: bool = False,
    mesh: Mesh | None = None,
    dry_run: bool = False,
    config_text: str | None = None,
    write: PredictionsFn | None = None,
) -> dict[str, dict[str, Value]] | None:
    """Evaluates the parameters of a checkpoint, and writes metrics and predictions.

    An argument that is None is taken from the settings that the checkpoint was trained with.

    Args:
      checkpoint_path: a MODEL_DIR (its latest checkpoint), `MODEL_DIR/best`, a checkpoint, or
        weights of others; see `checkpoints.loading.identify`.
      output_dir: the folder of `eval_metrics.jsonl` (one object a split), `predictions/` and
        `eval_config.gin`; may be relative. None writes none of them.
      mixture_or_task_name: a registered task; or a data set, whose task is that of the method
        that the checkpoint was trained with.
      mixture_or_task_module: a module that registers the task; it is imported first.
      trust_modules: whether the module that the checkpoint names may be imported, which runs its
        code; see `loading.Source.task_module`.
      feature_lengths: row lengths in tokens, of `inputs` and `targets`; `auto` is None.
      model_config: the student's dimensions.
      inference_dtype: dtype of weights and inputs of matrix products; see
        `ModelConfig.product_dtype`.
      splits: names of splits, such as `validation` and `test`.
      batch_size: rows of a batch.
      eval_steps: number of batches of each split, at most; None takes all.
      with_rationales: also write the student's rationales into the predictions.
      max_decode_len: maximum number of tokens of an answer; the length of targets by default.
      loss_normalization: see `losses.part_weights`; parts that had normalisations of their own in
        training have these.
      label_prefix: the task prefix of labels.
      rationale_prefix: the task prefix of rationales.
      prefix_side: which side reads the prefixes, `encoder` or `decoder`.
      validation_seed: seed of the choice of the validation examples.
      vocabulary_path: a SentencePiece model; by default the checkpoint's own.
      data_parallel: devices along the mesh's `data` axis; -1 takes all that are left.
      model_parallel: devices along the mesh's `model` axis.
      fsdp: also shard parameters along `data`.
      mesh: the mesh to use instead of one over all devices.
      dry_run: build everything, print what would be evaluated, and evaluate nothing.
      config_text: the configuration, written to `output_dir/eval_config.gin`.
      write: a function that is given the predictions, which are then not written to `output_dir`.

    Returns:
      Metrics by split, see `Evaluator.__call__`; None after a dry run.

    Raises:
      UserError: something the user gave does not work; the sentence says what.
    """
    if not splits:
        raise UserError("EVAL_SPLITS names no split; give for instance ['test'].")
    source = loading.identify(checkpoint_path)
    checkpoint, trained = source.folder, source.settings
    if model_config is not None:
        networks.require_same_network(source, model_config)
    else:
        model_config = source.config
    if model_config is None:
        raise _missing(checkpoint, "model_config")
    module = mixture_or_task_module or source.task_module(trust=trust_modules)
    choice = _choose_task(checkpoint, trained, mixture_or_task_name, module)
    given_lengths = None if feature_lengths == AUTO else feature_lengths
    lengths: Any = given_lengths or _trained(checkpoint, trained, "feature_lengths")

    given = {
        "label_prefix": label_prefix,
        "rationale_prefix": rationale_prefix,
        "prefix_side": prefix_side
        or (trained.get("data_settings") or {}).get("prefix_side")
        or default_prefix_side(model_config),
        "validation_seed": validation_seed,
        "vocabulary_path": vocabulary_path,
    }
    if mesh is None:
        mesh = MeshSettings(data_parallel, model_parallel, fsdp).make()
    if inference_dtype is not None:
        model_config = dataclasses.replace(model_config, product_dtype=inference_dtype)
    student = Student(model_config, mesh, fsdp=fsdp)
    progress = Progress()
    task = resolve_task(choice, _settings_as_trained(source, given))
    require_fit(task.vocabulary, model_config.vocab_size)
    evaluator = Evaluator(
        student,
        task,
        lengths,
        splits=splits,
        batch_size=batch_size,
        eval_steps=eval_steps,
        loss_normalization=trained.get("part_normalizations") or loss_normalization,
        with_rationales=with_rationales,
        max_decode_len=max_decode_len,
    )
    sizes = f"{student.num_params:,} parameters; {task.name}: {evaluator.size_text}"
    progress.note(f"{checkpoint}: {sizes}.")
    if dry_run:
        _show_first_input(progress, task, splits[0], lengths)
        return None
    params = loading.load_params(source, student.placed_params)
    results, predictions = evaluator(student.for_inference(params))
    folder = None if output_dir is None else remote.place(output_dir)
    if write is not None:
        write(predictions)
    elif folder is not None:
        write_predictions(folder / "predictions", predictions, source.step or 0)
    if folder is not None and jax.process_index() == 0:
        lines = [
            json.dumps(
                {"step": source.step, "split": split, "checkpoint": str(checkpoint), **values}
            )
            for split, values in results.items()
        ]
        atomic_write_text(folder / "eval_metrics.jsonl", "\n".join(lines) + "\n")
        if config_text is not None:
            atomic_write_text(folder / "eval_config.gin", config_text)
    for split, values in results.items():
        progress.note(f"{split}: {_in_words(values)}")
    if folder is not None:
        progress.note(f"Written to {folder}")
    return results


def _choose_task(
    checkpoint: Any, trained: Mapping[str, Any], given: str | None, module: str | None
) -> TaskChoice:
    """The task: `given`, or if that is a data set, its task of the checkpoint's method."""
    if given is None:
        return TaskChoice(_trained(checkpoint, trained, "mixture_or_task_name"), module)
    registration.import_tasks(module)
    parts = (trained.get("data_settings") or {}).get("parts")
    info = choosing.task_info(
        trained.get("mixture_or_task_name") or "", parts and read_parts(parts)
    )
    if info is None or not registry.is_dataset(given):
        return TaskChoice(given, module)
    return TaskChoice(given, module, info.method, info.label_source, info.rationale_source)


def _trained(checkpoint: Any, trained: Mapping[str, Any], name: str) -> Any:
    if trained.get(name) is None:
        raise _missing(checkpoint, name)
    return trained[name]


def _missing(checkpoint: Any, name: str) -> UserError:
    macros = {
        "model_config": "MODEL (a file of gin/models)",
        "mixture_or_task_name": "MIXTURE_OR_TASK_NAME",
        "feature_lengths": "TASK_FEATURE_LENGTHS",
    }
    return UserError(f"{checkpoint}: does not say how it was trained; give {macros[name]}.")


def _settings_as_trained(source: loading.Source, given: Mapping[str, Any]) -> DataSettings:
    """Returns the data settings that the checkpoint was trained with, overridden by `given`."""
    names = {field.name for field in dataclasses.fields(DataSettings)} - _OWN_SETTINGS
    as_trained = {
        name: value
        for name, value in (source.settings.get("data_settings") or {}).items()
        if name in names
    }
    # The copy that the run keeps is always there; the path that it was given may have gone.
    if source.vocabulary_path is not None:
        as_trained["vocabulary_path"] = str(source.vocabulary_path)
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = dataclasses.replace(settings_lib.current(), **(as_trained | chosen))
    if settings.vocabulary_path is None:
        settings = dataclasses.replace(settings, vocabulary_path=str(source.require_vocabulary()))
    return settings


def _show_first_input(
    progress: Progress, task: ResolvedTask, split: str, lengths: Mapping[str, int]
) -> None:
    if task.is_mixture:
        return
    examples = pipeline.load_eval_examples(task, split, lengths)
    tokens = [int(token) for token in examples.label_inputs[0] if token > 1]
    progress.note(f"first input: {task.vocabulary.decode(tokens)}")
    progress.note(f"its answer:  {examples.labels[0]}")


def _in_words(values: Mapping[str, Value]) -> str:
    stderr = values["accuracy_stderr"]
    words = [f"accuracy {values['accuracy']:.4f}" + (f" ± {stderr:.4f}" if stderr else "")]
    losses = ("label_loss", "rationale_loss", *(name for name in values if name.endswith("_loss")))
    words += [
        f"{name.replace('_', ' ')} {values[name]:.4f}"
        for name in dict.fromkeys(losses)
        if values.get(name) is not None
    ]
    return ", ".join(words) + f" ({values['examples']} examples)"
