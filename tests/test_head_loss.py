"""The loss in chunks of tokens is the loss of whole logits: values and gradients to 1e-6."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbs_jax import head_loss, losses
from tests.batches import random_batch

VOCAB, WIDTH = 64, 16
ROWS, LENGTH = 8, 20


@pytest.fixture(scope="module")
def case():
    batch = random_batch(rows=ROWS, targets=LENGTH, vocab_size=VOCAB)
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(WIDTH, VOCAB)), jnp.float32), "other": 1.0}
    hidden = jnp.asarray(rng.normal(size=(ROWS, LENGTH, WIDTH)), jnp.float32)
    parts, segments = batch["decoder_target_parts"], batch["decoder_segment_ids"]
    weights = losses.part_weights(parts, segments)
    return params, hidden, (batch["decoder_target_tokens"], parts, segments, weights)


def head(groups=1):
    return head_loss.Head(
        params_of=lambda params: params["kernel"],
        logits=lambda kernel, hidden: hidden @ kernel,
        vocab_size=VOCAB,
        groups=groups,
    )


def whole(params, hidden, arrays, **options):
    weight = options.pop("rationale_weight")
    sums = losses.sum_parts(hidden @ params["kernel"], *arrays, **options)
    return losses.join(sums, weight), sums


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("chunk_bytes", [1 << 30, 7 * 4 * VOCAB, 1])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 1e-2}])
def test_equals_whole_logits(case, groups, chunk_bytes, options):
    params, hidden, arrays = case

    def run(function, **more):
        def loss(params, hidden):
            return function(params, hidden, arrays, rationale_weight=0.3, **options, **more)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, hidden)

    (expected, sums), gradients = run(whole)
    (found, own_sums), own = run(
        lambda params, hidden, arrays, **options: head_loss.sum_parts(
            head(groups), params, hidden, *arrays, **options
        ),
        chunk_bytes=chunk_bytes,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), own_sums, sums)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), own, gradients
    )
    assert float(sums["label"].correct) != 0 or float(sums["rationale"].correct) != 0


def test_without_a_gradient_nothing_else_is_computed(case):
    params, hidden, arrays = case
    text = str(jax.make_jaxpr(lambda: head_loss.sum_parts(head(), params, hidden, *arrays))())
    assert text.count("dot_general") == 1


def test_whole_logits_never_exist(case):
    params, hidden, arrays = case

    def loss(params, hidden):
        return head_loss.sum_parts(
            head(), params, hidden, *arrays, chunk_bytes=ROWS * LENGTH * VOCAB
        )[0]

    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, hidden).compile().as_text()
    assert f"f32[{ROWS},{LENGTH},{VOCAB}]" not in text
    assert f"f32[{ROWS * LENGTH},{VOCAB}]" not in text
    assert f"f32[{ROWS * LENGTH // 4},{VOCAB}]" in text.replace("f32[1,", "f32[")


def test_infinite_logits_on_padding_stay_out(case):
    params, hidden, (targets, parts, segments, weights) = case
    poisoned = jnp.where((parts == 0)[..., None], jnp.inf, hidden)
    loss, sums = head_loss.sum_parts(head(), params, poisoned, targets, parts, segments, weights)
    assert np.isfinite(loss)
    assert all(np.isfinite(part.loss) for part in sums.values())
