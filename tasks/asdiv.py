"""ASDiv: arithmetic word problems (Miao et al. 2020), alone and as unlabeled help for SVAMP.

In the release layout, ``DATA_DIR/asdiv/asdiv_{train,test}.json``, a line holds ``Body``,
``Question`` and ``Answer`` (``9 (apples)``); the teacher answers as for SVAMP.

`svamp_asdiv` is the published augmentation: SVAMP's training examples, then all of ASDiv's without
their gold labels. So its examples teach their label with LABEL_SOURCE = 'teacher' alone, and their
rationale always. Validation and test are SVAMP's own, the very examples of the data set `svamp`.
"""

from __future__ import annotations

from sbs_jax import DataSettings, Example, Row, find_dataset, register_dataset, register_public
from sbs_jax.data.datasets import split_examples
from sbs_jax.data.release import changed
from sbs_jax.errors import UserError
from sbs_jax.tasks import svamp


def to_example(row: Row) -> dict[str, str]:
    """Makes an example of a problem, labelled with the number in front of its unit."""
    answer = row[row.first_of("Answer", "answer")]
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    elif not isinstance(answer, str) or not answer.strip():
        raise row.error(
            f"field 'Answer' must be a number or a text such as '9 (apples)', not {answer!r}"
        )
    return {"input": svamp.word_problem(row), "label": answer.split()[0]}


load = register_public(
    "asdiv",
    convert=to_example,
    parser="svamp",
    scorer="value",
    huggingface=("EleutherAI/asdiv",),
    huggingface_splits={"train": "validation"},
).load


def load_augmented(split: str, settings: DataSettings) -> list[Example]:
    """Returns SVAMP's split, and for ``train`` ASDiv's training examples too, without labels."""
    examples = split_examples(find_dataset("svamp"), split, settings)
    if split != "train":
        return examples
    helpers = [changed(example, label="") for example in load("train", settings)]
    if settings.rationales_file is None and not any("llm_label" in helper for helper in helpers):
        raise UserError(
            f"The data set 'svamp_asdiv' takes from ASDiv what the teacher said, but there are no "
            f"completions for its {len(helpers)} problems: put them into "
            f"{settings.folder('asdiv') / 'llm' / 'train_CoT_0.json'} and so on, or name what "
            "sbs_jax.teach wrote as RATIONALES_FILE."
        )
    return examples + helpers


register_dataset(
    "svamp_asdiv", load=load_augmented, scorer="value", own_validation=True, public=True
)
