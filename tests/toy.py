"""The network that tests train where nothing hangs on its shape; others change what they need."""

from sbs_jax.models.config import T5Config

CONFIG = T5Config(
    vocab_size=512,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    num_encoder_layers=1,
    num_decoder_layers=1,
)
