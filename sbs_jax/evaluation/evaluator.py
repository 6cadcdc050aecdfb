"""Judges a student on splits of a task: its answers, and its losses under teacher forcing."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sbs_jax import losses, metrics
from sbs_jax.data import pipeline, registration
from sbs_jax.errors import UserError
from sbs_jax.evaluation.decode import Decoder
from sbs_jax.evaluation.loss_step import make_loss_step
from sbs_jax.files import atomic_write_jsonl
from sbs_jax.partitioning.distributed import to_global
from sbs_jax.parts import PART_NAMES
from sbs_jax.scores import calculator, classes, overlap
from sbs_jax.scores.faithfulness import agreements
from sbs_jax.student import Student

Value = float | int | None


@dataclasses.dataclass(frozen=True)
class _Split:
    """What is evaluated of a split."""

    name: str
    examples: pipeline.EvalExamples
    batches: list[dict[str, np.ndarray]]


class Evaluator:
    """Evaluates parameters on some splits, as often as it is called.

    Label-prefixed inputs alone are decoded: that is how the student is deployed. Each call writes
    `{output_dir}/{split}-{step}.jsonl` on process 0, one object an example, in the file's order:
    `id`, `input`, `target` (gold), `prediction`, `score` (1 or 0), and with `with_rationales` also
    `rationale` (the student's) and, where the example has one, `llm_rationale` (the teacher's, to
    be read beside it). A student of the method `joint` writes its rationale before its label: the
    label is taken out, and the rationale always written.
    """

    def __init__(
        self,
        student: Student,
        task_name: str,
        feature_lengths: Mapping[str, int],
        *,
        splits: Sequence[str],
        batch_size: int,
        eval_steps: int | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        loss_normalization: losses.Normalization = "token_mean",
        with_rationales: bool = False,
        max_decode_len: int | None = None,
        pack: bool = True,
    ) -> None:
        """Reads the splits; nothing is compiled before the first call.

        Args:
          student: the network and its mesh.
          task_name: a registered task, `svamp_sbs`, or a mixture of such.
          feature_lengths: row lengths in tokens, of `inputs` and `targets`.
          splits: names, such as `validation`.
          batch_size: rows at a time, rounded up to a multiple of the mesh's `data` axis.
          eval_steps: at most so many batches of a split are evaluated, its first ones; None takes
            all.
          output_dir: where predictions go; None writes none.
          loss_normalization: see `losses.part_weights`.
          with_rationales: also let the student write its rationales, for the predictions file.
          max_decode_len: the most tokens of an answer; `feature_lengths['targets']` by default.
          pack: put several sequences into a row where losses are computed.

        Raises:
          UserError: an argument is out of its range, or a split cannot be read.
        """
        for name, value in (
            ("EVAL_STEPS", eval_steps),
            ("EVAL_BATCH_SIZE", batch_size),
            ("MAX_DECODE_LENGTH", max_decode_len),
        ):
            if value is not None and value < 1:
                raise UserError(f"{name} = {value} must be at least 1.")
        data = student.mesh.shape["data"]
        rows = -(-batch_size // data) * data
        self._mesh = student.mesh
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._with_rationales = with_rationales
        self._vocabulary = pipeline.load_vocabulary(task_name)
        self._mixed = tuple(splits) if registration.is_mixture(task_name) else ()
        with pipeline.shared_vocabulary(task_name):
            self._splits = [
                _load(task, split, feature_lengths, rows, eval_steps, pack)
                if task == task_name
                else dataclasses.replace(
                    _load(task, split, feature_lengths, rows, eval_steps, pack),
                    name=f"{split}-{task}",
                )
                for split in splits
                for task in (registration.mixture_rates(task_name) if self._mixed else [task_name])
            ]
        self._decode = Decoder(
            student,
            batch_size=rows,
            max_decode_len=max_decode_len or feature_lengths["targets"],
        )
        self._loss_step = student.jit(
            make_loss_step(student.apply, loss_normalization=loss_normalization),
            out_shardings=student.replicated,
        )

    @property
    def num_examples(self) -> dict[str, int]:
        """How many examples of each split are evaluated."""
        return {split.name: len(split.examples) for split in self._splits}

    def __call__(self, params: Any, step: int) -> dict[str, dict[str, Value]]:
        """Evaluates all splits; every process calls this together.

        Args:
          params: the student's, on its mesh.
          step: of the checkpoint, for the predictions' file name.

        Returns:
          Of each split `accuracy` of the decoded answers by the task's own metric (0 to 1),
          `accuracy_stderr` (its standard error; None for one example), and of each part, teacher
          forced against gold labels and the teacher's rationales, `*_loss` (None without tokens),
          `*_accuracy` (of tokens) and `*_tokens`; `examples` counts the answers. Of a closed set
          of labels `macro_f1`, `accuracy_of_LABEL` and the confusion matrix `LABEL_as_LABEL`. With
          the student's rationales `rouge_l` and `chrf` against the teacher's, `faithfulness` (see
          `scores.faithfulness`) and, of values, `calculator_accuracy`. Of a mixture, that
          of each of its tasks (`validation-svamp_sbs`), and the mean of their accuracies as that
          of the split.
        """
        results = {split.name: self._evaluate(split, params, step) for split in self._splits}
        for split in self._mixed:
            own = [values for name, values in results.items() if name.startswith(f"{split}-")]
            stderrs = [values["accuracy_stderr"] for values in own]
            results[split] = {
                "accuracy": float(np.mean([values["accuracy"] for values in own])),
                "accuracy_stderr": None
                if None in stderrs
                else float(np.linalg.norm(stderrs) / len(own)),
                "examples": sum(values["examples"] for values in own),
            }
        return results

    def _evaluate(self, split: _Split, params: Any, step: int) -> dict[str, Value]:
        examples = split.examples
        answers = self._answers(params, examples.label_inputs, examples.label_prompt)
        outputs = map(examples.take_apart, answers)
        own_rationales, predictions = map(list, zip(*outputs, strict=True))
        score = metrics.SCORERS[examples.scorer]
        scores = [
            int(score(prediction, label))
            for prediction, label in zip(predictions, examples.labels, strict=True)
        ]
        # Computed before anything is written: a run that stops in between leaves no half record.
        by_part = self._losses(params, split.batches)
        rationales = None
        if examples.joint_separator is not None:
            rationales = own_rationales
        elif self._with_rationales:
            rationales = self._answers(params, examples.rationale_inputs, examples.rationale_prompt)
        if self._output_dir is not None and jax.process_index() == 0:
            rows = _rows(examples, predictions, scores, rationales)
            _write(self._output_dir / f"{split.name}-{step}.jsonl", rows)
        stderr = metrics.standard_error(scores)
        return {
            "accuracy": metrics.accuracy(scores),
            "accuracy_stderr": None if np.isnan(stderr) else stderr,
            **by_part,
            "examples": len(scores),
            **_class_scores(examples, predictions),
            **_rationale_scores(examples, predictions, rationales),
        }

    def _answers(self, params: Any, inputs: np.ndarray, prompt: np.ndarray) -> list[str]:
        return [self._vocabulary.decode(ids) for ids in self._decode(params, inputs, prompt)]

    def _losses(self, params: Any, batches: Sequence[dict[str, np.ndarray]]) -> dict[str, Value]:
        # Summed on the host in float64, so that a split's size costs no precision.
        fetched = jax.device_get(
            [self._loss_step(params, to_global(batch, self._mesh)) for batch in batches]
        )
        result: dict[str, Value] = {}
        for part in PART_NAMES.values():
            total = {
                name: sum(float(sums[part][name]) for sums in fetched)
                for name in ("loss", "weight", "correct", "tokens")
            }
            empty = total["tokens"] == 0
            result[f"{part}_loss"] = None if empty else total["loss"] / total["weight"]
            result[f"{part}_accuracy"] = None if empty else total["correct"] / total["tokens"]
            result[f"{part}_tokens"] = int(total["tokens"])
        return _losses_first(result)


def _class_scores(examples: pipeline.EvalExamples, predictions: Sequence[str]) -> dict[str, Value]:
    if not examples.label_set:
        return {}
    # An example without a gold label belongs to no class.
    pairs = [pair for pair in zip(predictions, examples.labels, strict=True) if pair[1]]
    matrix = classes.confusion_matrix(
        [prediction for prediction, _ in pairs], [target for _, target in pairs], examples.label_set
    )
    result: dict[str, Value] = {
        "macro_f1": classes.macro_f1(matrix),
        "macro_f1_standard_error": classes.macro_f1_error(matrix),
    }
    errors = classes.class_accuracy_errors(matrix)
    for label, accuracy in classes.class_accuracies(matrix).items():
        result[f"accuracy_of_{label}"] = accuracy
        result[f"accuracy_of_{label}_standard_error"] = errors[label]
    for target, row in matrix.items():
        result |= {f"{target}_as_{prediction}": count for prediction, count in row.items()}
    return result


def _rationale_scores(
    examples: pipeline.EvalExamples, predictions: Sequence[str], rationales: Sequence[str] | None
) -> dict[str, Value]:
    if rationales is None:
        return {}
    explained = [pair for pair in zip(rationales, examples.llm_rationales, strict=True) if pair[1]]
    scores: dict[str, list[float]] = {
        "rouge_l": [overlap.rouge_l(*pair) for pair in explained],
        "chrf": [overlap.chrf(*pair) for pair in explained],
        "faithfulness": agreements(rationales, predictions, examples.scorer, examples.label_set),
    }
    if examples.scorer == "value":
        recalculated = map(calculator.recalculated, rationales, predictions)
        scores["calculator_accuracy"] = [
            int(metrics.value_match(answer, label))
            for answer, label in zip(recalculated, examples.labels, strict=True)
        ]
    result: dict[str, Value] = {}
    for name, values in scores.items():
        stderr = metrics.standard_error(values)
        result[name] = float(np.mean(values)) if values else None
        result[f"{name}_stderr"] = None if np.isnan(stderr) else stderr
    result["faithfulness_examples"] = len(scores["faithfulness"])
    return result


def _load(
    task_name: str,
    split: str,
    feature_lengths: Mapping[str, int],
    rows: int,
    eval_steps: int | None,
    pack: bool,
) -> _Split:
    examples = pipeline.load_eval_examples(task_name, split, feature_lengths)
    if not len(examples):
        raise UserError(f"The split '{split}' of '{task_name}' holds no examples to evaluate.")
    records = pipeline.load_records(task_name, split, feature_lengths)
    batches = list(pipeline.eval_batches(records, rows, feature_lengths, pack))
    if eval_steps is not None:
        examples = _first(examples, eval_steps * rows)
        batches = batches[:eval_steps]
    return _Split(split, examples, batches)


def _first(examples: pipeline.EvalExamples, count: int) -> pipeline.EvalExamples:
    cut = {
        field.name: value[:count]
        for field in dataclasses.fields(examples)
        if isinstance(value := getattr(examples, field.name), list | np.ndarray)
        and not field.name.endswith("_prompt")
    }
    return dataclasses.replace(examples, **cut)


def _rows(
    examples: pipeline.EvalExamples,
    predictions: Sequence[str],
    scores: Sequence[int],
    rationales: Sequence[str] | None,
) -> list[dict[str, Any]]:
    rows = []
    for index, (prediction, score) in enumerate(zip(predictions, scores, strict=True)):
        row = {
            "id": examples.ids[index],
            "input": examples.inputs[index],
            "target": examples.labels[index],
            "prediction": prediction,
            "score": score,
        }
        if rationales is not None:
            row["rationale"] = rationales[index]
            if examples.llm_rationales[index]:
                row["llm_rationale"] = examples.llm_rationales[index]
        rows.append(row)
    return rows


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    try:
        atomic_write_jsonl(path, rows)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}).") from error


def _losses_first(values: dict[str, Value]) -> dict[str, Value]:
    """A log line shows the first few: the losses of both parts, then the rest."""
    return dict(sorted(values.items(), key=lambda item: not item[0].endswith("_loss")))
