"""The networks of checkpoints: what a run may change of one, and what must be the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from sbs_jax.checkpoints.loading import ADVICE, Source, identify
from sbs_jax.errors import UserError
from sbs_jax.models.config import T5Config
from sbs_jax.models.decoder.config import DecoderConfig, LayerConfig
from sbs_jax.models.interface import ModelConfig

# What a T5Config says beyond the shapes of parameters and beyond how a run computes.
_MEANING = (
    "num_heads",
    "head_dim",
    "mlp_activations",
    "scales_logits",
    "relative_attention_max_distance",
    "layer_norm_epsilon",
)

# What the other configs say only about how a run computes.
_COMPUTING = (
    "dropout_rate",
    "dropout_broadcast_length",
    "dtype",
    "product_dtype",
    "float32_attention_logits",
    "attention",
    "max_positions",
    "embedding_lookup",
    "remat",
    "lora_rank",
    "lora_alpha",
    "lora_targets",
    "attention_scalar",  # `attention_scale` is what it means
)


def require_same_network(source: Source, config: ModelConfig) -> None:
    """Checks what the shapes of parameters cannot tell: that `config` computes the same function.

    Raises:
      UserError: a field differs; names it.
    """
    saved = source.config
    if saved is None:
        return
    if type(saved) is not type(config):
        raise UserError(
            f"{source.folder}: does not fit: it holds a network of {type(saved).__name__}, but "
            f"this run has a {type(config).__name__}; {ADVICE}."
        )
    for name in _meaning(config):
        theirs, ours = getattr(saved, name), getattr(config, name)
        if theirs != ours:
            raise UserError(
                f"{source.folder}: does not fit: {name} is {theirs!r} in this checkpoint but "
                f"{ours!r} in this run; {ADVICE}."
            )


def _meaning(config: ModelConfig) -> tuple[str, ...]:
    """The names of what two networks of this kind must have alike to compute the same."""
    if isinstance(config, T5Config):
        return _MEANING
    fields = (field.name for field in dataclasses.fields(config))
    return ("attention_scale", *(name for name in fields if name not in _COMPUTING))


def require_config(source: Source, given: ModelConfig | None, advice: str) -> ModelConfig:
    """Returns the network's dimensions: `given`, or those that the checkpoint says.

    Args:
      source: the checkpoint.
      given: the value that the user sets; None where none is set.
      advice: how the user can say it, for the error.

    Raises:
      UserError: neither says them, or they differ in what the network computes.
    """
    if given is not None:
        require_same_network(source, given)
    config = given or source.config
    if config is None:
        raise UserError(f"{source.folder}: does not say the dimensions of its network; {advice}.")
    return config


def model_config(
    path: str | None,
    dropout_rate: float = T5Config.dropout_rate,
    dtype: str = T5Config.dtype,
    decoder_dropout_rate: float = DecoderConfig.dropout_rate,
    *,
    dropout_attention_weights: bool = T5Config.dropout_attention_weights,
    attention: str = T5Config.attention,
    remat: str = T5Config.remat,
    scan_layers: bool = T5Config.scan_layers,
    product_dtype: str | None = None,
    lora_rank: int | None = None,
    lora_alpha: float = T5Config.lora_alpha,
    lora_targets: Sequence[str] = T5Config.lora_targets,
) -> ModelConfig:
    """The config of weights; gin/models/from_checkpoint.gin binds it to MODEL.

    Args:
      path: a checkpoint, as `identify` takes it.
      dropout_rate: the dropout rate of this run, where the network is a T5.
      dtype: the dtype of this run's activations.
      decoder_dropout_rate: the dropout rate of this run, where the network is no T5.
      dropout_attention_weights: whether this run drops attention weights, see `T5Config`.
      attention: what computes attention in this run, see `T5Config`.
      remat: what a layer keeps for the gradient in this run, see `T5Config`.
      scan_layers: whether this run stacks the layers' parameters, see `T5Config`.
      product_dtype: the dtype of projections' operands, where the network is no T5.
      lora_rank: the rank of adapters, see `T5Config`.
      lora_alpha: the scale of adapters, see `T5Config`.
      lora_targets: the projections with adapters, see `T5Config`.

    Raises:
      UserError: there are no weights, or they do not say their dimensions.
    """
    if path is None:
        raise UserError(
            "models/from_checkpoint.gin takes the MODEL from INITIAL_CHECKPOINT_PATH; give "
            "--gin.INITIAL_CHECKPOINT_PATH=PATH."
        )
    source = identify(path)
    if source.config is None:
        raise UserError(
            f"{source.folder}: a T5X checkpoint does not say the dimensions of its network; name a "
            "file of gin/models instead of models/from_checkpoint.gin."
        )
    computing: dict[str, Any] = {
        "dtype": dtype,
        "remat": remat,
        "lora_rank": lora_rank,
        "lora_alpha": lora_alpha,
        "lora_targets": tuple(lora_targets),
    }
    if isinstance(source.config, LayerConfig):
        if scan_layers or attention == "cudnn":
            raise UserError(
                "SCAN_LAYERS = True and ATTENTION = 'cudnn' are for T5 alone; leave them out for "
                "another network."
            )
        computing |= {
            "dropout_rate": decoder_dropout_rate,
            "product_dtype": product_dtype,
        }
    elif product_dtype is not None:
        raise UserError("PRODUCT_DTYPE is not for a T5; leave it out.")
    else:
        computing |= {
            "dropout_rate": dropout_rate,
            "dropout_attention_weights": dropout_attention_weights,
            "attention": attention,
            "scan_layers": scan_layers,
        }
    return dataclasses.replace(source.config, **computing)
