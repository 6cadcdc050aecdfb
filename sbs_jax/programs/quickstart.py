"""Trains students with and without explanations on generated word problems, and compares them.

    bash launch/quickstart.sh

Everything happens offline, on the CPU, through the same gin files and mains that a real run uses:
gin/examples/quickstart.gin. `standard` learns the answers alone; `sbs` (distilling step-by-step)
also learns the explanations of a scripted teacher. Both see the same examples, equally often.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

import sbs_jax
from sbs_jax import metrics
from sbs_jax.configuration import config as config_lib
from sbs_jax.configuration.flags import Parser, parse_flags
from sbs_jax.configuration.main import run_main
from sbs_jax.errors import UNFINISHED, UserError, with_exit_code
from sbs_jax.files import atomic_write_text
from sbs_jax.json_files import read_jsonl

METHODS = ("standard", "sbs")
GIN_FILE = "examples/quickstart.gin"
TASK_FILE = "tasks/arithmetic.gin"
EXAMPLES_SHOWN = 4
_COLORS = {"standard": "#b8860b", "sbs": "#1f5fbf"}
_FINISHED = "finished.json"


@dataclasses.dataclass(frozen=True)
class ComparedRun:
    """One student of the comparison.

    Attributes:
      method: `standard` or `sbs`.
      seed: the seed of its parameters and of the order of its examples.
      folder: the MODEL_DIR of the run.
      gin_flags: `--gin.NAME=VALUE` of the user's.
    """

    method: str
    seed: int
    folder: Path
    gin_flags: tuple[str, ...] = ()

    @property
    def train_arguments(self) -> list[str]:
        """What `python -m sbs_jax.train` would be given."""
        return [
            f"--gin_file={GIN_FILE}",
            *self.gin_flags,
            f"--gin.MIXTURE_OR_TASK_NAME=arithmetic_{self.method}",
            f"--gin.SEED={self.seed}",
            f"--gin.MODEL_DIR={self.folder}",
        ]

    @property
    def eval_arguments(self) -> list[str]:
        """What `python -m sbs_jax.eval` would be given."""
        # The problems must be those that the student was trained for.
        problem_macros = config_lib.read([TASK_FILE]).macros
        problem_flags = [
            flag
            for flag in self.gin_flags
            if flag.removeprefix("--gin.").partition("=")[0] in problem_macros
        ]
        return [
            "--gin_file=runs/eval.gin",
            f"--gin_file={TASK_FILE}",
            *problem_flags,
            f"--gin.CHECKPOINT_PATH={self.folder}",
            f"--gin.EVAL_OUTPUT_DIR={self.folder / 'test'}",
            "--gin.BATCH_SIZE=250",
            f"--gin.WITH_RATIONALES={self.method == 'sbs'}",
        ]

    def fingerprint(self) -> str:
        """A checksum of the configuration that counts, the folder aside; imports nothing slow.

        Raises:
          UserError: a gin flag is wrong.
        """
        bound = {
            key: repr(binding.value)
            for key, binding in self._config().by_first_name().items()
            if binding.name != "MODEL_DIR"
        }
        text = json.dumps([sbs_jax.__version__, bound], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _config(self) -> config_lib.GinConfig:
        flags = parse_flags(self.train_arguments)
        config = config_lib.read(
            flags.gin_file, flags=flags.gin, target="sbs_jax.programs.train.train"
        )
        config.check()
        return config

    def steps_done(self) -> int:
        """Step of the last checkpoint, 0 without any."""
        from sbs_jax.checkpoints import folders  # loads jax

        return max(folders.complete_checkpoints(self.folder), default=0)

    def is_finished(self) -> bool:
        """Whether this very run has been trained and tested.

        Raises:
          UserError: the folder holds another run.
        """
        try:
            record = json.loads((self.folder / _FINISHED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        if record.get("configuration") != self.fingerprint():
            raise UserError(
                f"{self.folder}: holds a run with another configuration; remove that folder, or "
                "choose another one with --output_dir."
            )
        return True

    def make(self) -> None:
        """Trains and tests the student; resumes an earlier attempt that was stopped.

        Raises:
          SystemExit: it failed, or was interrupted; the reason has been printed.
        """
        _run_main("sbs_jax.programs.train:train", self.train_arguments)
        if self.steps_done() < self._config().macros["TRAIN_STEPS"].value:
            # A signal came. The checkpoint is saved, and the run has said so.
            raise SystemExit(UNFINISHED)
        _run_main("sbs_jax.programs.eval:evaluate", self.eval_arguments)
        record = {"configuration": self.fingerprint()}
        atomic_write_text(self.folder / _FINISHED, json.dumps(record) + "\n")

    def test_metrics(self) -> dict[str, Any]:
        """The metrics on the test split."""
        return next(row for _, row in read_jsonl(self.folder / "test" / "eval_metrics.jsonl"))

    def predictions(self) -> list[dict[str, Any]]:
        """What the student said on the test split, in the problems' order."""
        step = self.test_metrics()["step"]
        path = self.folder / "test" / "predictions" / f"test-{step}.jsonl"
        return [row for _, row in read_jsonl(path)]

    def explained(self) -> float | None:
        """Share of the explanations that end in the right number; None if it wrote none."""
        rows = self.predictions()
        if "rationale" not in rows[0]:
            return None
        ends = [re.findall(r"\d+", row["rationale"])[-1:] for row in rows]
        return metrics.accuracy(
            [end == [row["target"]] for end, row in zip(ends, rows, strict=True)]
        )

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric on the validation split."""
        rows = [row for _, row in read_jsonl(self.folder / "metrics.jsonl")]
        rows = [row for row in rows if row["split"] == "validation"]
        return [row["step"] for row in rows], [row[name] for row in rows]

    def train_rate(self) -> float:
        """Examples per second, the median over the run's record."""
        rows = [row for _, row in read_jsonl(self.folder / "metrics.jsonl")]
        rates = sorted(r["examples_per_second"] for r in rows if r.get("examples_per_second"))
        return rates[len(rates) // 2] if rates else float("nan")


def compare(runs: Sequence[ComparedRun], output_dir: Path, console: Console) -> None:
    """Makes the runs that are missing, and reports on all.

    Args:
      runs: the runs to compare, at least two seeds of each method.
      output_dir: the folder of `results.json` and `learning_curves.png`.
      console: the console to print on.

    Raises:
      UserError: a folder holds something else.
    """
    missing = [run for run in runs if not run.is_finished()]
    if not missing:
        console.print("All runs are there already; reporting on them.")
    for number, run in enumerate(missing, start=1):
        console.rule(f"student {number} of {len(missing)}: {run.method}, seed {run.seed}")
        run.make()
    console.rule("what came of it")
    plot = output_dir / "learning_curves.png"
    draw(runs, plot)
    results = summarize(runs)
    atomic_write_text(output_dir / "results.json", json.dumps(results, indent=2) + "\n")
    show_table(results, console)
    show_examples(runs, console)
    console.print(f"learning curves: {plot}", soft_wrap=True)
    console.print(f"students, metrics, all predictions: {output_dir}/*_seed*", soft_wrap=True)


def summarize(runs: Sequence[ComparedRun]) -> dict[str, Any]:
    """Test accuracies (0 to 1) by method, with the standard error over seeds."""
    methods = {}
    for method in METHODS:
        mine = [run for run in runs if run.method == method]
        scores = [run.test_metrics()["accuracy"] for run in mine]
        explained: list[Any] = [run.explained() for run in mine]
        methods[method] = {
            "accuracy": sum(scores) / len(scores),
            "standard_error": metrics.standard_error(scores),
            "seeds": dict(zip((run.seed for run in mine), scores, strict=True)),
            "label_loss": sum(run.test_metrics()["label_loss"] for run in mine) / len(mine),
            "explained": None if None in explained else sum(explained) / len(explained),
            "examples_per_second": sum(run.train_rate() for run in mine) / len(mine),
        }
    targets = Counter(row["target"] for row in runs[0].predictions())
    return {
        "methods": methods,
        "test_examples": sum(targets.values()),
        "steps": runs[0].test_metrics()["step"],
        "most_frequent_answer": max(targets.values()) / sum(targets.values()),
    }


def show_table(results: Mapping[str, Any], console: Console) -> None:
    """Prints the comparison."""
    seeds = list(results["methods"][METHODS[0]]["seeds"])
    table = Table(
        title=f"accuracy on {results['test_examples']} held-out problems after {results['steps']} "
        f"steps, {len(seeds)} seeds",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("method")
    for column in ("answers", *(f"seed {seed}" for seed in seeds), "explained", "examples/s"):
        table.add_column(column, justify="right")
    for method in METHODS:
        row = results["methods"][method]
        table.add_row(
            method,
            f"{row['accuracy']:.1%} ± {row['standard_error']:.1%}",
            *(f"{score:.1%}" for score in row["seeds"].values()),
            "–" if row["explained"] is None else f"{row['explained']:.1%}",
            f"{row['examples_per_second']:.0f}",
        )
    console.print(table)
    console.print(
        "answers: ± standard error over seeds; explained: share of the student's explanations that "
        "end in the right number.\nAlways giving the most frequent answer scores "
        f"{results['most_frequent_answer']:.1%}. {_verdict(results)}"
    )


def _verdict(results: Mapping[str, Any]) -> str:
    standard, sbs = (results["methods"][method] for method in METHODS)
    gain = sbs["accuracy"] - standard["accuracy"]
    noise = (sbs["standard_error"] ** 2 + standard["standard_error"] ** 2) ** 0.5
    # A few seeds may agree by chance; the problems are a sample as well.
    share = (sbs["accuracy"] + standard["accuracy"]) / 2
    sampling = (2 * share * (1 - share) / results["test_examples"]) ** 0.5
    error = max(noise, sampling)
    if abs(gain) <= 2 * error:
        return f"The difference ({gain:+.1%} for sbs) is within twice its error ({error:.1%})."
    better = "helped" if gain > 0 else "hurt"
    return f"Explanations {better}: {gain:+.1%} for sbs, with an error of {error:.1%}."


def show_examples(runs: Sequence[ComparedRun], console: Console) -> None:
    """Prints the first held-out problems with what the students of the first seed said."""
    first = {run.method: run.predictions() for run in reversed(runs)}
    console.print(f"\nThe first held-out problems, students of seed {runs[0].seed}:")
    for standard, sbs in list(zip(first["standard"], first["sbs"], strict=True))[:EXAMPLES_SHOWN]:
        for name, text in (
            ("problem", sbs["input"]),
            ("right answer", sbs["target"]),
            ("standard says", f"{standard['prediction']}  {_mark(standard)}"),
            ("sbs says", f"{sbs['prediction']}  {_mark(sbs)}"),
            ("sbs explains", sbs["rationale"]),
        ):
            console.print(f"  {name:>13}: {text}", markup=False, soft_wrap=True)
        console.print()


def _mark(row: Mapping[str, Any]) -> str:
    return "(right)" if row["score"] else "(wrong)"


def draw(runs: Sequence[ComparedRun], path: Path) -> None:
    """Draws accuracy and label loss on the validation split against steps: means bold, seeds faint.

    Args:
      runs: finished.
      path: the path of the PNG.
    """
    # Not pyplot, which would look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, name, title in zip(
        panels,
        ("accuracy", "label_loss"),
        ("answers right on validation problems", "loss of the answers on validation problems"),
        strict=True,
    ):
        for method in METHODS:
            curves = [run.curve(name) for run in runs if run.method == method]
            color = _COLORS[method]
            for steps, values in curves:
                axes.plot(steps, values, color=color, alpha=0.3, linewidth=1)
            # Runs of one configuration are evaluated at the same steps.
            means = [
                sum(values) / len(values)
                for values in zip(*(values for _, values in curves), strict=True)
            ]
            axes.plot(
                curves[0][0], means, color=color, linewidth=2.2, marker="o",
                markersize=3.5, label=f"{method} (mean of {len(curves)} seeds)",
            )  # fmt: skip
        axes.set(title=title, xlabel="training step")
        axes.title.set_fontsize(10.5)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panels[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    FigureCanvasAgg(figure).print_figure(temporary, format="png", dpi=130)
    temporary.replace(path)


def _run_main(target: str, arguments: Sequence[str]) -> None:
    code = run_main(target, arguments, description="")
    if code:
        raise SystemExit(code)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; `gin_flags` holds the `--gin.NAME=VALUE`.

    Raises:
      UserError: it is wrong.
    """
    parser = Parser(
        prog="python -m sbs_jax.quickstart",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--gin.NAME=VALUE changes a macro of every run, as in --gin.TRAIN_STEPS=2000.",
        allow_abbrev=False,
    )
    parser.add_argument("--output_dir", default="runs/quickstart", help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=2, help="students of each method, at least 2")
    arguments, others = parser.parse_known_args(argv)
    for other in others:
        if not other.startswith("--gin."):
            raise UserError(f"{other}: unknown argument; see --help.")
    if arguments.seeds < 2:
        raise UserError("--seeds: a standard error needs at least 2.")
    arguments.gin_flags = tuple(others)
    return arguments


@with_exit_code
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    console = Console(highlight=False, markup=False)
    arguments = parse_arguments(argv)
    output_dir = Path(arguments.output_dir).expanduser().absolute()
    runs = [
        ComparedRun(method, seed, output_dir / f"{method}_seed{seed}", arguments.gin_flags)
        for seed in range(arguments.seeds)
        for method in METHODS
    ]
    compare(runs, output_dir, console)
    return 0
