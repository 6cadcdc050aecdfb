"""From examples to records, as texts: what the student reads and writes for each target.

An *element* is what `elements.read_targets` makes of an example: its texts under `element_key`, and
``variant``, which tells the elements of an example with several rationales apart.

The input pipeline makes its records with these functions (`reading`), and so do the SeqIO tasks
(`preprocessors`). No TensorFlow.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from sbs_jax.data import token_weights
from sbs_jax.data.elements import WEIGHTS_OF, element_key
from sbs_jax.data.settings import DataSettings
from sbs_jax.part_templates import Pieces, fill
from sbs_jax.parts import Method, Target

Element = Mapping[str, Any]

WEIGHING = "weighing"
"""The feature of a record that holds a `token_weights.spec`, where the data weighs words."""

SHARED = -1
"""The ``variant`` of a record that all rationales of an example share."""

_WHITE_SPACE = " \t\n\v\f\r"


class RecordTexts(NamedTuple):
    """One record before it is tokenized.

    Attributes:
      inputs: what the encoder reads, the task prefix included.
      targets: what is written, a text for each part of the target.
      target: the target that it is.
      variant: which of its example's rationales it is about, or `SHARED`.
      weighing: of which pieces each part is made, with the weights of their words; see
        `token_weights.spec`. ``''`` where the data does not weigh words.
    """

    inputs: str
    targets: tuple[str, ...]
    target: Target
    variant: int
    weighing: str = ""


class Encodes(Protocol):
    """A vocabulary, as far as texts are encoded with it."""

    def encode(self, s: str) -> Any:
        """Returns the tokens of a text."""


class RecordMaker:
    """Makes the records of elements.

    For example, with the method ``sbs``:

        {'input': '2 apples and 3', 'target_label': '5', 'target_rationale': '2 + 3 = 5.'}
        -> 'predict: 2 apples and 3' -> '5', of the part label
           'explain: 2 apples and 3' -> '2 + 3 = 5.', of the part rationale

    (Eq. 3.) The method ``joint`` has ``predict: INPUT`` -> ``RATIONALE Answer: LABEL``, all of it
    one part, so that its loss is the plain mean over all tokens (Eq. 5); ``rationale_input`` has
    ``predict: INPUT explanation: RATIONALE`` -> ``LABEL`` (Eq. 2). With the prefixes on the
    decoder's side the input stands alone; see `decoder_prompt`.

    Attributes:
      keys: what the records are made of in an element, besides ``variant``.
    """

    def __init__(self, method: Method, settings: DataSettings, *, weighs: bool = False) -> None:
        """Reads the templates of the method's parts once.

        Args:
          method: the method that is trained.
          settings: give prefixes and separators, and say whether blank rationales are kept.
          weighs: whether elements weigh words (under `elements.WEIGHTS_OF` and a field's name).
        """
        self._weighs = weighs
        self._keep = settings.keep_blank_rationales
        self._framed = settings.framed
        self._templates = [self._read(target, settings) for target in method.targets]
        self.keys = tuple(element_key(field) for field in method.fields)

    def _read(self, target: Target, settings: DataSettings) -> _Template:
        kept = ("input", "rationale") if self._keep else ("input",)
        return _Template(
            target=target,
            inputs=_joining(
                self._pieces(target.inputs(settings.texts)), encoder_prefix(settings, target)
            ),
            targets=[_joining(self._pieces(one)) for one in target.outputs(settings.texts)],
            outputs=[self._pieces(pieces) for pieces in target.outputs(settings.texts)],
            needed=tuple(element_key(field) for field in target.fields if field not in kept),
            shared="rationale" not in target.fields,
        )

    def _pieces(self, pieces: Pieces) -> list[tuple[str, str | None, bool]]:
        return [
            (text, field and element_key(field), bool(text) and self._keep and field == "rationale")
            for text, field in pieces
        ]

    def __call__(self, element: Element) -> Iterator[RecordTexts]:
        """Yields the records of an element that train something.

        A record trains nothing where a field that it reads or writes is blank (an unparsed
        completion). Blank rationales stay if the settings say so; the text in front of one is left
        out with it. A record without a rationale comes once for each example, its variant is
        `SHARED`; so the records' order is that of (example, variant).
        """
        for template in self._templates:
            if template.shared and element["variant"] > 0:
                continue
            for key in template.needed:
                if is_blank(element[key]):
                    break
            else:
                yield RecordTexts(
                    self._framed(template.inputs(element)),
                    tuple([text_of(element) for text_of in template.targets]),
                    template.target,
                    SHARED if template.shared else element["variant"],
                    _weighing(template.outputs, element) if self._weighs else "",
                )


@dataclasses.dataclass(frozen=True)
class _Template:
    """A target with its templates read; pieces are (text, key, left out where that is blank).

    Attributes:
      target: the target.
      inputs: makes the encoder's text of an element, prefix included.
      targets: make the text of each part of an element.
      outputs: the pieces of each part.
      needed: the keys of what may not be blank.
      shared: whether all rationales of an example share the record.
    """

    target: Target
    inputs: Callable[[Element], str]
    targets: Sequence[Callable[[Element], str]]
    outputs: Sequence[Sequence[tuple[str, str | None, bool]]]
    needed: tuple[str, ...]
    shared: bool


def _joining(
    pieces: Sequence[tuple[str, str | None, bool]], prefix: str = ""
) -> Callable[[Element], str]:
    """Returns a function that joins an element's fields and the texts in front of them."""
    if len(pieces) == 1:
        text, key, optional = pieces[0]
        if key is not None and not optional:
            before = prefix + text
            return lambda element: before + element[key]
    return functools.partial(_joined, prefix, pieces)


def _joined(prefix: str, pieces: Sequence[tuple[str, str | None, bool]], element: Element) -> str:
    joined = prefix
    for text, key, optional in pieces:
        value = "" if key is None else element[key]
        if not (optional and is_blank(value)):
            joined += text + value
    return joined


def _weighing(outputs: Sequence[Sequence[tuple[str, str | None, bool]]], element: Element) -> str:
    return token_weights.PART.join(
        token_weights.PIECE.join(
            token_weights.ITEM.join(
                (text, "", "")
                if key is None
                else (text, element[key], element.get(weights_key(key), ""))
            )
            for text, key, _ in pieces
        )
        for pieces in outputs
    )


def weights_key(key: str) -> str:
    """Returns the key of an element under which the weights of the words of `key` stand."""
    return WEIGHTS_OF + key.removeprefix("target_").removeprefix("field ")


def is_blank(text: str) -> bool:
    """Tells whether a text has nothing but white space."""
    return not text.strip(_WHITE_SPACE)


def encoder_prefix(settings: DataSettings, target: Target) -> str:
    """Returns what stands in front of an input that asks for `target`."""
    if settings.prefix_side == "decoder":
        return ""
    return fill(target.prefix, settings.texts)


def decoder_prompt(settings: DataSettings, target: Target, vocabulary: Encodes) -> list[int]:
    """Returns the tokens that the decoder is given before it writes `target`; none by default."""
    if settings.prefix_side != "decoder":
        return []
    prefix = fill(target.prefix, settings.texts)
    return list(vocabulary.encode(prefix)) if prefix else []
