"""What a network costs, from its dimensions: parameters and floating-point operations.

Products of matrices are counted, two operations for each multiplication, and three times as many
for a step as for a forward pass. What is computed again under `remat` is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence

from sbs_jax.models.config import T5Config
from sbs_jax.models.configs import ModelConfig
from sbs_jax.models.decoder.config import DecoderConfig, LayerConfig
from sbs_jax.models.t5gemma2.config import T5Gemma2Config


def num_params(config: ModelConfig) -> int:
    """Number of parameters of a student."""
    if isinstance(config, LayerConfig):
        return _layered_params(config)
    attention = 4 * config.emb_dim * config.num_heads * config.head_dim
    mlp = (len(config.mlp_activations) + 1) * config.emb_dim * config.mlp_dim
    if config.lora_rank is not None:
        ends = config.emb_dim + config.num_heads * config.head_dim, config.emb_dim + config.mlp_dim
        branches = [f"wi_{index}" for index in range(len(config.mlp_activations))]
        attention += config.lora_rank * ends[0] * _count(config, "query", "key", "value", "out")
        mlp += config.lora_rank * ends[1] * _count(config, *branches, "wo")
    encoder = config.num_encoder_layers * (attention + mlp + 2 * config.emb_dim)
    decoder = config.num_decoder_layers * (2 * attention + mlp + 3 * config.emb_dim)
    positions = 2 * config.relative_attention_num_buckets * config.num_heads
    tables = 1 if config.logits_via_embedding else 2
    embeddings = tables * config.vocab_size * config.emb_dim
    return encoder + decoder + positions + 2 * config.emb_dim + embeddings


def _count(config: T5Config, *names: str) -> int:
    """How many of these projections have adapters."""
    return sum(name in config.lora_targets for name in names)


def _layered_params(config: DecoderConfig | T5Gemma2Config) -> int:
    width, shared = (heads * config.head_dim for heads in (config.num_heads, config.num_kv_heads))
    attention = 2 * config.emb_dim * (width + shared)
    attention += (width + 2 * shared) * config.attention_bias
    attention += config.emb_dim * config.attention_out_bias
    attention += 2 * config.head_dim * config.qk_norm
    norms = config.emb_dim * (4 if config.post_norms else 2)
    layer = attention + 3 * config.emb_dim * config.mlp_dim + norms
    tables = 1 if config.logits_via_embedding else 2
    embeddings = tables * config.vocab_size * config.emb_dim
    sizes = {
        "query": (config.emb_dim, width),
        "key": (config.emb_dim, shared),
        "value": (config.emb_dim, shared),
        "out": (width, config.emb_dim),
        "wi_0": (config.emb_dim, config.mlp_dim),
        "wi_1": (config.emb_dim, config.mlp_dim),
        "wo": (config.mlp_dim, config.emb_dim),
    }
    if config.lora_rank is not None:
        layer += config.lora_rank * sum(sum(sizes[name]) for name in config.lora_targets)
    if isinstance(config, T5Gemma2Config):
        # Each stack has a last norm; the token that ends an image has an embedding of its own.
        layers = config.num_encoder_layers + config.num_decoder_layers
        return layers * layer + 3 * config.emb_dim + embeddings
    return config.num_layers * layer + config.emb_dim + embeddings


def padding_free_flops(
    config: ModelConfig,
    groups: int,
    inputs: int,
    targets: int,
    rows: Sequence[tuple[int, int, int]],
) -> float:
    """Floating-point operations of a training step on a padding-free batch.

    Args:
      config: the student's dimensions.
      groups: the groups of the batch.
      inputs: input tokens of a group.
      targets: target tokens of a group.
      rows: of each kind of row, how many there are and their lengths, S and T.
    """
    whole = step_flops(config, groups, inputs, targets)
    whole -= attention_flops(config, groups, inputs, targets)
    return whole + sum(attention_flops(config, *kind) for kind in rows)


def attention_flops(config: ModelConfig, rows: float, inputs: int, targets: int) -> float:
    """The share of `step_flops` between the tokens of a row."""
    width = config.num_heads * config.head_dim
    both = targets * (inputs + targets)
    if isinstance(config, DecoderConfig):
        pairs = config.num_layers * (inputs + targets) ** 2
    else:
        pairs = config.num_encoder_layers * inputs**2 + config.num_decoder_layers * both
    return 3.0 * rows * 4 * pairs * width


def step_flops(config: ModelConfig, rows: float, inputs: int, targets: int) -> float:
    """Floating-point operations of one training step.

    Args:
      config: the student's dimensions.
      rows: the rows of the batch.
      inputs: length of a row's inputs, S.
      targets: length of a row's targets, T.
    """
    width = config.num_heads * config.head_dim
    head = 2 * targets * config.emb_dim * config.vocab_size
    if isinstance(config, LayerConfig):
        length, shared = inputs + targets, config.num_kv_heads * config.head_dim
        both = 2 * config.emb_dim * (2 * (width + shared) + 3 * config.mlp_dim)  # of a position
        if isinstance(config, DecoderConfig):
            layer = length * both + 4 * length * length * width
            return 3.0 * rows * (config.num_layers * layer + head)
        encoding = inputs * both + 4 * inputs * inputs * width
        # The decoder has keys and values of the encoder's output, too.
        decoding = targets * both + 4 * targets * length * width
        decoding += inputs * 4 * config.emb_dim * shared
        layers = config.num_encoder_layers * encoding + config.num_decoder_layers * decoding
        return 3.0 * rows * (layers + head)
    project = 2 * config.emb_dim * width  # one position through one of q, k, v, out
    mlp = 2 * (len(config.mlp_activations) + 1) * config.emb_dim * config.mlp_dim

    def attend(queries: int, keys: int) -> float:
        return 4 * queries * keys * width

    encoder = inputs * (4 * project + mlp) + attend(inputs, inputs)
    decoder = targets * (4 * project + mlp) + attend(targets, targets)
    cross = 2 * (inputs + targets) * project + attend(targets, inputs)
    forward = config.num_encoder_layers * encoder + config.num_decoder_layers * (decoder + cross)
    return 3.0 * rows * (forward + head)
