"""The numbers as tables: of the sweep, and beside the published ones."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Sequence, Set

from sbs_jax.parts import NAMES
from sbs_jax.reports.aggregate import Configuration, Mean, Results, format_setting, order, short
from sbs_jax.reports.reading import SPLITS

NO_VALUE = "–"
ONE_SEED = "one seed: no standard error"

_WEIGHT = "RATIONALE_WEIGHT"
_OF_METHOD = {"METHOD", "RATIONALE_SOURCE", "parameters"}  # What may differ between methods.

# Two-sided 5 % quantiles of Student's t with 1, 2, … degrees of freedom.
_STUDENT_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
      title: the table's title.
      columns: the heads of the columns.
      rows: a text for each column.
      numeric: the indices of the columns that are set flush right.
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
    sentences = [
        f"{split} has {found.copy().pop():,} examples"
        for split, found in counts.items()
        if len(found) == 1 and None not in found
    ]
    if sentences:
        notes.append(f"{', '.join(sentences)}.".capitalize())
    if results.teacher is not None:
        notes.append(f"{teacher_name(results)} itself: {teacher_percent(results)}.")
    return Table(
        "Accuracy",
        tuple(columns),
        tuple(rows),
        frozenset(range(first, len(columns))),
        tuple(notes),
    )


def losses_table(results: Results) -> Table | None:
    """The loss of each part of each configuration; None if the runs do not say."""
    split = results.split
    parts = parts_of(results, split)
    if not parts:
        return None
    rows = []
    for c in results.configurations:
        row = [format_setting(name, c.settings.get(name)) for name in results.varied]
        for part in parts:
            mean = mean_loss(c, split, part)
            row.append(NO_VALUE if mean is None else _plain(mean))
        rows.append(tuple(row))
    first = len(results.varied)
    return Table(
        f"Losses of the parts on {split}",
        (*map(short, results.varied), *parts),
        tuple(rows),
        frozenset(range(first, first + len(parts))),
        (
            "Nats for each token: mean over seeds ± standard error of that mean. Parts are not "
            "weighted here, and those of different methods have other targets: a loss is "
            "compared within a column, among methods that read the same.",
        ),
    )


def parts_of(results: Results, split: str) -> list[str]:
    """The parts that any run knows a loss of, label and rationale first."""
    found = {
        part: None
        for c in results.configurations
        for run in c.runs
        if split in run.scores
        for part in run.scores[split].losses
    }
    return [*(name for name in NAMES if name in found), *(n for n in found if n not in NAMES)]


def mean_loss(configuration: Configuration, split: str, part: str) -> Mean | None:
    """The mean of a part's loss over the seeds; None unless all of them know it."""
    scores = [run.scores[split] for run in configuration.runs if split in run.scores]
    found = [score.losses[part] for score in scores if part in score.losses]
    return Mean.of(found) if found and len(found) == len(scores) else None


def _plain(mean: Mean) -> str:
    if mean.standard_error is None:
        return f"{mean.mean:.4f}"
    return f"{mean.mean:.4f} ± {mean.standard_error:.4f}"


def gain_tables(results: Results) -> list[Table]:
    """What rationales gain, paired by seed: each method on `standard`, each λ on λ = 0."""
    without = [c for c in results.configurations if c.number(_WEIGHT) == 0]

    def without_weight(configuration: Configuration) -> Configuration | None:
        """The configuration with λ = 0 and the same settings otherwise."""
        return next(iter(_agreeing(results, configuration, without, {_WEIGHT})), None)

    tables = (
        _gains(results, "standard", lambda c: matching_standard(results, c)),
        _gains(results, "λ = 0", without_weight),
    )
    return [table for table in tables if table is not None]


def _gains(
    results: Results, baseline: str, find: Callable[[Configuration], Configuration | None]
) -> Table | None:
    rows = []
    for c in results.configurations:
        other = find(c)
        pairs = [] if other in (None, c) else paired_differences(other, c, results.split)
        if not pairs:
            continue
        mean = Mean.of(pairs)
        low, high = interval_of(mean)
        shown = f"{100 * low:+.2f} to {100 * high:+.2f}" if mean.standard_error else NO_VALUE
        rows.append((results.label(c), _signed(mean), shown, str(mean.n), verdict_of(mean)))
    if not rows:
        return None
    return Table(
        f"Gain on {baseline}, points of {results.split} accuracy",
        ("configuration", "gain", "95 % interval", "seeds", ""),
        tuple(rows),
        frozenset({1, 2, 3}),
        (
            f"Differences to {baseline} with the same other settings, seed by seed: their mean ± "
            "its standard error, and Student's 95 % interval for that mean, which is wide for few "
            "seeds. Of twenty rows without any difference, one is expected outside.",
        ),
    )


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
    names = order(sorted({name for c in results.configurations for name in c.settings}))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    heads = [f"{s}_{k}" for s in SPLITS for k in ("mean", "standard_error", "n", "examples")]
    losses = [(split, part) for split in SPLITS for part in parts_of(results, split)]
    of_parts = [f"{split}_{part}_loss" for split, part in losses]
    writer.writerow([*names, *heads, "planned", "seconds", "seeds", "sweeps", *of_parts])
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
        means = [mean_loss(c, split, part) for split, part in losses]
        values = [_csv_value(None if mean is None else mean.mean) for mean in means]
        writer.writerow([*row, c.planned, _csv_value(c.seconds), seeds, sweeps, *values])
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
    standard = [c for c in results.configurations if c.method == "standard"]
    exact = _agreeing(results, configuration, standard, _OF_METHOD)
    return next(
        iter([*exact, *_agreeing(results, configuration, standard, _OF_METHOD | {_WEIGHT})]), None
    )


def _agreeing(
    results: Results, like: Configuration, found: Sequence[Configuration], but: Set[str]
) -> list[Configuration]:
    """Those of `found` that agree with `like` in all that varies `but` some settings."""
    names = [name for name in results.varied if name not in but]
    return [c for c in found if all(c.settings.get(n) == like.settings.get(n) for n in names)]


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


def _signed(mean: Mean) -> str:
    if mean.standard_error is None:
        return f"{100 * mean.mean:+.2f} ({ONE_SEED})"
    return f"{100 * mean.mean:+.2f} ± {100 * mean.standard_error:.2f}"


def verdict_of(mean: Mean) -> str:
    """Says in words whether a mean difference is above or below 0, at a level of 95 %."""
    low, high = interval_of(mean)
    if mean.n < 3:
        # Two differences may agree by chance: accuracies are multiples of one example.
        return f"{'one seed' if mean.n == 1 else 'two seeds'} cannot tell"
    if not mean.standard_error:
        return "no spread: not judged"
    if low <= 0 <= high:
        return "not told apart"
    return "better" if low > 0 else "worse"


def interval_of(mean: Mean) -> tuple[float, float]:
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
