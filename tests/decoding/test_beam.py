"""Beam search finds Hugging Face's outputs and scores, on every mesh, and stops early."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sbs_jax.decoding.beam import beam_decode
from sbs_jax.decoding.greedy import greedy_decode
from sbs_jax.decoding.ranking import rank_candidates
from sbs_jax.errors import UserError
from sbs_jax.models.network import Transformer
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.student import Student
from tests.hf_models import hf_model, torch
from tests.t5_weights import our_model, padded_batch

LENGTH = 12
ROWS = 5
SEARCHES = [(False, 1.0), (False, -0.7), (True, 0.0), (True, 2.5), ("never", 1.6), ("never", -0.3)]
"""Pairs of `early_stopping` and the exponent of the length penalty."""


def hf_beams(model, inputs, eos_id, *, num_beams, alpha, early_stopping):
    """Sequences and scores of all beams, [B, N, T] and [B, N]."""
    result = model.generate(
        torch.tensor(inputs, dtype=torch.long),
        attention_mask=torch.tensor(inputs > 0),
        max_new_tokens=LENGTH,
        do_sample=False,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        length_penalty=alpha,
        early_stopping=early_stopping,
        eos_token_id=eos_id,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        # With a cache, transformers takes the decoder to be as deep as the encoder.
        use_cache=model.config.num_layers == model.config.num_decoder_layers,
    )
    tokens = result.sequences.numpy()[:, 1:]
    tokens = np.pad(tokens, ((0, 0), (0, LENGTH - tokens.shape[1])))
    # transformers fills up with EOS where the padding is 0.
    ended = np.cumsum(tokens == eos_id, axis=1) - (tokens == eos_id)
    tokens = np.where(ended, 0, tokens)
    shape = (len(inputs), num_beams)
    return tokens.reshape(*shape, LENGTH), result.sequences_scores.numpy().reshape(shape)


def common_token(config, params, inputs):
    """A token that beams produce at many different steps: as EOS, it ends them apart."""
    tokens, _ = beam_decode(
        Transformer(config), params, inputs, max_decode_len=LENGTH, num_beams=4, num_return=4,
        eos_id=-1,
    )  # fmt: skip
    tokens = np.asarray(tokens)
    candidates = [token for token in np.unique(tokens) if token > 1]
    first = {
        token: [int(np.argmax(row == token)) for row in tokens.reshape(-1, LENGTH) if token in row]
        for token in candidates
    }
    return int(max(candidates, key=lambda token: (len(set(first[token])), len(first[token]))))


@pytest.mark.parametrize(
    ("version", "shape", "num_beams"),
    [("v1.0", "plain", 4), ("v1.1", "plain", 2), ("v1.1", "uneven", 4), ("v1.0", "long", 2)],
)
def test_outputs_and_scores_are_hugging_faces(version, shape, num_beams):
    config, params = our_model(version, shape)
    inputs, _ = padded_batch(shape, rows=ROWS, seed=3)
    eos_id = common_token(config, params, inputs)
    lengths = set()
    for early_stopping, alpha in SEARCHES:
        expected, expected_scores = hf_beams(
            hf_model(version, shape),
            inputs,
            eos_id,
            num_beams=num_beams,
            alpha=alpha,
            early_stopping=early_stopping,
        )
        tokens, scores = beam_decode(
            Transformer(config),
            params,
            inputs,
            max_decode_len=LENGTH,
            num_beams=num_beams,
            num_return=num_beams,
            alpha=alpha,
            length_penalty="huggingface",
            early_stopping=early_stopping,
            eos_id=eos_id,
        )
        np.testing.assert_array_equal(tokens, expected)
        np.testing.assert_allclose(scores, expected_scores, rtol=2e-5, atol=1e-5)
        lengths |= set(np.count_nonzero(expected, axis=-1).ravel().tolist())
    assert len(lengths) >= 3


def test_scores_are_log_probabilities_over_t5xs_penalty():
    config, params = our_model("v1.1", "uneven")
    inputs, _ = padded_batch("uneven", rows=ROWS)
    prompt = np.array([5, 9, 6])
    eos_id = common_token(config, params, inputs)
    tokens, scores = beam_decode(
        Transformer(config), params, inputs, max_decode_len=LENGTH, num_beams=4, num_return=3,
        eos_id=eos_id, alpha=0.6, decoder_prompt=prompt,
    )  # fmt: skip
    assert tokens.shape == (ROWS, 3, LENGTH)
    exact = rank_candidates(
        Transformer(config), params, inputs, np.asarray(tokens), decoder_prompt=prompt
    )
    lengths = np.count_nonzero(tokens, axis=-1)
    assert len(np.unique(lengths)) > 1
    np.testing.assert_allclose(scores, exact / ((5 + lengths) / 6) ** 0.6, atol=1e-5, rtol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_one_beam_is_greedy():
    config, params = our_model("v1.0", "plain")
    inputs, _ = padded_batch("plain", rows=ROWS)
    settings = {"max_decode_len": LENGTH, "decoder_prompt": np.array([3, 4])}
    eos_id = common_token(config, params, inputs)
    # Once it has ended, the one beam beats its second best only if that cannot win by its length.
    tokens, _ = beam_decode(
        Transformer(config), params, inputs, num_beams=1, early_stopping=True, eos_id=eos_id,
        **settings,
    )  # fmt: skip
    expected = greedy_decode(Transformer(config), params, inputs, eos_id=eos_id, **settings)
    np.testing.assert_array_equal(tokens[:, 0], expected)


def test_stops_when_no_beam_can_win():
    config, params = our_model("v1.1", "plain")
    inputs, _ = padded_batch("plain", rows=2)
    inputs[1] = 0  # a row of padding holds nobody up
    steps = []

    class Counting(Transformer):
        def extend(self, *args):
            jax.debug.callback(lambda: steps.append(1))
            return super().extend(*args)

    first, _ = beam_decode(
        Transformer(config), params, inputs, max_decode_len=2, num_beams=2, eos_id=-1
    )
    for early_stopping in (True, False):
        steps.clear()
        tokens, _ = beam_decode(
            Counting(config), params, inputs, max_decode_len=50, num_beams=1, alpha=0.0,
            early_stopping=early_stopping, eos_id=int(first[0, 0, 0]),
        )  # fmt: skip
        jax.effects_barrier()
        assert tokens[0, 0].tolist() == [int(first[0, 0, 0])] + [0] * 49
        assert not tokens[1].any()
        assert len(steps) == 1


@pytest.mark.parametrize(("data", "model"), [(8, 1), (4, 2)])
def test_any_mesh_gives_the_same(data, model):
    config, params = our_model("v1.1", "plain")
    inputs, _ = padded_batch("plain", rows=8)
    inputs[5] = 0
    settings = {"max_decode_len": 8, "num_beams": 3, "num_return": 3, "eos_id": 7}
    expected, expected_scores = beam_decode(Transformer(config), params, inputs, **settings)
    student = Student(config, make_mesh(data, model))
    placed = jax.device_put(params, student.param_shardings)
    rows = jax.device_put(inputs, NamedSharding(student.mesh, PartitionSpec("data")))
    run = student.jit(lambda params, inputs: beam_decode(student.model, params, inputs, **settings))
    tokens, scores = run(placed, rows)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_beams": 0}, "num_beams = 0 must be at least 1."),
        ({"num_beams": 2, "num_return": 3}, "num_return = 3 must lie in"),
        ({"length_penalty": "t5"}, "must be one of 't5x', 'huggingface'"),
        ({"early_stopping": "no"}, "early_stopping = 'no' must be"),
    ],
)
def test_impossible_settings_are_told(settings, sentence):
    config, params = our_model("v1.1", "plain")
    with pytest.raises(UserError, match=sentence):
        beam_decode(
            Transformer(config), params, np.ones((1, 4), np.int32), max_decode_len=3, **settings
        )
