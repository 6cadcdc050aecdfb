"""MLflow beside metrics.jsonl: off unless an experiment is named; needs the extra `mlflow`.

MLFLOW_TRACKING_URI says where the runs go, as everywhere with MLflow. Where it is not set they go
into MODEL_DIR/mlflow.db, which `mlflow ui --backend-store-uri sqlite:///MODEL_DIR/mlflow.db` shows.
(MLflow's store of plain files, `mlruns/`, is refused by MLflow itself since 3.)
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sbs_jax import remote
from sbs_jax.errors import UserError
from sbs_jax.files import atomic_write_text

_LOG = logging.getLogger(__name__)
_ID_FILE = "mlflow_run_id.txt"
_LOCAL = "mlflow.db"


class MlflowLog:
    """A run of MLflow, named after MODEL_DIR. The same MODEL_DIR continues the same run."""

    def __init__(self, experiment: str, config: Mapping[str, Any]) -> None:
        """Opens nothing yet.

        Args:
          experiment: the name of MLflow's experiment; it is created if need be.
          config: the configuration that becomes the run's parameters.

        Raises:
          UserError: mlflow is not installed.
        """
        try:
            from mlflow import MlflowClient, entities, exceptions
        except ImportError as error:
            raise UserError(
                f"MLFLOW_EXPERIMENT = {experiment!r} needs mlflow: pip install 'sbs_jax[mlflow]'."
            ) from error
        # How it sets its tables up is nothing to show.
        logging.getLogger("mlflow.store").setLevel(logging.WARNING)
        self._client_class, self._entities = MlflowClient, entities
        self._error = exceptions.MlflowException
        self._experiment, self._config = experiment, dict(config)
        self._client: Any = None
        self._run_id = ""
        self._failed = False

    def begin(self, model_dir: str | os.PathLike[str]) -> None:
        """Opens the run.

        Raises:
          UserError: the store cannot be reached.
        """
        folder = remote.place(model_dir)
        if remote.is_remote(folder) and not os.environ.get("MLFLOW_TRACKING_URI"):
            raise UserError(
                f"MLFLOW_EXPERIMENT = {self._experiment!r}: the local store cannot lie in "
                f"{folder}; set MLFLOW_TRACKING_URI."
            )
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / _LOCAL}"
        try:
            self._client = self._client_class(tracking_uri=uri)
            self._run_id = self._open_run(folder)
        except Exception as error:  # Of MLflow, SQLAlchemy or requests.
            self._client = None
            raise UserError(
                f"MLFLOW_EXPERIMENT = {self._experiment!r}: the run cannot be opened "
                f"({type(error).__name__}: {_first_line(error)}); check MLFLOW_TRACKING_URI, or "
                "leave MLFLOW_EXPERIMENT out."
            ) from error

    def write(self, step: int, split: str, values: Mapping[str, float | int | None]) -> None:
        """Records the metrics of one split at a step; those without a value are left out.

        A store that fails in the middle of a run is reported once, and training goes on:
        metrics.jsonl holds everything.
        """
        now = int(time.time() * 1000)
        metrics = [
            self._entities.Metric(f"{split}/{name}", float(value), now, step)
            for name, value in values.items()
            if value is not None
        ]
        self._try(lambda: self._client.log_batch(self._run_id, metrics=metrics))

    def close(self) -> None:
        """Marks the run as finished."""
        if self._client is not None:
            self._try(lambda: self._client.set_terminated(self._run_id))
            self._client = None

    def _open_run(self, folder: Path) -> str:
        id_file = folder / _ID_FILE
        if id_file.exists():
            run_id = id_file.read_text(encoding="utf-8").strip()
            try:
                self._client.update_run(run_id, status="RUNNING")
                return run_id
            except self._error:
                pass  # The store is another one, or the run was deleted there.
        found = self._client.get_experiment_by_name(self._experiment)
        if found:
            experiment = found.experiment_id
        else:
            experiment = self._client.create_experiment(self._experiment)
        run_id = self._client.create_run(experiment, run_name=folder.name).info.run_id
        parameters = [
            self._entities.Param(name, str(value)) for name, value in self._config.items()
        ]
        self._client.log_batch(run_id, params=parameters)
        atomic_write_text(id_file, run_id + "\n")
        return run_id

    def _try(self, call: Any) -> None:
        if self._failed:
            return
        try:
            call()
        except Exception as error:
            self._failed = True
            _LOG.warning(
                "MLflow cannot be written to any more (%s: %s); metrics.jsonl goes on.",
                type(error).__name__,
                _first_line(error),
            )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
