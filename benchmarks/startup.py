"""Measures start-up: CPU seconds of a training program that takes one step and evaluates nothing.

    python benchmarks/startup.py [--runs 3] [--against FOLDER]
    python benchmarks/startup.py --layers 2 12

The quickstart's configuration (gin/examples/quickstart.gin, 4,000 generated problems), on one core.
`cold` finds no compiled programs, `warm` those of the run before; each run trains its vocabulary
and has a MODEL_DIR of its own. The last line is JSON: the least of the runs, in CPU seconds (user
and system) and in seconds of wall time, and whether TensorFlow was imported. With `--against`, the
code of another checkout starts by turns with this one, and the median is printed beside the least.
With `--layers`: CPU seconds until the parameters of a T5 of the quickstart's width with so many
encoder and decoder layers are drawn, nothing compiled before, beside what one program that draws
them all takes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = """
import sys
sys.argv = ["train", *sys.argv[1:]]
import sbs_jax.train as program
try:
    code = program.main()
except SystemExit as error:
    code = error.code
print("tensorflow imported:", "tensorflow" in sys.modules, file=sys.stderr)
sys.exit(code)
"""


def main() -> None:
    """Prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="warm runs; the least counts")
    parser.add_argument("--layers", type=int, nargs="+", help="only draw networks so deep")
    parser.add_argument("--against", type=Path, help="a checkout of other code, by turns")
    flags = parser.parse_args()
    if flags.layers:
        for layers in flags.layers:
            print(json.dumps(_draw(layers)), flush=True)
        return
    checkouts = {"ours": Path(__file__).resolve().parents[1]}
    if flags.against:
        checkouts["against"] = flags.against.resolve()
    results: dict[str, list[dict[str, float | bool]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1 + flags.runs):
            for name, code in list(checkouts.items())[:: -1 if number % 2 else 1]:
                results[name].append(_run(code, Path(folder) / name, number))
    for name, (cold, *warm) in results.items():
        least = min(warm, key=lambda result: result["cpu_s"])
        median = statistics.median(result["cpu_s"] for result in warm)
        found = {"cold": cold, "warm": least, "warm_median_cpu_s": round(median, 2)}
        print(json.dumps(found if len(results) == 1 else {"code": name} | found))


def _run(code: Path, folder: Path, number: int) -> dict[str, float | bool]:
    """Returns CPU and wall seconds of one run of a checkout's code in a new process."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(code), os.environ.get("PYTHONPATH", ""))),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # Modules stay compiled, as they do for users.
    command = [sys.executable, "-c", PROGRAM, "--gin_file=examples/quickstart.gin"]
    values = {"MODEL_DIR": f"'{folder / str(number)}'", "TRAIN_STEPS": 1, "EVAL_SPLITS": []}
    command += [f"--gin.{name}={value}" for name, value in values.items()]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command, env=environment, cwd=code, capture_output=True, text=True, check=False
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    cpu = sum(getattr(after, name) - getattr(before, name) for name in ("ru_utime", "ru_stime"))
    imported = "tensorflow imported: True" in done.stderr
    result = {"cpu_s": round(cpu, 2), "wall_s": round(wall, 2), "tensorflow": imported}
    print(folder.name, "cold" if number == 0 else "warm", result, flush=True)
    return result


def _draw(layers: int) -> dict[str, float | int]:
    """Returns the CPU seconds of drawing the parameters of a network, in both ways."""
    import jax
    import jax.numpy as jnp

    from sbs_jax.models.config import T5Config
    from sbs_jax.partitioning.mesh import make_mesh
    from sbs_jax.student import Student

    jax.config.update("jax_enable_compilation_cache", False)
    config = T5Config(
        vocab_size=1024,
        emb_dim=128,
        num_heads=4,
        head_dim=32,
        mlp_dim=256,
        num_encoder_layers=layers,
        num_decoder_layers=layers,
    )
    student = Student(config, make_mesh(devices=jax.devices()[:1]))
    tokens = jnp.ones((1, 2), jnp.int32)
    ways = {
        "by shape": lambda: student.init_params(0),
        "at once": lambda: jax.jit(student.model.init)(jax.random.key(0), tokens, tokens),
    }
    result: dict[str, float | int] = {"layers": layers}
    for name, way in ways.items():
        before = time.process_time()
        jax.block_until_ready(way())
        result[name] = round(time.process_time() - before, 2)
    return result


if __name__ == "__main__":
    main()
