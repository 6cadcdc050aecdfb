"""What T5X's model needs to know of the task: its vocabulary and its parts."""

from __future__ import annotations

from pathlib import Path

from sbs_jax.data import choosing, registry
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.resolving import resolve_task
from sbs_jax.data.tensorflow_setup import seqio
from sbs_jax.errors import UserError
from sbs_jax.parts import Method


def of_task(mixture_or_task_name: str) -> seqio.Vocabulary:
    """Returns the vocabulary of a task's (or a mixture's) targets.

    Raises:
      UserError: there is no such task; or it is a data set, of which T5X wants one task; or the
        data settings ask for what T5X's programs cannot do.
    """
    for macro, value, needed in (
        ("PREFIX_SIDE", settings_lib.current().side, "encoder"),
        ("RATIONALES_PER_EPOCH", settings_lib.current().rationales_per_epoch, "all"),
    ):
        if value != needed:
            raise UserError(f"{macro} = {value!r}: T5X can only do {needed!r}; see sbs_jax.train.")
    if registry.is_dataset(mixture_or_task_name):
        raise UserError(
            f"MIXTURE_OR_TASK_NAME = {mixture_or_task_name!r} is a data set; T5X needs the name of "
            f"a task: {mixture_or_task_name}_sbs, {mixture_or_task_name}_standard, "
            f"{mixture_or_task_name}_joint, with _teacher behind it for the teacher's labels."
        )
    choosing.task_info(mixture_or_task_name, settings_lib.current().parts)  # registers it
    if not registry.is_mixture(mixture_or_task_name):
        choosing.find_task(mixture_or_task_name)  # which knows the nearest names
    provider = seqio.get_mixture_or_task(mixture_or_task_name)
    return provider.output_features["targets"].vocabulary


def method_of_task(mixture_or_task_name: str) -> Method:
    """Returns the method whose parts a task (or a mixture) trains, with PARTS' weights.

    Raises:
      UserError: as for `of_task`.
    """
    of_task(mixture_or_task_name)
    return resolve_task(mixture_or_task_name).method


def of_checkpoint(checkpoint_path: str | None) -> str | None:
    """Returns the SentencePiece model that a checkpoint's run was trained with, if it lies there.

    Args:
      checkpoint_path: a MODEL_DIR of either trainer, a checkpoint in it, or a folder of Hugging
        Face's; None has none.

    Returns:
      ``MODEL_DIR/vocabulary/spiece.model``, or ``spiece.model`` in the folder; None where there is
      neither.
    """
    if not isinstance(checkpoint_path, str):
        return None
    folder = Path(checkpoint_path).expanduser()
    candidates = (
        folder / "vocabulary" / "spiece.model",
        folder.parent / "vocabulary" / "spiece.model",
        folder / "spiece.model",
    )
    return next((str(path) for path in candidates if path.is_file()), None)
