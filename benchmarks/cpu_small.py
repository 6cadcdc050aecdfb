"""The network that the benchmarks of the training step share."""

from sbs_jax.models.config import T5Config

CPU_SMALL = T5Config(
    vocab_size=8192,
    emb_dim=256,
    num_heads=4,
    num_encoder_layers=4,
    num_decoder_layers=4,
    head_dim=64,
    mlp_dim=512,
    head_init_stddev=256**-0.5,
)
