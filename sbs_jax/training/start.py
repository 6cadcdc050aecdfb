"""Where a run's state comes from."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from sbs_jax.checkpoints import folders
from sbs_jax.checkpoints.manager import CheckpointManager, restore_params
from sbs_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run starts with.

    Attributes:
      state: see `training.state.TrainState`.
      step: number of steps done.
      position: what `loop.fit` saved beside the state, to go on exactly where it was; None for a
        run that begins.
      initial_checkpoint: where the run's first parameters came from; None for random ones.
      description: a sentence for the user.
    """

    state: Any
    step: int = 0
    position: dict[str, Any] | None = None
    initial_checkpoint: str | None = None
    description: str = "Starting with fresh parameters."


def starting_state(
    *,
    abstract_state: Any,
    fresh: Callable[[], Any],
    checkpoints: CheckpointManager | None = None,
    initial_checkpoint_path: str | os.PathLike[str] | None = None,
    load_params: Callable[[str | os.PathLike[str], Any], Any] = restore_params,
    complete: Callable[[Any, CheckpointManager, int], Any] | None = None,
) -> Start:
    """Finds the state to start from.

    Args:
      abstract_state: the state wanted, of `jax.ShapeDtypeStruct` with shardings.
      fresh: makes a new state with those shardings.
      checkpoints: the checkpoints of MODEL_DIR; None for a run that saves nothing.
      initial_checkpoint_path: a MODEL_DIR or checkpoint to take the first parameters from.
      load_params: reads them, given that path and the abstract parameters.
      complete: given the parameters that were restored, `checkpoints` and the step, returns all
        parameters, where checkpoints hold a part of them.

    Raises:
      UserError: MODEL_DIR holds a run that began from another checkpoint than the one asked for, or
        a checkpoint cannot be read or does not fit.
    """
    # 1. The latest checkpoint in MODEL_DIR: an interrupted run goes on. It never wins silently over
    #    an INITIAL_CHECKPOINT_PATH that it did not itself begin from.
    if checkpoints is not None and (restored := checkpoints.restore_latest(abstract_state)):
        origin = restored.extra.get("initial_checkpoint")
        _refuse_other_origin(checkpoints, origin, initial_checkpoint_path)
        state = restored.state
        if complete is not None:
            params = complete(state.params, checkpoints, restored.step)
            state = dataclasses.replace(state, params=params)
        return Start(
            state=state,
            step=restored.step,
            position=restored.extra.get("position"),
            initial_checkpoint=origin,
            description=f"Going on from {restored.folder}.",
        )
    # 2. INITIAL_CHECKPOINT_PATH: its parameters alone. Step, optimizer and data begin anew.
    if initial_checkpoint_path is not None:
        # The random parameters are let go before others are read: there may be room for one set.
        state = dataclasses.replace(fresh(), params=None)
        params = load_params(initial_checkpoint_path, abstract_state.params)
        return Start(
            state=dataclasses.replace(state, params=params),
            initial_checkpoint=os.fspath(folders.absolute(initial_checkpoint_path)),
            description=f"Starting with the parameters of {initial_checkpoint_path}.",
        )
    # 3. Fresh parameters, from the seed.
    return Start(state=fresh())


def _refuse_other_origin(
    checkpoints: CheckpointManager,
    origin: str | None,
    asked: str | os.PathLike[str] | None,
) -> None:
    if asked is None or folders.same_place(asked, checkpoints.folder):
        return
    if origin is not None and folders.same_place(asked, origin):
        return
    began = "fresh parameters" if origin is None else origin
    raise UserError(
        f"MODEL_DIR {checkpoints.folder} holds a run that began from {began}, not from "
        f"INITIAL_CHECKPOINT_PATH = {asked}; choose another MODEL_DIR, or leave out "
        "INITIAL_CHECKPOINT_PATH to go on with that run."
    )
