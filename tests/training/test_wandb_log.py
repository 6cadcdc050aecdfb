import sys
import types

import pytest

from sbs_jax.errors import UserError
from sbs_jax.training.wandb_log import WandbLog
from sbs_jax.training.writers import MetricsWriter


class FakeError(Exception):
    pass


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the module: notes down what it is told."""
    calls = []

    class FakeRun:
        def log(self, values, step):
            calls.append(("log", step, values))

        def finish(self):
            calls.append(("finish",))

    def init(**options):
        calls.append(("init", options))
        return FakeRun()

    module = types.SimpleNamespace(
        init=init, errors=types.SimpleNamespace(Error=FakeError), calls=calls
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def record(folder, after_step=None):
    with MetricsWriter(
        folder, tensorboard=False, trackers=[WandbLog("students", {"seed": 3})]
    ) as writer:
        writer.begin(after_step)
        writer.write(10, "train", {"loss": 0.5, "rationale_loss": None})
        writer.write(10, "validation", {"accuracy": 0.25})


def test_it_is_told_what_the_record_says(wandb, tmp_path):
    record(tmp_path / "run")
    assert wandb.calls[0][1]["project"] == "students"
    assert wandb.calls[0][1]["name"] == "run"
    assert wandb.calls[0][1]["config"] == {"seed": 3}
    assert wandb.calls[1:] == [
        ("log", 10, {"train/loss": 0.5}),
        ("log", 10, {"validation/accuracy": 0.25}),
        ("finish",),
    ]


def test_a_run_that_goes_on_is_the_same_run(wandb, tmp_path):
    record(tmp_path)
    record(tmp_path, after_step=10)
    ids = [call[1]["id"] for call in wandb.calls if call[0] == "init"]
    assert len(ids) == 2
    assert ids[0] == ids[1]


def test_other_processes_tell_nothing(wandb, tmp_path):
    with MetricsWriter(tmp_path, trackers=[WandbLog("students", {})], enabled=False) as writer:
        writer.begin(None)
        writer.write(1, "train", {"loss": 1.0})
    assert wandb.calls == []


def test_a_refusal_is_told_in_a_sentence(wandb, tmp_path):
    def refuse(**_):
        raise FakeError("api_key not configured")

    wandb.init = refuse
    with pytest.raises(UserError, match=r"W&B does not start \(api_key not configured\)"):
        record(tmp_path)


def test_without_wandb_it_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails
    with pytest.raises(UserError, match=r"pip install 'sbs_jax\[wandb\]'"):
        WandbLog("students", {})
