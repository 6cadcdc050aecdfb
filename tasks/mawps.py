"""MAWPS: arithmetic word problems of one step or more (Koncel-Kedziorski et al. 2016).

``DATA_DIR/mawps/`` holds ``mawps_train`` and ``mawps_test`` or ``train`` and ``test``, or all
problems in ``mawps`` (or ``mawps_single``) alone, of which a fifth are test examples then; each
ends in ``.json``, ``.jsonl`` or ``.csv``. The fields go by the names of the usual copies:
``sQuestion`` and ``lSolutions`` (the authors'), ``Question``, ``Numbers`` and ``Answer`` (SVAMP's
copy, where ``number0`` stands for the first number), ``question``, ``input`` or ``original_text``
and ``answer``, ``result``, ``ans`` or ``label``. The label is the number.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sbs_jax import Row, register_public
from sbs_jax.metrics import evaluate_expression

from .held_out import find_file, published_files

_ENDINGS = (".json", ".jsonl", ".csv")
_QUESTIONS = ("sQuestion", "Question", "question", "original_text", "input")
_ANSWERS = ("lSolutions", "Answer", "answer", "result", "ans", "label")


def _files(folder: Path, split: str) -> tuple[Path, str, bool]:
    own = tuple(f"{stem}{split}{end}" for stem in ("mawps_", "") for end in _ENDINGS)
    if path := find_file(folder, own):
        return path, split, False
    whole = tuple(f"{stem}{end}" for stem in ("mawps", "mawps_single", "all") for end in _ENDINGS)
    return find_file(folder, whole) or folder / own[0], "all", True


def to_example(row: Row) -> dict[str, str]:
    """Makes an example of a problem; the label is its number."""
    question = row.text(row.first_of(*_QUESTIONS)).strip()
    if "Numbers" in row:
        numbers = str(row["Numbers"]).split()
        question = re.sub(r"\bnumber(\d+)\b", lambda m: _number(row, numbers, int(m[1])), question)
    return {"input": question, "label": _label(row, row[row.first_of(*_ANSWERS)])}


def _number(row: Row, numbers: list[str], index: int) -> str:
    if index >= len(numbers):
        raise row.error(f"field 'Numbers' has no number {index}")
    return numbers[index].removesuffix(".0")


def _label(row: Row, value: Any) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    text = str(value).strip()
    if isinstance(value, bool) or evaluate_expression(text) is None:
        raise row.error(f"the answer must be a number, not {value!r}")
    return text.removesuffix(".0")


load = register_public(
    "mawps",
    convert=to_example,
    parser="gsm8k",
    scorer="value",
    huggingface=("MU-NLPC/Calc-mawps",),
    release=published_files("mawps", _files, to_example, "gsm8k"),
).load
