"""All ways of decoding run in bfloat16, and agree with one another there."""

import dataclasses

import jax
import numpy as np
import pytest

from sbs_jax.decoding.beam import beam_decode
from sbs_jax.decoding.greedy import greedy_decode
from sbs_jax.decoding.ranking import rank_candidates
from sbs_jax.decoding.saliency import input_saliency
from sbs_jax.decoding.sampling import sample_decode
from sbs_jax.models.network import Transformer
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.student import Student
from tests.t5_weights import our_model, padded_batch
from tests.toy import CONFIG, DECODER


@pytest.mark.parametrize("config", [CONFIG, DECODER], ids=["t5", "decoder"])
def test_weights_that_are_rounded_once_give_the_same_bits(config):
    config = dataclasses.replace(config, dtype="bfloat16")
    student = Student(config, make_mesh(devices=jax.devices()[:1]))
    params = student.init_params(0)
    rounded = student.for_inference(params)
    kernels = [leaf.dtype for leaf in jax.tree.leaves(rounded) if leaf.ndim > 1]
    assert kernels.count("bfloat16") >= len(kernels) - 3  # a T5's embedding and positions
    assert all(
        (mine.dtype, mine.sharding) == (expected.dtype, expected.sharding)
        for mine, expected in zip(
            jax.tree.leaves(rounded),
            jax.tree.leaves(student.placed_inference_params),
            strict=True,
        )
    )
    inputs = np.arange(3, 35, dtype=np.int32).reshape(2, 16)
    ask = jax.jit(
        lambda params: rank_candidates(student.model, params, inputs, np.array([[7, 1], [9, 1]]))
    )
    np.testing.assert_array_equal(ask(rounded), ask(params))


def test_scores_in_bfloat16_are_near_those_of_ranking():
    config, params = our_model("v1.1", "plain")
    model = Transformer(dataclasses.replace(config, dtype="bfloat16"))
    # With these inputs no answer contains the padding token, which `rank_candidates` refuses.
    inputs, _ = padded_batch("plain", rows=2, seed=1)
    prompt = np.array([5, 6])
    settings = {"max_decode_len": 4, "decoder_prompt": prompt, "eos_id": 3}
    greedy = greedy_decode(model, params, inputs, **settings)
    cold, cold_log_probs = sample_decode(
        model, params, inputs, rng=jax.random.key(0), temperature=0.0, **settings
    )
    np.testing.assert_array_equal(cold[:, 0], greedy)
    tokens, scores = beam_decode(model, params, inputs, num_beams=2, alpha=0.0, **settings)
    for found, log_probs in ((cold, cold_log_probs), (tokens, scores)):
        exact = rank_candidates(
            Transformer(config), params, inputs, np.asarray(found), decoder_prompt=prompt
        )
        # bfloat16 has 8 significant bits.
        np.testing.assert_allclose(log_probs, exact, atol=0.15, rtol=0.02)
    saliency = input_saliency(model, params, inputs, greedy, decoder_prompt=prompt)
    assert saliency.dtype == np.float32 and np.isfinite(saliency).all()
