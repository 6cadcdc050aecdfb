import pytest

from sbs_jax.experiments import local
from tests.paths import ROOT


@pytest.fixture
def scripted_workers(monkeypatch):
    """Runs of sweeps are processes of fake_worker.py instead of ones that train."""
    command = local.worker_command

    def fake(sweep, job, **options):
        python, _, _, *rest = command(sweep, job, **options)
        return [python, "-m", "tests.experiments.fake_worker", *rest]

    monkeypatch.setattr(local, "worker_command", fake)
    monkeypatch.setattr(local, "POLL_SECONDS", 0.02)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
