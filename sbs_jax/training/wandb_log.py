"""Weights & Biases beside metrics.jsonl: off unless a project is named; needs the extra `wandb`.

Whether and where it uploads is W&B's own business: WANDB_MODE=offline writes below MODEL_DIR alone,
WANDB_API_KEY and WANDB_BASE_URL say who and where.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from typing import Any

from sbs_jax import remote
from sbs_jax.errors import UserError
from sbs_jax.files import atomic_write_text

_ID_FILE = "wandb_id.txt"


class WandbLog:
    """A run of W&B, named after MODEL_DIR; the same MODEL_DIR goes on with the same run."""

    def __init__(self, project: str, config: Mapping[str, Any]) -> None:
        """Opens nothing yet.

        Args:
          project: the project of W&B.
          config: the JSON that it shows as the run's settings.

        Raises:
          UserError: wandb is not installed.
        """
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                f"WANDB_PROJECT = {project!r} needs wandb: pip install 'sbs_jax[wandb]'."
            ) from error
        self._wandb = wandb
        self._project, self._config = project, dict(config)
        self._run: Any = None

    def begin(self, model_dir: str | os.PathLike[str]) -> None:
        """Opens the run.

        Raises:
          UserError: W&B refuses, for want of a key or of a network.
        """
        folder = remote.place(model_dir)
        id_file = folder / _ID_FILE
        if not id_file.exists():
            atomic_write_text(id_file, uuid.uuid4().hex + "\n")
        try:
            self._run = self._wandb.init(
                project=self._project,
                name=folder.name,
                id=id_file.read_text(encoding="utf-8").strip(),
                resume="allow",
                dir=None if remote.is_remote(folder) else str(folder),
                config=self._config,
                # Several runs of a sweep may be trained in one process.
                reinit="create_new",
            )
        except self._wandb.errors.Error as error:
            raise UserError(
                f"WANDB_PROJECT = {self._project!r}: W&B does not start ({error}); see to "
                "`wandb login`, set WANDB_MODE=offline, or leave WANDB_PROJECT out."
            ) from error

    def write(self, step: int, split: str, values: Mapping[str, float | int | None]) -> None:
        """Records the metrics of one split at a step, those without a value left out."""
        named = {f"{split}/{name}": v for name, v in values.items() if v is not None}
        self._run.log(named, step=step)

    def close(self) -> None:
        """Ends the run."""
        if self._run is not None:
            self._run.finish()
            self._run = None
