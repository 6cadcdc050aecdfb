"""How fast the teacher's client is, how flat its memory, and how the local backend compares.

    python benchmarks/teacher.py client       # needs nothing; `pip install openai` for the peer
    python benchmarks/teacher.py memory
    python benchmarks/teacher.py local        # needs the extras smollm2 and test
    python benchmarks/teacher.py single       # needs the extras smollm2 and parity

`client`: a mock server of its own process with 50 ms latency and 256 slots: its ceiling is 5,120
answers a second. Measured is a whole session (prompts rendered, hashed, sent, parsed, journaled),
and beside it the `openai` package's async client under a semaphore, which only sends and receives.

`memory`: resident memory of sessions over 10,000 and 100,000 examples from a JSONL file.

`local`: SmolLM2-135M-Instruct on few-shot SVAMP-like prompts: tokens a second with and without the
shared prefix, at 1, 8 and 32 sequences; beside it llama.cpp (xllamacpp's server) and transformers.
Every way gets the same prompts and generates the same number of tokens (no stop strings).

`single`: the same prompts one after the other, each by itself, and transformers by turns: CPU
seconds of a prompt, one thread each. The first has nothing to share; the others share with it.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

PROBLEM = "Ann has {} apples and buys {} more at the market.\nHow many apples does she have?"


def examples(number: int):
    """Yields examples with different numbers."""
    for i in range(number):
        text = PROBLEM.format(i, i % 89 + 3)
        yield {"id": str(i), "input": text, "label": f"( {i}.0 + {i % 89 + 3}.0 )"}


def start_mock(**options) -> tuple[subprocess.Popen, str]:
    """Starts the mock server; returns it and its address."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "mock_llm_server.py"), json.dumps(options)],
        stdout=subprocess.PIPE,
        text=True,
    )
    return process, f"http://127.0.0.1:{int(process.stdout.readline())}/v1"


def quiet() -> Console:
    """A console that shows nothing."""
    return Console(file=io.StringIO())


# --- the client ---------------------------------------------------------------------------------


def ours(url: str, number: int, concurrency: int) -> dict:
    """Runs a session; returns its rate and CPU time."""
    from sbs_jax.teacher.backends.openai_compat import OpenAICompatBackend
    from sbs_jax.teacher.derive import stream_examples
    from sbs_jax.teacher.flow import Flow
    from sbs_jax.teacher.journal import Journal
    from sbs_jax.teacher.plan import Asking, RequestPlan
    from sbs_jax.teacher.progress import Watch
    from sbs_jax.teacher.prompts import load_prompts
    from sbs_jax.teacher.runner import Runner
    from sbs_jax.teacher.sampling import Sampling
    from sbs_jax.teacher.session import run_async

    backend = OpenAICompatBackend("mock", url)
    plan = RequestPlan(load_prompts("svamp"), Sampling(), Asking(), model="mock")
    flow = Flow(concurrency=concurrency)
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder)) as journal:
        watch = Watch(number, flow, by_value=True, console=quiet())
        source = stream_examples(lambda: examples(number))
        wall, cpu = time.perf_counter(), time.process_time()
        with watch:
            report = run_async(Runner(plan, backend, journal, flow, watch).run(source))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert report.asked == number and watch.right == 0
    return {"rate": number / wall, "cpu_ms": cpu / number * 1e3}


def openai_package(url: str, number: int, concurrency: int) -> dict:
    """The same requests through `openai.AsyncOpenAI` under a semaphore."""
    import openai

    from sbs_jax.teacher.prompts import load_prompts
    from sbs_jax.teacher.types import AskedExample

    style = load_prompts("svamp").style("few_shot")
    prompts = [
        style.prompt(AskedExample(e["id"], e["input"]), chat=False) for e in examples(number)
    ]

    async def run() -> None:
        client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
        gate = asyncio.Semaphore(concurrency)

        async def one(prompt: str) -> None:
            async with gate:
                answer = await client.completions.create(
                    model="mock", prompt=prompt, max_tokens=256, temperature=0.0
                )
                assert answer.choices[0].text

        await asyncio.gather(*map(one, prompts))

    wall, cpu = time.perf_counter(), time.process_time()
    asyncio.run(run())
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"rate": number / wall, "cpu_ms": cpu / number * 1e3}


def client(number: int) -> None:
    """Compares the clients."""
    latency, slots = 0.05, 256
    ceiling = slots / latency
    text = " So 3 + 4 = 7 apples. The answer is (3 + 4 + 0.5)."
    process, url = start_mock(latency=latency, slots=slots, text=text)
    table = Table(title=f"{slots} slots, {latency * 1e3:.0f} ms: ceiling {ceiling:,.0f}/s")
    for column in ("client", "requests/s", "of the ceiling", "CPU ms/request", "ratio"):
        table.add_column(column, justify="left" if column == "client" else "right")
    try:
        mine = max((ours(url, number, slots + 64) for _ in range(3)), key=lambda r: r["rate"])
        peers = {"sbs_jax.teach (whole session)": mine}
        if importlib.util.find_spec("openai"):
            peers["openai package (send only)"] = openai_package(url, number // 10, slots)
        else:
            print("openai is not installed: pip install openai shows the peer")
    finally:
        process.kill()
    for name, result in peers.items():
        ratio = result["cpu_ms"] / mine["cpu_ms"]
        table.add_row(
            name,
            f"{result['rate']:,.0f}",
            f"{result['rate'] / ceiling:.1%}",
            f"{result['cpu_ms']:.3f}",
            f"{ratio:.1f}×",
        )
    Console().print(table)


# --- memory -------------------------------------------------------------------------------------


def session_memory(number: int) -> tuple[float, float, float]:
    """Runs a session in this process; returns MiB before and at the peak, and its seconds."""
    import psutil

    from sbs_jax.programs.teach import JsonlSource
    from sbs_jax.teacher.backends.scripted import ScriptedBackend
    from sbs_jax.teacher.session import Session, teach

    backend = ScriptedBackend(lambda example, sample: "7. The answer is (3 + 4).")
    process = psutil.Process()
    peak = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "examples.jsonl")
        with open(path, "w") as file:
            for row in examples(number):
                file.write(json.dumps(row) + "\n")
        source = JsonlSource(str(path))

        def watched():
            nonlocal peak
            for place, row in enumerate(source()):
                if place % 500 == 0:
                    peak = max(peak, process.memory_info().rss)
                yield row

        before = process.memory_info().rss
        started = time.perf_counter()
        run = teach(Session(f"{folder}/out", backend, prompts="svamp"), watched, quiet())
        seconds = time.perf_counter() - started
        assert run["result"]["counts"]["examples"] == number
        assert run["status"] == "complete"
    return before / 2**20, max(peak, process.memory_info().rss) / 2**20, seconds


def memory(sizes: list[int]) -> None:
    """Measures each size in a process of its own."""
    table = Table(title="resident memory of a session")
    for column in ("examples", "MiB before", "MiB at the peak", "examples/s"):
        table.add_column(column, justify="right")
    for size in sizes:
        command = [sys.executable, __file__, "memory", "--alone", "--number", str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        before, peak, seconds = json.loads(done.stdout)
        table.add_row(f"{size:,}", f"{before:.1f}", f"{peak:.1f}", f"{size / seconds:,.0f}")
    Console().print(table)


# --- the local backend --------------------------------------------------------------------------


def local_prompts(number: int) -> list[str]:
    """Few-shot prompts that differ in their last problem."""
    from sbs_jax.teacher.prompts import load_prompts
    from sbs_jax.teacher.types import AskedExample

    style = load_prompts("svamp").style("few_shot")
    return [style.prompt(AskedExample(e["id"], e["input"]), chat=False) for e in examples(number)]


def ours_local(path: str, prompts: list[str], new: int, share: bool, engines: dict) -> float:
    """Returns seconds for all prompts, once compiled."""
    import jax

    from sbs_jax.checkpoints.decoder_tokenizer import CompletionTokenizer
    from sbs_jax.checkpoints.decoder_weights import load_params, open_checkpoint
    from sbs_jax.decoding.completions import CompletionEngine, Job
    from sbs_jax.partitioning.mesh import make_mesh

    if share not in engines:
        checkpoint = open_checkpoint(path)
        mesh = make_mesh(devices=jax.devices()[:1])
        tokenizer = CompletionTokenizer(checkpoint)
        engines[share] = CompletionEngine(
            checkpoint.config,
            load_params(checkpoint, mesh),
            tokenizer,
            mesh,
            share_prefix=share,
        )
    engine = engines[share]
    jobs = [Job(tuple(engine.tokenizer.encode(p)), new) for p in prompts]
    engine.generate(jobs)  # compiles
    engine._prefix_tokens = ()  # the prefix counts too
    started = time.perf_counter()
    said = engine.generate(jobs)
    seconds = time.perf_counter() - started
    assert sum(len(s.tokens) for s in said) > 0
    return seconds * len(jobs) * new / sum(len(s.tokens) for s in said)


def llama_cpp(path: str, prompts: list[str], new: int, threads: int) -> float:
    """Returns seconds of xllamacpp's server for all prompts at once (prefix cached by it)."""
    import aiohttp
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.n_parallel = len(prompts)
    parameters.n_ctx = 1280 * len(prompts)
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    parameters.warmup = True
    server = xllamacpp.Server(parameters)
    url = server.listening_address + "/v1/completions"

    async def one(session: aiohttp.ClientSession, prompt: str) -> int:
        body = {"prompt": prompt, "max_tokens": new, "temperature": 0, "ignore_eos": True}
        async with session.post(url, json=body) as answer:
            return (await answer.json())["usage"]["completion_tokens"]

    async def run(chosen: list[str]) -> int:
        timeout = aiohttp.ClientTimeout(total=3600)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            return sum(await asyncio.gather(*(one(session, p) for p in chosen)))

    asyncio.run(run(["Hello there, "]))
    started = time.perf_counter()
    tokens = asyncio.run(run(prompts))
    seconds = time.perf_counter() - started
    return seconds * len(prompts) * new / tokens


def hugging_face(prompts: list[str], new: int, model: dict, path: str) -> float:
    """Returns seconds of transformers' `generate` for all prompts as one padded batch."""
    import torch
    import transformers

    if not model:
        file = Path(path)
        model["network"] = transformers.AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=torch.float32
        ).eval()
        model["tokenizer"] = transformers.AutoTokenizer.from_pretrained(
            str(file.parent), gguf_file=file.name, padding_side="left"
        )
        model["tokenizer"].pad_token = model["tokenizer"].eos_token
    batch = model["tokenizer"](prompts, return_tensors="pt", padding=True)
    started = time.perf_counter()
    with torch.no_grad():
        model["network"].generate(
            **batch, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
        )
    return time.perf_counter() - started


def local(new: int, sizes: list[int], peers: list[str]) -> None:
    """Compares the ways to run one model here."""
    from sbs_jax.programs.teach import smollm2_path

    path = smollm2_path()
    threads = len(os.sched_getaffinity(0))
    table = Table(
        title=f"SmolLM2-135M-Instruct, {threads} cores, {new} new tokens: tokens/s (ratio to ours)"
    )
    table.add_column("way")
    for size in sizes:
        table.add_column(f"{size} at once", justify="right")
    engines: dict = {}
    model: dict = {}
    ways = {
        "sbs_jax, shared prefix": lambda p: ours_local(path, p, new, True, engines),
        "sbs_jax, no sharing": lambda p: ours_local(path, p, new, False, engines),
        "llama.cpp (xllamacpp, Q4_1)": lambda p: llama_cpp(path, p, new, threads),
        "transformers (float32)": lambda p: hugging_face(p, new, model, path),
    }
    results: dict[str, list[float]] = {name: [] for name in ways}
    for size in sizes:
        prompts = local_prompts(size)
        for name, way in ways.items():
            if not any(peer in name for peer in peers):
                continue
            rate = size * new / way(prompts)
            results[name].append(rate)
            print(f"{name}, {size} at once: {rate:.1f} tokens/s", flush=True)
    base = results["sbs_jax, shared prefix"]
    for name, rates in results.items():
        shown = (f"{r:.1f} ({r / b:.2f}×)" for r, b in zip(rates, base, strict=False))
        table.add_row(name, *shown)
    Console().print(table)


def single(new: int, number: int = 4) -> None:
    """Compares prompts that come one at a time; both sides have been warmed up."""
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    import torch

    from sbs_jax.decoding.completions import Job
    from sbs_jax.programs.teach import smollm2_path

    torch.set_num_threads(1)
    path, prompts = smollm2_path(), local_prompts(number)
    engines: dict = {}
    model: dict = {}
    ours_local(path, prompts[:1], new, True, engines)
    ours_local(path, prompts[:1], new, False, engines)
    hugging_face(prompts[:1], 2, model, path)
    engine, plain = engines[True], engines[False]

    def ours(prompt: str) -> list[int]:
        return engine.generate([Job(tuple(engine.tokenizer.encode(prompt)), new)])[0].tokens

    for prompt in prompts[:2]:  # compiles what the second prompt needs besides
        ours(prompt)
    engine._prefix_tokens = ()
    for place, prompt in enumerate(prompts):
        started = time.process_time()
        tokens = ours(prompt)
        middle = time.process_time()
        hugging_face([prompt], new, model, path)
        seconds = (middle - started, time.process_time() - middle)
        print(
            f"prompt {place + 1}: ours {seconds[0]:.2f} CPU s, transformers {seconds[1]:.2f} "
            f"({seconds[1] / seconds[0]:.2f} times ours), {len(tokens)} tokens",
            flush=True,
        )
        assert tokens == plain.generate([Job(tuple(plain.tokenizer.encode(prompt)), new)])[0].tokens


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("client", "memory", "local", "single"))
    parser.add_argument("--number", type=int, default=30_000, help="requests, or examples")
    parser.add_argument("--new", type=int, default=40, help="tokens generated for a prompt")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--peers", nargs="+", default=["sbs_jax", "llama.cpp", "transformers"])
    parser.add_argument("--alone", action="store_true", help="memory: one size, in this process")
    given = parser.parse_args()
    if given.what == "client":
        client(given.number)
    elif given.what == "local":
        local(given.new, given.sizes, given.peers)
    elif given.what == "single":
        single(given.new)
    elif given.alone:
        print(json.dumps(session_memory(given.number)))
    else:
        memory([10_000, 100_000])


if __name__ == "__main__":
    main()
