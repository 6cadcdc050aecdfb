"""Evaluates a student on splits of a task: its answers, and its losses under teacher forcing."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sbs_jax import host_memory, losses, metrics, remote
from sbs_jax.data import pipeline
from sbs_jax.data.resolving import ResolvedTask
from sbs_jax.decoding import shapes
from sbs_jax.decoding.continuous import Request
from sbs_jax.errors import UserError, require_at_least
from sbs_jax.evaluation.programs import EvalPrograms
from sbs_jax.files import atomic_write_jsonl
from sbs_jax.metrics import Value
from sbs_jax.partitioning.distributed import to_global
from sbs_jax.scores import calculator, classes, overlap
from sbs_jax.scores.faithfulness import agreements
from sbs_jax.scores.voting import vote
from sbs_jax.student import Student


class Evaluation(NamedTuple):
    """The result of an evaluation.

    Attributes:
      metrics: the metrics of each split; see `Evaluator.__call__`.
      predictions: the rows of each split, one JSON object an example, in the order of the file:
        `id`, `input`, `target` (gold), `prediction`, `score` (1 or 0). With the student's
        rationales also `rationale` and, where the example has one, the teacher's `llm_rationale`.
    """

    metrics: dict[str, dict[str, Value]]
    predictions: dict[str, list[dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class _Split:
    """The examples of a split that are decoded, and the batches whose losses are computed."""

    name: str
    examples: pipeline.EvalExamples
    batches: list[dict[str, np.ndarray]]


class Evaluator:
    """Evaluates parameters on some splits, as often as it is called.

    Only inputs with the label's prefix are decoded, because that is how the student is deployed;
    `with_rationales` also decodes those with the rationale's prefix. A student of the method
    `joint` writes its rationale before its label: the output is split, and the rows always hold
    the rationale.
    """

    def __init__(
        self,
        student: Student,
        task: ResolvedTask,
        feature_lengths: Mapping[str, int],
        *,
        splits: Sequence[str],
        batch_size: int,
        eval_steps: int | None = None,
        loss_normalization: losses.Normalization
        | Mapping[str, losses.Normalization] = "token_mean",
        with_rationales: bool = False,
        max_decode_len: int | None = None,
        pack: bool = True,
        prepare: Callable[[Any], Any] = lambda params: params,
    ) -> None:
        """Reads the splits; nothing is compiled before the first call.

        Args:
          student: the network and its mesh.
          task: one of our tasks, or a mixture of such.
          feature_lengths: row lengths in tokens, of `inputs` and `targets`.
          splits: names, such as `validation`.
          batch_size: rows of a batch, rounded up to a multiple of the mesh's `data` axis.
          eval_steps: number of batches of each split, at most, from its start; None takes all.
          loss_normalization: see `losses.part_weights`.
          with_rationales: also decode the student's rationales, and its expressions if it writes
            such. A method that is decoded in two stages decodes its rationales always.
          max_decode_len: maximum number of tokens of an answer; None takes
            `feature_lengths['targets']`.
          pack: pack several sequences into a row for the losses.
          prepare: makes the student's parameters of those that are to be evaluated.

        Raises:
          UserError: an argument is out of its range, or a split cannot be read.
        """
        require_at_least(
            1, EVAL_STEPS=eval_steps, EVAL_BATCH_SIZE=batch_size, MAX_DECODE_LENGTH=max_decode_len
        )
        self._parts = task.method.names
        self._programs = EvalPrograms(
            student,
            feature_lengths,
            batch_size=batch_size,
            parts=self._parts,
            loss_normalization=loss_normalization,
            max_decode_len=max_decode_len,
        )
        self._mesh, self._prepare = student.mesh, prepare
        self._with_rationales = with_rationales
        self._vocabulary = task.vocabulary
        self._mixed = tuple(splits) if task.is_mixture else ()
        self._splits = [
            _load(
                part,
                split,
                f"{split}-{part.name}" if task.is_mixture else split,
                feature_lengths,
                self._programs.rows,
                eval_steps,
                pack,
            )
            for split in splits
            for part, _ in task.parts
        ]

    @property
    def size_text(self) -> str:
        """How many examples of each split are evaluated: `50 examples of test`."""
        return ", ".join(
            f"{len(split.examples)} examples of {split.name}" for split in self._splits
        )

    def __call__(self, params: Any) -> Evaluation:
        """Evaluates all splits. All processes call this together, and all get the same result.

        Args:
          params: the student's parameters on its mesh, or what `prepare` makes them of.

        Returns:
          Metrics and predictions. The metrics of a split are `accuracy` of the decoded answers by
          the task's own metric (0 to 1), `accuracy_stderr` (its standard error; None for one
          example), `examples` (the number of answers) and for each part, under teacher forcing
          against gold labels and the teacher's rationales, `*_loss` (None without tokens),
          `*_accuracy` (of tokens) and `*_tokens`. A closed label set adds `macro_f1`,
          `accuracy_of_LABEL` and the confusion matrix `LABEL_as_LABEL`. The student's rationales
          add `rouge_l` and `chrf` against the teacher's, `faithfulness` (see
          `scores.faithfulness`) and, for values, `calculator_accuracy`; a method with a part
          ``expression`` then adds `expression_accuracy`, of what the student's expressions evaluate
          to, and `vote_accuracy` (`scores.voting`). A mixture has these for
          each of its tasks (`validation-svamp_sbs`), and under the name of the split the mean of
          their accuracies.
        """
        params = self._prepare(params)
        evaluated = {split.name: self._evaluate(split, params) for split in self._splits}
        host_memory.return_freed_memory()
        results = {name: values for name, (values, _) in evaluated.items()}
        for split in self._mixed:
            own = [values for name, values in results.items() if name.startswith(f"{split}-")]
            stderrs: list[Any] = [values["accuracy_stderr"] for values in own]
            results[split] = {
                "accuracy": float(np.mean([values["accuracy"] for values in own])),
                "accuracy_stderr": None
                if None in stderrs
                else float(np.linalg.norm(stderrs) / len(own)),
                "examples": sum(values["examples"] or 0 for values in own),
            }
        return Evaluation(results, {name: rows for name, (_, rows) in evaluated.items()})

    def _evaluate(
        self, split: _Split, params: Any
    ) -> tuple[dict[str, Value], list[dict[str, Any]]]:
        examples = split.examples
        rationales, label_inputs = None, examples.label_inputs
        if examples.given_rationales is not None:
            rationales = self.answers(params, examples.rationale_inputs, examples.rationale_prompt)
            label_inputs = examples.given_rationales(rationales)
        answers = self.answers(
            params, label_inputs, examples.label_prompt, short=not examples.explains
        )
        outputs = map(examples.take_apart, answers)
        own_rationales, predictions = map(list, zip(*outputs, strict=True))
        score = metrics.SCORERS[examples.scorer]
        scores = [
            int(score(prediction, label))
            for prediction, label in zip(predictions, examples.labels, strict=True)
        ]
        by_part = self._losses(params, split.batches)
        if examples.explains:
            rationales = own_rationales
        elif self._with_rationales and rationales is None:
            rationales = self.answers(params, examples.rationale_inputs, examples.rationale_prompt)
        stderr = metrics.standard_error(scores)
        values = {
            "accuracy": metrics.accuracy(scores),
            "accuracy_stderr": None if np.isnan(stderr) else stderr,
            **by_part,
            "examples": len(scores),
            **_class_scores(examples, predictions),
            **_rationale_scores(examples, predictions, rationales),
        }
        rows = _rows(examples, predictions, scores, rationales)
        if examples.expression_inputs is not None and self._with_rationales:
            assert examples.expression_prompt is not None
            expressions = self.answers(
                params, examples.expression_inputs, examples.expression_prompt
            )
            values |= _votes(examples, rows, expressions)
        return values, rows

    def answers(
        self, params: Any, inputs: np.ndarray, prompt: np.ndarray, *, short: bool = False
    ) -> list[str]:
        """Decodes the student's greedy answer to each row of inputs, behind `prompt`.

        Args:
          params: the student's parameters on its mesh.
          inputs: int32 [N, S], padded with 0.
          prompt: int32 [P], what the decoder is fed first.
          short: whether answers are labels alone; this changes nothing but the speed.
        """
        host_memory.return_freed_memory()
        requests = [Request(row[: np.count_nonzero(row)].tolist()) for row in inputs]
        decoder = self._programs.decoder(prompt.tolist(), short=short)
        rows = self._programs.slots(len(requests))
        outputs = decoder(params, requests, (rows,), self._programs.lengths)
        return [self._vocabulary.decode(shapes.until_end(output.tokens)) for output in outputs]

    def _losses(self, params: Any, batches: Sequence[dict[str, np.ndarray]]) -> dict[str, Value]:
        host_memory.return_freed_memory()
        slices = itertools.chain.from_iterable(self._slices(batch) for batch in batches)
        # Summed on the host in float64, so that a split's size costs no precision.
        fetched = jax.device_get(
            [self._programs.losses(params, to_global(part, self._mesh)) for part in slices]
        )
        result: dict[str, Value] = {}
        for part in self._parts:
            total = {
                name: sum(float(sums[part][name]) for sums in fetched)
                for name in ("loss", "weight", "correct", "tokens")
            }
            empty = total["tokens"] == 0
            result[f"{part}_loss"] = total["loss"] / total["weight"] if total["weight"] else None
            result[f"{part}_accuracy"] = None if empty else total["correct"] / total["tokens"]
            result[f"{part}_tokens"] = int(total["tokens"])
        # A log line shows the first few: the losses of both parts, then the rest.
        return dict(sorted(result.items(), key=lambda item: not item[0].endswith("_loss")))

    def _slices(self, batch: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Cuts a batch into equal slices of few tokens, the last one filled up with empty rows."""
        rows, inputs = batch["encoder_input_tokens"].shape
        size = self._programs.loss_rows(rows, inputs, batch["decoder_target_tokens"].shape[1])
        for start in range(0, rows, size):
            cut = {name: array[start : start + size] for name, array in batch.items()}
            missing = size - min(size, rows - start)
            yield {name: np.pad(array, ((0, missing), (0, 0))) for name, array in cut.items()}


def write_predictions(
    folder: str | os.PathLike[str],
    predictions: Mapping[str, Sequence[Mapping[str, Any]]],
    step: int | None = None,
) -> None:
    """Writes `{folder}/{split}-{step}.jsonl` for each split, on process 0 alone.

    Args:
      folder: the folder, which is made if need be.
      predictions: rows by split, of `Evaluation`.
      step: the step of the checkpoint; None writes `{folder}/{split}.jsonl`.

    Raises:
      UserError: a file cannot be written.
    """
    if jax.process_index() != 0:
        return
    for split, rows in predictions.items():
        name = f"{split}.jsonl" if step is None else f"{split}-{step}.jsonl"
        path = remote.place(folder) / name
        try:
            atomic_write_jsonl(path, rows)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}).") from error


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


def _votes(
    examples: pipeline.EvalExamples, rows: Sequence[dict[str, Any]], expressions: Sequence[str]
) -> dict[str, Value]:
    """Scores the expressions and the vote; writes both into the rows."""
    score = metrics.SCORERS[examples.scorer]
    found: dict[str, list[int]] = {"expression_accuracy": [], "vote_accuracy": []}
    for row, expression in zip(rows, expressions, strict=True):
        value = metrics.evaluate_expression(expression)
        row["expression"] = expression
        row["vote"] = vote(row["prediction"], expression, row.get("rationale") or "")
        worked_out = "" if value is None else str(value)
        found["expression_accuracy"].append(int(score(worked_out, row["target"])))
        found["vote_accuracy"].append(int(score(row["vote"], row["target"])))
    result: dict[str, Value] = {}
    for name, scores in found.items():
        stderr = metrics.standard_error(scores)
        result[name] = metrics.accuracy(scores)
        result[f"{name}_stderr"] = None if np.isnan(stderr) else stderr
    return result


def _rationale_scores(
    examples: pipeline.EvalExamples, predictions: Sequence[str], rationales: Sequence[str] | None
) -> dict[str, Value]:
    if rationales is None:
        return {}
    explained = [pair for pair in zip(rationales, examples.references, strict=True) if pair[1]]
    scores: dict[str, list[float]] = {
        name: [max(score(text, reference) for reference in texts) for text, texts in explained]
        for name, score in (("rouge_l", overlap.rouge_l), ("chrf", overlap.chrf))
    }
    agreed = agreements(rationales, predictions, examples.scorer, examples.label_set)
    scores["faithfulness"] = list(map(float, agreed))
    if examples.scorer in metrics.BY_VALUE:
        recalculated = map(calculator.recalculated, rationales, predictions)
        scores["calculator_accuracy"] = [
            int(metrics.SCORERS[examples.scorer](answer, label))
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
    task: ResolvedTask,
    split: str,
    name: str,
    feature_lengths: Mapping[str, int],
    rows: int,
    eval_steps: int | None,
    pack: bool,
) -> _Split:
    examples = pipeline.load_eval_examples(task, split, feature_lengths)
    if not len(examples):
        raise UserError(f"The split '{split}' of '{task.name}' holds no examples to evaluate.")
    records = pipeline.load_records(task, split, feature_lengths)
    batches = list(pipeline.EvalBatches(records, rows, feature_lengths, pack))
    if eval_steps is not None:
        examples = _first(examples, eval_steps * rows)
        batches = batches[:eval_steps]
    return _Split(name, examples, batches)


def _first(examples: pipeline.EvalExamples, count: int) -> pipeline.EvalExamples:
    cut = {
        field.name: value[:count]
        for field in dataclasses.fields(examples)
        if isinstance(value := getattr(examples, field.name), list | np.ndarray)
        and not field.name.endswith("_prompt")
    }
    fields: dict[str, Any] = cut
    return dataclasses.replace(examples, **fields)


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
