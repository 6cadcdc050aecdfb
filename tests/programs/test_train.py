"""Training and evaluation from weights of every origin, vocabulary and settings included."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import traverse_util

from sbs_jax.checkpoints.loading import identify, load_params
from sbs_jax.data.batching import Batching
from sbs_jax.data.resolving import TaskChoice
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.programs import eval as evaluation
from sbs_jax.programs.export import export
from sbs_jax.programs.train import train
from sbs_jax.programs.train_config import EvaluationSettings, Saving, TrainConfig
from sbs_jax.student import Student
from sbs_jax.training import optimizers
from sbs_jax.training.step import Loss
from tests import sentencepiece_models
from tests.checkpoints.t5x_layout import write_legacy
from tests.evaluation import toy
from tests.toy import CONFIG


def run(
    folder,
    *,
    initial=None,
    steps=2,
    config=CONFIG,
    rate=1e-3,
    lengths=toy.LENGTHS,
    dry_run=False,
    splits=(),
    **settings,
):
    toy.register()
    run_config = TrainConfig(
        model_config=config,
        model_dir=str(folder),
        task=TaskChoice(toy.TASK),
        batching=Batching(lengths, batch_size=8),
        optimizer=optimizers.adamw(rate),
        train_steps=steps,
        data=DataSettings(vocabulary_size=500, **settings),
        loss=Loss(rationale_weight=0.5),
        evaluation=EvaluationSettings(splits=splits),
        saving=Saving(initial_checkpoint_path=None if initial is None else str(initial)),
    )
    train(run_config, mesh=one_device(), dry_run=dry_run)
    return folder


def one_device():
    """Weights do not depend on the mesh (other tests see to that); one device compiles sooner."""
    return make_mesh(devices=jax.devices()[:1])


def params_of(path):
    student = Student(CONFIG, one_device())
    return traverse_util.flatten_dict(load_params(identify(path), student.placed_params), sep="/")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of two steps; its settings differ from the defaults."""
    return run(tmp_path_factory.mktemp("runs") / "first", label_prefix="[label] ")


@pytest.fixture(scope="module")
def exported(first):
    return export(checkpoint_path=str(first), output_dir=str(first.parent / "exported"))


def test_a_run_records_its_student(first):
    record = json.loads((first / "student.json").read_text())
    assert record["model_config"]["emb_dim"] == 16
    settings = record["settings"]
    assert settings["method"] == "sbs" and settings["rationale_weight"] == 0.5
    assert settings["feature_lengths"] == toy.LENGTHS
    assert settings["data_settings"]["label_prefix"] == "[label] "
    source = identify(first)
    assert (source.kind, source.step, source.config) == ("sbs_jax", 2, CONFIG)
    assert source.settings == settings
    assert source.vocabulary_path == first / "vocabulary/spiece.model"


def test_the_exported_student_evaluates_as_the_run_does(first, exported, tmp_path):
    splits = evaluation.EvaluatedSplits(["validation"])
    configs = [
        evaluation.EvalConfig(str(path), str(tmp_path / path.name), evaluated=splits)
        for path in (first, exported)
    ]
    results = [evaluation.evaluate(config, mesh=one_device())["validation"] for config in configs]
    assert results[0] == results[1]
    predictions = [
        next((tmp_path / path.name / "predictions").iterdir()).read_text()
        for path in (first, exported)
    ]
    assert predictions[0] == predictions[1]


def test_training_goes_on_from_a_hugging_face_folder(exported, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(exported, moved)
    # One step without learning shows what it began with.
    folder = run(tmp_path / "second", initial=moved, steps=1, rate=0.0)
    for name, array in params_of(exported).items():
        np.testing.assert_array_equal(params_of(folder)[name], array)
    # The vocabulary came with the weights, and stays with the run, which needs the folder no more.
    kept = folder / "vocabulary" / "spiece.model"
    assert kept.read_bytes() == (exported / "spiece.model").read_bytes()
    shutil.rmtree(moved)
    run(folder, initial=moved, steps=2, rate=0.0)
    assert identify(folder).step == 2
    with pytest.raises(UserError, match=r"this run's vocabulary is another one than"):
        run(folder, initial=moved, steps=3, vocabulary_path=str(_other_vocabulary(tmp_path)))


def _other_vocabulary(folder):
    return sentencepiece_models.train(
        folder / "other.model", sentencepiece_models.texts(), byte_fallback=True
    )


def test_training_from_t5x_wants_its_vocabulary_named(first, tmp_path):
    params = {name: np.asarray(array) for name, array in params_of(first).items()}
    legacy = write_legacy(tmp_path / "checkpoint_9", params)
    with pytest.raises(UserError, match=r"spiece\.model: the vocabulary that the weights were"):
        run(tmp_path / "none", initial=legacy)
    vocabulary = str(first / "vocabulary" / "spiece.model")
    folder = run(tmp_path / "named", initial=legacy, steps=1, rate=0.0, vocabulary_path=vocabulary)
    for name, array in params_of(folder).items():
        np.testing.assert_array_equal(array, params[name])


def test_what_does_not_fit_is_told_before_training(exported, tmp_path):
    def message(**changes):
        with pytest.raises(UserError) as caught:
            config = dataclasses.replace(CONFIG, **changes)
            run(tmp_path / "x", initial=exported, config=config)
        return str(caught.value)

    assert "mlp_activations is ('gelu', 'linear') in this checkpoint" in message(
        mlp_activations=("relu", "linear")
    )
    assert "in this checkpoint but [16, 48] in this run" in message(mlp_dim=48)
    small = "The vocabulary has"
    assert small in message(vocab_size=64)


def test_an_error_before_training_leaves_nothing_in_model_dir(tmp_path):
    with pytest.raises(UserError, match="STRICT_LENGTHS is set"):
        run(tmp_path / "run", strict_lengths=True, lengths={"inputs": 4, "targets": 24})
    assert not (tmp_path / "run").exists()


def test_a_dry_run_counts_records_blanks_and_cuts(tmp_path, capsys):
    run(
        tmp_path / "run",
        lengths={"inputs": 16, "targets": 24},
        dry_run=True,
        splits=("validation",),
    )
    shown = capsys.readouterr().out
    assert f"{toy.TASK}: 40 examples, 40 label and 32 rationale records, 8 blank" in shown
    assert "inputs and 0 targets cut" in shown
    assert "evaluated: 13 examples of validation\n" in shown
    assert not (tmp_path / "run").exists()
