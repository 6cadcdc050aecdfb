"""Ranking gives the log-probabilities of whole forward passes, for any tree of candidates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sbs_jax.decoding import candidates as candidates_lib
from sbs_jax.decoding import ranking
from sbs_jax.decoding.candidates import candidate_tree
from sbs_jax.decoding.greedy import greedy_decode
from sbs_jax.decoding.ranking import rank_candidates
from sbs_jax.errors import UserError
from sbs_jax.models.network import Transformer
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.student import Student
from tests.t5_weights import VERSIONS, apply, our_model, padded_batch

ROWS = 5
PROMPT = np.array([7, 8, 9])


@functools.cache
def candidates(count=11, length=5, seed=0):
    """Few different tokens, so that many prefixes are common; int32 [C, T]."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(2, 5, (count, length)).astype(np.int32)
    for index, row in enumerate(drawn):
        end = index % length
        row[end] = 1
        row[end + 1 :] = 0
    return drawn


def per_row(seed=1):
    """Other candidates for every row, some rows with fewer; [B, C, T]."""
    rng = np.random.default_rng(seed)
    drawn = np.stack([candidates(seed=row)[rng.permutation(11)] for row in range(ROWS)])
    drawn[1, 8:] = 0
    drawn[3, :2] = 0
    return drawn


def forward_passes(config, params, inputs, candidates, prompt=()):
    """The sum of the log-softmax of each candidate's tokens, one whole pass for each."""
    columns = []
    for targets in np.moveaxis(candidates, 1, 0):
        fed = np.zeros((len(inputs), 1 + len(prompt)), np.int32)
        fed[:, 1:] = prompt
        logits = apply(config, params, inputs, np.concatenate([fed, targets[:, :-1]], axis=1))
        log_probs = np.asarray(jax.nn.log_softmax(logits))[:, len(prompt) :]
        chosen = np.take_along_axis(log_probs, targets[..., None], axis=2)[..., 0]
        columns.append(np.where(targets > 0, chosen, 0).sum(axis=1))
    return np.where((candidates > 0).any(axis=2), np.stack(columns, axis=1), -np.inf)


@pytest.mark.parametrize(
    ("version", "max_nodes", "max_logits"), [("v1.0", 256, 1 << 25), ("v1.1", 7, 1)]
)
@pytest.mark.parametrize("prompt", [(), PROMPT], ids=["start", "prompt"])
def test_whole_forward_passes_give_the_same(monkeypatch, version, max_nodes, max_logits, prompt):
    monkeypatch.setattr(candidates_lib, "MAX_NODES", max_nodes)
    monkeypatch.setattr(ranking, "MAX_LOGITS", max_logits)
    config, params = our_model(version, "uneven")
    inputs, _ = padded_batch("uneven", rows=ROWS)
    rank = functools.partial(rank_candidates, Transformer(config), params, inputs)
    for given in (candidates(), per_row()):
        expected = forward_passes(
            config, params, inputs, np.broadcast_to(given, (ROWS, *given.shape[-2:])), prompt
        )
        assert (candidate_tree(given).tokens.shape[0] > 1) == (max_nodes == 7)
        np.testing.assert_allclose(
            rank(given, decoder_prompt=np.asarray(prompt, np.int32)), expected, atol=1e-5, rtol=1e-6
        )
        traced = jax.jit(lambda given: rank(given, decoder_prompt=jnp.array(prompt, jnp.int32)))
        np.testing.assert_allclose(traced(given), expected, atol=1e-5, rtol=1e-6)


def test_common_prefixes_are_computed_once():
    tree = candidate_tree(np.array([[5, 6, 1, 0], [5, 1, 0, 0], [5, 6, 7, 1], [9, 1, 0, 0]]))
    # (), 5, 56, 567, 9: the node that an EOS ends is never an input.
    paths = {
        tuple(tree.tokens[0][tree.visible[0, node]])
        for node in range(tree.tokens.shape[-1])
        if node < 5
    }
    assert paths == {(0,), (0, 5), (0, 5, 6), (0, 5, 6, 7), (0, 9)}
    assert tree.tokens.shape == (1, 8)
    # Without EOS one candidate may begin another.
    assert candidate_tree(np.array([[5, 0, 0], [5, 6, 7], [5, 6, 0]])).tokens.shape == (1, 4)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_best_label_of_one_token_is_greedys(version):
    config, params = our_model(version, "plain")
    inputs, _ = padded_batch("plain", rows=ROWS, seed=1)
    labels = np.arange(2, config.vocab_size, dtype=np.int32)[:, None]
    ranked = rank_candidates(Transformer(config), params, inputs, labels, decoder_prompt=PROMPT)
    token = greedy_decode(
        Transformer(config), params, inputs, max_decode_len=1, decoder_prompt=PROMPT
    )
    assert (np.asarray(token) > 1).all()
    np.testing.assert_array_equal(labels[np.argmax(ranked, axis=1)], token)
    assert (np.exp(ranked).sum(axis=1) < 1).all()


def test_bfloat16_is_near():
    config, params = our_model("v1.1", "plain")
    inputs, _ = padded_batch("plain", rows=ROWS)
    half = Transformer(config.__class__(**{**vars(config), "dtype": "bfloat16"}))
    exact = rank_candidates(Transformer(config), params, inputs, candidates())
    near = rank_candidates(half, params, inputs, candidates())
    assert near.dtype == jnp.float32
    np.testing.assert_allclose(near, exact, atol=0.15, rtol=0.02)


@pytest.mark.parametrize(("data", "model"), [(8, 1), (4, 2)])
def test_any_mesh_gives_the_same(data, model):
    config, params = our_model("v1.1", "plain")
    inputs, _ = padded_batch("plain", rows=8)
    given = np.stack([candidates(seed=row) for row in range(8)])
    expected = rank_candidates(Transformer(config), params, inputs, given)
    student = Student(config, make_mesh(data, model))
    placed = jax.device_put(params, student.param_shardings)
    rows = NamedSharding(student.mesh, PartitionSpec("data"))
    run = student.jit(
        lambda params, inputs, tree: rank_candidates(student.model, params, inputs, tree)
    )
    got = run(placed, jax.device_put(inputs, rows), candidate_tree(given))
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_impossible_candidates_are_told():
    with pytest.raises(UserError, match="A candidate has 0, which is padding, before its end"):
        candidate_tree(np.array([[5, 0, 1]]))
    with pytest.raises(UserError, match=r"the shape \(3,\); give ids"):
        candidate_tree(np.array([5, 6, 1]))
