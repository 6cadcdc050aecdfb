"""Buckets against Hugging Face's, and the two ways to lay the bias out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbs_jax.models.config import T5Config
from sbs_jax.models.relative_position import (
    RelativePositionBias,
    along_diagonals,
    relative_position_buckets,
)
from tests.hf_models import torch


@pytest.mark.parity
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(
    ("num_buckets", "max_distance"), [(32, 128), (8, 20), (64, 512), (12, 50), (22, 128), (33, 200)]
)
def test_buckets_are_hugging_faces(bidirectional, num_buckets, max_distance):
    distances = np.arange(-2000, 2001)
    found = relative_position_buckets(
        distances, bidirectional=bidirectional, num_buckets=num_buckets, max_distance=max_distance
    )
    from transformers.models.t5.modeling_t5 import T5Attention

    expected = T5Attention._relative_position_bucket(
        torch.tensor(distances), bidirectional, num_buckets, max_distance
    )
    np.testing.assert_array_equal(found, expected.numpy())


def test_along_diagonals():
    values = jnp.arange(2 * 9).reshape(2, 9)
    laid_out = along_diagonals(values, 5)
    assert laid_out.shape == (2, 5, 5)
    for query in range(5):
        for key in range(5):
            np.testing.assert_array_equal(laid_out[:, query, key], values[:, key - query + 4])


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("length", [1, 7, 200])
def test_bias_is_a_look_up_of_buckets(bidirectional, length):
    config = T5Config(vocab_size=8, num_heads=3)
    module = RelativePositionBias(config, bidirectional=bidirectional)
    variables = module.init(jax.random.key(0), 1)
    table = np.asarray(jax.tree.leaves(variables)[0])
    positions = np.arange(length)
    buckets = relative_position_buckets(
        positions[None, :] - positions[:, None],
        bidirectional=bidirectional,
        num_buckets=32,
        max_distance=128,
    )
    bias = module.apply(variables, length)
    np.testing.assert_array_equal(bias[0], table[:, buckets])
    for position in {0, length // 2, length - 1}:
        row = module.apply(variables, jnp.int32(position), length, method="at_step")
        np.testing.assert_array_equal(row[0, :, 0], bias[0, :, position])
