"""Everything that is to be measured on an accelerator, in one call that may be repeated.

    python benchmarks/accelerator.py --prepare --release_dir=PATH [--dataset=esnli]   # anywhere
    python benchmarks/accelerator.py [--minutes=9] [--only=REGEX]                      # there

`--prepare` writes token batches to accelerator_batches.npz, which is all that a machine without a
network and without TensorFlow needs besides JAX (and PyTorch and transformers for the peer). Every
case is a process of its own, so that its peak memory is its own and nothing that fails takes others
along. Cases compile side by side, `--side_by_side` at a time, and are then measured one by one,
with nothing else on the device. What is done is kept in accelerator.json and not measured again by
the next call; what cases print lies in accelerator_logs. `--tiny` takes networks that a CPU trains
in seconds, to try all of this out.

Cases: the rate of a large bfloat16 product of matrices, which MFU refers to; the training step of
T5 v1.1 small, base and large (bfloat16, AdamW, packed rows, the prefix on either side, XLA's and
cuDNN's attention, what is kept for the gradient); the published method in PyTorch (two padded
passes, bfloat16 autocast, fused AdamW, torch.compile, `sdpa`); a decoder student of SmolLM2-135M's
dimensions, and the same in PyTorch (each target a text of its own, padded); greedy decoding of
both, and by CTranslate2; the local teacher, with and without the shared prefix; 1 to 16 runs
trained as one program.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import functools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

BATCHES = 8  # of each kind, taken in turn
LEARNING_RATE = 5e-5
RESULT = "result: "
SIZES = {
    "small": {"emb_dim": 512, "num_heads": 6, "layers": 8, "mlp_dim": 1024, "rows": 64},
    "base": {"emb_dim": 768, "num_heads": 12, "layers": 12, "mlp_dim": 2048, "rows": 64},
    "large": {"emb_dim": 1024, "num_heads": 16, "layers": 24, "mlp_dim": 2816, "rows": 32},
}
DECODERS = {
    "smollm2-135m": {
        "vocab_size": 49152,
        "emb_dim": 576,
        "num_layers": 30,
        "num_heads": 9,
        "num_kv_heads": 3,
        "mlp_dim": 1536,
        "rope_theta": 1e5,
        "rows": 32,
    },
}
TINY_DECODER = {
    "vocab_size": 8192,
    "emb_dim": 32,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "mlp_dim": 64,
    "rows": 8,
}
TEACHER_PROMPT = 640, 64  # tokens that all prompts share, and each one's own
TEACHER_ROWS = 32
TINY = {"emb_dim": 32, "num_heads": 2, "layers": 1, "mlp_dim": 64, "rows": 8}
VOCABULARY, TINY_VOCABULARY = 32128, 8192

Numbers = dict[str, float | str | None]


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
      name: by which it is kept and chosen.
      run: measures it, given the command line.
    """

    name: str
    run: Callable[[argparse.Namespace], Numbers]


def cases() -> dict[str, Case]:
    """All cases by name, the most wanted first: time may not suffice for all."""
    found = [Case("matrix rate", matrix_rate)]

    def train(size: str, **options: Any) -> Case:
        words = [f"{name}={value}" for name, value in options.items()]
        name = " ".join(["train", size, *words])
        return Case(name, functools.partial(train_step, size=size, **options))

    def peer(size: str) -> Case:
        return Case(f"peer {size}", functools.partial(peer_step, size=size))

    found += [
        train("base"),
        train("base", attention="cudnn", attention_dropout=False),
        peer("base"),
        train("smollm2-135m", side="decoder"),
        Case("peer smollm2-135m", functools.partial(peer_decoder_step, size="smollm2-135m")),
        train("base", side="decoder"),
        train("large"),
        train("large", attention="cudnn", attention_dropout=False),
        peer("large"),
        train("small"),
        peer("small"),
        train("base", attention="xla", attention_dropout=False),
        train("base", remat="minimal"),
        train("base", remat="full"),
        train("base", scan_layers=True),
        train("smollm2-135m", side="decoder", remat="minimal"),
        train("large", remat="minimal"),
    ]
    for size in ("base", "small"):
        found += [
            Case(f"decode {size}", functools.partial(decode, size=size)),
            Case(f"peer decode {size}", functools.partial(peer_decode, size=size)),
            Case(f"ctranslate2 decode {size}", functools.partial(ctranslate2_decode, size=size)),
        ]
    found += [
        Case("local teacher", functools.partial(local_teacher, share=True)),
        Case("local teacher unshared", functools.partial(local_teacher, share=False)),
    ]
    found += [
        Case(f"lanes {count}", functools.partial(lanes, count=count)) for count in (1, 2, 4, 8, 16)
    ]
    return {case.name: case for case in found}


def network(size: str, tiny: bool, **options: Any) -> Any:
    """The T5 v1.1 of a size, and how many rows a batch of it has."""
    from sbs_jax.models.config import T5Config

    chosen = dict(TINY if tiny else SIZES[size])
    rows, layers = chosen.pop("rows"), chosen.pop("layers")
    options = {"dtype": "bfloat16", **options}
    config = T5Config(
        vocab_size=TINY_VOCABULARY if tiny else VOCABULARY,
        num_encoder_layers=layers,
        num_decoder_layers=layers,
        head_dim=16 if tiny else 64,
        **chosen,
        **options,
    )
    return config, rows


def decoder_network(size: str, tiny: bool, **options: Any) -> Any:
    """The decoder of a size, and how many rows a batch of it has."""
    from sbs_jax.models.decoder.config import DecoderConfig

    chosen = dict(TINY_DECODER if tiny else DECODERS[size])
    rows = chosen.pop("rows")
    options = {"dtype": "bfloat16", "head_dim": 16 if tiny else 64, **options}
    return DecoderConfig(**chosen, **options), rows


def load_batches(arguments: argparse.Namespace, side: str, rows: int) -> list[dict[str, Any]]:
    """The prepared batches, of so many rows."""
    with np.load(arguments.data) as file:
        found: list[dict[str, Any]] = [{} for _ in range(BATCHES)]
        for key in file.files:
            kind, number, name = key.split("/")
            if kind == side:
                found[int(number)][name] = file[key][:rows]
    return found


def matrix_rate(arguments: argparse.Namespace) -> Numbers:
    """Operations a second of a product of two square matrices in bfloat16."""
    import jax
    import jax.numpy as jnp

    size = 256 if arguments.tiny else 8192
    # Not of ones: on equal numbers a device draws less power, and is faster than on any real data.
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    multiply = jax.jit(lambda x, y: (x @ y) * jnp.bfloat16(1 / size))
    multiply(x, x).block_until_ready()
    alone(arguments)
    seconds = timed(lambda: multiply(x, x).block_until_ready(), 10)
    return {"tflops_per_second": 2 * size**3 / seconds / 1e12, "device": device_name()}


def train_step(
    arguments: argparse.Namespace,
    *,
    size: str,
    side: str = "encoder",
    attention: str = "auto",
    attention_dropout: bool = True,
    remat: str = "none",
    scan_layers: bool = False,
) -> Numbers:
    """The step of `python -m sbs_jax.train` on one device."""
    import jax

    from sbs_jax.partitioning.mesh import make_mesh
    from sbs_jax.planning import compiling, flops
    from sbs_jax.student import Student
    from sbs_jax.training import optimizers, placement
    from sbs_jax.training.step import Loss, make_train_step

    if size in DECODERS:
        config, rows = decoder_network(size, arguments.tiny, remat=remat)
    else:
        config, rows = network(
            size,
            arguments.tiny,
            attention=attention,
            dropout_attention_weights=attention_dropout,
            remat=remat,
            scan_layers=scan_layers,
        )
    batches = load_batches(arguments, side, rows)
    student = Student(config, make_mesh(devices=jax.devices()[:1]))
    optimizer = optimizers.adamw(LEARNING_RATE)
    abstract = placement.abstract_state(student, optimizer, seed=0)
    step = placement.jit_train_step(
        student,
        make_train_step(student.hidden, optimizer, Loss(), head=student.head),
        abstract,
    )
    forward = flops.count_flops(
        lambda params, batch: student.apply(params, batch, None), abstract.params, batches[0]
    )
    begun = time.perf_counter()
    compiled = step.lower(abstract, batches[0]).compile()
    compile_seconds = time.perf_counter() - begun
    memory = compiling.memory_of(compiled.memory_analysis())
    alone(arguments)
    state = placement.create_state(student, random_params(student), optimizer, 0)
    placed = [jax.device_put(batch) for batch in batches]
    loss = None
    number = 0

    def once() -> None:
        nonlocal state, loss, number
        state, metrics = compiled(state, placed[number % BATCHES])
        loss, number = metrics["loss"], number + 1
        loss.block_until_ready()

    seconds = timed(once, 5 if arguments.tiny else 20)
    tokens, examples = count(batches)
    return {
        "seconds_per_step": seconds,
        "tokens_per_second": tokens / seconds,
        "examples_per_second": examples / seconds,
        "model_tflops_per_second": 3 * forward / seconds / 1e12,
        "peak_bytes": peak_bytes(),
        "planned_peak_bytes": None if memory is None else memory.peak,
        "compile_seconds": compile_seconds,
        # Where weights are dropped, training attends by XLA whatever is chosen.
        "attention": "xla" if attention_dropout else student.model.config.attention,
        "last_loss": float(loss),
    }


def peer_step(arguments: argparse.Namespace, *, size: str) -> Numbers:
    """The published method in PyTorch on the same examples: label pass, rationale pass, update."""
    from published_peer import pad_part, peer_model

    from sbs_jax.parts import LABEL, RATIONALE

    config, rows = network(size, arguments.tiny)
    batches = load_batches(arguments, "encoder", rows)
    passes = [[pad_part(batch, part) for part in (LABEL, RATIONALE)] for batch in batches]
    # The published loss with α = 0.5 is half of ours with λ = 1.
    return train_peer(arguments, peer_model(config, "sdpa"), batches, passes)


def peer_decoder_step(arguments: argparse.Namespace, *, size: str) -> Numbers:
    """The decoder in PyTorch on the same examples: one pass of all texts, then the update."""
    from published_peer import pad_texts, peer_decoder

    config, rows = decoder_network(size, arguments.tiny)
    batches = load_batches(arguments, "decoder", rows)
    passes = [[pad_texts(batch)] for batch in batches]
    return train_peer(arguments, peer_decoder(config, "sdpa"), batches, passes)


def train_peer(
    arguments: argparse.Namespace,
    model: Any,
    batches: list[dict[str, Any]],
    passes: list[list[dict[str, Any]]],
) -> Numbers:
    """The step of a network in PyTorch, whose loss is the mean over the passes of a batch."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.train().to(device)
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=on_gpu
    )
    padded = [
        [{name: tensor.to(device) for name, tensor in one.items()} for one in found]
        for found in passes
    ]
    forward = torch.compile(model, dynamic=True) if on_gpu else model
    number = 0
    loss = None

    def once() -> None:
        nonlocal number, loss
        batch = padded[number % BATCHES]
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = sum(forward(**one).loss for one in batch) / len(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if on_gpu:
            torch.cuda.synchronize()
        number += 1

    for _ in range(BATCHES):  # Every shape once: torch.compile makes programs of them.
        once()
    if on_gpu:
        torch.cuda.empty_cache()
    alone(arguments)
    seconds = timed(once, 5 if arguments.tiny else 20)
    tokens, examples = count(batches)
    return {
        "seconds_per_step": seconds,
        "tokens_per_second": tokens / seconds,
        "examples_per_second": examples / seconds,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "attention": "sdpa",
        "last_loss": len(passes[0]) * float(loss.detach()),
    }


def decode(arguments: argparse.Namespace, *, size: str) -> Numbers:
    """Greedy decoding of one batch of inputs to a fixed length."""
    import jax

    from sbs_jax.decoding.greedy import greedy_decode
    from sbs_jax.partitioning.mesh import make_mesh
    from sbs_jax.student import Student

    config, rows = network(size, arguments.tiny, dropout_rate=0.0)
    student = Student(config, make_mesh(devices=jax.devices()[:1]))
    params = random_params(student)
    inputs = jax.device_put(load_batches(arguments, "encoder", rows)[0]["encoder_input_tokens"])
    length = 8 if arguments.tiny else 64
    # No token ends an output, so that both sides write as many.
    run = student.jit(
        lambda params, inputs: greedy_decode(
            student.model, params, inputs, max_decode_len=length, eos_id=-1
        )
    )
    run(params, inputs).block_until_ready()
    alone(arguments)
    seconds = timed(lambda: run(params, inputs).block_until_ready(), 3)
    return {"tokens_per_second": rows * length / seconds, "peak_bytes": peak_bytes()}


def peer_decode(arguments: argparse.Namespace, *, size: str) -> Numbers:
    """The `generate` of transformers on the same inputs, bfloat16, as many tokens."""
    import torch
    from published_peer import peer_model

    config, rows = network(size, arguments.tiny, dropout_rate=0.0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = peer_model(config, "sdpa").eval().to(device, torch.bfloat16)
    tokens = load_batches(arguments, "encoder", rows)[0]["encoder_input_tokens"]
    inputs = torch.from_numpy(tokens.astype(np.int64)).to(device)
    length = 8 if arguments.tiny else 64

    def once() -> None:
        model.generate(
            input_ids=inputs,
            attention_mask=(inputs != 0).long(),
            max_new_tokens=length,
            min_new_tokens=length,
            do_sample=False,
            use_cache=True,
        )
        if device.type == "cuda":
            torch.cuda.synchronize()

    once()
    alone(arguments)
    return {"tokens_per_second": rows * length / timed(once, 3)}


def ctranslate2_decode(arguments: argparse.Namespace, *, size: str) -> Numbers:
    """CTranslate2 on the same inputs, as many tokens; bfloat16 on a GPU, float32 on a CPU."""
    import tempfile

    import ctranslate2
    import jax

    from sbs_jax.checkpoints import ctranslate2_weights
    from sbs_jax.partitioning.mesh import make_mesh
    from sbs_jax.student import Student

    config, rows = network(size, arguments.tiny, dropout_rate=0.0)
    params = Student(config, make_mesh(devices=jax.devices()[:1])).init_params(0)
    tokens = load_batches(arguments, "encoder", rows)[0]["encoder_input_tokens"]
    texts = [[str(token) for token in row[row != 0]] or ["1"] for row in tokens]
    length = 8 if arguments.tiny else 64
    on_gpu = ctranslate2.get_cuda_device_count() > 0
    with tempfile.TemporaryDirectory() as folder:
        ctranslate2_weights.save(folder, jax.device_get(params), config, "float32")
        translator = ctranslate2.Translator(
            folder,
            device="cuda" if on_gpu else "cpu",
            compute_type="bfloat16" if on_gpu else "float32",
        )

    def once() -> None:
        translator.translate_batch(
            texts,
            beam_size=1,
            max_batch_size=rows,
            max_decoding_length=length,
            min_decoding_length=length,
        )

    once()
    alone(arguments)
    return {
        "tokens_per_second": rows * length / timed(once, 3),
        "device": "cuda" if on_gpu else "cpu",
    }


def local_teacher(arguments: argparse.Namespace, *, share: bool) -> Numbers:
    """Completions of prompts with the same exemplars, by a decoder of SmolLM2-135M's dimensions."""
    import types

    import jax

    from sbs_jax.decoding.completions import CompletionEngine, Job
    from sbs_jax.partitioning.mesh import make_mesh
    from sbs_jax.student import Student

    config, _ = decoder_network("smollm2-135m", arguments.tiny)
    mesh = make_mesh(devices=jax.devices()[:1])
    student = Student(config, mesh)
    params = jax.tree.map(lambda leaf: leaf.astype(config.dtype), random_params(student))
    rows = 4 if arguments.tiny else TEACHER_ROWS
    common, own = (32, 8) if arguments.tiny else TEACHER_PROMPT
    length = 8 if arguments.tiny else 64
    rng = np.random.default_rng(0)
    beginning = rng.integers(2, config.vocab_size, common).tolist()
    prompts = [(*beginning, *rng.integers(2, config.vocab_size, own).tolist()) for _ in range(rows)]
    # No token ends a completion, and no text is made of it.
    tokenizer = types.SimpleNamespace(end_ids=(), decode=lambda tokens: "")
    engine = CompletionEngine(
        config, params, tokenizer, mesh, dtype=config.dtype, batch_size=rows, share_prefix=share
    )
    jobs = [Job(prompt, length) for prompt in prompts]
    said = engine.generate(jobs)
    alone(arguments)
    seconds = timed(lambda: engine.generate(jobs), 3)
    written = sum(len(one.tokens) for one in said)
    return {
        "tokens_per_second": written / seconds,
        "examples_per_second": rows / seconds,
        "written_tokens": written,
        "peak_bytes": peak_bytes(),
    }


def lanes(arguments: argparse.Namespace, *, count: int) -> Numbers:
    """So many students of size small, trained as one program, each on batches of its own."""
    import jax

    from sbs_jax.experiments.lanes import Lanes, make_lane_step
    from sbs_jax.partitioning.mesh import make_mesh
    from sbs_jax.student import Student
    from sbs_jax.training import optimizers, placement

    config, rows = network("small", arguments.tiny)
    rows = max(rows // 8, 1)
    batches = load_batches(arguments, "encoder", rows)
    student = Student(config, make_mesh(devices=jax.devices()[:1]))
    optimizer = optimizers.adamw(LEARNING_RATE)
    abstract = placement.abstract_state(student, optimizer, seed=0)
    meeting = Lanes(student, make_lane_step(student, optimizer), abstract, [1.0] * count)
    states: list[Any] = [
        placement.create_state(student, student.init_params(seed), optimizer, seed)
        for seed in range(count)
    ]

    def once() -> None:
        import threading

        def advance(lane: int) -> None:
            states[lane] = meeting.step(lane, states[lane], batches[lane % BATCHES])[0]

        threads = [threading.Thread(target=advance, args=(lane,)) for lane in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        meeting.wait()

    alone(arguments)
    seconds = timed(once, 5)
    _, examples = count_of(batches[0])
    return {
        "seconds_per_step": seconds,
        "examples_per_second": count * examples / seconds,
        "peak_bytes": peak_bytes(),
    }


def alone(arguments: argparse.Namespace) -> None:
    """Waits until no other case compiles or is measured; from here on, none of them runs.

    A case holds the lock together with others while it compiles, and alone while it is measured.
    """
    if arguments.lock is not None:
        fcntl.flock(arguments.lock, fcntl.LOCK_UN)
        fcntl.flock(arguments.lock, fcntl.LOCK_EX)


def random_params(student: Any) -> Any:
    """Parameters that cost no compilation: normal numbers of a pretrained network's size."""
    import jax
    import jax.numpy as jnp

    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(student.abstract_params))))
    return jax.tree.map(
        lambda leaf, place: jax.device_put(
            jnp.float32(leaf.ndim == 1) + 0.02 * jax.random.normal(next(keys), leaf.shape), place
        ),
        student.abstract_params,
        student.param_shardings,
    )


def timed(once: Callable[[], None], times: int) -> float:
    """The median of seconds, after two calls that do not count (the first may compile)."""
    once()
    once()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        once()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def count(batches: list[dict[str, Any]]) -> tuple[float, float]:
    """Mean number of tokens that are no padding, and of targets, in a batch."""
    pairs = [count_of(batch) for batch in batches]
    return tuple(sum(column) / len(pairs) for column in zip(*pairs, strict=True))


def count_of(batch: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens that are no padding, and targets, in a batch."""
    segments = batch["decoder_segment_ids"]
    real = np.count_nonzero(batch["encoder_segment_ids"]) + np.count_nonzero(segments)
    return int(real), int(segments.max(axis=1).sum())


def peak_bytes() -> int | None:
    """The most memory in use on the device so far; None where it does not tell."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use")


def device_name() -> str:
    """The kind of the first device."""
    import jax

    return jax.devices()[0].device_kind


def prepare(arguments: argparse.Namespace) -> None:
    """Packs batches of a data set; needs TensorFlow and the authors' released data."""
    import tempfile

    import sbs_jax.tasks  # noqa: F401 (registers the data sets)
    from sbs_jax.data import pipeline, settings
    from sbs_jax.data.resolving import resolve_task

    lengths = {"inputs": arguments.inputs, "targets": arguments.targets}
    rows = TINY["rows"] if arguments.tiny else max(size["rows"] for size in SIZES.values())
    arrays = {}
    for side in ("encoder", "decoder"):
        with tempfile.TemporaryDirectory() as folder:
            chosen = settings.DataSettings(
                data_dir=arguments.release_dir,
                model_dir=folder,
                vocabulary_size=TINY_VOCABULARY,
                prefix_side=side,
            )
            with settings.override(chosen):
                task = resolve_task(f"{arguments.dataset}_sbs")
                records = pipeline.load_records(task, "train", lengths)
        batches = pipeline.TrainBatches(
            records, pipeline.Batching(lengths, batch_size=rows), seed=0
        )
        for number in range(BATCHES):
            for name, array in next(batches).items():
                arrays[f"{side}/{number}/{name}"] = array
    np.savez_compressed(arguments.data, **arrays)
    print(f"{arguments.data}: {BATCHES} batches of {rows} rows for either side")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the cases that are still to be done, as long as there is time; returns all results."""
    results: dict[str, Any] = {}
    if arguments.json.exists():
        results = json.loads(arguments.json.read_text(encoding="utf-8"))
    end = time.monotonic() + 60 * arguments.minutes
    waiting = [name for name in cases() if name not in results and re.search(arguments.only, name)]
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    lock = arguments.json.with_suffix(".lock")
    while waiting or running:
        while waiting and len(running) < arguments.side_by_side:
            if end - time.monotonic() < arguments.least_seconds:
                print(f"no time left for {', '.join(waiting)}; the next call goes on with them")
                waiting = []
                break
            name = waiting.pop(0)
            running[name] = begin_apart(arguments, name, lock), time.monotonic()
        time.sleep(0.1)
        late = time.monotonic() > end
        for name, (process, begun) in list(running.items()):
            if process.poll() is None:
                if not late:
                    continue
                process.kill()  # Another call may have more time for it.
                process.wait()
                print(f"{name}: not done in the time that was left")
            else:
                results[name] = result_of(arguments, name, process.returncode)
                results[name]["took_seconds"] = round(time.monotonic() - begun, 1)
                scratch = arguments.json.with_suffix(".part")
                scratch.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
                os.replace(scratch, arguments.json)
                print(f"{name}: {results[name]}", flush=True)
            del running[name]
    return {name: results[name] for name in cases() if name in results}


def begin_apart(arguments: argparse.Namespace, name: str, lock: Path) -> subprocess.Popen[bytes]:
    """Starts a case in a process of its own."""
    command = [sys.executable, __file__, f"--case={name}", f"--data={arguments.data}"]
    command.append(f"--lock_file={lock}")
    if arguments.tiny:
        command.append("--tiny")
    # Memory that is taken as it is needed, so that the peak says what was needed.
    environment = {
        **os.environ,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_COMPILATION_CACHE_DIR": str(arguments.json.absolute().parent / "accelerator_cache"),
    }
    log = log_of(arguments, name)
    log.parent.mkdir(exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)


def log_of(arguments: argparse.Namespace, name: str) -> Path:
    """Where a case prints to."""
    folder: Path = arguments.json.with_name(f"{arguments.json.stem}_logs")
    return folder / f"{name.replace(' ', '-')}.txt"


def result_of(arguments: argparse.Namespace, name: str, exit_code: int) -> dict[str, Any]:
    """What a case that has ended found; `failed` says why it found nothing."""
    lines = log_of(arguments, name).read_text(encoding="utf-8").strip().splitlines()
    for line in lines:
        if line.startswith(RESULT):
            return json.loads(line.removeprefix(RESULT))
    return {"failed": (lines or [f"exit code {exit_code}"])[-1][:300]}


def markdown(results: Mapping[str, Any]) -> str:
    """The results as a table for docs/benchmarks.md."""
    rate = (results.get("matrix rate") or {}).get("tflops_per_second")
    lines = []
    if rate:
        device = results["matrix rate"]["device"]
        lines += [f"{device}: {rate:.1f} TFLOP/s in a bfloat16 product of matrices", ""]
    lines += [
        "| case | ms/step | tokens/s | examples/s | MFU | peak, planned |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        if name == "matrix rate":
            continue
        if "failed" in row:
            lines.append(f"| {name} | failed: {row['failed']} | | | | |")
            continue
        cells = [
            number(row.get("seconds_per_step"), 1e3),
            number(row.get("tokens_per_second")),
            number(row.get("examples_per_second")),
            share(row.get("model_tflops_per_second"), rate),
            f"{gib(row.get('peak_bytes'))}, {gib(row.get('planned_peak_bytes'))}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def number(value: float | None, scale: float = 1.0) -> str:
    """A number for a table."""
    return "–" if value is None else f"{value * scale:,.4g}"


def share(value: float | None, whole: float | None) -> str:
    """A share for a table."""
    return "–" if value is None or not whole else f"{value / whole:.0%}"


def gib(value: float | None) -> str:
    """Bytes for a table."""
    return "–" if value is None else f"{value / 2**30:.2f} GiB"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, default=9, help="for all cases of this call")
    add("--only", default="", help="a regular expression of the cases to measure")
    add(
        "--json", type=Path, default=Path("accelerator.json"), help="results, also of earlier calls"
    )
    add("--data", type=Path, default=Path("accelerator_batches.npz"), help="token batches")
    add("--tiny", action="store_true", help="networks that a CPU trains in seconds")
    add("--least_seconds", type=float, default=30, help="no case begins with less time left")
    add("--prepare", action="store_true", help="write the token batches, measure nothing")
    add("--release_dir", help="with --prepare: the authors' released data")
    add("--dataset", default="esnli", help="with --prepare")
    add("--inputs", type=int, default=256, help="with --prepare: tokens of a row")
    add("--targets", type=int, default=192, help="with --prepare: tokens of a row")
    add("--side_by_side", type=int, default=3, help="cases that compile at a time")
    add("--case", help=argparse.SUPPRESS)
    add("--lock_file", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    arguments = parse_arguments(argv)
    if arguments.prepare:
        if not arguments.release_dir:
            print("error: --prepare needs --release_dir", file=sys.stderr)
            return 1
        prepare(arguments)
        return 0
    if not arguments.data.exists():
        print(f"error: {arguments.data}: is not there; --prepare writes it", file=sys.stderr)
        return 1
    arguments.lock = None
    if arguments.lock_file:
        arguments.lock = arguments.lock_file.open("a")
        fcntl.flock(arguments.lock, fcntl.LOCK_SH)
    if arguments.case:
        found = cases()[arguments.case].run(arguments)
        print(RESULT + json.dumps(found))
        return 0
    results = measure(arguments)
    print()
    print(markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
