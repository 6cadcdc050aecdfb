"""The networks that tests train where nothing hangs on their shape; or else they replace fields."""

from sbs_jax.models.config import T5Config
from sbs_jax.models.decoder.config import DecoderConfig

CONFIG = T5Config(
    vocab_size=512,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    num_encoder_layers=1,
    num_decoder_layers=1,
)

DECODER = DecoderConfig(
    vocab_size=512,
    emb_dim=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=32,
)

LAYERS = T5Config(
    vocab_size=64,
    emb_dim=32,
    num_heads=4,
    num_encoder_layers=3,
    num_decoder_layers=2,
    head_dim=8,
    mlp_dim=64,
)
"""Different numbers of several layers, which can be stacked."""
