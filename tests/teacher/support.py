"""A mock server as a process of its own, examples, and a session with quick retries."""

import io
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

from rich.console import Console

from sbs_jax.teacher.backends.openai_compat import OpenAICompatBackend
from sbs_jax.teacher.flow import Flow
from sbs_jax.teacher.session import Session, teach

SERVER = Path(__file__).parents[2] / "benchmarks" / "mock_llm_server.py"


class MockServer:
    def __init__(self, **options):
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER), json.dumps(options)], stdout=subprocess.PIPE, text=True
        )
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def stats(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats") as response:
            return json.load(response)

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def examples(number):
    return [
        {
            "id": f"e{i}",
            "input": f"Ann has {i} apples and gets {i + 7} more.\nHow many has she?",
            "label": f"( {i}.0 + {i + 7}.0 )",
        }
        for i in range(number)
    ]


class Source:
    """A re-iterable source that knows its length."""

    def __init__(self, rows):
        self.rows = rows

    def __call__(self):
        return iter(self.rows)

    def __len__(self):
        return len(self.rows)


def quick(**changes):
    return Flow(**{"concurrency": 16, "backoff": 0.01, "max_backoff": 0.1, **changes})


def ask(folder, rows, *, url=None, backend=None, flow=None, timeout=5.0, **settings):
    """Runs `teach`; returns (run.json, rows of rationales.jsonl, what was printed)."""
    console = Console(file=io.StringIO(), width=200)
    if backend is None:
        backend = OpenAICompatBackend("mock", url, timeout=timeout)
    settings = {"flow": flow or quick(), "prompts": "svamp", **settings}
    run = teach(Session(str(folder), backend, **settings), Source(rows), console)
    return run, read_jsonl(Path(folder) / "rationales.jsonl"), console.file.getvalue()


def read_jsonl(path):
    text = Path(path).read_text(encoding="utf-8") if Path(path).exists() else ""
    return [json.loads(line) for line in text.split("\n") if line]
