"""e-SNLI: inference between two sentences, with people's explanations (Camburu et al. 2018).

In the release layout, ``DATA_DIR/esnli/esnli_{train,valid,test}.json``, a line holds ``premise``,
``hypothesis``, ``label`` (0 entailment, 1 neutral, 2 contradiction) and ``explanation_1``; in
validation and test also ``_2`` and ``_3``. A line labelled -1 is left out, with its completion.
"""

from __future__ import annotations

from sbs_jax.data.registration import register_dataset
from sbs_jax.data.release import Example, Row
from sbs_jax.data.settings import DataSettings
from sbs_jax.data.sources import PublicNames, load_public
from sbs_jax.parsers import PARSERS
from sbs_jax.tasks.nli import LABELS, nli_input, nli_label

NAMES = PublicNames(tfds="esnli", huggingface=("esnli",))


def load(split: str, settings: DataSettings) -> list[Example]:
    """Reads ``DATA_DIR/esnli/esnli_{split}.json`` and the teacher's completions beside it."""
    parser = PARSERS["esnli"]
    return load_public(settings, "esnli", split, NAMES, convert=_convert, parser=parser)


def _convert(row: Row) -> Example | None:
    label = nli_label(row)
    if label is None:
        return None
    explanations = [row.text(f"explanation_{number}", blank=True) for number in (1, 2, 3)]
    return {
        "id": f"{row.path.stem}-{row.line}",
        "input": nli_input(row),
        "label": label,
        "rationale": [text for text in explanations if text.strip()],
    }


register_dataset("esnli", load=load, own_validation=True, labels=LABELS, public=True)
