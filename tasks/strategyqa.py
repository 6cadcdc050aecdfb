"""StrategyQA: yes or no, by way of several facts (Geva et al. 2021, arXiv 2101.02235).

``DATA_DIR/strategyqa/strategyqa_train.json`` (or ``train.json``), as published: a list of objects
with ``question``, ``answer`` (true or false) and ``facts``, which are a human rationale. The
published test examples have no answers: without a ``strategyqa_test.json`` (or ``dev``) that has
some, a fifth of the training examples are the test examples. BIG-bench's ``task.json``, with
``input`` and ``target_scores``, is read too.
"""

from __future__ import annotations

from pathlib import Path

from sbs_jax import Row, read_rows, register_public

from .held_out import find_file, published_files

LABELS = ("yes", "no")
_TRAIN = ("strategyqa_train.json", "train.json", "train.jsonl", "task.json")
_TEST = ("strategyqa_test.json", "test.json", "strategyqa_dev.json", "dev.json")


def _files(folder: Path, split: str) -> tuple[Path, str, bool]:
    train = find_file(folder, _TRAIN) or folder / _TRAIN[0]
    test = find_file(folder, _TEST)
    if test is not None and any(name in read_rows(test)[0] for name in ("answer", "target_scores")):
        return (test if split == "test" else train), split, False
    return train, "train", True


def to_example(row: Row) -> dict[str, str]:
    """Makes an example of a question; its facts are one human rationale."""
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
        answer = max(scores, key=scores.__getitem__)
    else:
        answer = row["answer"]
    if isinstance(answer, bool):
        return "yes" if answer else "no"
    if isinstance(answer, str) and answer.strip().lower() in (*LABELS, "true", "false"):
        return "yes" if answer.strip().lower() in ("yes", "true") else "no"
    raise row.error(f"field 'answer' must be true or false, not {answer!r}")


load = register_public(
    "strategyqa",
    convert=to_example,
    parser="yes_no",
    labels=LABELS,
    huggingface=("ChilleD/StrategyQA",),
    release=published_files("strategyqa", _files, to_example, "yes_no"),
).load
