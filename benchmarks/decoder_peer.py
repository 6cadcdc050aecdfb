r"""A training step of SmolLM2-135M on SVAMP, ours and transformers': the same examples, by turns.

    python benchmarks/decoder_peer.py --release_dir=PATH [--steps=3]

Ours: rows `[x | p_y y | p_r r]`, x once, packed. Theirs: each text `x p_y y` and `x p_r r` by
itself, padded to the longest of its batch, with the label -100 on x and prefix, as completion-only
training does it; torch's fused AdamW, gradients clipped, without the overhead of a `Trainer`. Both
in float32, one thread each, from the same weights (extra `smollm2`). Compared are CPU seconds a
step, and the mean loss of all target tokens of the first step, which must be the same.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_cpu_multi_thread_eigen=false --xla_force_host_platform_device_count=1"
)

import jax
import numpy as np
import torch
import transformers
from flax import traverse_util

import sbs_jax.tasks  # noqa: F401 (registers the data sets)
from sbs_jax.checkpoints import decoder_config_json, decoder_huggingface, loading, state_dicts
from sbs_jax.checkpoints.tensors import read_whole
from sbs_jax.data import auto_lengths
from sbs_jax.data.batching import Batching, TrainBatches
from sbs_jax.data.pipeline import load_records
from sbs_jax.data.resolving import TaskChoice, resolve_task
from sbs_jax.data.settings import DataSettings
from sbs_jax.host_memory import keep_freed_memory
from sbs_jax.models.decoder.config import DecoderConfig
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.programs.teach import smollm2_path
from sbs_jax.student import Student
from sbs_jax.training import optimizers, placement
from sbs_jax.training.step import make_train_step

EXAMPLES = 8
UNCUT = 1024


def texts_of(batch: dict[str, np.ndarray], config: DecoderConfig) -> list[tuple[list, list]]:
    """The ids and the labels of each text of a batch, in the file's own numbering."""
    found = []
    about = batch["decoder_source_ids"]
    for row, segments in enumerate(batch["decoder_segment_ids"]):
        for segment in range(1, segments.max() + 1):
            mine = segments == segment
            text = about[row][mine][0]
            x = batch["encoder_input_tokens"][row][batch["encoder_segment_ids"][row] == text][:-1]
            target = batch["decoder_target_tokens"][row][mine]
            parts = batch["decoder_target_parts"][row][mine]
            ids = [config.moved_ids.get(int(token), int(token)) for token in [*x, *target]]
            trained = [False] * len(x) + [bool(part) for part in parts]
            labels = [token if own else -100 for token, own in zip(ids, trained, strict=True)]
            found.append((ids, labels))
    return found


class Peer:
    """transformers' network with torch's optimizer."""

    def __init__(self, params: Any, config: DecoderConfig) -> None:
        raw = decoder_config_json.config_to_huggingface(config)
        self._config = config
        network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**raw))
        stored = traverse_util.flatten_dict(params, sep="/")
        tensors = state_dicts.named(
            decoder_huggingface.in_own_order(stored, config),
            decoder_huggingface.huggingface_sources(config),
        )
        state = {name: torch.tensor(read_whole(tensor)) for name, tensor in tensors.items()}
        network.load_state_dict(state, strict=False)
        network.tie_weights()
        self.network = network.train()
        self._optimizer = torch.optim.AdamW(
            network.parameters(), 1e-5, weight_decay=0.0, fused=True
        )

    def step(self, batch: dict[str, np.ndarray]) -> float:
        """Trains once; returns the mean loss of all target tokens."""
        texts = texts_of(batch, self._config)
        longest = max(len(ids) for ids, _ in texts)
        ids = torch.zeros(len(texts), longest, dtype=torch.long)
        labels = torch.full((len(texts), longest), -100)
        mask = torch.zeros(len(texts), longest, dtype=torch.long)
        for row, (own, wanted) in enumerate(texts):
            ids[row, : len(own)] = torch.tensor(own)
            labels[row, : len(own)] = torch.tensor(wanted)
            mask[row, : len(own)] = 1
        self._optimizer.zero_grad()
        loss = self.network(ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self._optimizer.step()
        return float(loss)


def main() -> None:
    """Measures, and prints a line for each and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--release_dir", required=True)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--padding_free", action="store_true", help="no rows: PADDING_FREE")
    parser.add_argument("--product_dtype", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()

    source = loading.identify(smollm2_path())
    settings = DataSettings(
        data_dir=args.release_dir,
        vocabulary_path=str(source.require_vocabulary()),
        prefix_side="decoder",
    )
    task = resolve_task(TaskChoice("svamp", method="sbs"), settings)
    # As TASK_FEATURE_LENGTHS = 'auto' does.
    records = load_records(task, "train", {"inputs": UNCUT, "targets": UNCUT})
    proposed = auto_lengths.propose(records, Batching("auto", examples_per_batch=EXAMPLES))
    print(proposed)
    batching = Batching(
        proposed.lengths, examples_per_batch=EXAMPLES, padding_free=args.padding_free
    )
    batches = TrainBatches(records, batching, seed=0)

    config = source.config
    student = Student(
        DecoderConfig(**{**vars(config), "product_dtype": args.product_dtype}),
        make_mesh(devices=jax.devices()[:1]),
    )
    optimizer = optimizers.adamw(1e-5)
    step = placement.jit_train_step(
        student,
        make_train_step(student.hidden, optimizer, head=student.head),
        placement.abstract_state(student, optimizer, 0),
    )
    params = loading.load_params(source, student.placed_params)
    peer = Peer(jax.device_get(params), config)
    state = placement.create_state(student, params, optimizer, 0)

    seconds: dict[str, list[float]] = {"sbs_jax": [], "transformers": []}
    compiled, first = set(), None
    while len(seconds["sbs_jax"]) < args.steps:
        batch = next(batches)
        before = time.process_time()
        state, metrics = step(state, batch)
        counts = {part: float(metrics[f"{part}_tokens"]) for part in ("label", "rationale")}
        ours = sum(float(metrics[f"{part}_loss"]) * n for part, n in counts.items())
        ours /= sum(counts.values())
        spent = time.process_time() - before
        before = time.process_time()
        theirs = peer.step(batch)
        if first is None:
            first = ours, theirs
        shape = tuple(array.shape for array in batch.values())
        if shape in compiled:
            seconds["sbs_jax"].append(spent)
            seconds["transformers"].append(time.process_time() - before)
        compiled.add(shape)
    print(
        f"{len(compiled)} shapes, inputs {batches.fill.inputs:.0%} and targets "
        f"{batches.fill.targets:.0%} full"
    )
    print(f"loss of the first step: {first[0]:.5f} and {first[1]:.5f}")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(
            f"{name}: {median:.2f} CPU s a step of {EXAMPLES} examples (median of {len(values)}), "
            f"{EXAMPLES / median:.3f} examples a CPU second"
        )
    ratio = statistics.median(theirs / ours for ours, theirs in zip(*seconds.values(), strict=True))
    print(f"{ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
