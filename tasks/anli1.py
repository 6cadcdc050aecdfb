"""ANLI, round 1: adversarial inference from a paragraph, with people's reasons (Nie et al. 2020).

In the release layout, ``DATA_DIR/anli1/anli1_{train,valid,test}.json``, a line holds ``uid``,
``premise``, ``hypothesis``, ``label`` (0 entailment, 1 neutral, 2 contradiction) and ``reason``,
which is mostly empty in the training examples. The folder, and its files, may also be called
``anli``.
"""

from __future__ import annotations

from sbs_jax.data.registration import register_dataset
from sbs_jax.data.release import Example, Row, load_release
from sbs_jax.data.settings import DataSettings
from sbs_jax.data.sources import PublicNames, load_public
from sbs_jax.parsers import PARSERS
from sbs_jax.tasks.nli import LABELS, nli_input, nli_label

NAMES = PublicNames(
    tfds="anli/r1",
    huggingface=("facebook/anli",),
    huggingface_splits={"train": "train_r1", "validation": "dev_r1", "test": "test_r1"},
)


def load(split: str, settings: DataSettings) -> list[Example]:
    """Reads ``DATA_DIR/anli1/anli1_{split}.json`` and the teacher's completions beside it."""
    parser = PARSERS["anli"]
    return load_public(
        settings,
        "anli1",
        split,
        NAMES,
        convert=_convert,
        parser=parser,
        release=lambda: _load_release(split, settings),
    )


def _load_release(split: str, settings: DataSettings) -> list[Example]:
    names = ("anli1", "anli")
    name = next((name for name in names if settings.folder(name).is_dir()), names[0])
    stem = next((stem for stem in names if any(settings.folder(name).glob(f"{stem}_*"))), name)
    parser = PARSERS["anli"]
    return load_release(settings, name, split, convert=_convert, parser=parser, stem=stem)


def _convert(row: Row) -> Example | None:
    label = nli_label(row)
    if label is None:
        return None
    return {
        "id": row.text("uid", blank=True) or f"{row.path.stem}-{row.line}",
        "input": nli_input(row),
        "label": label,
        "rationale": row.text("reason", blank=True),
    }


register_dataset("anli1", load=load, own_validation=True, labels=LABELS, public=True)
