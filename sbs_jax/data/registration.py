"""Registers data sets as SeqIO tasks, and finds them again.

`register_dataset('svamp', ...)` gives these tasks, which any SeqIO or T5X program can read:

    svamp_standard            the gold label (Eq. 1 of the paper)
    svamp_rationale           the teacher's rationale alone
    svamp_sbs                 both, two records an example (Eq. 3)
    svamp_joint               one target: the rationale, then the label (Eq. 5)
    svamp_rationale_input     the label, from the input and the teacher's rationale (Eq. 2)

With ``_human`` behind it, a name with rationales means people's (`svamp_sbs_human`), with
``_teacher``, a name with labels means the teacher's: `svamp_standard_teacher` is task distillation,
`svamp_sbs_human_teacher` has both. The tasks of other methods, a user's own ones among them
(PARTS), are registered in the same way when they are asked for (`svamp_hinted`). A data set's bare
name stands for its task ``sbs``, unless METHOD, LABEL_SOURCE or
RATIONALE_SOURCE choose another one (`choose_task`).

SeqIO and TensorFlow are imported where somebody asks for them: `seqio_tasks` adds the tasks to
SeqIO's registry as soon as SeqIO is there.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

from sbs_jax.data import datasets
from sbs_jax.data.datasets import (
    GOLD as GOLD,
)
from sbs_jax.data.datasets import (
    HUMAN as HUMAN,
)
from sbs_jax.data.datasets import (
    SPLITS as SPLITS,
)
from sbs_jax.data.datasets import (
    TEACHER as TEACHER,
)
from sbs_jax.data.datasets import (
    TEST as TEST,
)
from sbs_jax.data.datasets import (
    TRAIN as TRAIN,
)
from sbs_jax.data.datasets import (
    VALIDATION as VALIDATION,
)
from sbs_jax.data.datasets import AbsenceFn, OriginFn
from sbs_jax.data.datasets import (
    Dataset as Dataset,
)
from sbs_jax.data.datasets import (
    JudgeFn as JudgeFn,
)
from sbs_jax.data.datasets import (
    LoadFn as LoadFn,
)
from sbs_jax.data.datasets import (
    TaskInfo as TaskInfo,
)
from sbs_jax.data.release import ConvertFn, Example, ParseFn, load_release
from sbs_jax.data.settings import DataSettings
from sbs_jax.data.vocabulary import DatasetVocabulary
from sbs_jax.errors import UserError
from sbs_jax.methods import CUSTOM, METHODS, REGISTERED, find_method
from sbs_jax.parsers import find_parser
from sbs_jax.parts import Method, Part

if TYPE_CHECKING:
    from sbs_jax.data.tensorflow_setup import seqio

DEFAULT_METHOD = "sbs"

_DATASETS: dict[str, Dataset] = {}
_TASKS: dict[str, TaskInfo] = {}


def register_dataset(
    name: str,
    *,
    load: LoadFn | None = None,
    convert: ConvertFn | None = None,
    parser: str = "text",
    scorer: str = "exact_match",
    own_validation: bool = False,
    labels: Sequence[str] = (),
    judge: JudgeFn | None = None,
    public: bool = False,
    no_rationales: AbsenceFn | None = None,
    origin: OriginFn | None = None,
) -> Dataset:
    """Registers the SeqIO tasks of one data set; see the head of this module for their names.

    Args:
      name: letters, digits and underscores.
      load: called as ``load(split, settings)`` with ``'train'`` or ``'test'`` each time that a
        data set is loaded, never before. Returns the examples in a fixed order.
      convert: instead of `load`, for examples in the files ``DATA_DIR/NAME/train.jsonl`` and
        ``test.jsonl`` (or ``.json``, ``.csv``, ``.tsv``, ``.parquet``): makes the fields of an
        example of a row, see `sbs_jax.data.release.ConvertFn`.
      parser: key of `sbs_jax.parsers.PARSERS`. It takes the raw completions apart that may lie in
        ``DATA_DIR/NAME/llm/train_CoT_0.json``; only with `convert`.
      scorer: how labels are judged, a key of `sbs_jax.metrics.SCORERS`.
      own_validation: whether there is a split ``'validation'`` too. If not, 10 % of the training
        examples are held out, by `DataSettings.validation_seed`.
      labels: all labels that there are, where they are few. Another gold label is an error; another
        label of the teacher's is not trained.
      judge: returns `scorer` and `labels` when they are needed, where gin decides them.
      public: whether `load` reads from where `DataSettings.data_source` says (see
        `sbs_jax.data.sources`). If not, any value but the default is an error.
      no_rationales: called with the split where a method needs rationales and no example has one.
        Returns a sentence for the error that says where they were looked for.
      origin: called with a split and the settings; returns all files and folders that `load` reads
        then, that of its own code included, and as texts the values that decide what is read.
        RECORDS_CACHE_DIR keeps the records of such data sets alone. With `convert` they are known.

    Returns:
      The data set.

    Raises:
      UserError: the name is taken, the scorer or the parser unknown, or not one of `load` and
        `convert` is given.
    """
    if name in _DATASETS:
        raise UserError(f"A data set '{name}' is registered already; choose another name.")
    if (load is None) == (convert is None):
        raise UserError(f"register_dataset('{name}', …) needs either `load` or `convert`.")
    if load is None:
        assert convert is not None
        load = functools.partial(_load_files, name, convert, find_parser(parser))
        origin = functools.partial(_files, (name,), convert)
    vocabulary = DatasetVocabulary(name, functools.partial(_vocabulary_texts, name))
    constant = (scorer, tuple(labels))
    dataset = Dataset(
        name,
        load,
        judge or (lambda: constant),
        own_validation,
        vocabulary,
        public,
        no_rationales,
        origin,
    )
    if judge is None:
        _ = dataset.scorer  # checks it
    for method in REGISTERED:
        _register_method(dataset, METHODS[method])
    _DATASETS[name] = dataset
    return dataset


def _register_method(dataset: Dataset, method: Method) -> None:
    """Registers the tasks of a method, one for each source of what it trains."""
    for label in (GOLD, TEACHER)[: 2 if "label" in method.fields else 1]:
        for rationale in (TEACHER, HUMAN)[: 2 if method.uses_rationales else 1]:
            name = _task_name(dataset.name, method, label, rationale)
            task = _TASKS[name] = TaskInfo(name, dataset, method, label, rationale)
            if _SEQIO_SETUP in sys.modules:
                _add_to_seqio([task])


def _define(name: str, parts: Sequence[Part] | None) -> None:
    """Registers a task of a method that is not registered with its data set, if `name` is one.

    Args:
      name: of a task.
      parts: those of a method of the user's own, of any name; None knows the methods of the table.
    """
    seqio = _loaded_seqio()
    foreign = name not in _TASKS and seqio is not None and name in seqio.TaskRegistry.names()
    if name in _DATASETS or is_mixture(name) or foreign:
        return
    for dataset in sorted(_DATASETS, key=len, reverse=True):
        if not name.startswith(f"{dataset}_"):
            continue
        method = name.removeprefix(f"{dataset}_").removesuffix("_teacher").removesuffix("_human")
        if not parts and method not in METHODS:
            continue
        own = tuple(parts) if parts and method not in METHODS else None
        definition = find_method(method, own)
        known = _TASKS.get(_task_name(dataset, definition, GOLD, TEACHER))
        if known is not None and known.definition == definition:
            return
        for task in [task for task in _TASKS.values() if task.dataset.name == dataset]:
            if task.method == method:
                if seqio is not None:
                    seqio.TaskRegistry.remove(task.name)
                del _TASKS[task.name]
        _register_method(_DATASETS[dataset], definition)
        return


def _files(
    names: Sequence[str], convert: ConvertFn, split: str, settings: DataSettings
) -> list[Path]:
    del split
    return [code_of(convert), *map(settings.folder, names)]


def code_of(function: Callable[..., Any]) -> Path:
    """Returns the file that a function was read from."""
    return Path(inspect.getsourcefile(function) or inspect.getfile(function))


def _load_files(
    name: str, convert: ConvertFn, parser: ParseFn, split: str, settings: DataSettings
) -> list[Example]:
    return load_release(settings, name, split, convert=convert, parser=parser)


_SEQIO_SETUP = "sbs_jax.data.tensorflow_setup"


def _add_to_seqio(tasks: Iterable[TaskInfo]) -> None:
    from sbs_jax.data import seqio_tasks

    for task in tasks:
        seqio_tasks.add(task)


def _add_all(module: ModuleType) -> None:
    del module
    _add_to_seqio(_TASKS.values())


def _set_up(module: ModuleType) -> None:
    del module
    importlib.import_module(_SEQIO_SETUP)  # which is importing it, or else is imported now


wrapt.register_post_import_hook(_add_all, _SEQIO_SETUP)
# Whoever imports SeqIO without us finds our tasks, too.
wrapt.register_post_import_hook(_set_up, "seqio")


def _task_name(dataset: str, method: Method, label_source: str, rationale_source: str) -> str:
    human = "_human" if rationale_source == HUMAN and method.uses_rationales else ""
    teacher = "_teacher" if label_source == TEACHER and "label" in method.fields else ""
    return f"{dataset}_{method.name}{human}{teacher}"


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
    if parts and method is None and name in _DATASETS:
        method = CUSTOM
    own = find_method(method, tuple(parts)) if parts and method is not None else None
    given = {
        "METHOD": (method, (*METHODS, *(() if own is None else (own.name,)))),
        "LABEL_SOURCE": (label_source, (GOLD, TEACHER)),
        "RATIONALE_SOURCE": (rationale_source, (TEACHER, HUMAN)),
    }
    for macro, (value, known) in given.items():
        if value is not None and value not in known:
            raise UserError(f"{macro} = {value!r} is unknown{_nearest(str(value), known)}")
    if name in _DATASETS:
        chosen = _task_name(
            name,
            own or METHODS[method or DEFAULT_METHOD],
            label_source or GOLD,
            rationale_source or TEACHER,
        )
        _define(chosen, parts)
        return chosen
    _define(name, parts)
    info = _TASKS.get(name)
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


def is_dataset(name: str) -> bool:
    """Tells whether a data set of that name is registered."""
    return name in _DATASETS


def find_dataset(name: str) -> Dataset:
    """Returns the data set of that name, or raises a `UserError` with the nearest names."""
    if name not in _DATASETS:
        raise UserError(f"There is no data set '{name}'{_nearest(name, _DATASETS)}")
    return _DATASETS[name]


def find_task(name: str) -> seqio.Task:
    """Returns the SeqIO task of that name, also one of others; of a data set its task ``sbs``.

    Raises:
      UserError: there is none (the error gives the nearest names), or it is a mixture.
    """
    from sbs_jax.data.tensorflow_setup import seqio

    if name in _DATASETS:
        name = choose_task(name)
    _define(name, None)
    require_task(name)
    return seqio.TaskRegistry.get(name)


def require_task(name: str) -> None:
    """Raises a `UserError` with the nearest names if there is no task of that name."""
    if is_mixture(name):
        raise UserError(f"'{name}' is a SeqIO mixture, where one task has to be named.")
    seqio = _loaded_seqio()
    names = set(_TASKS) if seqio is None else seqio.TaskRegistry.names()
    if name not in names:
        mixtures = () if seqio is None else seqio.MixtureRegistry.names()
        known = names and {*names, *_DATASETS, *mixtures}
        raise UserError(f"There is no task '{name}'{_nearest(name, known)}")


def is_mixture(name: str) -> bool:
    """Tells whether a SeqIO mixture of that name is registered."""
    seqio = _loaded_seqio()  # whoever registers a mixture has imported it
    return seqio is not None and name in seqio.MixtureRegistry.names()


def _loaded_seqio() -> ModuleType | None:
    return sys.modules.get("seqio")


def mixture_rates(name: str) -> dict[str, float]:
    """Returns the tasks of a mixture (of its mixtures, too) and how often each is drawn.

    Raises:
      UserError: a rate is not positive, or a task was not registered through this module.
    """
    from sbs_jax.data.tensorflow_setup import seqio

    mixture = seqio.MixtureRegistry.get(name)
    rates = {task.name: float(mixture.get_rate(task)) for task in mixture.tasks}
    for task, rate in rates.items():
        if not 0 < rate < math.inf:
            raise UserError(f"The mixture '{name}' has the rate {rate} for '{task}'.")
        if task_info(task) is None:
            raise UserError(
                f"The mixture '{name}' holds the task '{task}', which was not registered with "
                "sbs_jax.data.registration.register_dataset."
            )
    return dict(sorted(rates.items()))


def _vocabulary_texts(name: str) -> list[str]:
    return datasets.vocabulary_texts(find_dataset(name))


@functools.cache
def mixture_vocabulary(name: str) -> DatasetVocabulary:
    """Returns the vocabulary that the tasks of a mixture share: trained on the texts of all."""

    def texts() -> list[str]:
        infos = map(task_info, mixture_rates(name))
        names = sorted({info.dataset.name for info in infos if info is not None})
        return [
            text for dataset in names for text in datasets.vocabulary_texts(find_dataset(dataset))
        ]

    return DatasetVocabulary(name, texts)


def import_tasks(module: str | None) -> None:
    """Imports MIXTURE_OR_TASK_MODULE, in which a user registers tasks; None imports nothing.

    Raises:
      UserError: it cannot be imported.
    """
    if module is None:
        return
    try:
        importlib.import_module(module)
    except (ImportError, SyntaxError, ValueError) as error:
        raise UserError(
            f"MIXTURE_OR_TASK_MODULE = {module!r} cannot be imported ({error}); it is a dotted "
            "name, such as my_tasks, of a file in the working folder or on the PYTHONPATH."
        ) from error


def check_split(task: seqio.Task | TaskInfo, split: str) -> None:
    """Raises a `UserError` if the task has no such split."""
    splits = SPLITS if isinstance(task, TaskInfo) else task.splits
    if split not in splits:
        raise UserError(
            f"The task '{task.name}' has no split '{split}'; it has {', '.join(splits)}."
        )


def task_info(name: str, parts: Sequence[Part] | None = None) -> TaskInfo | None:
    """Returns what we know about a task; None if it was not registered through this module.

    A data set's name stands for its task ``sbs``. `parts` are those of a method of the user's own.
    """
    _define(name, parts)
    return _TASKS.get(choose_task(name) if name in _DATASETS else name)


def load_examples(dataset: Dataset | str, split: str) -> list[Example]:
    """Reads the examples of a split of a data set, or of the one of that name.

    See `sbs_jax.data.datasets.load_examples`.
    """
    dataset = find_dataset(dataset) if isinstance(dataset, str) else dataset
    return datasets.load_examples(dataset, split)


def _nearest(name: str, names: Iterable[str]) -> str:
    """Returns the end of a sentence about an unknown name: the nearest names, or all."""
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(repr(other) for other in near)}?"
    if names:
        return f"; there are {', '.join(sorted(names))}."
    return "; none is registered: import the module that does it (`import sbs_jax.tasks`)."
