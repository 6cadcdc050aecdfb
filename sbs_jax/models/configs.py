"""The configs of all networks; pure Python."""

from __future__ import annotations

from sbs_jax.models.config import T5Config
from sbs_jax.models.decoder.config import DecoderConfig
from sbs_jax.models.t5gemma2.config import T5Gemma2Config

ModelConfig = T5Config | DecoderConfig | T5Gemma2Config
"""The config of any network."""

KINDS: dict[str, type[ModelConfig]] = {
    "t5": T5Config,
    "decoder": DecoderConfig,
    "t5gemma2": T5Gemma2Config,
}
"""The config of each kind of network, by the name under which checkpoints have it."""
