r"""A layer of SmolLM2-135M, forward and backward: attention of all heads at once, and by heads.

    python benchmarks/decoder_layer.py

On packed rows of two shapes that hold the same tokens. CPU seconds and temporary memory of a layer
are the differences between networks of three layers and of one, on one thread.
"""

from __future__ import annotations

import os
import time

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_cpu_multi_thread_eigen=false --xla_force_host_platform_device_count=1"
)

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sbs_jax.models.decoder.config import DecoderConfig
from sbs_jax.models.decoder.network import DecoderOnly

REPEATS = 3
SHAPES = ((2, 208, 352, 4), (4, 112, 160, 2))
"""Rows, tokens of inputs and of targets, and examples a row."""


def measure(attention: str, layers: int, shape: tuple[int, int, int, int]) -> tuple[float, float]:
    """CPU seconds, the fewest of several, and MiB of temporary memory of a gradient."""
    rows, inputs, targets, examples = shape
    model = DecoderOnly(DecoderConfig(vocab_size=512, num_layers=layers, attention=attention))
    rng = np.random.default_rng(0)
    x, y = (
        jnp.asarray(rng.integers(3, 500, (rows, length)), jnp.int32) for length in (inputs, targets)
    )
    texts = jnp.arange(inputs) * examples // inputs + 1
    branches = jnp.arange(targets) * 2 * examples // targets + 1
    options = {
        "encoder_segment_ids": jnp.broadcast_to(texts, x.shape),
        "decoder_segment_ids": jnp.broadcast_to(branches, y.shape),
        "decoder_source_ids": jnp.broadcast_to((branches + 1) // 2, y.shape),
    }
    start = jnp.ones((1, 2), jnp.int32)
    params = nn.unbox(model.init(jax.random.key(0), start, start)["params"])

    @jax.jit
    @jax.grad
    def gradient(params: dict) -> jax.Array:
        hidden = model.apply({"params": params}, x, y, **options, method="hidden")
        return jnp.sum(hidden**2)

    compiled = gradient.lower(params).compile()
    seconds = []
    for _ in range(REPEATS + 1):
        before = time.process_time()
        jax.block_until_ready(compiled(params))
        seconds.append(time.process_time() - before)
    return min(seconds[1:]), compiled.memory_analysis().temp_size_in_bytes / 2**20


def main() -> None:
    """Measures, and prints a line for each."""
    for shape in SHAPES:
        for attention in ("whole", "by_head"):
            (one, little), (three, much) = (measure(attention, n, shape) for n in (1, 3))
            print(
                f"{shape[0]} rows of {shape[1]} + {shape[2]}, {attention}: "
                f"{(three - one) / 2:.3f} CPU s and {(much - little) / 2:.0f} MiB a layer",
                flush=True,
            )


if __name__ == "__main__":
    main()
