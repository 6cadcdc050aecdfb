"""Measures how a run gets at its records: read and tokenized, and mapped from RECORDS_CACHE_DIR.

    python benchmarks/records.py [--examples 549367]
    python benchmarks/records.py --records 100000000 --folder DIR

Needs no data: it writes as many lines as e-SNLI has, with generated words, in the release's layout,
and trains a vocabulary on a part of them. Each start is a process of its own, up to its first
batch. The last line is JSON: CPU seconds (those of the processes that it started included) and wall
seconds, and the most memory in GB, its own and that of one of those processes, of a `plain` start,
of one that `writes` the records, and of one that finds them `kept`.

With `--records`, so many records with random tokens are written as RECORDS_CACHE_DIR keeps them
(two of each example, of 12 + 6 tokens on average: some 110 bytes a record), mapped by a new
process, with none of it in the system's memory, and made into batches of 64 rows of 256 + 128
tokens. The last line is JSON: seconds until the first batch, batches a second of an epoch's
beginning, and GB of memory: the process's own, and with the pages of the files that it has touched,
which the system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

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
    parser.add_argument("--records", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="of the records; on a disk with room")
    parser.add_argument("--batches", type=int, default=500)
    parser.add_argument("--start", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--mapped", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.mapped:
        _map(flags.folder, flags.batches)
        return
    if flags.records:
        _generate(flags.folder, flags.records)
        command = [sys.executable, __file__, "--mapped", "--folder", str(flags.folder)]
        subprocess.run([*command, "--batches", str(flags.batches)], check=True)
        return
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
    own = resource.getrusage(resource.RUSAGE_SELF)
    others = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = {
        "cpu_s": round(sum(one.ru_utime + one.ru_stime for one in (own, others)), 1),
        "wall_s": round(time.perf_counter() - start, 1),
        "memory_gb": round(own.ru_maxrss / 1e6, 2),
        "memory_of_a_process_gb": round(others.ru_maxrss / 1e6, 2),
        "records": len(records),
        "batch": sum(int(array.astype("int64").sum()) for array in batch.values()),
    }
    print(json.dumps(result))


def _generate(folder: Path, count: int) -> None:
    """Writes records of random tokens, in pieces."""
    from sbs_jax.data import record_files
    from sbs_jax.data.records import Counts

    if record_files.open_folder(folder) is not None:
        return
    start = time.perf_counter()
    piece = 1 << 20
    sizes = [min(piece, count - first) for first in range(0, count, piece)]

    def lengths(number: int, mean: int) -> np.ndarray:
        rng = np.random.default_rng([mean, number])
        return rng.integers(mean // 2, mean + mean // 2 + 1, sizes[number])

    def offsets(mean: int) -> Iterator[np.ndarray]:
        end = 0
        yield np.zeros(1, np.int64)
        for number in range(len(sizes)):
            ends = end + np.cumsum(lengths(number, mean))
            end = int(ends[-1])
            yield ends

    def tokens(mean: int) -> Iterator[np.ndarray]:
        for number in range(len(sizes)):
            total = int(lengths(number, mean).sum())
            yield np.random.default_rng([number]).integers(2, 32000, total, dtype=np.int32)

    def parts() -> Iterator[np.ndarray]:
        for number in range(len(sizes)):
            own = lengths(number, 6)
            yield np.repeat(np.arange(own.size, dtype=np.int8) % 2 + 1, own)

    firsts = range(0, count, piece)
    record_files.write_folder(
        folder,
        {
            "input_tokens": tokens(12),
            "input_offsets": offsets(12),
            "target_tokens": tokens(6),
            "target_parts": parts(),
            "target_offsets": offsets(6),
            "example": (
                np.arange(first, first + size, dtype=np.int32) // 2
                for first, size in zip(firsts, sizes, strict=True)
            ),
            "starts": (
                np.arange(first, min(first + 2 * piece, count + 2), 2).clip(max=count)
                for first in range(0, count + 2, 2 * piece)
            ),
        },
        counts=Counts(count // 2, count // 2, count // 2),
        draw=False,
    )
    print(f"written in {time.perf_counter() - start:.0f} s", flush=True)


def _map(folder: Path, batches: int) -> None:
    """Maps records, makes batches, and prints what that took."""
    start = time.perf_counter()
    from sbs_jax.data import pipeline, record_files
    from sbs_jax.data.batching import Batching

    for path in folder.iterdir():  # as after a reboot
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    records = record_files.open_folder(folder)
    assert records is not None
    fill = pipeline.measure_fill(records, LENGTHS)
    made = pipeline.TrainBatches(records, Batching(LENGTHS, batch_size=64), seed=0)
    next(made)
    first = time.perf_counter()
    for _ in range(batches):
        next(made)
    own = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    result = {
        "records": len(records),
        "gb_of_files": round(sum(p.stat().st_size for p in folder.iterdir()) / 1e9, 1),
        "start_s": round(first - start, 1),
        "batches_per_s": round(batches / (time.perf_counter() - first), 1),
        "own_memory_gb": round(int(own[1]) / 1e6, 2) if own else None,
        "with_pages_of_files_gb": round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2
        ),
        "fill": str(fill),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
