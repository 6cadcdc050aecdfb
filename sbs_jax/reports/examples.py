"""The examples that the page lets one read: inputs once, and what each student made of them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

from sbs_jax.reports.aggregate import Configuration, Results
from sbs_jax.reports.tables import matching_standard

Choice = Literal["one_seed", "all_seeds", "none"]
RUNS_SHOWN: tuple[str, ...] = get_args(Choice)

# Within a script element, `<` could end it; U+2028 and U+2029 end lines of JavaScript.
_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff\x7f-\x9f]")


def collect(results: Results, choice: Choice) -> list[dict[str, Any]]:
    """The predictions of the split that is reported on.

    Args:
      results: the results of the sweep.
      choice: the runs of each configuration's first seed with predictions, of all, or of none.

    Returns:
      For each data set `name`, the lists `ids`, `inputs`, `golds` and `teacher` (the teacher's
      rationales, '' where unknown) over its examples, `runs`: of each its `name` and, over the same
      examples, `labels` (None where it has no prediction), `right` (1 or 0) and `rationales` (None
      where it wrote none), and `compare`, the two runs that are compared first: the one that is
      best on validation, and `standard` with the same settings.

    Raises:
      UserError: a file of predictions cannot be understood.
    """
    if choice == "none":
        return []
    collections: dict[str, dict[str, Any]] = {}
    for configuration in results.configurations:
        for run in configuration.runs:
            rows = run.predictions(results.split)
            if rows is None:
                continue
            name = results.label(configuration)
            if run.seed is not None:
                name += f", seed {run.seed}"
            new: dict[str, Any] = {"index": {}, "rows": [], "runs": [], "configurations": []}
            collection = collections.setdefault(run.dataset, new)
            _add(collection, name, rows)
            collection["configurations"].append(configuration)
            if choice == "one_seed":
                break
    return [
        _finished(f"{dataset} · {results.split}".strip(" ·"), collection, results)
        for dataset, collection in collections.items()
    ]


def script_json(value: Any) -> str:
    r"""JSON that may stand within a script element, whatever texts it holds.

    >>> script_json('</script>')
    '"\\u003c/script\\u003e"'
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _add(collection: dict[str, Any], name: str, rows: Sequence[dict[str, Any]]) -> None:
    index: dict[tuple[str, str, str], int] = collection["index"]
    examples: list[list[str]] = collection["rows"]
    answers: dict[int, tuple[str, int, str | None]] = {}
    for row in rows:
        # Not by the id alone: with other data, the same id is another example.
        key = (str(row["id"]), str(row["input"]), str(row["target"]))
        place = index.setdefault(key, len(examples))
        if place == len(examples):
            examples.append([*key, ""])
        teacher = row.get("llm_rationale")
        if isinstance(teacher, str) and teacher and not examples[place][3]:
            examples[place][3] = teacher
        rationale = row.get("rationale")
        answers[place] = (
            str(row["prediction"]),
            int(bool(row["score"])),
            rationale if isinstance(rationale, str) else None,
        )
    collection["runs"].append((name, answers))


def _finished(name: str, collection: dict[str, Any], results: Results) -> dict[str, Any]:
    examples: list[list[str]] = collection["rows"]
    runs = []
    for run_name, answers in collection["runs"]:
        found = [answers.get(place) for place in range(len(examples))]
        rationales = [answer[2] if answer else None for answer in found]
        runs.append(
            {
                "name": run_name,
                "labels": [answer[0] if answer else None for answer in found],
                "right": [answer[1] if answer else 0 for answer in found],
                "rationales": None if all(r is None for r in rationales) else rationales,
            }
        )
    return {
        "name": name,
        "ids": [example[0] for example in examples],
        "inputs": [example[1] for example in examples],
        "golds": [example[2] for example in examples],
        "teacher": [example[3] for example in examples],
        "runs": runs,
        "compare": _first_compared(collection["configurations"], results),
    }


def _first_compared(configurations: Sequence[Configuration], results: Results) -> list[int]:
    def judge(place: int) -> tuple[bool, float]:
        c = configurations[place]
        # `standard` is what others are compared with.
        return c.method != "standard", c.scores.get("validation", c.scores[results.split]).mean

    second = max(range(len(configurations)), key=judge)
    standard = matching_standard(results, configurations[second])
    places = [i for i, c in enumerate(configurations) if c is standard and i != second]
    others = [i for i in range(len(configurations)) if i != second]
    return [next(iter([*places, *others]), second), second]
