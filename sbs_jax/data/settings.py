"""The settings of the data, read when a data set is loaded and never at import.

In a program they are those that gin binds to macros (``gin/runs/data.gin``); Python code may use
`override` instead.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from sbs_jax import remote, remote_copies
from sbs_jax.errors import UserError, require_positive
from sbs_jax.methods import CUSTOM, find_method, read_parts
from sbs_jax.part_templates import fill
from sbs_jax.parts import (
    DEFAULT_JOINT_SEPARATOR,
    DEFAULT_LABEL_PREFIX,
    DEFAULT_RATIONALE_INPUT_SEPARATOR,
    DEFAULT_RATIONALE_PREFIX,
)

RATIONALES_PER_EPOCH = ("all", "one")
DATA_SOURCES = RELEASE, TFDS, HUGGING_FACE = ("release", "tfds", "huggingface")
PREFIX_SIDES = ("encoder", "decoder")
OR_NONE = "or None"
"""Annotates a field that gin may also bind to None, which stands for the default."""


class _Frozen(dict[str, str]):
    """A dict that is never changed and so can be hashed, as the settings are."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


class TemplateTexts:
    """The texts that stand for names in capital letters in the templates of `parts.Part`.

    The names are those of the attributes, which a subclass has.
    """

    @property
    def texts(self) -> dict[str, str]:
        """The texts by name, `LABEL_PREFIX` and so on."""
        return {name.upper(): getattr(self, name) for name in _TEMPLATE_TEXTS}


_TEMPLATE_TEXTS = (
    "label_prefix",
    "rationale_prefix",
    "joint_separator",
    "rationale_input_separator",
)


@dataclasses.dataclass(frozen=True)
class DataSettings(TemplateTexts):
    """How data sets are read. Every attribute has a gin macro (``gin/runs/data.gin``).

    None stands for the default of any of them: runs that evaluate bind None to what is to be as the
    checkpoint was trained.

    Attributes:
      data_dir: the folder of the data sets' own folders (``svamp/``, ``cqa/``); may be a URL.
      model_dir: the run's folder; a vocabulary that is trained goes to its ``vocabulary/``.
      label_prefix: what stands in front of an input when the label is asked for.
      rationale_prefix: what stands in front of an input when the rationale is asked for.
      prefix_side: whether the prefixes stand in front of the ``encoder``'s input, or are what the
        ``decoder`` is given to begin with. The latter encodes an input once for both parts. None is
        ``encoder`` for T5 and ``decoder`` for decoder-only students, as
        `models.interface.default_prefix_side` says; where there is no student it is ``encoder``.
      chat: put every input into the chat template of a decoder's tokenizer, as the message of a
        user; what the student writes is the beginning of the answer.
      input_frame: the texts before and after every input (and its prefix); None is what the
        tokenizer of a decoder-only student and `chat` say, and nothing for a T5.
      keep_blank_rationales: train what the published code trains where a completion does not
        parse: records with an empty rationale, which teach the student to explain nothing, and the
        text before the answer where only the label did not parse (`parsers.kept_rationale`).
      strict_lengths: a sequence longer than its feature length is an error instead of being cut.
      train_fraction: the share of the training examples that is used, in (0, 1]. For one `seed`
        a smaller share is a part of every larger one. Validation and test never change.
      train_examples: how many training examples are used; instead of `train_fraction`.
      seed: the seed of the choice of `train_fraction` and `train_examples`.
      validation_seed: of the choice of the validation examples where a data set brings none. 0
        gives the published code's split, example by example.
      vocabulary_path: a SentencePiece model; None trains one on the data set's training texts.
      vocabulary_size: the largest number of pieces that a trained vocabulary has.
      joint_separator: what stands between rationale and label in a target of the method ``joint``;
        a prediction's label is what follows its last occurrence.
      rationale_input_separator: what stands between input and rationale in an input of the method
        ``rationale_input``.
      rationales_per_epoch: of an example with several rationales, train ``all`` in each epoch, or
        ``one``, drawn anew for each epoch.
      data_source: where public data sets are read: the authors' ``release``, ``tfds`` or
        ``huggingface``, see `sbs_jax.data.sources`. Or a dict of these by the data set's name, for
        mixtures; a data set that it does not name is read from the ``release``.
      rationales_file: a teacher's labels and rationales, which take the place of the data set's own
        in the examples of the same id, see `sbs_jax.data.rationales`.
        Of several teachers, a dict of such files by the field that each becomes, that of
        `rationale` among them.
      use_cached_tasks: read tasks tokenized from `cache_dir`, see `sbs_jax.data.caching`.
      cache_dir: the folder of SeqIO's cache.
      records_cache_dir: a folder in which tokenized records are kept, see `stored_records`; None
        tokenizes at every start.
      records_processes: how many processes tokenize a large data set for `records_cache_dir`; None
        is as many as there are CPUs for this process.
      parts: PARTS, the parts of a method of the user's own (`methods.read_parts`), which METHOD
        names. None leaves METHOD to name one of `methods.METHODS`. Weights and normalisations are
        the loss's alone: settings that differ in them are equal, and `record` leaves them out.

    Raises:
      UserError: a value is out of its range.
    """

    data_dir: str | None = None
    model_dir: str | None = None
    label_prefix: Annotated[str, OR_NONE] = DEFAULT_LABEL_PREFIX
    rationale_prefix: Annotated[str, OR_NONE] = DEFAULT_RATIONALE_PREFIX
    keep_blank_rationales: bool = False
    strict_lengths: bool = False
    train_fraction: float = 1.0
    seed: int = 0
    validation_seed: Annotated[int, OR_NONE] = 0
    vocabulary_path: str | None = None
    vocabulary_size: int = 8192
    train_examples: int | None = None
    joint_separator: str = DEFAULT_JOINT_SEPARATOR
    rationale_input_separator: str = DEFAULT_RATIONALE_INPUT_SEPARATOR
    rationales_per_epoch: str = "all"
    data_source: str | Mapping[str, str] = RELEASE
    rationales_file: str | Mapping[str, str] | None = None
    use_cached_tasks: bool = False
    cache_dir: str | None = None
    prefix_side: str | None = None
    chat: bool = False
    input_frame: Sequence[str] | None = None
    parts: Any = None
    records_cache_dir: str | None = None
    records_processes: int | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is None:
                object.__setattr__(self, field.name, field.default)
        frame = self.input_frame
        if frame is not None:
            if len(frame) != 2 or not all(isinstance(text, str) for text in frame):
                raise UserError(
                    f"INPUT_FRAME must be two texts, ['before', 'after'], not {frame!r}."
                )
            object.__setattr__(self, "input_frame", tuple(frame))
        if isinstance(self.data_source, Mapping):
            object.__setattr__(self, "data_source", _Frozen(self.data_source))
        if isinstance(self.rationales_file, Mapping):
            for name, path in self.rationales_file.items():
                if not str(name).isidentifier() or not isinstance(path, str):
                    raise UserError(
                        f"RATIONALES_FILE = {dict(self.rationales_file)!r} must be a file, or a "
                        "dict of files by the field that each becomes: {'rationale': …, "
                        "'second_rationale': …}."
                    )
            object.__setattr__(self, "rationales_file", _Frozen(self.rationales_file))
        fraction = self.train_fraction
        if not isinstance(fraction, int | float) or not 0 < fraction <= 1:
            raise UserError(
                f"TRAIN_FRACTION must be a number above 0 and at most 1, not {fraction!r}."
            )
        count = self.train_examples
        if count is not None:
            require_positive(TRAIN_EXAMPLES=count)
        if count is not None and fraction != 1:
            raise UserError(
                f"TRAIN_EXAMPLES = {count} and TRAIN_FRACTION = {fraction} both say how much of "
                "the training set is used; give one of them."
            )
        if self.rationales_per_epoch not in RATIONALES_PER_EPOCH:
            raise UserError(
                f"RATIONALES_PER_EPOCH must be 'all' or 'one', not {self.rationales_per_epoch!r}."
            )
        sources = self.data_source
        for source in sources.values() if isinstance(sources, Mapping) else (sources,):
            if source not in DATA_SOURCES:
                raise UserError(
                    f"DATA_SOURCE must be one of {', '.join(DATA_SOURCES)}, not {source!r}; or a "
                    "dict of these by the data set's name, {'svamp': 'huggingface'}."
                )
        if self.prefix_side not in (None, *PREFIX_SIDES):
            raise UserError(
                f"PREFIX_SIDE must be 'encoder' or 'decoder', not {self.prefix_side!r}."
            )
        if self.prefix_side == "decoder" and self.label_prefix == self.rationale_prefix:
            raise UserError(
                f"LABEL_PREFIX and RATIONALE_PREFIX are both {self.label_prefix!r}; with "
                "PREFIX_SIDE = 'decoder' nothing else tells the two parts apart."
            )
        for name in ("joint_separator", "rationale_input_separator"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise UserError(f"{name.upper()} must be a text that is not blank, not {value!r}.")
        for name in ("seed", "validation_seed"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise UserError(f"{name.upper()} must be a whole number from 0, not {value!r}.")
        require_positive(VOCABULARY_SIZE=self.vocabulary_size)
        for name in ("label_prefix", "rationale_prefix"):
            if not isinstance(getattr(self, name), str):
                raise UserError(f"{name.upper()} must be a text, not {getattr(self, name)!r}.")
        if self.records_processes is not None:
            require_positive(RECORDS_PROCESSES=self.records_processes)
        if self.parts is not None:
            object.__setattr__(self, "parts", read_parts(self.parts))
            self._check_prompts()

    def _check_prompts(self) -> None:
        """Refuses two targets that are asked for alike, where the prefix alone tells them apart."""
        if self.prefix_side != "decoder":
            return
        asked: dict[tuple[str, str], str] = {}
        for target in find_method(CUSTOM, self.parts).targets:
            key = (fill(target.prefix, self.texts), target.reads)
            name = target.parts[0].name
            if key in asked:
                raise UserError(
                    f"PARTS: the parts '{asked[key]}' and '{name}' have the same prefix "
                    f"{key[0]!r}; with PREFIX_SIDE = 'decoder' nothing else tells them apart."
                )
            asked[key] = name

    def record(self) -> dict[str, Any]:
        """Returns the settings as JSON, as they are saved beside a run's weights."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.parts is not None:
            values["parts"] = [part.record() for part in self.parts]
        return values

    def framed(self, text: str) -> str:
        """Puts an input into `input_frame`."""
        before, after = self.input_frame or ("", "")
        return before + text + after

    @property
    def side(self) -> str:
        """`prefix_side`; the encoder's where it is None and there is no student to decide."""
        return self.prefix_side or PREFIX_SIDES[0]

    def source_of(self, dataset: str) -> str:
        """Returns one of `DATA_SOURCES`: where `dataset` is read."""
        if isinstance(self.data_source, Mapping):
            return self.data_source.get(dataset, RELEASE)
        return self.data_source

    def folder(self, dataset: str) -> Path:
        """Returns the folder of `dataset` below `data_dir`; of a remote one a copy on this machine.

        Raises:
          UserError: no `data_dir` is given, or it is no folder.
        """
        if self.data_dir is None:
            raise UserError(
                f"The data set '{dataset}' needs a data folder: give --gin.DATA_DIR=PATH, the "
                f"folder in which '{dataset}/' lies."
            )
        if remote.is_remote(self.data_dir):
            copy = remote_copies.local(f"{self.data_dir.rstrip('/')}/{dataset}")
            if not copy.parent.is_dir():
                raise UserError(f"DATA_DIR={self.data_dir}: holds nothing of '{dataset}'.")
            return copy
        root = Path(self.data_dir).expanduser()
        if not root.is_dir():
            raise UserError(f"DATA_DIR={self.data_dir}: there is no such folder.")
        return root / dataset


_override: contextvars.ContextVar[DataSettings | None] = contextvars.ContextVar(
    "data_settings_override", default=None
)


_configured: Callable[[], DataSettings] = DataSettings


def current() -> DataSettings:
    """Returns the settings in force: those of `override`, or else the program's."""
    return _override.get() or _configured()


def configure(make: Callable[[], DataSettings]) -> None:
    """Lets `current` call `make` where no `override` is in force; it makes defaults otherwise."""
    global _configured
    _configured = make


def put_in_force(settings: DataSettings) -> None:
    """Puts `settings` in force in this thread, for good: for threads of other libraries."""
    _override.set(settings)


@contextlib.contextmanager
def override(settings: DataSettings) -> Iterator[None]:
    """Puts `settings` in force inside the ``with`` block, in this thread."""
    token = _override.set(settings)
    try:
        yield
    finally:
        _override.reset(token)
