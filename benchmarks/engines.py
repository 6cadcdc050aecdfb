r"""What INFERENCE_DTYPE and ENGINE do to a trained student: its accuracy, its answers, its speed.

    python -m sbs_jax.train --gin_file=examples/quickstart.gin --gin.MODEL_DIR=RUN
    python benchmarks/engines.py --checkpoint=RUN [--split=test] [--json=FILE]

Open labels and rationales of a split of the task that the student was trained on, by each engine
and dtype, by turns in this one process, one thread each. `equal` counts answers with the text of
the first program (JAX in float32); seconds are CPU seconds, the best of `--repeats`, tokenizing
included, compiling and converting not.
"""

from __future__ import annotations

import argparse
import os
import sys

# Before jax starts its threads.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import json
import time
from pathlib import Path
from typing import Any

import rich.box
import rich.console
import rich.table

import sbs_jax.tasks  # noqa: F401 (registers them)
from sbs_jax import metrics
from sbs_jax.checkpoints import loading
from sbs_jax.data import choosing
from sbs_jax.host_memory import keep_freed_memory
from sbs_jax.inference.inputs import read_task
from sbs_jax.inference.loader import Loader

PROGRAMS = (
    ("jax", "float32"),
    ("jax", "bfloat16"),
    ("ctranslate2", "float32"),
    ("ctranslate2", "int8"),
)


def main() -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", required=True, help="a MODEL_DIR of a registered task")
    add("--split", default="test")
    add("--batch_size", type=int, default=16)
    add("--repeats", type=int, default=2)
    add("--engines", nargs="+", default=["jax", "ctranslate2"])
    add("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    keep_freed_memory()
    settings = loading.identify(options.checkpoint).settings
    task = settings["mixture_or_task_name"]
    items = list(read_task(task, options.split, settings.get("mixture_or_task_module")))
    info = choosing.task_info(task)
    assert info is not None
    score = metrics.SCORERS[info.dataset.scorer]
    texts = [item.input for item in items]
    programs = {
        key: Loader(
            options.checkpoint,
            engine=key[0],
            inference_dtype=key[1],
            batch_size=options.batch_size,
        ).load()
        for key in PROGRAMS
        if key[0] in options.engines
    }
    answers: dict[Any, tuple[list[str], list[str]]] = {}
    seconds: dict[Any, list[tuple[float, float]]] = {key: [] for key in programs}
    for _ in range(options.repeats + 1):
        for key, predictor in programs.items():
            begin = time.process_time()
            labels = [answer.label for answer in predictor.labels(texts)]
            middle = time.process_time()
            rationales = [answer.text for answer in predictor.rationales(texts)]
            seconds[key].append((middle - begin, time.process_time() - middle))
            answers[key] = labels, rationales
    results = []
    first = next(iter(programs))
    for key, (labels, rationales) in answers.items():
        right = [int(score(label, item.target)) for label, item in zip(labels, items, strict=True)]
        timed = seconds[key][1:]  # the first run compiles
        results.append(
            {
                "program": " ".join(key),
                "accuracy": metrics.accuracy(right),
                "equal_labels": _equal(labels, answers[first][0]),
                "equal_rationales": _equal(rationales, answers[first][1]),
                "label_seconds": min(pair[0] for pair in timed),
                "rationale_seconds": min(pair[1] for pair in timed),
            }
        )
    table = rich.table.Table(*results[0], box=rich.box.SIMPLE, title=f"{len(items)} inputs")
    for result in results:
        table.add_row(
            *(f"{value:.3f}" if isinstance(value, float) else value for value in result.values())
        )
    rich.console.Console(highlight=False).print(table)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


def _equal(texts: list[str], others: list[str]) -> float:
    return sum(map(str.__eq__, texts, others)) / len(texts)


if __name__ == "__main__":
    sys.exit(main())
