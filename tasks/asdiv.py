"""ASDiv: arithmetic word problems (Miao et al. 2020), alone and as unlabeled help for SVAMP.

``DATA_DIR/asdiv/ASDiv.xml``, as its owners publish it, holds 2,305 problems and no split: a fifth
of them are the test examples of `asdiv`. In the release layout, ``asdiv_{train,test}.json``, a line
holds ``Body``, ``Question`` and ``Answer`` (``9 (apples)``). The teacher answers as for SVAMP; for
the XML file its completions are those of all problems in their order, ``llm/train_CoT_0.json``, ….

The label is the number in front of the answer's unit. 137 answers are none (``Mrs. Hilt``,
``3:30 p.m.``): their label is the answer itself, compared as text.

`svamp_asdiv` is the published augmentation: SVAMP's training examples, then all of ASDiv's without
their gold labels. So its examples teach their label with LABEL_SOURCE = 'teacher' alone, and their
rationale always. Validation and test are SVAMP's own, the very examples of the data set `svamp`.
"""

from __future__ import annotations

import functools
import logging
import re
from pathlib import Path
from xml.etree import ElementTree

from sbs_jax import (
    DataSettings,
    Example,
    Row,
    find_dataset,
    read_rows,
    register_dataset,
    register_public,
)
from sbs_jax.data.datasets import split_examples
from sbs_jax.data.release import changed
from sbs_jax.data.settings import RELEASE
from sbs_jax.errors import UserError
from sbs_jax.metrics import evaluate_expression

from . import svamp
from .held_out import find_file, published_files

PAGE = "https://raw.githubusercontent.com/chaochun/nlu-asdiv-dataset/master/dataset/ASDiv.xml"

log = logging.getLogger(__name__)


def to_example(row: Row) -> dict[str, str]:
    """Makes an example of a problem, labelled with the number in front of its unit."""
    answer = row[row.first_of("Answer", "answer")]
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    elif not isinstance(answer, str) or not answer.strip():
        raise row.error(
            f"field 'Answer' must be a number or a text such as '9 (apples)', not {answer!r}"
        )
    number = answer.split()[0]
    label = number if evaluate_expression(number) is not None else answer.strip()
    fields = {"input": svamp.word_problem(row), "label": label}
    return fields | ({"id": row.text(_XML_ID)} if _XML_ID in row else {})


def read_xml(path: Path) -> list[Row]:
    """Reads the problems of ``ASDiv.xml``, each with the number of its line.

    Raises:
      UserError: the file cannot be read, is malformed, or holds no problems.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        root = ElementTree.fromstring(text)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}). Put ASDiv there: "
            f"curl --create-dirs -o '{path}' {PAGE}"
        ) from error
    except (UnicodeDecodeError, ElementTree.ParseError) as error:
        line = error.position[0] if isinstance(error, ElementTree.ParseError) else 1
        raise UserError(f"{path}, line {line}: not valid XML ({error}).") from error
    problems = list(root.iter("Problem"))
    if not problems:
        raise UserError(f"{path}: holds no element 'Problem'; it is not ASDiv's file.")
    starts = [text.count("\n", 0, found.start()) + 1 for found in re.finditer("<Problem[ >]", text)]
    lines = starts if len(starts) == len(problems) else range(1, len(problems) + 1)
    return [
        Row({_XML_ID: problem.get("ID")} | {part.tag: part.text for part in problem}, path, line)
        for problem, line in zip(problems, lines, strict=True)
    ]


_XML_ID = "ID of the element"


def _files(folder: Path, split: str) -> tuple[Path, str, bool]:
    own = find_file(folder, tuple(f"{s}{split}.json{e}" for s in ("asdiv_", "") for e in ("", "l")))
    if own is not None:
        return own, split, False
    return find_file(folder, ("ASDiv.xml",)) or folder / "ASDiv.xml", "train", True


def _read(path: Path) -> list[Row]:
    return read_xml(path) if path.suffix.lower() == ".xml" else read_rows(path)


def _count_texts(examples: list[Example], split: str, settings: DataSettings) -> list[Example]:
    del settings
    texts = sum(evaluate_expression(example["label"]) is None for example in examples)
    if texts:
        _warn_once(
            f"asdiv ({split}): {texts} of {len(examples)} answers are no number (such as '3:30 "
            "p.m.'); they are compared as text."
        )
    return examples


@functools.cache
def _warn_once(message: str) -> None:
    log.warning("%s", message)


load = register_public(
    "asdiv",
    convert=to_example,
    parser="svamp",
    scorer="value_or_text",
    huggingface=("EleutherAI/asdiv",),
    huggingface_splits={"train": "validation"},
    release=published_files("asdiv", _files, to_example, "svamp", read=_read),
    finish=_count_texts,
).load


def load_augmented(split: str, settings: DataSettings) -> list[Example]:
    """Returns SVAMP's split, and for ``train`` all of ASDiv's problems too, without labels.

    Raises:
      UserError: of the readers; or there are no completions for ASDiv's problems, which would train
        nothing then.
    """
    examples = split_examples(find_dataset("svamp"), split, settings)
    if split != "train":
        return examples
    helpers = [changed(example, label="") for example in _all_problems(settings)]
    if settings.rationales_file is None and not any("llm_label" in helper for helper in helpers):
        raise UserError(
            f"The data set 'svamp_asdiv' takes from ASDiv what the teacher said, but there are no "
            f"completions for its {len(helpers)} problems: put them into "
            f"{settings.folder('asdiv') / 'llm' / 'train_CoT_0.json'} and so on, or name what "
            "sbs_jax.teach wrote as RATIONALES_FILE."
        )
    return examples + helpers


def _all_problems(settings: DataSettings) -> list[Example]:
    train = load("train", settings)
    if settings.source_of("asdiv") != RELEASE or not _files(settings.folder("asdiv"), "train")[2]:
        return train
    # Of the one file, whose ids are in its order.
    return sorted(train + load("test", settings), key=lambda example: example["id"])


register_dataset(
    "svamp_asdiv", load=load_augmented, scorer="value", own_validation=True, public=True
)
