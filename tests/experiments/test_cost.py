import dataclasses

import gin
import jax
import pytest

from sbs_jax.configuration import config as config_lib
from sbs_jax.experiments import cost, measuring, runs
from sbs_jax.models.costs import padding_free_flops
from sbs_jax.models.decoder.config import DecoderConfig
from sbs_jax.models.t5gemma2.config import T5Gemma2Config
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.student import Student
from tests import toy
from tests.batches import random_batch

# Sizes that differ from one another, so that no factor can stand for another one.
GATED = dataclasses.replace(
    toy.CONFIG,
    vocab_size=64, emb_dim=32, num_heads=3, mlp_dim=48, num_encoder_layers=2, dropout_rate=0.0,
)  # fmt: skip
TIED = dataclasses.replace(
    toy.CONFIG,
    vocab_size=96, head_dim=16, mlp_dim=40, num_decoder_layers=2, mlp_activations=("relu",),
    logits_via_embedding=True,
)  # fmt: skip


DECODER = DecoderConfig(
    vocab_size=64, emb_dim=32, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=8, mlp_dim=48,
    qk_norm=True, post_norms=True, attention_bias=True, logits_via_embedding=False,
    attention="whole",  # XLA counts what a loop does once, however often it turns
)  # fmt: skip


T5GEMMA2 = T5Gemma2Config(
    vocab_size=64, emb_dim=32, num_encoder_layers=2, num_decoder_layers=1, num_heads=6,
    num_kv_heads=2, head_dim=8, mlp_dim=48, attention="whole", lora_rank=3,
)  # fmt: skip


@pytest.mark.parametrize(
    "config", [GATED, TIED, DECODER, T5GEMMA2], ids=["gated", "tied", "decoder", "t5gemma2"]
)
def test_parameters_are_those_of_the_network(config):
    assert cost.num_params(config) == Student(config, make_mesh()).num_params


@pytest.mark.parametrize("config", [GATED, DECODER, T5GEMMA2], ids=["t5", "decoder", "t5gemma2"])
def test_flops_are_what_xla_counts(config):
    student = Student(config, make_mesh(1, 1, jax.devices()[:1]))
    batch = random_batch(rows=4, inputs=96, targets=48)

    def loss(params):
        return student.apply(params, batch, None).sum()

    counted = jax.jit(jax.grad(loss)).lower(student.abstract_params).cost_analysis()["flops"]
    # XLA also counts what is no product of matrices.
    assert cost.step_flops(config, 4, 96, 48) == pytest.approx(counted, rel=0.25)


@pytest.mark.parametrize("config", [GATED, DECODER, T5GEMMA2], ids=["t5", "decoder", "t5gemma2"])
def test_flops_without_rows_are_those_of_rows_but_for_attention(config):
    """Two groups of 3 rows each, all full: the same tokens and the same pairs of them."""
    rows = [(2, 96, 48), (4, 96, 48)]
    found = padding_free_flops(config, 2, 3 * 96, 3 * 48, rows)
    assert found == pytest.approx(cost.step_flops(config, 6, 96, 48), rel=1e-12)
    shorter = padding_free_flops(config, 2, 3 * 96, 3 * 48, [(12, 48, 24)])
    assert shorter < found


def test_a_configuration_tells_its_cost_without_being_applied():
    config = config_lib.read(
        ["examples/svamp_t5_1_1_tiny.gin"], target="sbs_jax.programs.train.train"
    )
    found = cost.estimate(config)
    assert found.parameters == cost.num_params(cost.read_student(config))
    assert found.tokens == 500 * 24 * (256 + 192)
    student = cost.read_student(config)
    assert found.flops == 500 * cost.step_flops(student, 24, 256, 192)


def test_a_decoder_is_read_from_its_gin_file():
    files = ["runs/train.gin", "models/smollm2_135m.gin", "optimizers/adamw.gin", "tasks/svamp.gin"]
    flags = [("MODEL_DIR", "x"), ("TRAIN_STEPS", "1")]
    config = config_lib.read(files, flags=flags, target="sbs_jax.programs.train.train")
    assert cost.estimate(config).parameters == 134_515_008
    assert runs.model_name(config) == "smollm2_135m"


def test_rows_that_depend_on_the_examples_are_measured():
    flags = [("MODEL_DIR", "x"), ("TRAIN_PROBLEMS", "300")]
    config = config_lib.read(
        ["examples/quickstart.gin"], flags=flags, target="sbs_jax.programs.train.train"
    )
    assert cost.estimate(config).flops is None
    try:
        rows = measuring.rows(config)
    finally:
        gin.clear_config()
    # 32 examples, two records each, four records a row.
    assert 16 <= rows <= 18
    assert cost.estimate(config, rows).tokens == round(700 * rows * (96 + 48))


@pytest.mark.parametrize(
    ("count", "text"), [(None, "–"), (12, "12"), (690_000, "690 k"), (1.26e15, "1.26 P")]
)
def test_large_numbers_are_short(count, text):
    assert cost.in_words(count) == text
