"""The paper's Tables 1 and 2, with our numbers beside the published ones."""

from __future__ import annotations

from collections.abc import Sequence

from sbs_jax.reports.aggregate import WITHOUT_RATIONALE_LOSS, Configuration, Results, format_count
from sbs_jax.reports.tables import Table, percent

# Hsieh et al. 2023, Tables 1 and 2: test accuracy in percent of T5-base on all training data.
DATASETS = {"esnli": "e-SNLI", "anli1": "ANLI", "cqa": "CQA", "svamp": "SVAMP"}
PUBLISHED = {
    "standard": (88.38, 43.58, 62.19, 62.63),
    "sbs from GPT-NeoX 20B": (89.12, 48.15, 63.25, 63.00),
    "sbs from PaLM 540B": (89.51, 49.58, 63.29, 65.50),
    "single task": (88.88, 43.50, 61.37, 63.00),
}


def published_tables(results: Results) -> list[Table]:
    """The paper's Tables 1 and 2 with our column; a cell is empty where we have nothing."""
    ours, notes = _our_cells(results)
    published = "published values: T5-base (220 M parameters, pretrained), all training data"

    def table(title: str, names: Sequence[str], keys: Sequence[str]) -> Table:
        columns = ["method"]
        for head in DATASETS.values():
            columns += [f"{head}, published", f"{head}, ours"]
        rows = []
        for name, key in zip(names, keys, strict=True):
            row = [name]
            for dataset, value in zip(DATASETS, PUBLISHED[key], strict=True):
                row += [f"{value:.2f}", ours.get((dataset, key), "")]
            rows.append(tuple(row))
        used = set(keys)
        own = tuple(text for (_, key), text in notes.items() if key in used)
        return Table(
            title,
            tuple(columns),
            tuple(rows),
            frozenset(range(1, len(columns))),
            (
                f"Test accuracy in percent; {published}. Ours: the same method on all training "
                "data with λ = 1, mean ± standard error (seeds); empty where this sweep has none.",
                *dict.fromkeys(own),
            ),
        )

    return [
        table(
            "Table 1 of the paper: teachers of different sizes",
            ("standard finetuning", "sbs, GPT-NeoX 20B", "sbs, PaLM 540B"),
            ("standard", "sbs from GPT-NeoX 20B", "sbs from PaLM 540B"),
        ),
        table(
            "Table 2 of the paper: one task or two",
            ("standard finetuning", "single task (joint)", "two tasks (sbs, PaLM 540B)"),
            ("standard", "single task", "sbs from PaLM 540B"),
        ),
    ]


def _our_cells(results: Results) -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], str]]:
    """Our values by (data set, published row), and a sentence on whose they are."""
    cells: dict[tuple[str, str], str] = {}
    notes: dict[tuple[str, str], str] = {}
    # The largest student wins.
    by_size = sorted(results.configurations, key=lambda c: c.number("parameters") or 0)
    for c in by_size:
        dataset, row = c.runs[0].dataset, _published_row(results, c)
        test = c.scores.get("test")
        if dataset not in DATASETS or row is None or test is None:
            continue
        cells[dataset, row] = percent(test, with_n=True)
        size = c.number("parameters")
        model = str(c.settings.get("MODEL") or "an unnamed model")
        summary = f"{model}, {format_count(size)} parameters" if size else model
        if c.config.get("INITIAL_CHECKPOINT_PATH") == "None":
            summary += ", trained from random parameters"
        notes[dataset, row] = f"Ours on {DATASETS[dataset]}: {summary}."
    return cells, notes


def _published_row(results: Results, c: Configuration) -> str | None:
    fraction, weight = c.number("TRAIN_FRACTION"), c.number("RATIONALE_WEIGHT")
    if fraction not in (None, 1.0) or c.settings.get("TRAIN_EXAMPLES") is not None:
        return None
    if c.settings.get("LABEL_SOURCE") not in (None, "gold"):
        return None
    if c.method not in WITHOUT_RATIONALE_LOSS and weight not in (None, 1.0):
        return None
    teacher = str(c.settings.get("TEACHER") or (results.teacher and results.teacher.name) or "")
    if c.method == "standard":
        return "standard"
    if c.settings.get("RATIONALE_SOURCE") not in (None, "teacher"):
        return None
    # The authors' release holds PaLM's rationales, so no name means these.
    is_palm = teacher in ("", "teacher") or "palm" in teacher.lower()
    if c.method == "joint" and is_palm:
        return "single task"
    if c.method == "sbs" and "neox" in teacher.lower():
        return "sbs from GPT-NeoX 20B"
    return "sbs from PaLM 540B" if c.method == "sbs" and is_palm else None
