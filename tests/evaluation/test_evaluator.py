import dataclasses
import json

import jax
import numpy as np
import pytest

from sbs_jax import losses
from sbs_jax.data import pipeline
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.resolving import TaskChoice, resolve_task
from sbs_jax.data.settings import DataSettings
from sbs_jax.decoding import shapes
from sbs_jax.decoding.greedy import greedy_decode
from sbs_jax.errors import UserError
from sbs_jax.evaluation import programs as programs_lib
from sbs_jax.evaluation.evaluator import Evaluator, write_predictions
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.scores import overlap
from sbs_jax.student import Student
from tests.evaluation import toy
from tests.toy import CONFIG


@pytest.fixture(scope="module", autouse=True)
def _dataset(tmp_path_factory):
    toy.register()
    folder = str(tmp_path_factory.mktemp("vocabulary"))
    with settings_lib.override(DataSettings(model_dir=folder, vocabulary_size=500)):
        yield


def _student(data=1, model=1, devices=1):
    return Student(CONFIG, make_mesh(data, model, jax.devices()[:devices]))


def _evaluator(student, **options):
    options = {"splits": ("validation",), "batch_size": 4} | options
    task = options.pop("task", toy.TASK)
    return Evaluator(student, resolve_task(task), toy.LENGTHS, **options)


@pytest.fixture(scope="module")
def student():
    return _student()


@pytest.fixture(scope="module")
def params(student):
    return student.init_params(0)


def _rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_predictions_are_those_of_single_decoding_in_the_files_order(student, params, tmp_path):
    evaluation = _evaluator(student, max_decode_len=7)(params)
    result = evaluation.metrics["validation"]
    write_predictions(tmp_path / "predictions", evaluation.predictions, 20)
    rows = _rows(tmp_path / "predictions/validation-20.jsonl")
    assert rows == evaluation.predictions["validation"]
    examples = pipeline.load_eval_examples(resolve_task(toy.TASK), "validation", toy.LENGTHS)
    vocabulary = resolve_task(toy.TASK).vocabulary
    assert [row["id"] for row in rows] == [f"validation-{i}" for i in range(13)]
    for index, row in enumerate(rows):
        tokens = greedy_decode(
            student.model, params, examples.label_inputs[index : index + 1], max_decode_len=7
        )
        assert row["prediction"] == vocabulary.decode(shapes.until_end(np.asarray(tokens)[0]))
        assert list(row) == ["id", "input", "target", "prediction", "score"]
        assert row["target"] == examples.labels[index]
        assert row["input"] == examples.inputs[index]
    assert result["examples"] == 13
    assert result["accuracy"] == np.mean([row["score"] for row in rows])


def test_accuracy_is_the_tasks_own_metric(student, params, monkeypatch):
    evaluator = _evaluator(student)
    answers = [str(3 * i + 1) for i in range(13)]  # The value of i + (2 i + 1).
    answers[3] = "3 and 7"
    answers[5] = "16.5"
    monkeypatch.setattr(evaluator, "answers", lambda params, inputs, prompt, **how: answers)
    evaluation = evaluator(params)
    result = evaluation.metrics["validation"]
    p = 11 / 13
    assert result["accuracy"] == pytest.approx(p)
    assert result["accuracy_stderr"] == pytest.approx(np.sqrt(p * (1 - p) / 12))
    assert [row["score"] for row in evaluation.predictions["validation"]] == [
        int(i not in (3, 5)) for i in range(13)
    ]


def _expected_losses(student, params, normalization):
    """One record at a time, from the definition."""
    records = pipeline.load_records(resolve_task(toy.TASK), "validation", toy.LENGTHS)
    totals = {1: [0.0, 0.0], 2: [0.0, 0.0]}
    apply = student.jit(lambda params, batch: student.apply(params, batch, None))
    for batch in pipeline.EvalBatches(records, 1, toy.LENGTHS, pack=False):
        logits = apply(params, batch)
        loss, _ = losses.token_cross_entropy(logits, batch["decoder_target_tokens"])
        for part, total in totals.items():
            mine = batch["decoder_target_parts"] == part
            if not mine.any():
                continue
            total[0] += np.asarray(loss)[mine].sum() / (
                mine.sum() if normalization == "example_mean" else 1
            )
            total[1] += 1 if normalization == "example_mean" else mine.sum()
    return [total / weight for total, weight in totals.values()]


@pytest.mark.parametrize("normalization", ["token_mean", "example_mean"])
def test_losses_are_means_over_the_whole_split(student, params, normalization, monkeypatch):
    label, rationale = _expected_losses(student, params, normalization)
    for options in (
        {"batch_size": 4},
        {"batch_size": 3, "pack": False},
        {"batch_size": 64},
        {"batch_size": 5, "pack": False},  # cut into slices of 2 rows, the last one filled up
    ):
        if options["batch_size"] == 5:
            monkeypatch.setattr(programs_lib, "LOSS_TOKENS", 2 * sum(toy.LENGTHS.values()) + 1)
        result = _evaluator(student, loss_normalization=normalization, **options)(params).metrics
        result = result["validation"]
        assert result["label_loss"] == pytest.approx(label, rel=1e-5)
        assert result["rationale_loss"] == pytest.approx(rationale, rel=1e-5)
        assert 0 <= result["label_accuracy"] <= 1


def test_parts_that_a_task_lacks_have_no_loss(student, params):
    result = _evaluator(student, task="evaluator_toy_standard")(params).metrics["validation"]
    assert result["rationale_loss"] is None
    assert result["rationale_accuracy"] is None
    assert result["rationale_tokens"] == 0
    assert result["label_loss"] > 0


def test_the_mesh_does_not_matter(student, params):
    expected = _evaluator(student)(params)
    for data, model in ((8, 1), (2, 2)):
        other = _student(data, model, data * model)
        sharded = jax.device_put(params, other.param_shardings)
        result = _evaluator(other)(sharded)
        assert result.predictions == expected.predictions
        values = result.metrics["validation"]
        assert values == pytest.approx(expected.metrics["validation"], rel=1e-5)


def test_eval_steps_takes_the_first_batches(student, params):
    evaluator = _evaluator(student, eval_steps=2, batch_size=3)
    assert evaluator.size_text == "6 examples of validation"
    evaluation = evaluator(params)
    assert evaluation.metrics["validation"]["examples"] == 6
    assert [row["id"] for row in evaluation.predictions["validation"]] == [
        f"validation-{i}" for i in range(6)
    ]


def test_several_splits_and_rationales_on_request(student, params, tmp_path):
    evaluator = _evaluator(
        student, splits=("test", "validation"), with_rationales=True, max_decode_len=5
    )
    evaluation = evaluator(params)
    assert list(evaluation.metrics) == ["test", "validation"]
    rows = evaluation.predictions["test"]
    assert len(rows) == 3
    assert all(isinstance(row["rationale"], str) for row in rows)
    examples = pipeline.load_eval_examples(resolve_task(toy.TASK), "test", toy.LENGTHS)
    tokens = greedy_decode(student.model, params, examples.rationale_inputs, max_decode_len=5)
    vocabulary = resolve_task(toy.TASK).vocabulary
    assert rows[1]["rationale"] == vocabulary.decode(shapes.until_end(np.asarray(tokens)[1]))
    # The teacher's stands beside it where there is one.
    assert [row.get("llm_rationale", "") for row in rows] == examples.llm_rationales
    write_predictions(tmp_path, evaluation.predictions, 3)
    (without,) = _rows(tmp_path / "validation-3.jsonl")[4:5]
    assert "llm_rationale" not in without
    write_predictions(tmp_path, evaluation.predictions)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "test-3.jsonl",
        "test.jsonl",
        "validation-3.jsonl",
        "validation.jsonl",
    ]


def test_an_evaluation_itself_writes_nothing(student, params, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _evaluator(student, splits=("test",), max_decode_len=2)(params)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_steps": 0}, "EVAL_STEPS = 0 must be at least 1"),
        ({"batch_size": 0}, "EVAL_BATCH_SIZE = 0 must be at least 1"),
        ({"max_decode_len": 0}, "MAX_DECODE_LENGTH = 0 must be at least 1"),
        ({"splits": ("dev",)}, "dev"),
        ({"task": "evaluator_toy_spb"}, "There is no task 'evaluator_toy_spb'; did you mean"),
    ],
)
def test_mistakes_are_told_at_once(student, options, message):
    with pytest.raises(UserError, match=message):
        _evaluator(student, **options)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"test-0\.jsonl: cannot be written"):
        write_predictions(tmp_path / "file", {"test": [{"id": "1"}]}, 0)


def test_a_joint_students_label_is_taken_out_of_its_output(student, params, monkeypatch):
    evaluator = _evaluator(student, task="evaluator_toy_joint")
    monkeypatch.setattr(
        evaluator,
        "answers",
        lambda params, inputs, prompt, **how: ["It is so. Answer: (0 + 1)"] * len(inputs),
    )
    evaluation = evaluator(params)
    result, rows = evaluation.metrics["validation"], evaluation.predictions["validation"]
    assert {row["prediction"] for row in rows} == {"(0 + 1)"}
    assert {row["rationale"] for row in rows} == {"It is so."}
    assert result["accuracy"] == 1 / 13
    assert result["calculator_accuracy"] == 1 / 13
    assert result["faithfulness"] is None
    assert result["faithfulness_examples"] == 0
    assert 0 < result["chrf"] < 1


def test_rationales_are_compared_with_those_that_are_trained(student, params):
    options = {"splits": ("test",), "with_rationales": True, "max_decode_len": 6}
    human = _evaluator(student, task="evaluator_toy_explained_sbs_human", **options)
    values, predictions = (result["test"] for result in human(params))
    references = [
        [f"He wrote {i}.", f"Anna has {i} apples and buys pears."] for i in range(len(predictions))
    ]
    for name, score in (("rouge_l", overlap.rouge_l), ("chrf", overlap.chrf)):
        best = [
            max(score(row["rationale"], text) for text in texts)
            for row, texts in zip(predictions, references, strict=True)
        ]
        assert values[name] == pytest.approx(np.mean(best))
    assert values["chrf"] > 0
    # Without rationales of the teacher's there is nothing to compare with.
    none = _evaluator(student, task="evaluator_toy_explained_standard", **options)
    assert none(params).metrics["test"]["chrf"] is None


def _of_parts(name, parts):
    settings = dataclasses.replace(settings_lib.current(), parts=parts)
    return resolve_task(TaskChoice("evaluator_toy", method=name), settings)


def test_a_cascaded_label_reads_the_students_own_rationale(student, params):
    task = _of_parts(
        "cascaded_toy", {"label": {"reads": "{input} so {rationale}"}, "rationale": {}}
    )
    lengths = {"inputs": 64, "targets": 24}
    evaluator = Evaluator(student, task, lengths, splits=("validation",), batch_size=4)
    asked = {}

    def answers(params, inputs, prompt, **how):
        del params, prompt
        texts = [task.vocabulary.decode(row[row > 1].tolist()) for row in inputs]
        kind = texts[0].split(":")[0]
        asked[kind] = texts
        # Every third rationale is blank.
        said = [f"since {number}" * (number % 3 > 0) for number in range(len(texts))]
        return said if kind == "explain" else ["7"] * len(texts)

    evaluator.answers = answers
    rows = evaluator(params).predictions["validation"]
    examples = toy.load("validation", None)
    for number, (row, example) in enumerate(zip(rows, examples, strict=True)):
        text = " ".join(example["input"].split())
        behind = f" so since {number}" if number % 3 else ""
        assert asked["predict"][number] == f"predict: {text}{behind}"
        assert row["rationale"] == f"since {number}" * (number % 3 > 0)
        assert row["prediction"] == "7"
    assert list(asked) == ["explain", "predict"]


def test_expressions_vote(student, params):
    parts = {"label": {}, "rationale": {}, "expression": {"writes": "label"}}
    task = _of_parts("mixed_toy", parts)
    options = {"splits": ("validation",), "batch_size": 4, "with_rationales": True}
    evaluator = Evaluator(student, task, toy.LENGTHS, **options)
    said = {
        "predict": ["(0 + 1)", "99", "99"] + ["99"] * 10,
        "explain": ["0 + 1 = 1.", "1 + 3 = 4.", "none"] + ["none"] * 10,
        "expression": ["0 + 1", "1 + 3", "2 + 5"] + ["nothing"] * 10,
    }
    order = iter(("predict", "explain", "expression"))
    evaluator.answers = lambda params, inputs, prompt, **how: said[next(order)]
    evaluation = evaluator(params)
    values, rows = evaluation.metrics["validation"], evaluation.predictions["validation"]
    assert values["accuracy"] == pytest.approx(1 / 13)
    assert values["expression_accuracy"] == pytest.approx(3 / 13)
    # The second is outvoted by expression and rationale; the third has no majority.
    assert values["vote_accuracy"] == pytest.approx(2 / 13)
    assert [row["vote"] for row in rows[:3]] == ["(0 + 1)", "4", "99"]
    assert rows[1]["expression"] == "1 + 3"
