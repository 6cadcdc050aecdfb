"""Orbax, behind one seam: no other module imports it, so its 1.0 is a matter of this file.

Orbax 1.0 will replace the interface that is used here (v0) with the one that Orbax 0.12 has as
`orbax.checkpoint.experimental.v1`: `CheckpointManager` becomes `training.Checkpointer`, and
`StandardCheckpointHandler` becomes `load` and `metadata`. The files stay: v1 reads what v0 wrote,
which tests/checkpoints/test_store.py holds for our own checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from sbs_jax.closing import Closing

Keep = Callable[[Sequence[int]], Sequence[bool]]
"""Says of each of the steps saved, in increasing order, whether its checkpoint stays."""


class Steps(Closing):
    """The checkpoints of one folder, `PREFIX_<step>`, written in the background.

    In a run of several processes all of them construct this and call its methods together.
    """

    def __init__(self, folder: epath.Path, prefix: str, keep: Keep) -> None:
        """Opens a folder, which exists.

        Args:
          folder: absolute.
          prefix: the prefix of the folders of the steps.
          keep: asked after each save.
        """
        self._manager = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(
                step_prefix=prefix,
                preservation_policy=_Policy(keep),
                save_root_metadata=False,
                # Else a damaged file of an old checkpoint would keep the run from starting.
                lightweight_initialize=True,
            ),
        )

    def all(self) -> list[int]:
        """The steps saved, those included that are still being written, in increasing order."""
        return sorted(self._manager.all_steps())

    def save(
        self, step: int, trees: Mapping[str, Any], documents: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Begins to write a checkpoint; its arrays are copied before this returns.

        Args:
          step: number of steps done.
          trees: trees of arrays by name; each is written to a folder of that name.
          documents: JSON objects by name; each is written to a folder of that name.

        Raises:
          OSError, ValueError: it, or the one before, cannot be written.
        """
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items |= {name: ocp.args.JsonSave(dict(text)) for name, text in documents.items()}
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
          OSError, ValueError: it cannot be written.
        """
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Ends the background threads."""
        self._manager.close()


class _Policy:
    """A `PreservationPolicy` of Orbax's."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Says which checkpoints stay."""
        del context
        return list(self._keep([info.step for info in checkpoints]))


class Reader(Closing):
    """Reads single trees. Processes do not talk to each other here."""

    def __init__(self) -> None:
        self._handler = ocp.StandardCheckpointHandler()

    def shapes(self, folder: epath.Path) -> Any:
        """The tree in a folder, with objects that have `shape` and `dtype` at its leaves.

        Raises:
          Exception: whatever Orbax raises on files that are damaged or missing.
        """
        return self._handler.metadata(folder).tree

    def read(self, folder: epath.Path, abstract: Any) -> Any:
        """The tree in a folder, on the devices and in the dtypes of `abstract`.

        Args:
          folder: the folder of the tree.
          abstract: `jax.ShapeDtypeStruct` with sharding at each leaf, in the saved shapes.

        Raises:
          Exception: whatever Orbax raises on files that are damaged or missing.
        """
        return self._handler.restore(folder, args=ocp.args.StandardRestore(abstract))

    def close(self) -> None:
        """Ends the background threads."""
        self._handler.close()
