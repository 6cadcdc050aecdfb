"""Finding the task that a name means: a task's own, or a data set's with a method and sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sbs_jax.data.datasets import GOLD, HUMAN, TEACHER, TaskInfo
from sbs_jax.data.registry import (
    DATASETS,
    TASKS,
    add_method,
    is_mixture,
    loaded_seqio,
    nearest,
    require_task,
    task_name,
)
from sbs_jax.errors import UserError
from sbs_jax.methods import CUSTOM, METHODS, find_method
from sbs_jax.parts import Part

if TYPE_CHECKING:
    from sbs_jax.data.tensorflow_setup import seqio

DEFAULT_METHOD = "sbs"


def _define(name: str, parts: Sequence[Part] | None) -> None:
    """Registers a task of a method that is not registered with its data set, if `name` is one.

    Args:
      name: the name of a task.
      parts: the parts of a method of the user's own, of any name; None knows the methods of the
        table.
    """
    seqio = loaded_seqio()
    foreign = name not in TASKS and seqio is not None and name in seqio.TaskRegistry.names()
    if name in DATASETS or is_mixture(name) or foreign:
        return
    for dataset in sorted(DATASETS, key=len, reverse=True):
        if not name.startswith(f"{dataset}_"):
            continue
        method = name.removeprefix(f"{dataset}_").removesuffix("_teacher").removesuffix("_human")
        if not parts and method not in METHODS:
            continue
        own = tuple(parts) if parts and method not in METHODS else None
        definition = find_method(method, own)
        known = TASKS.get(task_name(dataset, definition, GOLD, TEACHER))
        if known is not None and known.definition == definition:
            return
        for task in [task for task in TASKS.values() if task.dataset.name == dataset]:
            if task.method == method:
                if seqio is not None:
                    seqio.TaskRegistry.remove(task.name)
                del TASKS[task.name]
        add_method(DATASETS[dataset], definition)
        return


def choose_task(
    name: str,
    method: str | None = None,
    label_source: str | None = None,
    rationale_source: str | None = None,
    parts: Sequence[Part] | None = None,
) -> str:
    """Returns the name of the task that MIXTURE_OR_TASK_NAME, METHOD and the sources mean together.

    >>> choose_task('svamp', method='joint', label_source='teacher')  # doctest: +SKIP
    'svamp_joint_teacher'

    Args:
      name: a data set's, for which the others choose a task; or a task's or mixture's, which then
        have to agree with it.
      method: a key of `methods.METHODS`, or with `parts` any other name; None is ``sbs``, or with
        `parts` ``custom``.
      label_source: ``gold`` or ``teacher``; None is ``gold``.
      rationale_source: ``teacher`` or ``human``; None is ``teacher``.
      parts: PARTS, the parts of a method of the user's own. Its tasks are registered.

    Raises:
      UserError: a value is unknown, or contradicts `name`.
    """
    if parts and method is None and name in DATASETS:
        method = CUSTOM
    own = find_method(method, tuple(parts)) if parts and method is not None else None
    given = {
        "METHOD": (method, (*METHODS, *(() if own is None else (own.name,)))),
        "LABEL_SOURCE": (label_source, (GOLD, TEACHER)),
        "RATIONALE_SOURCE": (rationale_source, (TEACHER, HUMAN)),
    }
    for macro, (value, known) in given.items():
        if value is not None and value not in known:
            raise UserError(f"{macro} = {value!r} is unknown{nearest(str(value), known)}")
    if name in DATASETS:
        chosen = task_name(
            name,
            own or METHODS[method or DEFAULT_METHOD],
            label_source or GOLD,
            rationale_source or TEACHER,
        )
        _define(chosen, parts)
        return chosen
    _define(name, parts)
    info = TASKS.get(name)
    if parts and (info is None or info.method in METHODS):
        raise UserError(
            f"PARTS describes a method, but MIXTURE_OR_TASK_NAME = {name!r} is a task or mixture "
            "of its own; name the data set alone, or leave PARTS out."
        )
    if info is None:
        for macro, (value, _) in given.items():
            if value is not None:
                if not is_mixture(name):
                    require_task(name)  # which may know a nearer name
                raise UserError(
                    f"{macro} = {value!r} goes with the name of a data set, but "
                    f"MIXTURE_OR_TASK_NAME = {name!r} is a task or mixture of its own; leave "
                    f"{macro} out."
                )
        return name
    agreed = {"METHOD": info.method}
    if "label" in info.definition.fields:
        agreed["LABEL_SOURCE"] = info.label_source
    if info.uses_rationales:
        agreed["RATIONALE_SOURCE"] = info.rationale_source
    for macro, meant in agreed.items():
        value = given[macro][0]
        if value not in (None, meant):
            raise UserError(
                f"MIXTURE_OR_TASK_NAME = {name!r} means {macro} = {meant!r}, but {macro} = "
                f"{value!r} is given; leave it out, or name the data set alone: "
                f"{info.dataset.name!r}."
            )
    return name


def find_task(name: str) -> seqio.Task:
    """Returns the SeqIO task of that name, also one of others; of a data set its task ``sbs``.

    Raises:
      UserError: there is none (the error gives the nearest names), or it is a mixture.
    """
    from sbs_jax.data.tensorflow_setup import seqio

    if name in DATASETS:
        name = choose_task(name)
    _define(name, None)
    require_task(name)
    return seqio.TaskRegistry.get(name)


def task_info(name: str, parts: Sequence[Part] | None = None) -> TaskInfo | None:
    """Returns what we know about a task; None if it was not registered through this module.

    A data set's name stands for its task ``sbs``. `parts` are those of a method of the user's own.
    """
    _define(name, parts)
    return TASKS.get(choose_task(name) if name in DATASETS else name)
