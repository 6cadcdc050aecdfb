"""Host memory that loading a Hugging Face folder takes, against the size of the parameters.

    python benchmarks/weights.py --parameters=1e9 --dtype=float32 --folder=PATH

Writes a random T5 v1.1 of about that size, shard by shard, loads it in a process of its own, and
removes it. On CPU the parameters themselves lie in the host's memory; what matters is how much
more was in use at the peak.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

WIDTH, HEADS, HEAD_DIM, MLP, VOCABULARY = 1024, 16, 64, 2816, 32128


def main() -> None:
    """Writes, loads in another process, removes, prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parameters", type=float, default=1e9)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--folder", type=Path, required=True, help="is made, and removed")
    parser.add_argument("--load", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(json.dumps(load(options.folder)))
        return
    options.folder.mkdir(parents=True)
    try:
        on_disk = write(options.folder, options.parameters, options.dtype)
        command = [sys.executable, __file__, f"--folder={options.folder}", "--load"]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    finally:
        shutil.rmtree(options.folder)
    megabyte = 2**20
    print(f"{found['parameters']:,} parameters; {on_disk / megabyte:,.0f} MiB of {options.dtype}")
    print(f"parameters in float32: {found['size'] / megabyte:,.0f} MiB")
    print(f"largest tensor in float32: {found['largest'] / megabyte:,.0f} MiB")
    print(f"peak of resident memory above the start: {found['peak'] / megabyte:,.0f} MiB")
    print(f"beyond the parameters: {(found['peak'] - found['size']) / megabyte:,.0f} MiB")
    print(f"seconds: {found['seconds']:.1f}")


def write(folder: Path, parameters: float, dtype: str) -> int:
    """Writes the folder; returns its bytes. No more than a layer is in memory."""
    from sbs_jax.checkpoints.huggingface import config_to_huggingface, huggingface_sources
    from sbs_jax.models.config import T5Config

    def config_of(layers: int) -> T5Config:
        return T5Config(
            vocab_size=VOCABULARY,
            emb_dim=WIDTH,
            num_heads=HEADS,
            num_encoder_layers=layers,
            num_decoder_layers=layers,
            head_dim=HEAD_DIM,
            mlp_dim=MLP,
        )

    layer = 12 * WIDTH * HEADS * HEAD_DIM + 6 * WIDTH * MLP
    layers = max(1, round((parameters - 2 * VOCABULARY * WIDTH) / layer))
    config = config_of(layers)
    content = json.dumps(config_to_huggingface(config))
    (folder / "config.json").write_text(content)
    shapes = shapes_of(config)
    shards: dict[str, list[str]] = {}
    sources = huggingface_sources(config)
    for path in sources:
        part = next((p for p in path.split("/") if p.startswith("layers_")), "rest")
        shards.setdefault(f"{path.partition('/')[0]}-{part}", []).append(path)
    rng = np.random.default_rng(0)
    weight_map, size = {}, 0
    for shard, paths in shards.items():
        tensors = {}
        for path in paths:
            source = sources[path]
            shape = shapes[path][::-1] if source.transposed else shapes[path]
            values = rng.standard_normal(shape, dtype=np.float32) * WIDTH**-0.5
            kind = np.float32 if dtype == "float32" else ml_dtypes.bfloat16
            tensors[source.name] = values.astype(kind)
            weight_map[source.name] = f"model-{shard}.safetensors"
        save_file(tensors, folder / f"model-{shard}.safetensors")
        size += sum(tensor.nbytes for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return size


def shapes_of(config: object) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter, by path."""
    from flax import traverse_util

    flat = traverse_util.flatten_dict(student_of(config).abstract_params, sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}


def student_of(config: object) -> object:
    """The network of a T5Config on all devices."""
    from sbs_jax.partitioning.mesh import make_mesh
    from sbs_jax.student import Student

    return Student(config, make_mesh())


def load(folder: Path) -> dict[str, float]:
    """Loads the folder; says what it took."""
    import jax

    from sbs_jax.checkpoints.loading import identify, load_params

    source = identify(folder)
    student = student_of(source.config)
    jax.block_until_ready(jax.device_put(np.zeros(8)))  # starts the backend
    before = resident()
    peak = [before]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    params = load_params(source, student.placed_params)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)]
    return {
        "parameters": student.num_params,
        "size": sum(sizes),
        "largest": max(sizes),
        "peak": peak[0] - before,
        "seconds": seconds,
    }


def resident() -> int:
    """Bytes of this process in memory, mapped files among them."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


if __name__ == "__main__":
    main()
