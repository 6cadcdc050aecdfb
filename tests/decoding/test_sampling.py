"""Samples follow the model's distribution, top-k and top-p leave exact sets, 0 is greedy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats

from sbs_jax.decoding import sampling
from sbs_jax.decoding.greedy import greedy_decode
from sbs_jax.decoding.ranking import rank_candidates
from sbs_jax.decoding.sampling import sample_decode
from sbs_jax.errors import UserError
from sbs_jax.models.network import Transformer
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.student import Student
from tests.t5_weights import our_model, padded_batch

PROMPT = np.array([7, 8, 9])


def sample(inputs, *, version="v1.1", shape="plain", seed=0, **settings):
    config, params = our_model(version, shape)
    settings = {"max_decode_len": 6, "rng": jax.random.key(seed), **settings}
    tokens, log_probs = sample_decode(Transformer(config), params, inputs, **settings)
    return np.asarray(tokens), np.asarray(log_probs)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 12, 1.0), (1.4, 0, 0.8)]
)
def test_frequencies_are_probabilities(temperature, top_k, top_p):
    config, params = our_model("v1.1", "plain")
    inputs, _ = padded_batch("plain", rows=2)
    draws = 4000
    tokens, _ = sample(
        inputs,
        max_decode_len=1,
        num_samples=draws,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        decoder_prompt=PROMPT,
    )
    every = np.arange(1, config.vocab_size, dtype=np.int32)[:, None]
    log_probs = rank_candidates(Transformer(config), params, inputs, every, decoder_prompt=PROMPT)
    for row in range(2):
        probs = np.exp(np.asarray(log_probs[row], np.float64))
        probs = np.concatenate([[1 - probs.sum()], probs])  # of token 0, which is no candidate
        probs = np.maximum(probs, 1e-12) ** (1 / temperature)
        probs = np.where(numpy_kept(probs / probs.sum(), top_k, top_p), probs, 0)
        expected = draws * probs / probs.sum()
        observed = np.bincount(tokens[row, :, 0], minlength=probs.size)
        assert not observed[expected == 0].any()
        # Chi-square wants some 5 expected in each cell: rare tokens share one.
        common = expected >= 5
        cells = [np.append(x[common], x[~common].sum()) for x in (observed, expected)]
        cells = [x[cells[1] > 0] for x in cells]
        assert stats.chisquare(*cells).pvalue > 1e-3


def numpy_kept(probs, top_k, top_p):
    """Which tokens top-k and then top-p leave, by sorting."""
    order = np.argsort(-probs)
    left = order[:top_k] if top_k else order
    sums = np.cumsum(probs[left]) / probs[left].sum()
    if top_p < 1:
        left = left[: np.searchsorted(sums, top_p) + 1]
    mask = np.zeros(probs.size, bool)
    mask[left] = True
    return mask


@pytest.mark.parametrize("top_k", [0, 1, 9, 40, 99])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_kept_tokens_are_those_of_numpy(top_k, top_p, temperature):
    logits = np.random.default_rng(top_k).normal(size=(8, 40)).astype(np.float32) * 3
    mask = sampling.kept(jnp.asarray(logits), temperature, top_k=top_k, top_p=top_p)
    scaled = np.exp(logits.astype(np.float64) / temperature)
    for row, probs in enumerate(scaled / scaled.sum(axis=1, keepdims=True)):
        np.testing.assert_array_equal(mask[row], numpy_kept(probs, top_k, top_p))


@pytest.mark.parametrize("settings", [{}, {"top_k": 5, "top_p": 0.9}])
def test_temperature_0_is_greedy(settings):
    config, params = our_model("v1.0", "uneven")
    inputs, _ = padded_batch("uneven")
    tokens, _ = sample(
        inputs, version="v1.0", shape="uneven", temperature=0.0, num_samples=2, eos_id=3, **settings
    )
    greedy = greedy_decode(Transformer(config), params, inputs, max_decode_len=6, eos_id=3)
    np.testing.assert_array_equal(tokens, np.stack([greedy, greedy], axis=1))


def test_log_probs_are_the_models_and_rows_end():
    config, params = our_model("v1.0", "plain")
    inputs, _ = padded_batch("plain", rows=4)
    inputs[2] = 0
    settings = {"top_k": 20, "temperature": 2.0, "max_decode_len": 9, "num_samples": 5}
    kept = [0, 1, 3]
    for seed in range(20):
        endless, _ = sample(inputs, version="v1.0", seed=seed, eos_id=-1, **settings)
        if endless[kept].all():  # 0 may be drawn, but ends what `rank_candidates` takes
            break
    eos_id = int(endless[0, 0, 3])
    tokens, log_probs = sample(inputs, version="v1.0", seed=seed, eos_id=eos_id, **settings)
    assert not tokens[2].any() and not log_probs[2].any()
    exact = rank_candidates(Transformer(config), params, inputs[kept], tokens[kept])
    np.testing.assert_allclose(log_probs[kept], exact, atol=1e-4)
    lengths = np.count_nonzero(tokens[kept], axis=-1)
    last = np.take_along_axis(tokens[kept], lengths[..., None] - 1, axis=-1)[..., 0]
    assert ((last == eos_id) | (lengths == 9)).all()
    assert len(np.unique(lengths)) > 1
    assert (np.count_nonzero(tokens == eos_id, axis=-1) <= 1).all()


def test_a_key_of_its_own_makes_a_row_independent_of_the_batch():
    inputs, _ = padded_batch("plain", rows=4)
    keys = jax.random.split(jax.random.key(5), 4)
    whole, _ = sample(inputs, rng=keys, num_samples=3)
    part, _ = sample(inputs[[3, 1]], rng=keys[np.array([3, 1])], num_samples=3)
    np.testing.assert_array_equal(part, whole[[3, 1]])
    other, _ = sample(inputs, seed=1, num_samples=3)
    assert (other != whole).any()


@pytest.mark.parametrize(("data", "model"), [(8, 1), (4, 2)])
def test_any_mesh_gives_the_same(data, model):
    config, params = our_model("v1.1", "plain")
    inputs, _ = padded_batch("plain", rows=8)
    settings = {"max_decode_len": 6, "num_samples": 2, "top_p": 0.9, "eos_id": 7}
    expected, _ = sample(inputs, **settings)
    student = Student(config, make_mesh(data, model))
    run = student.jit(
        lambda params, inputs: sample_decode(
            student.model, params, inputs, rng=jax.random.key(0), **settings
        )
    )
    rows = jax.device_put(inputs, NamedSharding(student.mesh, PartitionSpec("data")))
    tokens, _ = run(jax.device_put(params, student.param_shardings), rows)
    np.testing.assert_array_equal(tokens, expected)


@pytest.mark.parametrize(
    "settings",
    [{"temperature": -0.1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"num_samples": 0}],
)
def test_impossible_settings_are_told(settings):
    (name, value), *_ = settings.items()
    with pytest.raises(UserError, match=f"^{name} = {value} must "):
        sample(np.ones((1, 4), np.int32), **settings)
