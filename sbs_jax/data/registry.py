"""The data sets and tasks that are registered, ours and in SeqIO's registry.

SeqIO and TensorFlow are imported where somebody asks for them: `seqio_tasks` adds the tasks to
SeqIO's registry as soon as SeqIO is there.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Collection, Iterable
from types import ModuleType

import wrapt

from sbs_jax.data.datasets import GOLD, HUMAN, TEACHER, Dataset, TaskInfo
from sbs_jax.errors import UserError
from sbs_jax.parts import Method

DATASETS: dict[str, Dataset] = {}

TASKS: dict[str, TaskInfo] = {}

_SEQIO_SETUP = "sbs_jax.data.tensorflow_setup"


def add_method(dataset: Dataset, method: Method) -> None:
    """Registers the tasks of a method, one for each source of what it trains."""
    for label in (GOLD, TEACHER)[: 2 if "label" in method.fields else 1]:
        for rationale in (TEACHER, HUMAN)[: 2 if method.uses_rationales else 1]:
            name = task_name(dataset.name, method, label, rationale)
            task = TASKS[name] = TaskInfo(name, dataset, method, label, rationale)
            if _SEQIO_SETUP in sys.modules:
                _add_to_seqio([task])


def _add_to_seqio(tasks: Iterable[TaskInfo]) -> None:
    from sbs_jax.data import seqio_tasks

    for task in tasks:
        seqio_tasks.add(task)


def _add_all(module: ModuleType) -> None:
    del module
    _add_to_seqio(TASKS.values())


def _set_up(module: ModuleType) -> None:
    del module
    importlib.import_module(_SEQIO_SETUP)  # which is importing it, or else is imported now


wrapt.register_post_import_hook(_add_all, _SEQIO_SETUP)
# Whoever imports SeqIO without us finds our tasks, too.
wrapt.register_post_import_hook(_set_up, "seqio")


def task_name(dataset: str, method: Method, label_source: str, rationale_source: str) -> str:
    """Returns the name of a data set's task; see `registration` for how names are made."""
    human = "_human" if rationale_source == HUMAN and method.uses_rationales else ""
    teacher = "_teacher" if label_source == TEACHER and "label" in method.fields else ""
    return f"{dataset}_{method.name}{human}{teacher}"


def is_dataset(name: str) -> bool:
    """Tells whether a data set of that name is registered."""
    return name in DATASETS


def find_dataset(name: str) -> Dataset:
    """Returns the data set of that name, or raises a `UserError` with the nearest names."""
    if name not in DATASETS:
        raise UserError(f"There is no data set '{name}'{nearest(name, DATASETS)}")
    return DATASETS[name]


def require_task(name: str) -> None:
    """Raises a `UserError` with the nearest names if there is no task of that name."""
    if is_mixture(name):
        raise UserError(f"'{name}' is a SeqIO mixture, where one task has to be named.")
    seqio = loaded_seqio()
    names = set(TASKS) if seqio is None else seqio.TaskRegistry.names()
    if name not in names:
        mixtures = () if seqio is None else seqio.MixtureRegistry.names()
        # The tasks of the data sets are hundreds, and their names are made by rule.
        short = {*DATASETS, *mixtures, *(one for one in names if one not in TASKS)}
        raise UserError(
            f"There is no task '{name}'{nearest(name, {*names, *short} if names else (), short)}"
        )


def is_mixture(name: str) -> bool:
    """Tells whether a SeqIO mixture of that name is registered."""
    seqio = loaded_seqio()  # whoever registers a mixture has imported it
    return seqio is not None and name in seqio.MixtureRegistry.names()


def loaded_seqio() -> ModuleType | None:
    """Returns SeqIO if somebody has imported it."""
    return sys.modules.get("seqio")


def nearest(name: str, names: Collection[str], short: Collection[str] = ()) -> str:
    """Returns the end of a sentence about an unknown name: the nearest names, or all.

    Args:
      name: the unknown name.
      names: those that are known.
      short: what is listed in their place where none is near; () lists them themselves.
    """
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(repr(other) for other in near)}?"
    if names:
        return f"; there are {', '.join(sorted(short or names))}."
    return (
        "; none is registered: add the gin file of its data set (--gin_file=tasks/svamp.gin), or "
        "name your own module as MIXTURE_OR_TASK_MODULE."
    )
