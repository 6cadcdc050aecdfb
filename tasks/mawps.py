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
from typing import Any

from sbs_jax.data.registration import register_dataset
from sbs_jax.data.release import Example, Row, load_rows
from sbs_jax.data.settings import DataSettings
from sbs_jax.data.sources import PublicNames, load_public
from sbs_jax.metrics import evaluate_expression
from sbs_jax.parsers import PARSERS
from sbs_jax.tasks.held_out import find_file, part_of

_ENDINGS = (".json", ".jsonl", ".csv")
_QUESTIONS = ("sQuestion", "Question", "question", "original_text", "input")
_ANSWERS = ("lSolutions", "Answer", "answer", "result", "ans", "label")
NAMES = PublicNames(huggingface=("MU-NLPC/Calc-mawps",))


def load(split: str, settings: DataSettings) -> list[Example]:
    """Reads the problems of a split, and the teacher's completions from ``llm/``, if any."""
    parser = PARSERS["gsm8k"]
    return load_public(
        settings,
        "mawps",
        split,
        NAMES,
        convert=_convert,
        parser=parser,
        release=lambda: _load_release(split, settings),
    )


def _load_release(split: str, settings: DataSettings) -> list[Example]:
    folder = settings.folder("mawps")
    own = tuple(f"{stem}{split}{end}" for stem in ("mawps_", "") for end in _ENDINGS)
    path = find_file(folder, own)
    if path is not None:
        return load_rows(path, folder / "llm", split, convert=_convert, parser=PARSERS["gsm8k"])
    whole = tuple(f"{stem}{end}" for stem in ("mawps", "mawps_single", "all") for end in _ENDINGS)
    path = find_file(folder, whole) or folder / own[0]
    examples = load_rows(path, folder / "llm", "all", convert=_convert, parser=PARSERS["gsm8k"])
    return part_of(split, examples)


def _convert(row: Row) -> Example:
    question = row.text(row.first_of(*_QUESTIONS)).strip()
    if "Numbers" in row:
        numbers = str(row["Numbers"]).split()
        question = re.sub(r"\bnumber(\d+)\b", lambda m: _number(row, numbers, int(m[1])), question)
    return {
        "id": f"{row.path.stem}-{row.line}",
        "input": question,
        "label": _label(row, row[row.first_of(*_ANSWERS)]),
        "rationale": "",
    }


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


register_dataset("mawps", load=load, scorer="value", public=True)
