"""GSM8K: word problems of several steps, solved by people (Cobbe et al. 2021, arXiv 2110.14168).

``DATA_DIR/gsm8k/{train,test}.jsonl``, as published: a line holds ``question`` and ``answer``, the
solution with calculator annotations (``48/2 = <<48/2=24>>24 clips``) and ``#### 24`` at its end.
The number is the label; the solution before it is a human rationale. Completions of a teacher lie
in ``llm/{split}_CoT_0.json`` and so on; they end in ``The answer is 24.`` or ``#### 24``.
"""

from __future__ import annotations

import re

import gin

from sbs_jax.data.registration import register_dataset
from sbs_jax.data.release import Example, Row
from sbs_jax.data.settings import DataSettings
from sbs_jax.data.sources import PublicNames, load_public
from sbs_jax.metrics import evaluate_expression
from sbs_jax.parsers import PARSERS

NAMES = PublicNames(tfds="gsm8k", huggingface=("openai/gsm8k", "main"))
_ANNOTATION = re.compile(r"<<[^<>]*>>")
_NOT_DIGITS = str.maketrans("−", "-", ",$%")


@gin.configurable
def annotations(keep: bool = False) -> bool:
    """Tells whether human rationales keep their ``<<48/2=24>>``; T5's vocabulary has no ``<``."""
    return keep


def load(split: str, settings: DataSettings) -> list[Example]:
    """Reads ``DATA_DIR/gsm8k/{split}.jsonl`` and the teacher's completions, if there are any."""
    parser = PARSERS["gsm8k"]
    return load_public(settings, "gsm8k", split, NAMES, convert=_convert, parser=parser)


def _convert(row: Row) -> Example:
    solution, marker, label = row.text("answer").rpartition("####")
    label = label.strip().translate(_NOT_DIGITS)
    if not marker or evaluate_expression(label) is None:
        raise row.error("field 'answer' must end in '#### NUMBER'")
    if not annotations():
        solution = _ANNOTATION.sub("", solution)
    return {
        "id": f"{row.path.stem}-{row.line}",
        "input": row.text("question").strip(),
        "label": label,
        "rationale": solution.strip(),
    }


register_dataset("gsm8k", load=load, scorer="value", public=True)
