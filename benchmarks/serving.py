r"""Load on `python -m sbs_jax.serve` over loopback: batching against one at a time, and overload.

    python benchmarks/serving.py                 # a random T5 v1.1 "tiny", labels of 8 tokens
    python benchmarks/serving.py --checkpoint runs/svamp --seconds 20
    python benchmarks/serving.py --malformed 10000

A random student never ends a label by itself, so that every request takes all of its steps.
Clients are closed loops over kept connections: each sends its next request when it has its answer.
`--malformed N` sends N broken requests (and a fiftieth of N that are not) instead, which
schemathesis makes of the OpenAPI document.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

CANDIDATES = ["entailment", "neutral", "contradiction"]
NAMES = ["Ann", "Ben", "Cleo", "Dan", "Eve"]


def main() -> None:
    """Starts services, loads them, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", help="a student; a random one by default")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--malformed", type=int, help="send so many broken requests")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = flags.checkpoint or random_student(Path(folder) / "student")
        if flags.malformed:
            malformed(checkpoint, flags.malformed)
            return
        print("| service | clients | inputs/s | p50 ms | p99 ms | 200 | 503 | others |")
        print("|---|---|---|---|---|---|---|---|")
        found = {}
        for name, options in {
            "one at a time": {"BATCH_SIZE": 1, "BATCH_SIZES": [1]},
            "batches": {"BATCH_SIZE": flags.batch_size, "BATCH_SIZES": [1, 8]},
        }.items():
            with Service(checkpoint, MAX_WAITING=256, **options) as service:
                for clients in flags.clients:
                    found[name, clients] = service.load(name, clients, flags.seconds)
        with Service(
            checkpoint, BATCH_SIZE=8, BATCH_SIZES=[8], MAX_WAITING=32, MAX_INPUTS=16
        ) as service:
            service.load("limit 32, full", 32, flags.seconds)
            service.load("limit 32, overload", 128, flags.seconds)
    most = max(flags.clients)
    ratio = found["batches", most] / found["one at a time", most]
    print(f"\nWith {most} clients, batches answer {ratio:.1f} times as many inputs.")


def random_student(folder: Path) -> Path:
    """Writes a random T5 v1.1 tiny and a vocabulary into a MODEL_DIR."""
    import jax
    from sentencepiece import SentencePieceTrainer

    from sbs_jax.checkpoints import record
    from sbs_jax.checkpoints.manager import CheckpointManager
    from sbs_jax.models.config import T5Config
    from sbs_jax.partitioning.mesh import make_mesh
    from sbs_jax.student import Student
    from sbs_jax.training import optimizers, placement

    config = T5Config(
        vocab_size=32128,
        emb_dim=128,
        num_heads=4,
        num_encoder_layers=4,
        num_decoder_layers=4,
        head_dim=32,
        mlp_dim=512,
    )
    student = Student(config, make_mesh(devices=jax.devices()[:1]))
    print(f"a random student of {student.num_params:,} parameters", file=sys.stderr)
    optimizer = optimizers.adafactor(1e-3)
    with CheckpointManager(folder) as checkpoints:
        checkpoints.save(
            0, placement.create_state(student, student.init_params(0), optimizer, 0), extra={}
        )
    vocabulary = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([question(n) for n in range(500)] + CANDIDATES * 5),
        model_writer=vocabulary,
        vocab_size=1000,
        hard_vocab_limit=False,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "vocabulary").mkdir()
    (folder / record.VOCABULARY).write_bytes(vocabulary.getvalue())
    record.write(folder, config, {"feature_lengths": {"inputs": 64, "targets": 8}})
    return folder


def question(number: int) -> str:
    """A word problem."""
    rng = random.Random(number)
    name, other = rng.sample(NAMES, 2)
    return (
        f"{name} has {rng.randint(2, 99)} apples and gets {rng.randint(2, 99)} more from {other}. "
        f"How many apples does {name} have now?"
    )


class Service:
    """A process of `sbs_jax.serve` that is ready."""

    def __init__(self, checkpoint: Path | str, **macros: object) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "sbs_jax.serve", "--checkpoint", str(checkpoint), "--port=0",
                *(f"--gin.{name}={value}" for name, value in macros.items()),
            ],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
        )  # fmt: skip
        self.url = ""
        for line in self.process.stderr:
            if found := re.search(r"http://[\d.]+:\d+", line):
                self.url = found[0]
            if line.startswith("All shapes are compiled"):
                return
        raise SystemExit("the service did not start")

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate()
        if self.process.returncode:
            raise SystemExit(f"the service ended with {self.process.returncode}")

    def load(self, name: str, clients: int, seconds: float) -> float:
        """Prints a row of the table; returns inputs/s."""
        statuses, times, elapsed = asyncio.run(closed_loops(self.url, clients, seconds))
        p50, p99 = np.percentile(times, [50, 99]) * 1000
        rate = statuses[200] / elapsed
        others = sum(statuses.values()) - statuses[200] - statuses[503]
        print(
            f"| {name} | {clients} | {rate:.0f} | {p50:.1f} | {p99:.1f} | {statuses[200]} | "
            f"{statuses[503]} | {others} |",
            flush=True,
        )
        return rate


async def closed_loops(
    url: str, clients: int, seconds: float
) -> tuple[collections.Counter[int], list[float], float]:
    """Statuses (0: no answer at all), seconds of each 200, and how long it took."""
    statuses: collections.Counter[int] = collections.Counter()
    times: list[float] = []
    begin = time.monotonic()

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        count = 0
        while time.monotonic() < begin + seconds:
            count += 1
            body = {"inputs": question(number * 1000 + count)}
            sent = time.monotonic()
            try:
                async with session.post(f"{url}/predict", json=body) as response:
                    await response.read()
                    statuses[response.status] += 1
                    if response.status == 200:
                        times.append(time.monotonic() - sent)
                    if response.status == 503:
                        # A real client waits for Retry-After; a tenth keeps the pressure up.
                        await asyncio.sleep(0.1 * float(response.headers["Retry-After"]))
            except aiohttp.ClientError:
                statuses[0] += 1

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(client(session, number) for number in range(clients)))
    return statuses, times, time.monotonic() - begin


def malformed(checkpoint: Path | str, count: int) -> None:
    """Sends what schemathesis makes of the OpenAPI document; prints the statuses."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings

    statuses: collections.Counter[tuple[str, int]] = collections.Counter()
    macros = {"BATCH_SIZE": 8, "BATCH_SIZES": [8], "MAX_CANDIDATES": 3}
    with Service(checkpoint, **macros) as service:
        schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
        for mode, share in (("positive", 0.02), ("negative", 1)):
            strategy = schema["/predict"]["POST"].as_strategy(
                generation_mode=schemathesis.GenerationMode(mode)
            )
            options = settings(
                max_examples=round(count * share),
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            options(given(case=strategy)(check(service.url, mode, statuses)))()
    print(json.dumps({f"{mode} {status}": n for (mode, status), n in sorted(statuses.items())}))
    worst = max(status for _, status in statuses)
    print(f"{sum(statuses.values())} requests; the largest status is {worst}.")
    if worst >= 500:
        raise SystemExit(1)


def check(url: str, mode: str, statuses: collections.Counter[tuple[str, int]]) -> Callable:
    """A function that sends a case and counts the status."""

    def send(case: Any) -> None:
        statuses[mode, case.call(base_url=url).status_code] += 1

    return send


if __name__ == "__main__":
    main()
