"""Random packed batches for tests of the network and the step, and what is made of a batch."""

import numpy as np

from sbs_jax import losses
from sbs_jax.parts import LABEL, RATIONALE

_READ = (
    *("encoder_input_tokens", "decoder_input_tokens", "encoder_segment_ids"),
    *("decoder_segment_ids", "decoder_source_ids"),
)


def network_inputs(batch):
    """What a network reads of a batch."""
    return {name: batch[name] for name in _READ if name in batch}


def part_sums(logits, batch):
    """`losses.sum_parts` with the weights of token means."""
    parts, segments = batch["decoder_target_parts"], batch["decoder_segment_ids"]
    weights = losses.part_weights(parts, segments)
    return losses.sum_parts(logits, batch["decoder_target_tokens"], parts, segments, weights)


def random_batch(*, rows=8, inputs=24, targets=20, vocab_size=64, seed=0):
    """Rows packed with pairs of a short label target and a longer rationale target.

    The last row is empty and lengths are drawn anew for each target, so the parts are spread
    unevenly over rows: means of shards or microbatches differ from the means of the batch.
    """
    rng = np.random.default_rng(seed)
    batch = {
        name: np.zeros((rows, length), np.int32)
        for name, length in {
            "encoder_input_tokens": inputs,
            "encoder_segment_ids": inputs,
            "decoder_input_tokens": targets,
            "decoder_target_tokens": targets,
            "decoder_target_parts": targets,
            "decoder_segment_ids": targets,
        }.items()
    }
    for row in range(rows - 1):
        source = target = 0
        segment = 1
        while True:
            part = LABEL if segment % 2 else RATIONALE
            m = int(rng.integers(2, 7))
            n = int(rng.integers(1, 4) if part == LABEL else rng.integers(4, 9))
            if source + m > inputs or target + n > targets:
                break
            tokens = rng.integers(2, vocab_size, size=n)
            tokens[-1] = 1
            batch["encoder_input_tokens"][row, source : source + m] = rng.integers(
                2, vocab_size, size=m
            )
            batch["encoder_segment_ids"][row, source : source + m] = segment
            batch["decoder_target_tokens"][row, target : target + n] = tokens
            batch["decoder_input_tokens"][row, target + 1 : target + n] = tokens[:-1]
            batch["decoder_target_parts"][row, target : target + n] = part
            batch["decoder_segment_ids"][row, target : target + n] = segment
            source, target, segment = source + m, target + n, segment + 1
    return batch
