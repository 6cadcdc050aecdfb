"""Greedy decoding equals Hugging Face's, with the cache, on meshes, and stops early."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sbs_jax.decoding.greedy import greedy_decode, most_likely
from sbs_jax.models.network import Transformer
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.student import Student
from tests.hf_models import hf_model, torch
from tests.t5_weights import CASES, VERSIONS, apply, our_model, padded_batch

LENGTH = 20


def decode(config, params, inputs, eos_id, max_decode_len=LENGTH):
    return np.asarray(
        greedy_decode(
            Transformer(config), params, inputs, max_decode_len=max_decode_len, eos_id=eos_id
        )
    )


def hf_decode(model, inputs, eos_id, max_decode_len=LENGTH):
    tokens = model.generate(
        torch.tensor(inputs, dtype=torch.long),
        attention_mask=torch.tensor(inputs > 0),
        max_new_tokens=max_decode_len,
        do_sample=False,
        num_beams=1,
        eos_token_id=eos_id,
        pad_token_id=0,
        # With a cache, transformers takes the decoder to be as deep as the encoder.
        use_cache=False,
    ).numpy()[:, 1:]
    return np.pad(tokens, ((0, 0), (0, max_decode_len - tokens.shape[1])))


@pytest.mark.parametrize(("version", "shape"), CASES)
def test_tokens_are_hugging_faces(version, shape):
    config, params = our_model(version, shape)
    inputs, _ = padded_batch(shape, rows=5, seed=2)
    endless = hf_decode(hf_model(version, shape), inputs, eos_id=None)
    np.testing.assert_array_equal(decode(config, params, inputs, eos_id=-1), endless)
    # A token that some rows produce early and others late or never ends rows apart.
    ends = {
        token: (endless == token).any(axis=1).sum() for token in np.unique(endless[:, :12]).tolist()
    }
    eos_id = min((token for token in ends if token > 0), key=lambda token: abs(ends[token] - 3))
    expected = hf_decode(hf_model(version, shape), inputs, eos_id=eos_id)
    assert (expected == 0).any()
    np.testing.assert_array_equal(decode(config, params, inputs, eos_id=eos_id), expected)


@pytest.mark.parametrize("few_queries", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
def test_cached_steps_give_the_logits_of_the_whole(version, few_queries):
    config, params = our_model(version, "uneven")
    inputs, targets = padded_batch("uneven")
    decoder_inputs = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    whole = apply(config, params, inputs, decoder_inputs)
    model, variables = Transformer(config), {"params": params}
    length = decoder_inputs.shape[1]
    memory, cache = jax.jit(
        lambda: model.apply(
            variables, inputs, length, few_queries=few_queries, method="start_decoding"
        )
    )()
    assert bool(memory.keys_values) is not few_queries
    step = jax.jit(
        lambda tokens, position, cache: model.apply(
            variables, tokens, position, memory, cache, method="decode_step"
        )
    )
    for position in range(length):
        logits, cache = step(decoder_inputs[:, position], jnp.int32(position), cache)
        np.testing.assert_allclose(logits, whole[:, position], atol=1e-5, rtol=0)


def test_a_row_depends_on_no_other():
    config, params = our_model("v1.1", "plain")
    inputs, _ = padded_batch("plain", rows=5)
    together = decode(config, params, inputs, eos_id=1)
    for row in (0, 4):
        kept = np.count_nonzero(inputs[row])
        alone = decode(config, params, inputs[row : row + 1, :kept], eos_id=1)
        np.testing.assert_array_equal(alone[0], together[row])


def test_shorter_limits_cut():
    config, params = our_model("v1.0", "plain")
    inputs, _ = padded_batch("plain")
    whole = decode(config, params, inputs, eos_id=-1)
    np.testing.assert_array_equal(
        decode(config, params, inputs, eos_id=-1, max_decode_len=4), whole[:, :4]
    )


def test_stops_when_all_rows_have_ended():
    config, params = our_model("v1.1", "plain")
    inputs, _ = padded_batch("plain", rows=1)
    first = int(decode(config, params, inputs, eos_id=-1)[0, 0])
    steps = []

    class Counting(Transformer):
        def decode_step(self, *args):
            jax.debug.callback(lambda: steps.append(1))
            return super().decode_step(*args)

    tokens = greedy_decode(Counting(config), params, inputs, max_decode_len=50, eos_id=first)
    jax.effects_barrier()
    assert np.asarray(tokens)[0].tolist() == [first] + [0] * 49
    assert len(steps) == 1


@pytest.mark.parametrize(("data", "model", "fsdp"), [(8, 1, False), (2, 4, False), (4, 2, True)])
def test_any_mesh_gives_the_same_tokens(data, model, fsdp):
    config, params = our_model("v1.1", "plain")
    inputs, _ = padded_batch("plain", rows=8)
    expected = decode(config, params, inputs, eos_id=1)
    student = Student(config, make_mesh(data, model), fsdp=fsdp)
    placed = jax.device_put(params, student.param_shardings)
    rows = jax.device_put(inputs, NamedSharding(student.mesh, PartitionSpec("data")))
    run = student.jit(
        lambda params, inputs: greedy_decode(
            student.model, params, inputs, max_decode_len=LENGTH, eos_id=1
        )
    )
    np.testing.assert_array_equal(run(placed, rows), expected)


def test_most_likely_is_argmax():
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 6, (50, 40)).astype(np.float32)  # many ties: the first one wins
    np.testing.assert_array_equal(most_likely(logits), np.argmax(logits, axis=-1))
    assert int(most_likely(np.full(7, np.nan, np.float32))) == 6
    assert int(most_likely(np.full(7, -np.inf, np.float32))) == 0
