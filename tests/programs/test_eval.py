import dataclasses
import json
import shutil

import jax
import pytest

from sbs_jax.data.batching import Batching
from sbs_jax.data.resolving import TaskChoice
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError
from sbs_jax.partitioning.mesh import MeshSettings
from sbs_jax.programs.eval import EvalConfig, EvaluatedSplits, EvaluatedTask, evaluate
from sbs_jax.programs.train import train
from sbs_jax.programs.train_config import TrainConfig
from sbs_jax.training import optimizers
from tests.evaluation import toy
from tests.toy import CONFIG


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A run of 2 steps, with settings of its own."""
    toy.register()
    folder = tmp_path_factory.mktemp("run")
    config = TrainConfig(
        model_config=CONFIG,
        model_dir=str(folder),
        task=TaskChoice(toy.TASK),
        batching=Batching(toy.LENGTHS, batch_size=8),
        optimizer=optimizers.adamw(1e-3),
        train_steps=2,
        data=DataSettings(vocabulary_size=500, label_prefix="[label] "),
        mesh=MeshSettings(data_parallel=8),
    )
    train(config)
    return folder


def _evaluate(model_dir, tmp_path, splits=("test",), **options):
    config = EvalConfig(str(model_dir), str(tmp_path / "out"), evaluated=EvaluatedSplits(splits))
    given = {name: options.pop(name) for name in set(options) & set(vars(config))}
    return evaluate(dataclasses.replace(config, **given), **options)


def test_what_is_not_given_is_as_it_was_trained(model_dir, tmp_path):
    results = _evaluate(model_dir, tmp_path, splits=["validation"], config_text="X = 1\n")
    recorded = [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]
    trained = next(row for row in recorded if row["split"] == "validation")
    for name in ("accuracy", "label_loss", "rationale_loss", "label_tokens", "examples"):
        assert results["validation"][name] == pytest.approx(trained[name], rel=1e-6)
    # The run's own predictions, which it made with its prefix, vocabulary and lengths.
    predictions = tmp_path / "out/predictions/validation-2.jsonl"
    assert predictions.read_text() == (model_dir / "predictions/validation-2.jsonl").read_text()
    assert (tmp_path / "out/eval_config.gin").read_text() == "X = 1\n"
    (row,) = (tmp_path / "out/eval_metrics.jsonl").read_text().splitlines()
    row = json.loads(row)
    assert (row["step"], row["split"]) == (2, "validation")
    assert row["checkpoint"] == str(model_dir / "checkpoint_2")
    assert row["label_loss"] == results["validation"]["label_loss"]


def test_everything_may_be_given(model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = EvalConfig(
        checkpoint_path=str(model_dir / "checkpoint_2"),
        output_dir="relative",
        model_config=CONFIG,
        task=EvaluatedTask(
            "evaluator_toy_standard",
            feature_lengths={"inputs": 40, "targets": 8},
            vocabulary_path=str(model_dir / "vocabulary/spiece.model"),
        ),
        evaluated=EvaluatedSplits(("test",), batch_size=2, with_rationales=True),
        mesh=MeshSettings(4, 2, fsdp=True),
    )
    results = evaluate(config)
    assert results["test"]["examples"] == 3
    assert results["test"]["rationale_loss"] is None
    assert "rationale" in (tmp_path / "relative/predictions/test-2.jsonl").read_text()


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(model_dir, tmp_path, capsys):
    assert _evaluate(model_dir, tmp_path, dry_run=True) is None
    told = capsys.readouterr().out
    assert "3 examples of test" in told
    assert "first input: [label] Anna has 0 apples" in told
    assert not (tmp_path / "out").exists()


def test_a_missing_vocabulary_is_told(model_dir, tmp_path):
    shutil.copytree(model_dir / "checkpoint_2", tmp_path / "moved/checkpoint_2")
    with pytest.raises(UserError, match=r"moved/vocabulary/spiece\.model: the vocabulary that the"):
        _evaluate(tmp_path / "moved", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint_path": "/nowhere"}, "/nowhere: no such folder"),
        ({"splits": []}, "EVAL_SPLITS names no split"),
        ({"splits": ["dev"]}, "dev"),
        ({"task": EvaluatedTask("evaluator_toy_sbz")}, "did you mean"),
        ({"mesh": MeshSettings(3)}, "The mesh"),
    ],
)
def test_mistakes(model_dir, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        _evaluate(model_dir, tmp_path, **options)
    assert not (tmp_path / "out").exists()


def test_another_model_is_refused_by_name(model_dir, tmp_path):
    config = dataclasses.replace(CONFIG, mlp_dim=64)
    with pytest.raises(UserError, match=r"wi_0"):
        _evaluate(model_dir, tmp_path, model_config=config)
    assert jax.device_count() == 8
