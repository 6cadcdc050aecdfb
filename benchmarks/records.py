"""Measures how a run gets at its records: read and tokenized, and mapped from RECORDS_CACHE_DIR.

    python benchmarks/records.py [--examples 549367]

Needs no data: it writes as many lines as e-SNLI has, with generated words, in the release's layout,
and trains a vocabulary on a part of them. Each start is a process of its own, up to its first
batch. The last line is JSON: CPU and wall seconds, and the most memory in GB, of a `plain` start,
of one that `writes` the records, and of one that finds them `kept`.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LENGTHS = {"inputs": 256, "targets": 128}
STEMS = [
    "man",
    "wo",
    "chil",
    "dog",
    "ball",
    "run",
    "street",
    "play",
    "sit",
    "red",
    "blue",
    "group",
    "peo",
    "young",
    "look",
]
ENDINGS = ("", *["s", "ing", "er", "ed", "ly", "ful", "ple", "dren", "ish"])
LABELS = ("entailment", "neutral", "contradiction")
VOCABULARY_SIZE = 2000


def main() -> None:
    """Prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=549_367)
    parser.add_argument("--start", nargs=2, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.start is not None:
        _start(Path(flags.start[0]), flags.start[1] == "kept")
        return
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), flags.examples)
        results = {}
        for name in ("plain", "writes", "kept"):
            kept = "kept" if name != "plain" else "plain"
            command = [sys.executable, __file__, "--start", folder, kept]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[name] = json.loads(done.stdout.splitlines()[-1])
            print(name, results[name], flush=True)
        if len({result["batch"] for result in results.values()}) != 1:
            sys.exit("The first batches differ.")
    print(json.dumps(results))


def _write(folder: Path, examples: int) -> None:
    from sbs_jax.data.sentencepiece_training import train_sentencepiece

    rng = random.Random(0)
    words = [stem + ending for stem in STEMS for ending in ENDINGS]

    def sentence(length: int) -> str:
        return " ".join(rng.choices(words, k=length))

    (folder / "esnli").mkdir()
    texts: list[str] = []
    with (folder / "esnli" / "esnli_train.json").open("w", encoding="utf-8") as file:
        for number in range(examples):
            premise = sentence(14) if number % 3 == 0 else premise
            row = {"premise": premise, "hypothesis": sentence(7), "explanation_1": sentence(13)}
            file.write(json.dumps({**row, "label": LABELS[number % 3]}) + "\n")
            texts += row.values() if number < 5000 else ()
    model = train_sentencepiece([*texts, "predict: explain:", *LABELS], VOCABULARY_SIZE)
    (folder / "spiece.model").write_bytes(model)


def _start(folder: Path, kept: bool) -> None:
    """Loads the records, makes the first batch, and prints what that took."""
    start = time.perf_counter()
    import sbs_jax.tasks.esnli  # noqa: F401  (registers the data set)
    from sbs_jax.data import pipeline
    from sbs_jax.data.batching import Batching
    from sbs_jax.data.resolving import TaskChoice, resolve_task
    from sbs_jax.data.settings import DataSettings

    settings = DataSettings(
        data_dir=str(folder),
        vocabulary_path=str(folder / "spiece.model"),
        records_cache_dir=str(folder / "kept") if kept else None,
    )
    task = resolve_task(TaskChoice("esnli", rationale_source="human"), settings)
    records = pipeline.load_records(task, "train", LENGTHS)
    batch = next(pipeline.TrainBatches(records, Batching(LENGTHS), seed=0))
    used = resource.getrusage(resource.RUSAGE_SELF)
    result = {
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "wall_s": round(time.perf_counter() - start, 1),
        "memory_gb": round(used.ru_maxrss / 1e6, 2),
        "records": len(records),
        "batch": sum(int(array.astype("int64").sum()) for array in batch.values()),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
