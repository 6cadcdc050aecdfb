"""What a T5 costs, from its dimensions: parameters and floating-point operations.

Products of matrices are counted, two operations for each multiplication, and three times as many
for a step as for a forward pass. What is computed again under `remat` is not counted.
"""

from __future__ import annotations

from sbs_jax.models.config import T5Config


def num_params(config: T5Config) -> int:
    """Number of parameters of a student."""
    attention = 4 * config.emb_dim * config.num_heads * config.head_dim
    mlp = (len(config.mlp_activations) + 1) * config.emb_dim * config.mlp_dim
    encoder = config.num_encoder_layers * (attention + mlp + 2 * config.emb_dim)
    decoder = config.num_decoder_layers * (2 * attention + mlp + 3 * config.emb_dim)
    positions = 2 * config.relative_attention_num_buckets * config.num_heads
    tables = 1 if config.logits_via_embedding else 2
    embeddings = tables * config.vocab_size * config.emb_dim
    return encoder + decoder + positions + 2 * config.emb_dim + embeddings


def step_flops(config: T5Config, rows: float, inputs: int, targets: int) -> float:
    """Floating-point operations of one training step.

    Args:
      config: the student's dimensions.
      rows: of the batch.
      inputs: length of a row's inputs, S.
      targets: length of a row's targets, T.
    """
    width = config.num_heads * config.head_dim
    project = 2 * config.emb_dim * width  # one position through one of q, k, v, out
    mlp = 2 * (len(config.mlp_activations) + 1) * config.emb_dim * config.mlp_dim

    def attend(queries: int, keys: int) -> float:
        return 4 * queries * keys * width

    encoder = inputs * (4 * project + mlp) + attend(inputs, inputs)
    decoder = targets * (4 * project + mlp) + attend(targets, targets)
    cross = 2 * (inputs + targets) * project + attend(targets, inputs)
    head = 2 * targets * config.emb_dim * config.vocab_size
    forward = config.num_encoder_layers * encoder + config.num_decoder_layers * (decoder + cross)
    return 3.0 * rows * (forward + head)
