"""Reading a checkpoint whole or in part; every process of a run does so together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from sbs_jax.checkpoints import folders, trees
from sbs_jax.errors import UserError

_WORDS = {
    folders.PARAMS: {
        "what": "parameter",
        "advice": "use the MODEL that it was trained with, or another checkpoint",
    },
    folders.TRAINING: {
        "what": "the optimizer's",
        "advice": "use the OPTIMIZER that it was trained with, or another MODEL_DIR",
    },
}


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint that was read.

    Attributes:
      step: number of steps done when it was saved.
      state: the tree of arrays, on the devices of the shardings asked for.
      extra: the JSON object given to `manager.CheckpointManager.save`.
      folder: the folder of the checkpoint.
    """

    step: int
    state: Any
    extra: dict[str, Any]
    folder: epath.Path


def split(state: Any) -> tuple[Any, dict[str, Any]]:
    """A state's parameters, and its other fields by name."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return fields.pop("params"), fields


def read_state(step: int, folder: epath.Path, abstract_state: Any) -> Restored:
    """Reads a whole checkpoint.

    Raises:
      UserError: it does not fit `abstract_state`.
      UnreadableError: it is damaged, for this or another process.
    """
    params, training = split(abstract_state)
    info: dict[str, Any] = {}
    error: trees.UnreadableError | None = None
    try:
        info = folders.read_info(folder)
    except UserError as reason:
        error = trees.UnreadableError(str(reason))
    if not _all_processes(error is None):
        raise error or _elsewhere(folder)
    items = read_items(folder, info, {folders.PARAMS: params, folders.TRAINING: training})
    state = dataclasses.replace(
        abstract_state, params=items[folders.PARAMS], **items[folders.TRAINING]
    )
    return Restored(step, state, info["extra"], folder)


def read_items(
    folder: epath.Path, info: Mapping[str, Any], abstract: Mapping[str, Any]
) -> dict[str, Any]:
    """Reads some of a checkpoint's trees and holds them against their digests.

    Raises:
      UserError: one does not fit.
      UnreadableError: one is damaged, on this or another process.
    """
    error: trees.UnreadableError | None = None
    read: dict[str, tuple[Any, set[str]]] = {}
    try:
        for item, tree in abstract.items():
            read[item] = trees.read_tree(folder / item, tree, **_WORDS[item])
    except trees.UnreadableError as reason:
        error = reason
    if not _all_processes(error is None):
        raise error or _elsewhere(folder)
    # From here on the processes look at global arrays together, and find the same.
    for item, (tree, uncast) in read.items():
        expected = (info.get("digests") or {}).get(item, {})
        for name, found in trees.inspect(tree).items():
            if name in uncast and expected.get(name) != found.digest:
                what = _WORDS[item]["what"]
                raise trees.UnreadableError(f"{folder}: {what} {name} is not what was saved")
    return {item: tree for item, (tree, _) in read.items()}


def _elsewhere(folder: epath.Path) -> trees.UnreadableError:
    return trees.UnreadableError(f"{folder}: another process cannot read it")


def _all_processes(answer: bool) -> bool:
    if jax.process_count() == 1:
        return answer
    return bool(multihost_utils.process_allgather(np.int32(answer)).all())
