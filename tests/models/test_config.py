"""The config's sentences, and the sizes that gin/models ships."""

import math
from pathlib import Path

import gin
import jax
import jax.numpy as jnp
import pytest

from sbs_jax.errors import UserError
from sbs_jax.models.config import T5Config
from sbs_jax.models.network import Transformer

GIN = Path(__file__).parents[2] / "gin"

# Of the checkpoints that Google published, embeddings counted once.
PARAMETERS = {
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "t5_3b": 2_851_598_336,
    "t5_11b": 11_307_321_344,
    "t5_1_1_tiny": 1_836_800,
    "t5_1_1_small": 76_961_152,
    "t5_1_1_base": 247_577_856,
    "t5_1_1_large": 783_150_080,
    "t5_1_1_xl": 2_849_757_184,
    "t5_1_1_xxl": 11_135_332_352,
}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"vocab_size": 0}, "T5Config.vocab_size = 0 must be a positive integer."),
        ({"emb_dim": 8.0}, "T5Config.emb_dim = 8.0 must be a positive integer."),
        ({"num_heads": True}, "T5Config.num_heads = True must be a positive integer."),
        ({"mlp_activations": ("gelu", "tanh")}, "one or two (gated) names out of relu, gelu"),
        ({"mlp_activations": "relu"}, "T5Config.mlp_activations = 'relu' must be a tuple"),
        ({"mlp_activations": ()}, "must be a tuple of one or two"),
        ({"dtype": "float16"}, "T5Config.dtype = 'float16' must be one of 'float32', 'bfloat16'."),
        ({"embedding_lookup": "sum"}, "must be one of 'gather', 'one_hot'."),
        ({"remat": True}, "must be one of 'none', 'dots', 'minimal', 'full'."),
        ({"dropout_rate": 1.0}, "T5Config.dropout_rate = 1.0 must lie in [0, 1)."),
        ({"dropout_rate": None}, "T5Config.dropout_rate = None must lie in [0, 1)."),
        ({"dropout_broadcast_length": 1}, "must be True or False."),
        ({"layer_norm_epsilon": 0}, "T5Config.layer_norm_epsilon = 0 must be positive."),
        ({"relative_attention_num_buckets": 3}, "must be an integer of at least 4."),
        ({"relative_attention_max_distance": 16}, "num_buckets / 2 = 16."),
        ({"head_init_stddev": -1.0}, "T5Config.head_init_stddev = -1.0 must be positive."),
        ({"head_init_stddev": 1.0, "logits_via_embedding": True}, "has no effect"),
    ],
)
def test_impossible_values_are_told_in_a_sentence(change, sentence):
    with pytest.raises(UserError) as caught:
        T5Config(**({"vocab_size": 32} | change))
    assert sentence in str(caught.value)


def test_config_is_hashable_also_with_a_list():
    config = T5Config(vocab_size=32, mlp_activations=["gelu", "linear"])
    assert hash(config) == hash(T5Config(vocab_size=32))


def test_every_size_is_counted():
    sizes = {path.stem for path in (GIN / "models").glob("t5_*.gin")} - {"t5_1_1"}
    assert sizes == PARAMETERS.keys()


@pytest.mark.parametrize("size", PARAMETERS)
def test_gin_sizes_have_the_published_number_of_parameters(size):
    with gin.unlock_config():
        gin.clear_config()
        try:
            gin.add_config_file_search_path(GIN)
            gin.parse_config_files_and_bindings(
                [f"models/{size}.gin"], ["DROPOUT_RATE = 0.2", "ACTIVATION_DTYPE = 'bfloat16'"]
            )
            config = gin.query_parameter("MODEL/gin.macro.value").scoped_configurable_fn()
        finally:
            gin.clear_config()
    assert (config.dropout_rate, config.dtype) == (0.2, "bfloat16")
    assert config.logits_via_embedding == (not size.startswith("t5_1_1"))
    tokens = jnp.ones((1, 1), jnp.int32)
    params = jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens, tokens)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == PARAMETERS[size]


@pytest.mark.parametrize("size", PARAMETERS)
def test_a_size_changes_dimensions_and_vocabulary_only(size):
    lines = (GIN / "models" / f"{size}.gin").read_text().splitlines()
    bound = {line.split("=")[0].strip() for line in lines if line.startswith("  ")}
    assert bound == {
        "vocab_size",
        "emb_dim",
        "num_heads",
        "num_encoder_layers",
        "num_decoder_layers",
        "head_dim",
        "mlp_dim",
    }
