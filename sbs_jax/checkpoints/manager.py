"""Saving and restoring a run's state through Orbax; `folders` describes what lies where."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from sbs_jax.checkpoints import folders, quiet, reading, store, trees
from sbs_jax.closing import Closing
from sbs_jax.errors import UserError

_LOG = logging.getLogger(__name__)

# TensorStore reports the operating system's errors as ValueError, in words.
_OS_ERROR = re.compile(r": ([^:]+?) \[os_error_code")


class CheckpointManager(Closing):
    """The checkpoints of one run, `MODEL_DIR/checkpoint_<step>`.

    Files are written in the background and appear atomically. In a run of several processes all of
    them construct this and call its methods at the same places; MODEL_DIR is on a file system that
    they share. One run at a time may write to a MODEL_DIR: what an earlier one left unfinished is
    removed here. To read checkpoints of a run that may be alive, use `restore_params`.
    """

    def __init__(
        self,
        model_dir: str | os.PathLike[str],
        *,
        keep: int | None = None,
        best_metric: str | None = None,
        best_mode: Literal["max", "min"] = "max",
        saved_params: Callable[[Any], Any] | None = None,
    ) -> None:
        """Opens (or creates) a MODEL_DIR.

        Args:
          model_dir: may be relative; it is resolved now.
          keep: how many of the latest checkpoints are kept; None keeps all.
          best_metric: besides those, the checkpoint with the best value of this metric is kept; a
            key of `save`'s metrics, `validation/label_accuracy`.
          best_mode: whether a larger (`max`) or a smaller (`min`) value is better.
          saved_params: takes the parameters that are saved, and restored, out of all of them; None
            saves all.

        Raises:
          UserError: an argument is out of its range, or the folder cannot be made.
        """
        folders.require_retention(keep, best_mode)
        quiet.quiet_orbax()
        self._folder = folders.absolute(model_dir)
        self._best_metric = best_metric
        self._best_mode: Literal["max", "min"] = best_mode
        if jax.process_index() == 0:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                folders.sweep(self._folder)
            except OSError as error:
                raise UserError(
                    f"MODEL_DIR {self._folder}: cannot be written to ({error.strerror})."
                ) from error
        _barrier("sbs_jax:model_dir")
        found = folders.complete_checkpoints(self._folder)
        _same_everywhere(max(found, default=-1), self._folder)
        self._keep = keep
        self._saved_params = saved_params or (lambda params: params)
        self._values = {step: self._saved_value(folder) for step, folder in found.items()}
        self._store = self._open()

    @property
    def folder(self) -> epath.Path:
        """MODEL_DIR, absolute."""
        return self._folder

    def steps(self) -> list[int]:
        """The steps saved, those included that are still being written, in increasing order."""
        return self._store.all()

    def latest_step(self) -> int | None:
        """The last of `steps`; None where there is none."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step kept as the best; None without `best_metric` or where none was evaluated."""
        return folders.best_of(
            {step: self._values.get(step) for step in self.steps()}, self._best_mode
        )

    def path_of(self, step: int) -> epath.Path:
        """The folder of a step's checkpoint."""
        return self._folder / f"{folders.PREFIX}_{step}"

    def lacks_best_metric(self, metrics: Mapping[str, float | None]) -> str | None:
        """Returns a sentence if `best_metric` is not among the metrics of an evaluation."""
        if self._best_metric is None or self._best_metric in metrics:
            return None
        return (
            f"BEST_METRIC = {self._best_metric!r} is not among the metrics of the evaluation; "
            f"choose one of {', '.join(sorted(metrics))}."
        )

    def is_best(self, metrics: Mapping[str, float | None]) -> bool:
        """Whether these metrics are better than those of every checkpoint there is.

        Raises:
          UserError: `best_metric` is not among them.
        """
        if self._best_metric is None:
            return False
        if lacking := self.lacks_best_metric(metrics):
            raise UserError(lacking)
        value = _finite(metrics[self._best_metric])
        best = self.best_step()
        if value is None or best is None:
            return value is not None
        known = self._values[best]
        assert known is not None  # `best_step` is of a value.
        return value > known if self._best_mode == "max" else value < known

    def save(
        self,
        step: int,
        state: Any,
        *,
        extra: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float | None] | None = None,
    ) -> None:
        """Saves a state; the files are written while the caller goes on.

        The arrays are copied before this returns, so the state may be donated at once. A step that
        is saved already is left alone.

        Args:
          step: number of steps done.
          state: a dataclass of trees of arrays, one of its fields named `params`.
          extra: whatever else belongs to it, as JSON: the position in the data, the configuration.
          metrics: what the evaluation of this very state gave; None where it was not evaluated.

        Raises:
          UserError: the state holds NaN or infinity (nothing is written), or this or an earlier
            checkpoint cannot be written.
        """
        if step in self.steps():
            return
        params, training = reading.split(state)
        params = self._saved_params(params)
        found = {
            folders.PARAMS: trees.inspect(params),
            folders.TRAINING: trees.inspect(training),
        }
        self._refuse_poison(step, found)
        measured = {
            name: number
            for name, value in (metrics or {}).items()
            if (number := _finite(value)) is not None
        }
        self._values[step] = measured.get(self._best_metric or "")
        info = {
            "step": step,
            "metrics": measured,
            "best_by": [self._best_metric, self._best_mode] if self._best_metric else None,
            "extra": dict(extra or {}),
            "digests": {
                item: {name: leaf.digest for name, leaf in leaves.items()}
                for item, leaves in found.items()
            },
        }
        info["digest"] = folders.digest_of(info)
        arrays = {folders.PARAMS: params, folders.TRAINING: training}
        try:
            self._store.save(step, arrays, {folders.INFO: info})
        except (OSError, ValueError) as error:
            if sentence := self._unwritable(error):
                raise sentence from error
            raise

    def restore_latest(self, abstract_state: Any) -> reading.Restored | None:
        """Reads the latest checkpoint, or the one before where its files are damaged.

        A damaged one is renamed to `checkpoint_<step>.unreadable`, with a warning.

        Args:
          abstract_state: the state wanted, of `jax.ShapeDtypeStruct` with the shardings of this
            run's mesh; the mesh that it was saved from does not matter.

        Returns:
          None where MODEL_DIR holds no checkpoint.

        Raises:
          UserError: the checkpoint does not fit `abstract_state` (the first difference is named),
            or there are checkpoints but none can be read.
        """
        abstract_state = dataclasses.replace(
            abstract_state, params=self._saved_params(abstract_state.params)
        )
        damaged: list[tuple[epath.Path, Exception]] = []
        found = folders.complete_checkpoints(self._folder)
        for step, folder in reversed(found.items()):
            try:
                restored = reading.read_state(step, folder, abstract_state)
            except trees.UnreadableError as error:
                damaged.append((folder, error))
            else:
                self._set_aside(damaged)
                return restored
        if damaged:
            raise UserError(
                f"{self._folder}: none of the {len(damaged)} checkpoints can be read "
                f"({damaged[0][1]}); choose another MODEL_DIR or remove them."
            )
        return None

    def wait(self) -> None:
        """Waits until everything saved so far is on disk.

        Raises:
          UserError: it could not be written.
        """
        try:
            self._store.wait()
        except (OSError, ValueError) as error:
            if sentence := self._unwritable(error):
                raise sentence from error
            raise

    def close(self) -> None:
        """Waits, and ends the background threads."""
        try:
            self.wait()
        finally:
            self._store.close()

    def _kept(self, steps: Sequence[int]) -> list[bool]:
        """Which checkpoints stay."""
        kept = set(steps if self._keep is None else steps[-self._keep :])
        if self._best_metric is not None:
            values = {step: self._values.get(step) for step in steps}
            best = folders.best_of(values, self._best_mode)
            kept |= set() if best is None else {best}
        return [step in kept for step in steps]

    def _open(self) -> store.Steps:
        return store.Steps(self._folder, folders.PREFIX, self._kept)

    def _saved_value(self, folder: epath.Path) -> float | None:
        if self._best_metric is None:
            return None
        try:
            return _finite(folders.read_info(folder)["metrics"].get(self._best_metric))
        except (UserError, KeyError, TypeError, AttributeError):
            return None  # Damaged: reported when somebody tries to restore it.

    def _refuse_poison(self, step: int, found: Mapping[str, Mapping[str, trees.Inspected]]) -> None:
        poisoned = [
            name
            for item, leaves in found.items()
            for name, leaf in leaves.items()
            # Some optimizers keep an infinity on purpose ("best loss so far"), none keeps a NaN.
            if leaf.has_nan or (leaf.has_infinity and item == folders.PARAMS)
        ]
        if not poisoned:
            return
        # The last good one may still be on its way to the disk.
        self.wait()
        latest = self.latest_step()
        last_good = "none was saved before" if latest is None else f"see {self.path_of(latest)}"
        raise UserError(
            f"Step {step}: {poisoned[0]} holds NaN or infinity, so this state is not saved (last "
            f"good checkpoint: {last_good}); lower the learning rate or clip gradients."
        )

    def _set_aside(self, damaged: list[tuple[epath.Path, Exception]]) -> None:
        if not damaged:
            return
        for folder, error in damaged:
            if jax.process_index() == 0:
                target = folders.set_aside(folder)
                _LOG.warning(
                    "%s cannot be read; it is now %s, and the one before it is used. (%s)",
                    folder,
                    target.name,
                    error,
                )
        _barrier("sbs_jax:set_aside")
        self._store.close()
        self._store = self._open()

    def _unwritable(self, error: Exception) -> UserError | None:
        """A sentence, if the file system is at fault."""
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
        elif found := _OS_ERROR.search(str(error)):
            reason = found[1]
        else:
            return None
        return UserError(f"MODEL_DIR {self._folder}: a checkpoint cannot be written ({reason}).")


def restore_params(path: str | os.PathLike[str], abstract_params: Any) -> Any:
    """Reads the parameters alone, for evaluation or as a start.

    Args:
      path: a MODEL_DIR (its latest checkpoint), `MODEL_DIR/best`, or a checkpoint's own folder.
      abstract_params: the parameters wanted, of `jax.ShapeDtypeStruct` with shardings.

    Returns:
      The parameters on the devices.

    Raises:
      UserError: there is no such checkpoint, it does not fit (the first differing parameter is
        named), or it is damaged.
    """
    quiet.quiet_orbax()
    folder = folders.find_checkpoint(path)
    info = folders.read_info(folder)
    try:
        return reading.read_items(folder, info, {folders.PARAMS: abstract_params})[folders.PARAMS]
    except trees.UnreadableError as error:
        raise UserError(f"{folder}: damaged ({error}); use another checkpoint.") from error


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _same_everywhere(step: int, model_dir: epath.Path) -> None:
    if jax.process_count() == 1:
        return
    steps = multihost_utils.process_allgather(np.int32(step))
    if (steps != steps[0]).any():
        raise UserError(
            f"MODEL_DIR {model_dir}: processes see different checkpoints in it (latest steps "
            f"{', '.join(str(s) for s in steps)}, -1 for none); put it on a shared file system."
        )
