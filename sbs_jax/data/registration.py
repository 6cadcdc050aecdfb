"""Registers data sets as tasks, which SeqIO's registry has, too, and reads their examples.

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
RATIONALE_SOURCE choose another one (`choosing.choose_task`).
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sbs_jax.data import datasets
from sbs_jax.data.choosing import task_info
from sbs_jax.data.dataset_vocabulary import DatasetVocabulary
from sbs_jax.data.datasets import (
    SPLITS,
    AbsenceFn,
    Dataset,
    JudgeFn,
    LoadFn,
    OriginFn,
    Pieces,
    TaskInfo,
)
from sbs_jax.data.pieces import ReleasePieces
from sbs_jax.data.registry import DATASETS, add_method, find_dataset
from sbs_jax.data.release import ConvertFn, Example, ParseFn, load_release
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError
from sbs_jax.methods import METHODS, REGISTERED
from sbs_jax.parsers import find_parser

if TYPE_CHECKING:
    from sbs_jax.data.tensorflow_setup import seqio


def register_dataset(
    name: str,
    *,
    load: LoadFn | None = None,
    convert: ConvertFn | None = None,
    parser: str = "text",
    scorer: str = "exact_match",
    own_validation: bool | Callable[[], bool] = False,
    labels: Sequence[str] = (),
    judge: JudgeFn | None = None,
    public: bool = False,
    no_rationales: AbsenceFn | None = None,
    origin: OriginFn | None = None,
    pieces: Pieces | None = None,
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
        examples are held out, by `DataSettings.validation_seed`. A function is called when it is
        needed, where gin decides it.
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
      pieces: reads what `load` reads in pieces; with `convert` it is there.

    Returns:
      The data set.

    Raises:
      UserError: the name is taken, the scorer or the parser unknown, or not one of `load` and
        `convert` is given.
    """
    if name in DATASETS:
        raise UserError(f"A data set '{name}' is registered already; choose another name.")
    if (load is None) == (convert is None):
        raise UserError(f"register_dataset('{name}', …) needs either `load` or `convert`.")
    if load is None:
        assert convert is not None
        load = functools.partial(_load_files, name, convert, find_parser(parser))
        pieces = ReleasePieces((name,), convert, find_parser(parser))
        origin = functools.partial(_files, (name,), convert)
    vocabulary = DatasetVocabulary(name, lambda: datasets.vocabulary_texts(find_dataset(name)))
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
        pieces,
    )
    if judge is None:
        _ = dataset.scorer  # checks it
    for method in REGISTERED:
        add_method(dataset, METHODS[method])
    DATASETS[name] = dataset
    return dataset


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
        if module.startswith("."):
            raise ValueError("it begins with a dot")
        importlib.import_module(module)
    except (ImportError, SyntaxError, ValueError) as error:
        # A module that is there may import one that is not.
        name = module if isinstance(error, ValueError) else getattr(error, "name", None)
        advice = (
            "; it is a dotted name, such as my_tasks, of a file in the working folder or on the "
            "PYTHONPATH"
        )
        raise UserError(
            f"MIXTURE_OR_TASK_MODULE = {module!r} cannot be imported ({error})"
            f"{advice if name and f'{module}.'.startswith(f'{name}.') else ''}."
        ) from error


def check_split(task: seqio.Task | TaskInfo, split: str) -> None:
    """Raises a `UserError` if the task has no such split."""
    splits = SPLITS if isinstance(task, TaskInfo) else task.splits
    if split not in splits:
        raise UserError(
            f"The task '{task.name}' has no split '{split}'; it has {', '.join(splits)}."
        )
