"""StrategyQA: yes or no, by way of several facts (Geva et al. 2021, arXiv 2101.02235).

``DATA_DIR/strategyqa/strategyqa_train.json`` (or ``train.json``), as published: a list of objects
with ``question``, ``answer`` (true or false) and ``facts``, which are a human rationale. The
published test examples have no answers: without a ``strategyqa_test.json`` (or ``dev``) that has
some, a fifth of the training examples are the test examples. BIG-bench's ``task.json``, with
``input`` and ``target_scores``, is read too.
"""

from __future__ import annotations

from sbs_jax.data.registration import register_dataset
from sbs_jax.data.release import Example, Row, load_rows
from sbs_jax.data.rows import read_rows
from sbs_jax.data.settings import DataSettings
from sbs_jax.data.sources import PublicNames, load_public
from sbs_jax.parsers import PARSERS
from sbs_jax.tasks.held_out import find_file, part_of

LABELS = ("yes", "no")
_TRAIN = ("strategyqa_train.json", "train.json", "train.jsonl", "task.json")
_TEST = ("strategyqa_test.json", "test.json", "strategyqa_dev.json", "dev.json")
NAMES = PublicNames(huggingface=("ChilleD/StrategyQA",))


def load(split: str, settings: DataSettings) -> list[Example]:
    """Reads the questions of a split, and the teacher's completions from ``llm/``, if any."""
    parser = PARSERS["yes_no"]
    return load_public(
        settings,
        "strategyqa",
        split,
        NAMES,
        convert=_convert,
        parser=parser,
        release=lambda: _load_release(split, settings),
    )


def _load_release(split: str, settings: DataSettings) -> list[Example]:
    folder = settings.folder("strategyqa")
    test = find_file(folder, _TEST)
    if test is not None and any(name in read_rows(test)[0] for name in ("answer", "target_scores")):
        path = test if split == "test" else find_file(folder, _TRAIN) or folder / _TRAIN[0]
        return load_rows(path, folder / "llm", split, convert=_convert, parser=PARSERS["yes_no"])
    path = find_file(folder, _TRAIN) or folder / _TRAIN[0]
    examples = load_rows(path, folder / "llm", "train", convert=_convert, parser=PARSERS["yes_no"])
    return part_of(split, examples)


def _convert(row: Row) -> Example:
    facts = row.get("facts") or []
    facts = [facts] if isinstance(facts, str) else row.texts("facts") if facts else []
    return {
        "id": str(row["qid"]) if "qid" in row else f"{row.path.stem}-{row.line}",
        "input": row.text(row.first_of("question", "input")).strip(),
        "label": _label(row),
        "rationale": " ".join(fact.strip() for fact in facts),
    }


def _label(row: Row) -> str:
    if "target_scores" in row:
        scores = row["target_scores"]
        if not isinstance(scores, dict) or not scores:
            raise row.error("field 'target_scores' must give the scores of Yes and No")
        answer = max(scores, key=scores.get)
    else:
        answer = row["answer"]
    if isinstance(answer, bool):
        return "yes" if answer else "no"
    if isinstance(answer, str) and answer.strip().lower() in (*LABELS, "true", "false"):
        return "yes" if answer.strip().lower() in ("yes", "true") else "no"
    raise row.error(f"field 'answer' must be true or false, not {answer!r}")


register_dataset("strategyqa", load=load, labels=LABELS, public=True)
