"""The numbers as tables: of the sweep, and beside the published ones."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Sequence

from sbs_jax.experiments.report.aggregate import (
    WITHOUT_RATIONALE_LOSS,
    Configuration,
    Mean,
    Results,
    format_count,
    format_setting,
    order,
    short,
)
from sbs_jax.experiments.report.reading import SPLITS

NO_VALUE = "–"
ONE_SEED = "one seed: no standard error"

# Two-sided 5 % quantiles of Student's t with 1, 2, … degrees of freedom.
_STUDENT_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)

# Hsieh et al. 2023, Tables 1 and 2: test accuracy in percent of T5-base on all training data.
DATASETS = {"esnli": "e-SNLI", "anli1": "ANLI", "cqa": "CQA", "svamp": "SVAMP"}
PUBLISHED = {
    "standard": (88.38, 43.58, 62.19, 62.63),
    "sbs from GPT-NeoX 20B": (89.12, 48.15, 63.25, 63.00),
    "sbs from PaLM 540B": (89.51, 49.58, 63.29, 65.50),
    "single task": (88.88, 43.50, 61.37, 63.00),
}


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
      title: what it shows.
      columns: their heads.
      rows: a text for each column.
      numeric: which columns are set flush right.
      notes: sentences below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The table in GitHub's Markdown, with its title and notes."""
        lines = [f"### {_cell(self.title)}", ""]
        lines.append(f"| {' | '.join(map(_cell, self.columns))} |")
        marks = ["---:" if i in self.numeric else "---" for i in range(len(self.columns))]
        lines.append(f"|{'|'.join(marks)}|")
        lines += [f"| {' | '.join(map(_cell, row))} |" for row in self.rows]
        for note in self.notes:
            lines += ["", _cell(note)]
        return "\n".join(lines) + "\n"


def results_table(results: Results) -> Table:
    """Every configuration with its accuracies, in percent."""
    splits = [s for s in reversed(SPLITS) if any(s in c.scores for c in results.configurations)]
    with_time = any(c.seconds is not None for c in results.configurations)
    columns = [short(name) for name in results.varied]
    rows = []
    for c in results.configurations:
        row = [format_setting(name, c.settings.get(name)) for name in results.varied]
        row += [percent(c.scores.get(split)) for split in splits]
        row.append(
            str(len(c.runs)) if len(c.runs) == c.planned else f"{len(c.runs)} of {c.planned}"
        )
        if with_time:
            row.append(NO_VALUE if c.seconds is None else f"{c.seconds:,.0f}")
        rows.append(tuple(row))
    first = len(columns)
    columns += [f"{split}, %" for split in splits] + ["seeds"]
    columns += ["seconds"] if with_time else []
    notes = [
        "Accuracy in percent: mean over seeds ± standard error of that mean (the spread between "
        "seeds; it does not include the choice of the examples)."
    ]
    if any(mean.n == 1 for c in results.configurations for mean in c.scores.values()):
        notes.append("A single seed has no standard error; such a row says so.")
    counts = {
        split: {c.scores[split].examples for c in results.configurations if split in c.scores}
        for split in splits
    }
    told = [
        f"{split} has {found.copy().pop():,} examples"
        for split, found in counts.items()
        if len(found) == 1 and None not in found
    ]
    if told:
        notes.append(f"{', '.join(told)}.".capitalize())
    if results.teacher is not None:
        notes.append(f"{teacher_name(results)} itself: {teacher_percent(results)}.")
    return Table(
        "Accuracy",
        tuple(columns),
        tuple(rows),
        frozenset(range(first, len(columns))),
        tuple(notes),
    )


def differences_table(results: Results) -> Table | None:
    """What each method gains on `standard`, paired by seed; None where nothing can be paired."""
    rows = []
    for c in results.configurations:
        standard = None if c.method == "standard" else matching_standard(results, c)
        if standard is None:
            continue
        pairs = paired_differences(standard, c, results.split)
        if not pairs:
            continue
        mean = Mean.of(pairs)
        low, high = _interval(mean)
        shown = NO_VALUE if mean.n < 2 else f"{100 * low:+.2f} to {100 * high:+.2f}"
        rows.append((results.label(c), _signed(mean), shown, str(mean.n), _verdict(mean)))
    if not rows:
        return None
    return Table(
        f"Gain on standard, points of {results.split} accuracy",
        ("configuration", "gain", "95 % interval", "seeds", ""),
        tuple(rows),
        frozenset({1, 2, 3}),
        (
            "Differences to standard with the same settings, seed by seed: their mean ± its "
            "standard error, and Student's 95 % interval for that mean, which is wide for few "
            "seeds. Of twenty rows without any difference, one is expected outside.",
        ),
    )


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


def differing_lines_table(results: Results) -> Table | None:
    """What differs in the runs' `config.gin`; None if nothing does."""
    differences = results.config_differences
    if not differences:
        return None
    return Table(
        "What differs in config.gin",
        ("configuration", *differences),
        tuple(
            (results.label(c), *(values[i] for values in differences.values()))
            for i, c in enumerate(results.configurations)
        ),
    )


def runs_table(results: Results) -> Table:
    """Every run, whatever became of it."""
    rows = []
    duplicates = {id(run) for run in results.duplicates}
    many = len(results.sweeps) > 1
    for run in results.runs:
        reason = run.reason
        if id(run) in duplicates:
            reason = "left out: another run has the same configuration and seed"
        row = [run.sweep] if many else []
        row += [run.name, run.status]
        row += [
            f"{100 * run.scores[split].accuracy:.2f}" if split in run.scores else NO_VALUE
            for split in SPLITS
        ]
        row.append(NO_VALUE if run.selected_step is None else f"{run.selected_step:,}")
        row.append(NO_VALUE if run.seconds is None else f"{run.seconds:,.0f}")
        rows.append((*row, reason))
    columns = [*(["sweep"] if many else []), "run", "status"]
    columns += ["validation, %", "test, %", "step", "seconds", "remark"]
    first = len(columns) - 5
    return Table("Every run", tuple(columns), tuple(rows), frozenset(range(first, first + 4)))


def results_csv(results: Results) -> str:
    """One line a configuration, numbers in full; an absent one is an empty field."""
    names = order({name for c in results.configurations for name in c.settings})
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    heads = [f"{s}_{k}" for s in SPLITS for k in ("mean", "standard_error", "n", "examples")]
    writer.writerow([*names, *heads, "planned", "seconds", "seeds", "sweeps"])
    for c in results.configurations:
        row = [_csv_value(c.settings.get(name)) for name in names]
        for split in SPLITS:
            mean = c.scores.get(split)
            row += (
                ["", "", "0", ""]
                if mean is None
                else [*map(_csv_value, (mean.mean, mean.standard_error, mean.n, mean.examples))]
            )
        seeds = " ".join(_csv_value(seed) for seed in c.seeds)
        sweeps = " ".join(dict.fromkeys(run.sweep for run in c.runs))
        writer.writerow([*row, c.planned, _csv_value(c.seconds), seeds, sweeps])
    return file.getvalue()


def percent(mean: Mean | None, *, with_n: bool = False) -> str:
    """`61.20 ± 0.34`, or without an error where there is a single seed."""
    if mean is None:
        return NO_VALUE
    if mean.standard_error is None:
        return f"{100 * mean.mean:.2f} ({ONE_SEED})"
    text = f"{100 * mean.mean:.2f} ± {100 * mean.standard_error:.2f}"
    return f"{text} ({mean.n})" if with_n else text


def teacher_name(results: Results) -> str:
    """What to call the teacher."""
    name = results.teacher.name if results.teacher is not None else ""
    return "The teacher" if name in ("", "teacher") else name


def teacher_percent(results: Results) -> str:
    """The teacher's accuracy with its standard error, as far as it is known."""
    teacher = results.teacher
    if teacher is None:
        return NO_VALUE
    text = f"{100 * teacher.accuracy:.2f} %"
    if teacher.standard_error is not None:
        text += f" ± {100 * teacher.standard_error:.2f}"
    return text + (f" on {teacher.examples:,} examples" if teacher.examples else "")


def matching_standard(results: Results, configuration: Configuration) -> Configuration | None:
    """The `standard` configuration with the same settings; λ, which it has no use for, aside."""
    ignored = {"METHOD", "RATIONALE_SOURCE", "parameters"}
    names = [name for name in results.varied if name not in ignored]

    def agrees(other: Configuration, names: Sequence[str]) -> bool:
        return all(other.settings.get(n) == configuration.settings.get(n) for n in names)

    standard = [c for c in results.configurations if c.method == "standard"]
    exact = [c for c in standard if agrees(c, names)]
    rest = [name for name in names if name != "RATIONALE_WEIGHT"]
    return next(iter([*exact, *(c for c in standard if agrees(c, rest))]), None)


def paired_differences(first: Configuration, second: Configuration, split: str) -> list[float]:
    """Accuracy of `second` minus that of `first`, for each seed that both have."""
    by_seed = {repr(run.seed): run for run in first.runs}
    return [
        run.scores[split].accuracy - by_seed[repr(run.seed)].scores[split].accuracy
        for run in second.runs
        if repr(run.seed) in by_seed
        and split in run.scores
        and split in by_seed[repr(run.seed)].scores
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
        told = f"{model}, {format_count(size)} parameters" if size else model
        if c.config.get("INITIAL_CHECKPOINT_PATH") == "None":
            told += ", trained from random parameters"
        notes[dataset, row] = f"Ours on {DATASETS[dataset]}: {told}."
    return cells, notes


def _published_row(results: Results, c: Configuration) -> str | None:
    fraction, weight = c.number("TRAIN_FRACTION"), c.number("RATIONALE_WEIGHT")
    if fraction not in (None, 1.0) or c.settings.get("LABEL_SOURCE") not in (None, "gold"):
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


def _signed(mean: Mean) -> str:
    if mean.standard_error is None:
        return f"{100 * mean.mean:+.2f} ({ONE_SEED})"
    return f"{100 * mean.mean:+.2f} ± {100 * mean.standard_error:.2f}"


def _verdict(mean: Mean) -> str:
    low, high = _interval(mean)
    if mean.n < 2:
        return "one seed cannot tell"
    if low <= 0 <= high:
        return "not told apart"
    return "better" if low > 0 else "worse"


def _interval(mean: Mean) -> tuple[float, float]:
    """Student's 95 % interval of a mean."""
    if mean.standard_error is None:
        return -math.inf, math.inf
    freedom = mean.n - 1
    # Beyond the table, this is at most 0.02 too large.
    t = _STUDENT_95[freedom - 1] if freedom <= len(_STUDENT_95) else 1.96 + 2.7 / freedom
    return mean.mean - t * mean.standard_error, mean.mean + t * mean.standard_error


def _csv_value(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value if isinstance(value, str) else repr(value)


def _cell(text: str) -> str:
    """Text within Markdown: no line breaks, no bars, no HTML."""
    text = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return " ".join(text.split())
