"""ASDiv: arithmetic word problems (Miao et al. 2020), alone and as unlabeled help for SVAMP.

In the release layout, ``DATA_DIR/asdiv/asdiv_{train,test}.json``, a line holds ``Body``,
``Question`` and ``Answer`` (``9 (apples)``); the teacher answers as for SVAMP.

`svamp_asdiv` is the published augmentation: SVAMP's training examples, then all of ASDiv's without
their gold labels. So its examples teach their label with LABEL_SOURCE = 'teacher' alone, and their
rationale always. Validation and test are SVAMP's own, the very examples of the data set `svamp`.
"""

from __future__ import annotations

from sbs_jax.data.datasets import split_examples
from sbs_jax.data.registration import find_dataset, register_dataset
from sbs_jax.data.release import Example, Row
from sbs_jax.data.settings import DataSettings
from sbs_jax.data.sources import PublicNames, load_public
from sbs_jax.parsers import PARSERS
from sbs_jax.tasks import svamp

NAMES = PublicNames(huggingface=("EleutherAI/asdiv",), huggingface_splits={"train": "validation"})


def load(split: str, settings: DataSettings) -> list[Example]:
    """Reads ``DATA_DIR/asdiv/asdiv_{split}.json`` and the teacher's completions beside it."""
    parser = PARSERS["svamp"]
    return load_public(settings, "asdiv", split, NAMES, convert=_convert, parser=parser)


def load_augmented(split: str, settings: DataSettings) -> list[Example]:
    """Reads SVAMP's split, and for ``train`` ASDiv's training examples too, without labels."""
    examples = split_examples(find_dataset("svamp"), split, settings)
    if split != "train":
        return examples
    return examples + [{**example, "label": ""} for example in load("train", settings)]


def _convert(row: Row) -> Example:
    answer = row[row.first_of("Answer", "answer")]
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    elif not isinstance(answer, str) or not answer.strip():
        raise row.error(
            f"field 'Answer' must be a number or a text such as '9 (apples)', not {answer!r}"
        )
    return {
        "id": f"{row.path.stem}-{row.line}",
        "input": svamp.word_problem(row),
        "label": answer.split()[0],
        "rationale": "",
    }


register_dataset("asdiv", load=load, scorer="value", public=True)
register_dataset(
    "svamp_asdiv", load=load_augmented, scorer="value", own_validation=True, public=True
)
