"""A task, found once: its name, METHOD and sources are resolved into one object.

Programs resolve the task once and pass the object on; nothing below them looks a name up again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sbs_jax.data import choosing, registration, registry
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.dataset_vocabulary import DatasetVocabulary
from sbs_jax.data.datasets import TaskInfo
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError
from sbs_jax.methods import METHODS, find_method
from sbs_jax.parts import Method

if TYPE_CHECKING:
    from sbs_jax.data.tensorflow_setup import seqio
    from sbs_jax.data.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class TaskChoice:
    """The task that a user names; gin/runs/train.gin binds the attributes to macros.

    Attributes:
      name: MIXTURE_OR_TASK_NAME: a registered task or mixture (`svamp_sbs`), or a data set
        (`svamp`), of which METHOD and the sources choose a task.
      module: MIXTURE_OR_TASK_MODULE: a module that registers the task; it is imported first.
      method: a key of `methods.METHODS` (None is `sbs`); where the data settings have parts of the
        user's own, what these are called (None is `custom`).
      label_source: whose labels are trained, `gold` (or None) or `teacher`.
      rationale_source: whose rationales are trained, `teacher` (or None) or `human`.
    """

    name: str
    module: str | None = None
    method: str | None = None
    label_source: str | None = None
    rationale_source: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class ResolvedTask:
    """A task or a mixture, with the settings that its data is read with.

    Attributes:
      name: the name of the SeqIO task or mixture, `svamp_sbs`.
      module: the module that registers it; None for a shipped or an already registered task.
      info: data set, method and sources; None for a mixture, and for a task that was not
        registered with `registration.register_dataset`.
      settings: the data settings; they are put in force while SeqIO reads.
    """

    name: str
    module: str | None
    info: TaskInfo | None
    settings: DataSettings

    @property
    def is_mixture(self) -> bool:
        """Whether this is a mixture of tasks."""
        return self.info is None and registry.is_mixture(self.name)

    @property
    def seqio_task(self) -> seqio.Task:
        """The task in SeqIO's registry; asking for it imports TensorFlow.

        Raises:
          UserError: it is a mixture.
        """
        return choosing.find_task(self.name)

    def check_split(self, split: str) -> None:
        """Raises a `UserError` if the task has no such split."""
        registration.check_split(self.info or self.seqio_task, split)

    @functools.cached_property
    def vocabulary(self) -> Vocabulary | seqio.Vocabulary:
        """The vocabulary of the targets; it is read, or trained, when it is first asked for.

        Raises:
          UserError: it cannot be read or trained.
        """
        if self.info is not None:
            vocabulary = self.info.dataset.vocabulary
        elif self.is_mixture:
            vocabulary = registration.mixture_vocabulary(self.name)
        else:
            vocabulary = self.seqio_task.output_features["targets"].vocabulary
        if not isinstance(vocabulary, DatasetVocabulary):
            return vocabulary
        with settings_lib.override(self.settings):
            return vocabulary.resolve()

    @functools.cached_property
    def parts(self) -> tuple[tuple[ResolvedTask, float], ...]:
        """The tasks of a mixture, each with its rate; a task is its only part.

        The tasks of a mixture use the mixture's vocabulary instead of their own.

        Raises:
          UserError: a rate is not positive, or a task is not one of ours.
        """
        if not self.is_mixture:
            return ((self, 1.0),)
        vocabulary: Any = self.vocabulary
        settings = dataclasses.replace(
            self.settings, vocabulary_path=str(vocabulary.sentencepiece_model_file)
        )
        rates = registration.mixture_rates(self.name)
        return tuple((resolve_task(name, settings), rate) for name, rate in rates.items())

    @property
    def method(self) -> Method:
        """The parts that are trained; of a mixture, those of all its tasks.

        Raises:
          UserError: the tasks of a mixture give one part code to parts of different names.
        """
        if self.info is not None:
            own = self.settings.parts if self.info.method not in METHODS else None
            # With the weights of these settings, which the task may have been registered without.
            return find_method(self.info.method, own) if own else self.info.definition
        if not self.is_mixture:
            return METHODS[choosing.DEFAULT_METHOD]
        infos = map(choosing.task_info, registration.mixture_rates(self.name))
        known = [info for info in infos if info is not None]
        return _common_method(self.name, known) if known else METHODS[choosing.DEFAULT_METHOD]

    def with_settings(self, settings: DataSettings) -> ResolvedTask:
        """Returns the same task, read with other settings."""
        return dataclasses.replace(self, settings=settings)

    def require_info(self, purpose: str) -> TaskInfo:
        """Returns `info`.

        Args:
          purpose: what cannot be done without it, such as `be scored`.

        Raises:
          UserError: the task was not registered with `registration.register_dataset`.
        """
        if self.info is None:
            raise UserError(
                f"The task '{self.name}' cannot {purpose}: it was not registered with "
                "sbs_jax.data.registration.register_dataset."
            )
        return self.info

    def record(self) -> dict[str, Any]:
        """Returns what is saved about the task beside a run's weights, as JSON."""
        names = ("method", "label_source", "rationale_source")
        return {
            "mixture_or_task_name": self.name,
            **{name: getattr(self.info, name, None) for name in names},
        }


def _common_method(mixture: str, tasks: Sequence[TaskInfo]) -> Method:
    """The method with the most parts, whose codes all others share."""
    methods = sorted((task.definition for task in tasks), key=lambda method: len(method.names))
    longest = methods[-1]
    for method in methods:
        if method.names != longest.names[: len(method.names)]:
            raise UserError(
                f"The mixture '{mixture}' trains the parts {', '.join(method.names)} of one task "
                f"and {', '.join(longest.names)} of another; give them in the same order."
            )
    return longest


def resolve_task(choice: TaskChoice | str, settings: DataSettings | None = None) -> ResolvedTask:
    """Finds the task or mixture that a user names.

    Args:
      choice: a name alone stands for `TaskChoice(name)`.
      settings: the data settings; by default those in force.

    Raises:
      UserError: the module cannot be imported, a name is unknown, or METHOD and the sources
        contradict the name.
    """
    if isinstance(choice, str):
        choice = TaskChoice(choice)
    registration.import_tasks(choice.module)
    settings = settings or settings_lib.current()
    name = choosing.choose_task(
        choice.name, choice.method, choice.label_source, choice.rationale_source, settings.parts
    )
    info = registry.TASKS.get(name)
    if info is None and not registry.is_mixture(name):
        registry.require_task(name)
    return ResolvedTask(name=name, module=choice.module, info=info, settings=settings)
