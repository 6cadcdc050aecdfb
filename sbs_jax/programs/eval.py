"""Evaluates a saved student: `python -m sbs_jax.eval` (gin/runs/eval.gin binds the arguments)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
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
from sbs_jax.evaluation.evaluator import Evaluator, write_predictions
from sbs_jax.files import atomic_write_text
from sbs_jax.losses import Normalization
from sbs_jax.methods import read_parts
from sbs_jax.metrics import Value
from sbs_jax.models.interface import ModelConfig, default_prefix_side
from sbs_jax.partitioning.mesh import MeshSettings
from sbs_jax.progress import Progress
from sbs_jax.student import Student

# Settings of the evaluation itself; all others are taken from the checkpoint.
_OWN_SETTINGS = {"data_dir", "model_dir", "strict_lengths"}


@dataclasses.dataclass(frozen=True)
class EvaluatedTask:
    """The task that a student is evaluated on; gin/runs/eval.gin binds the attributes to macros.

    What is None is as the checkpoint was trained.

    Attributes:
      name: a registered task; or a data set, whose task is that of the method that the checkpoint
        was trained with.
      module: a module that registers the task; it is imported first.
      trust_modules: whether the module that the checkpoint names may be imported, which runs its
        code; see `loading.Source.task_module`.
      feature_lengths: row lengths in tokens, of `inputs` and `targets`; `auto` is None.
      label_prefix: the task prefix of labels.
      rationale_prefix: the task prefix of rationales.
      prefix_side: which side reads the prefixes, `encoder` or `decoder`.
      validation_seed: seed of the choice of the validation examples.
      vocabulary_path: a SentencePiece model; by default the checkpoint's own.
    """

    name: str | None = None
    module: str | None = None
    trust_modules: bool = False
    feature_lengths: Mapping[str, int] | Literal["auto"] | None = None
    label_prefix: str | None = None
    rationale_prefix: str | None = None
    prefix_side: str | None = None
    validation_seed: int | None = None
    vocabulary_path: str | None = None

    def lengths(self, source: loading.Source) -> Any:
        """The row lengths.

        Raises:
          UserError: they are not given, and the checkpoint does not say them.
        """
        given = None if self.feature_lengths == AUTO else self.feature_lengths
        return given or _trained(source, "feature_lengths")

    def resolve(self, source: loading.Source, model_config: ModelConfig) -> ResolvedTask:
        """Finds the task, and the settings that its data is read with.

        Raises:
          UserError: there is no such task, or a module would run that is not trusted.
        """
        data_settings = source.settings.get("data_settings") or {}
        given = {
            "label_prefix": self.label_prefix,
            "rationale_prefix": self.rationale_prefix,
            "prefix_side": self.prefix_side
            or data_settings.get("prefix_side")
            or default_prefix_side(model_config),
            "validation_seed": self.validation_seed,
            "vocabulary_path": self.vocabulary_path,
        }
        module = self.module or source.task_module(trust=self.trust_modules)
        choice = _choose_task(source, self.name, module)
        task = resolve_task(choice, _settings_as_trained(source, given))
        require_fit(task.vocabulary, model_config.vocab_size)
        return task


@dataclasses.dataclass(frozen=True)
class EvaluatedSplits:
    """Which examples are evaluated, and how; gin/runs/eval.gin binds the attributes to macros.

    Attributes:
      splits: names of splits, such as `validation` and `test`.
      batch_size: rows of a batch.
      steps: number of batches of each split, at most; None takes all.
      with_rationales: also write the student's rationales into the predictions.
      max_decode_len: maximum number of tokens of an answer; the length of targets by default.
      loss_normalization: see `losses.part_weights`; parts that had normalisations of their own in
        training have these.
    """

    splits: Sequence[str] = ("test",)
    batch_size: int = 32
    steps: int | None = None
    with_rationales: bool = False
    max_decode_len: int | None = None
    loss_normalization: Normalization = "token_mean"


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The configuration of an evaluation; every attribute has a gin macro (gin/runs/eval.gin).

    Attributes:
      checkpoint_path: a MODEL_DIR (its latest checkpoint), `MODEL_DIR/best`, a checkpoint, or
        weights of others; see `checkpoints.loading.identify`.
      output_dir: the folder of `eval_metrics.jsonl` (one object a split), `predictions/` and
        `eval_config.gin`; may be relative. None writes none of them.
      model_config: the student's dimensions; None takes those that the checkpoint says.
      inference_dtype: dtype of weights and inputs of matrix products; see
        `ModelConfig.product_dtype`. None leaves it as the dimensions say.
      task: the task that the student is evaluated on.
      evaluated: which examples are evaluated, and how.
      mesh: how devices are arranged.
    """

    checkpoint_path: str
    output_dir: str | None
    model_config: ModelConfig | None = None
    inference_dtype: str | None = None
    task: EvaluatedTask = dataclasses.field(default_factory=EvaluatedTask)
    evaluated: EvaluatedSplits = dataclasses.field(default_factory=EvaluatedSplits)
    mesh: MeshSettings = dataclasses.field(default_factory=MeshSettings)


def evaluate(
    config: EvalConfig,
    *,
    mesh: Mesh | None = None,
    dry_run: bool = False,
    config_text: str | None = None,
) -> dict[str, dict[str, Value]] | None:
    """Evaluates the parameters of a checkpoint, and writes metrics and predictions.

    Args:
      config: what is evaluated, and how.
      mesh: the mesh to use instead of one over all devices.
      dry_run: build everything, print what would be evaluated, and evaluate nothing.
      config_text: the configuration, written to `eval_config.gin` in the output folder.

    Returns:
      Metrics by split, see `Evaluator.__call__`; None after a dry run.

    Raises:
      UserError: something the user gave does not work; the sentence says what.
    """
    splits = config.evaluated.splits
    if not splits:
        raise UserError("EVAL_SPLITS names no split; give for instance ['test'].")
    source = loading.identify(config.checkpoint_path)
    model_config = _model_config(config, source)
    lengths = config.task.lengths(source)
    task = config.task.resolve(source, model_config)
    student = Student(model_config, mesh or config.mesh.make(), fsdp=config.mesh.fsdp)
    progress = Progress()
    evaluator = Evaluator(
        student,
        task,
        lengths,
        splits=splits,
        batch_size=config.evaluated.batch_size,
        eval_steps=config.evaluated.steps,
        loss_normalization=source.settings.get("part_normalizations")
        or config.evaluated.loss_normalization,
        with_rationales=config.evaluated.with_rationales,
        max_decode_len=config.evaluated.max_decode_len,
    )
    sizes = f"{student.num_params:,} parameters; {task.name}: {evaluator.size_text}"
    progress.note(f"{source.folder}: {sizes}.")
    if dry_run:
        _show_first_input(progress, task, splits[0], lengths)
        return None
    params = loading.load_params(source, student.placed_params)
    results, predictions = evaluator(student.for_inference(params))
    folder = None if config.output_dir is None else remote.place(config.output_dir)
    if folder is not None:
        write_predictions(folder / "predictions", predictions, source.step or 0)
        if jax.process_index() == 0:
            _write(folder, source, results, config_text)
    for split, values in results.items():
        progress.note(f"{split}: {_in_words(values)}")
    if folder is not None:
        progress.note(f"Written to {folder}")
    return results


def _model_config(config: EvalConfig, source: loading.Source) -> ModelConfig:
    """The student's dimensions, and the dtype of its products.

    Raises:
      UserError: nothing says them, or the checkpoint holds another network.
    """
    found = config.model_config or source.config
    if found is None:
        raise _missing(source, "model_config")
    if config.model_config is not None:
        networks.require_same_network(source, found)
    if config.inference_dtype is None:
        return found
    return dataclasses.replace(found, product_dtype=config.inference_dtype)


def _write(
    folder: Path,
    source: loading.Source,
    results: Mapping[str, Mapping[str, Value]],
    config_text: str | None,
) -> None:
    lines = [
        json.dumps(
            {"step": source.step, "split": split, "checkpoint": str(source.folder), **values}
        )
        for split, values in results.items()
    ]
    atomic_write_text(folder / "eval_metrics.jsonl", "\n".join(lines) + "\n")
    if config_text is not None:
        atomic_write_text(folder / "eval_config.gin", config_text)


def _choose_task(source: loading.Source, given: str | None, module: str | None) -> TaskChoice:
    """The task: `given`, or if that is a data set, its task of the checkpoint's method."""
    if given is None:
        return TaskChoice(_trained(source, "mixture_or_task_name"), module)
    registration.import_tasks(module)
    trained = source.settings
    parts = (trained.get("data_settings") or {}).get("parts")
    info = choosing.task_info(
        trained.get("mixture_or_task_name") or "", parts and read_parts(parts)
    )
    if info is None or not registry.is_dataset(given):
        return TaskChoice(given, module)
    return TaskChoice(given, module, info.method, info.label_source, info.rationale_source)


def _trained(source: loading.Source, name: str) -> Any:
    if source.settings.get(name) is None:
        raise _missing(source, name)
    return source.settings[name]


def _missing(source: loading.Source, name: str) -> UserError:
    macros = {
        "model_config": "MODEL (a file of gin/models)",
        "mixture_or_task_name": "MIXTURE_OR_TASK_NAME",
        "feature_lengths": "TASK_FEATURE_LENGTHS",
    }
    return UserError(f"{source.folder}: does not say how it was trained; give {macros[name]}.")


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
