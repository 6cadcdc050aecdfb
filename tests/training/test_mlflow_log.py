import sys

import pytest

from sbs_jax.errors import UserError
from sbs_jax.training.mlflow_log import MlflowLog
from sbs_jax.training.writers import MetricsWriter


@pytest.fixture
def client(tmp_path, monkeypatch):
    """MLflow's own client of the local store that a run in `tmp_path` writes to."""
    mlflow = pytest.importorskip("mlflow", reason="pip install -e '.[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return lambda: mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}")


def record(folder, after_step, step):
    log = MlflowLog("students", {"seed": 3, "method": "sbs"})
    with MetricsWriter(folder, tensorboard=False, trackers=[log]) as writer:
        writer.begin(after_step)
        writer.write(step, "train", {"loss": 5 / step, "rationale_loss": None})
        writer.write(step, "validation", {"accuracy": 0.25})


def test_a_run_and_its_continuation_are_one_run_of_mlflow(client, tmp_path):
    record(tmp_path / "run", None, 10)
    record(tmp_path / "run", 10, 20)
    (experiment,) = [e for e in client().search_experiments() if e.name == "students"]
    (run,) = client().search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params == {"seed": "3", "method": "sbs"}
    history = client().get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(10, 0.5), (20, 0.25)]
    assert set(run.data.metrics) == {"train/loss", "validation/accuracy"}


def test_a_store_that_cannot_be_opened_is_a_sentence(client, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}")
    with pytest.raises(UserError, match=r"'students': the run cannot be opened .*TRACKING_URI"):
        record(tmp_path / "run", None, 10)


def test_a_store_that_fails_later_stops_nothing(client, tmp_path, caplog):
    log = MlflowLog("students", {})
    with MetricsWriter(tmp_path / "run", tensorboard=False, trackers=[log]) as writer:
        writer.begin(None)
        (tmp_path / "run" / "mlflow.db").write_text("no database")
        for step in (1, 2):
            writer.write(step, "train", {"loss": 0.5})
    assert caplog.text.count("MLflow cannot be written to any more") == 1
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_without_mlflow_it_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)  # importing it fails
    with pytest.raises(UserError, match=r"MLFLOW_EXPERIMENT = 'students' needs mlflow: pip"):
        MlflowLog("students", {})
