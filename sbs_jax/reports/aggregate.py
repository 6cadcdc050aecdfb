"""Joins runs that differ in nothing but their seed."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sbs_jax import metrics
from sbs_jax.reports.reading import DONE, SPLITS, RunResult, Score, Sweep

# Methods that train no rationale: RATIONALE_WEIGHT means nothing to them.
WITHOUT_RATIONALE_LOSS = ("standard", "rationale_input")
# Shown first, in this order; others follow by name.
_ORDER = (
    "task", "METHOD", "LABEL_SOURCE", "RATIONALE_SOURCE", "TEACHER", "MODEL", "parameters",
    "RATIONALE_WEIGHT", "TRAIN_FRACTION",
)  # fmt: skip
_METHOD_ORDER = ("standard", "sbs", "joint", "rationale_input")


@dataclasses.dataclass(frozen=True)
class Mean:
    """The mean accuracy of n seeds.

    Attributes:
      mean: the mean of their accuracies, 0 to 1.
      standard_error: the standard error of the mean, from the spread between seeds; None for a
        single seed.
      n: the number of seeds.
      examples: the number of examples that each was judged on, None if that is unknown or differs.
    """

    mean: float
    standard_error: float | None
    n: int
    examples: int | None = None

    @classmethod
    def of(cls, values: Sequence[float], examples: int | None = None) -> Mean:
        """The mean of at least one value."""
        stderr = metrics.standard_error(values)
        return cls(
            math.fsum(values) / len(values),
            None if math.isnan(stderr) else stderr,
            len(values),
            examples,
        )


@dataclasses.dataclass(frozen=True)
class Configuration:
    """Runs that differ in nothing but their seed.

    Attributes:
      settings: the settings that the runs have in common.
      config: the bindings that the runs' `config.gin` have in common.
      runs: the runs that are done, by seed.
      planned: how many there are, with those that are not done.
      scores: the scores of `validation` and `test`, over the seeds.
    """

    settings: Mapping[str, Any]
    config: Mapping[str, str]
    runs: tuple[RunResult, ...]
    planned: int
    scores: Mapping[str, Mean]

    @property
    def method(self) -> str:
        """`sbs`, `standard`, … or '' if the runs do not say."""
        return str(self.settings.get("METHOD") or "")

    @property
    def seeds(self) -> list[Any]:
        """The seeds of the runs that are done."""
        return [run.seed for run in self.runs]

    @property
    def seconds(self) -> float | None:
        """Mean over the runs, None if one does not say."""
        values = [run.seconds for run in self.runs if run.seconds is not None]
        return statistics.fmean(values) if values and len(values) == len(self.runs) else None

    def number(self, name: str) -> float | None:
        """A setting as a number, None if it is none."""
        value = self.settings.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if math.isfinite(value) else None


@dataclasses.dataclass(frozen=True)
class Results:
    """All that the tables, the figures and the page are made of.

    Attributes:
      sweeps: the sweeps that were read.
      configurations: with at least one run that is done, in the order they are shown.
      varied: names of the settings in which configurations differ, in the order they are shown.
      split: whose accuracy the figures show: `test` if any run has it.
      unfinished: runs that are not done.
      duplicates: runs left out, since another one has the same configuration and seed.
    """

    sweeps: tuple[Sweep, ...]
    configurations: tuple[Configuration, ...]
    varied: tuple[str, ...]
    split: str
    unfinished: tuple[RunResult, ...]
    duplicates: tuple[RunResult, ...]

    @property
    def runs(self) -> list[RunResult]:
        """Every run of every sweep."""
        return [run for sweep in self.sweeps for run in sweep.runs]

    @property
    def teacher(self) -> Score | None:
        """The teacher's few-shot accuracy, if one sweep knows it or all agree on it."""
        known = {sweep.teacher for sweep in self.sweeps if sweep.teacher is not None}
        return known.pop() if len(known) == 1 else None

    @property
    def config_differences(self) -> dict[str, list[str]]:
        """Lines of `config.gin` that differ: a value for each configuration ('' if it has none)."""
        names = {name for c in self.configurations for name in c.config}
        values = {
            name: [c.config.get(name, "") for c in self.configurations] for name in sorted(names)
        }
        return {name: found for name, found in values.items() if len(set(found)) > 1}

    @property
    def common_settings(self) -> dict[str, Any]:
        """Settings that all configurations share."""
        first = self.configurations[0].settings
        return {name: first[name] for name in order(first) if name not in self.varied}

    def label(self, configuration: Configuration) -> str:
        """What tells a configuration from the others."""
        # Of a model's name and its size, one will do.
        shown = [n for n in self.varied if n != "parameters" or "MODEL" not in self.varied]
        return describe(configuration, shown) or configuration.method or "the configuration"


def aggregate(sweeps: Sequence[Sweep]) -> Results:
    """Groups the runs of some sweeps.

    Runs belong together when their settings and their `config.gin` agree in everything but the seed
    and where they lie. Of runs with one configuration and one seed, the first counts.
    """
    groups: dict[str, dict[str, RunResult]] = {}
    unfinished, duplicates = [], []
    for run in (run for sweep in sweeps for run in sweep.runs):
        if run.status != DONE:
            unfinished.append(run)
            continue
        seeds = groups.setdefault(_key(run), {})
        seed = json.dumps(run.seed)
        if seed in seeds:
            duplicates.append(run)
        else:
            seeds[seed] = run
    missing = [_planned_key(run) for run in unfinished]
    configurations, varied = _tell_apart(
        [
            _configuration(
                list(seeds.values()), missing.count(_planned_key(next(iter(seeds.values()))))
            )
            for seeds in groups.values()
        ]
    )
    configurations.sort(key=lambda c: [_place(c, name) for name in varied])
    has_test = any("test" in c.scores for c in configurations)
    return Results(
        tuple(sweeps),
        tuple(configurations),
        varied,
        "test" if has_test else "validation",
        tuple(unfinished),
        tuple(duplicates),
    )


def order(names: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Names of settings in the order they are shown."""
    known = [name for name in _ORDER if name in names]
    return known + sorted(name for name in names if name not in known)


def format_setting(name: str, value: Any) -> str:
    """A setting's value for people.

    >>> format_setting('TRAIN_FRACTION', 0.125)
    '12.5 %'
    """
    if value is None:
        return "–"
    if isinstance(value, bool | str) or not isinstance(value, int | float):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return "".join(sign if sign.isprintable() else "\ufffd" for sign in text)
    if name == "TRAIN_FRACTION":
        return f"{100 * value:g} %"
    if name == "parameters":
        return format_count(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def format_count(value: float) -> str:
    """A number of parameters.

    >>> format_count(247_577_856)
    '248 M'
    """
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:g}"


def describe(configuration: Configuration, names: Sequence[str]) -> str:
    """Some settings in few words, for a legend, a menu or a title.

    What says by itself what it is stands without its name: `sbs, λ 0.3, data 50 %`.
    """
    words = []
    for name in names:
        if name in configuration.settings:
            value = format_setting(name, configuration.settings[name])
            plain = name in ("METHOD", "task", "MODEL")
            words.append(value if plain else f"{short(name)} {value}")
    return ", ".join(words)


def short(name: str) -> str:
    """A setting's name in few words: `λ`."""
    known = {
        "RATIONALE_WEIGHT": "λ",
        "TRAIN_FRACTION": "data",
        "METHOD": "method",
        "LABEL_SOURCE": "labels",
        "RATIONALE_SOURCE": "rationales",
        "MODEL": "model",
        "TEACHER": "teacher",
    }
    return known.get(name, name)


def _configuration(runs: list[RunResult], missing: int) -> Configuration:
    runs = sorted(runs, key=lambda run: _sortable("SEED", run.seed))
    scores = {}
    for split in SPLITS:
        found = [run.scores[split] for run in runs if split in run.scores]
        if found:
            counts = {score.examples for score in found}
            scores[split] = Mean.of(
                [score.accuracy for score in found], counts.pop() if len(counts) == 1 else None
            )
    settings = {name: value for name, value in runs[0].settings.items() if name != "SEED"}
    return Configuration(settings, runs[0].config, tuple(runs), len(runs) + missing, scores)


def _tell_apart(
    configurations: list[Configuration],
) -> tuple[list[Configuration], tuple[str, ...]]:
    """Names the settings that differ; those that differ in config.gin alone get a line of it."""
    names = {name for c in configurations for name in c.settings}
    varied = [
        name
        for name in order(list(names))
        if len({json.dumps(c.settings.get(name), sort_keys=True) for c in configurations}) > 1
    ]
    # What follows from the data set, the method or the model is no axis of its own.
    for name in [name for name in varied if name not in _ORDER]:
        for cause in ("task", "METHOD", "MODEL"):
            pairs = {(_settings_key(c, [cause]), _settings_key(c, [name])) for c in configurations}
            if name in varied and cause in varied and len(pairs) == len({p for p, _ in pairs}):
                varied.remove(name)
    candidates = sorted({name for c in configurations for name in c.config} - names)
    for name in candidates:
        if len({_settings_key(c, varied) for c in configurations}) == len(configurations):
            break
        values = [c.config.get(name, "") for c in configurations]
        if len(set(values)) > 1:
            varied.append(name)
            configurations = [
                dataclasses.replace(c, settings={**c.settings, name: _literal(value)})
                for c, value in zip(configurations, values, strict=True)
            ]
    return configurations, tuple(varied)


def _settings_key(configuration: Configuration, names: Sequence[str]) -> str:
    return json.dumps([configuration.settings.get(name) for name in names], sort_keys=True)


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.strip("'")


def _key(run: RunResult) -> str:
    settings = {name: value for name, value in run.settings.items() if name != "SEED"}
    return json.dumps([settings, dict(run.config)], sort_keys=True, default=str)


def _planned_key(run: RunResult) -> str:
    # A run that did not get far has no config.gin: what the sweep bound says where it belongs.
    bindings = {name: value for name, value in run.bindings.items() if name != "SEED"}
    return json.dumps([run.sweep, bindings], sort_keys=True, default=str)


def _place(configuration: Configuration, name: str) -> tuple[int, float, str]:
    # Models by their size.
    size = configuration.number("parameters")
    if name == "MODEL" and size is not None:
        return (0, size, str(configuration.settings.get(name)))
    return _sortable(name, configuration.settings.get(name))


def _sortable(name: str, value: Any) -> tuple[int, float, str]:
    if name == "METHOD" and value in _METHOD_ORDER:
        return (0, _METHOD_ORDER.index(value), "")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (0, float(value), "")
    return (1, 0.0, json.dumps(value, default=str))
