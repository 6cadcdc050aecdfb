"""A start in a MODEL_DIR that holds a run: accepted, refused, recorded."""

import dataclasses
import hashlib
import json

import jax
import numpy as np
import pytest

from sbs_jax import files
from sbs_jax.checkpoints import folders
from sbs_jax.data import choosing, pipeline, tokenizing
from sbs_jax.data.batching import AUTO, Batching
from sbs_jax.data.resolving import TaskChoice
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError
from sbs_jax.programs import running
from sbs_jax.programs.assembly import assemble
from sbs_jax.programs.train import train
from sbs_jax.programs.train_config import EvaluationSettings, Saving
from sbs_jax.training.balancing import Balancing
from sbs_jax.training.step import Loss
from sbs_jax.training.writers import MetricsWriter
from tests.evaluation import toy
from tests.programs.tiny import config_of, one_device
from tests.toy import CONFIG

TEXT = "SEED = 0\nLEARNING_RATE = {rate}\n"


def quick(folder, **changes):
    return config_of(folder, evaluation=EvaluationSettings(splits=()), **changes)


def start(folder, rate=0.001, **changes):
    return train(quick(folder, **changes), mesh=one_device(), config_text=TEXT.format(rate=rate))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    start(folder)
    return folder


def contents(folder):
    """What the files of a folder hold, by path; TensorBoard's events aside."""
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and "tensorboard" not in path.parts
    }


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 1}, "SEED = 1 instead of 0"),
        ({"loss": Loss(rationale_weight=0.5)}, "RATIONALE_WEIGHT = 0.5 instead of 1.0"),
        ({"loss": Loss(z_loss=0.1)}, "Z_LOSS = 0.1 instead of 0.0"),
        ({"data": DataSettings(vocabulary_size=500, label_prefix="x ")}, "LABEL_PREFIX = 'x '"),
        ({"data": DataSettings(vocabulary_size=400)}, "VOCABULARY_SIZE = 400 instead of 500"),
        ({"task": TaskChoice("evaluator_toy", method="standard")}, "METHOD = 'standard' instead"),
        (
            {"model_config": dataclasses.replace(CONFIG, mlp_activations=("relu",))},
            "MODEL's mlp_activations = ",
        ),
    ],
)
def test_a_start_that_would_change_the_run_is_refused_and_writes_nothing(finished, changes, says):
    before = contents(finished)
    with pytest.raises(UserError, match=says) as caught:
        start(finished, rate=0.5, train_steps=4, **changes)
    assert "choose another MODEL_DIR" in str(caught.value)
    assert contents(finished) == before


def test_a_run_with_nothing_left_to_train_keeps_its_record(finished, capsys):
    before = contents(finished)
    assert start(finished, rate=0.5).step == 2
    assert "Nothing to train" in capsys.readouterr().out
    assert contents(finished) == before


def test_settings_that_may_change_are_named_and_their_history_kept(tmp_path, capsys):
    start(tmp_path)
    capsys.readouterr()
    start(tmp_path, rate=0.5, train_steps=3)
    shown = " ".join(capsys.readouterr().out.split())
    assert "Resumed with other settings: LEARNING_RATE = 0.5 (was 0.001)." in shown
    assert (tmp_path / "config.gin").read_text() == TEXT.format(rate=0.5)
    kept = tmp_path / "config_history" / "until_step_2.gin"
    assert kept.read_text() == TEXT.format(rate=0.001)


def test_row_lengths_that_are_left_to_the_data_stay_those_of_the_run(
    finished, tmp_path, monkeypatch
):
    auto = Batching(AUTO, batch_size=8)
    fresh = assemble(quick(tmp_path, batching=auto), mesh=one_device())
    proposed = fresh.proposed_lengths.lengths
    assert running.metadata(fresh, None)["feature_lengths"] == proposed != toy.LENGTHS
    again = pipeline.load_records(fresh.task, "train", proposed)
    with monkeypatch.context() as patched:
        patched.setattr(tokenizing, "read_columns", None)  # The data are tokenized once.
        assert fresh.records.fingerprint() == again.fingerprint()
        assert fresh.records.counts == again.counts
    # Longer inputs would want longer rows.
    usual = toy.load
    monkeypatch.setitem(
        vars(choosing.task_info(toy.TASK).dataset),
        "load",
        lambda *args: [row | {"input": row["input"] * 3} for row in usual(*args)],
    )
    run = assemble(quick(finished, batching=auto, train_steps=3), mesh=one_device())
    assert run.batching.lengths == toy.LENGTHS
    assert run.proposed_lengths.lengths["inputs"] > proposed["inputs"]
    with pytest.raises(UserError, match="position in the data belongs to other data"):
        start(finished, batching=auto, train_steps=3)


def test_weights_that_find_themselves_go_on_to_the_bit(tmp_path):
    """The weights of parts, and the first losses that the rule remembers, come back from Orbax."""
    options = {
        "loss": Loss(balancing=Balancing("gradient_norm", rate=0.1)),
        "saving": Saving(log_period=1),
    }
    whole = start(tmp_path / "whole", train_steps=3, **options).state
    start(tmp_path / "cut", train_steps=2, **options)
    resumed = start(tmp_path / "cut", train_steps=3, **options).state
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    balance = jax.device_get(whole.opt_state.balance)
    assert (balance.values != 1.0).all()
    recorded = []
    for name in ("whole", "cut"):
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        recorded += [line for line in lines if (line["step"], line["split"]) == (3, "train")]
    for name in ("label_weight", "rationale_weight", "label_gradient_norm"):
        assert 0 < recorded[0][name] == recorded[1][name] != 1.0, name


def test_two_trainings_do_not_share_a_folder(tmp_path):
    with running.accepted(assemble(quick(tmp_path), mesh=one_device())):
        with pytest.raises(UserError, match="another process is at work here"):
            start(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["train.lock"]
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_blocks_nobody_and_goes(tmp_path):
    (tmp_path / "train.lock").touch()
    (tmp_path / ".student.json.a1b2c3d_.tmp").touch()
    mine = tmp_path / ".notes.tmp"
    mine.touch()
    start(tmp_path)
    assert (tmp_path / "student.json").exists()
    assert sorted(path.name for path in tmp_path.glob(".*")) == [mine.name]
    assert not (tmp_path / "train.lock").exists()


def test_a_lock_waits_as_long_as_it_is_told(tmp_path):
    with (
        files.locked(tmp_path / "x"),
        pytest.raises(UserError, match="another process"),
        files.locked(tmp_path / "x", patience=0.3),
    ):
        pass
    with files.locked(tmp_path / "new" / "x"):
        assert (tmp_path / "new" / "x").exists()
    assert not (tmp_path / "new").exists()


def test_a_changed_record_of_a_checkpoint_is_noticed(tmp_path):
    (tmp_path / "info").mkdir()
    path = tmp_path / "info" / "metadata"
    info = {"extra": {"position": {"epoch": 0}}, "metrics": {}, "digests": {}}
    path.write_text(json.dumps(info))
    assert folders.read_info(tmp_path) == info  # as earlier versions wrote it
    signed = info | {"digest": folders.digest_of(info)}
    path.write_text(json.dumps(signed))
    assert folders.read_info(tmp_path) == signed
    path.write_text(json.dumps(signed).replace('"epoch": 0', '"epoch": 4'))
    with pytest.raises(UserError, match="damaged or missing"):
        folders.read_info(tmp_path)


def test_a_checkpoint_whose_position_was_changed_is_not_resumed_from(tmp_path):
    start(tmp_path)
    path = tmp_path / "checkpoint_2" / "info" / "metadata"
    info = json.loads(path.read_text())
    info["extra"]["position"]["data"]["example"] += 1
    path.write_text(json.dumps(info))
    with pytest.raises(UserError, match="none of the 1 checkpoints can be read"):
        start(tmp_path, train_steps=3)


def test_a_folder_that_vanishes_is_told(tmp_path):
    writer = MetricsWriter(tmp_path / "run", tensorboard=False)
    writer.begin(None)
    writer.write(1, "train", {"loss": 1.0})
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with writer, pytest.raises(UserError, match="MODEL_DIR was removed or moved"):
        writer.write(2, "train", {"loss": 1.0})
