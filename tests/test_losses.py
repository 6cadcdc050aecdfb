"""The loss against formulas written out in numpy (float64) and against optax."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from sbs_jax import losses
from sbs_jax.errors import UserError
from sbs_jax.parts import LABEL, PADDING, RATIONALE

VOCAB = 11


def test_the_examples_in_the_docstrings():
    result = doctest.testmod(losses)
    assert (result.failed, result.attempted) == (0, 2)


@pytest.fixture(scope="module")
def batch():
    """Rows of packed targets: (part, length) runs, the rest padding."""
    rng = np.random.default_rng(0)
    layout = [
        [(LABEL, 2), (RATIONALE, 5), (LABEL, 1)],
        [(RATIONALE, 9)],
        [(LABEL, 3), (RATIONALE, 1), (RATIONALE, 4)],
        [],
    ]
    parts = np.zeros((4, 10), np.int32)
    segments = np.zeros((4, 10), np.int32)
    for row, runs in enumerate(layout):
        start = 0
        for number, (part, length) in enumerate(runs, start=1):
            parts[row, start : start + length] = part
            segments[row, start : start + length] = number
            start += length
    logits = rng.normal(size=(4, 10, VOCAB)).astype(np.float32) * 3
    targets = rng.integers(0, VOCAB, size=(4, 10)).astype(np.int32)
    return logits, targets, parts, segments


def log_softmax(logits):
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def numpy_loss(logits, targets, parts, segments, lambda_, normalization):
    log_p = log_softmax(logits)
    ce = -np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    means = {}
    for part in (LABEL, RATIONALE):
        if normalization == "token_mean":
            values = ce[parts == part]
        else:
            values = [
                ce[row][(segments[row] == number) & (parts[row] == part)].mean()
                for row in range(len(ce))
                for number in np.unique(segments[row][parts[row] == part])
            ]
        means[part] = np.mean(values) if len(values) else 0.0
    return means[LABEL] + lambda_ * means[RATIONALE], means


def our_sums(logits, targets, parts, segments, normalization="token_mean", **options):
    weights = losses.part_weights(parts, segments, normalization)
    return losses.sum_parts(logits, targets, parts, segments, weights, **options)


@pytest.mark.parametrize("normalization", ["token_mean", "example_mean"])
@pytest.mark.parametrize("lambda_", [0.0, 0.3, 1.0, 4.0])
def test_equals_the_formula(batch, normalization, lambda_):
    expected, means = numpy_loss(*batch, lambda_, normalization)
    sums = our_sums(*batch, normalization)
    np.testing.assert_allclose(losses.join(sums, lambda_), expected, rtol=1e-6)
    np.testing.assert_allclose(sums["label"].loss, means[LABEL], rtol=1e-6)
    np.testing.assert_allclose(sums["rationale"].loss, means[RATIONALE], rtol=1e-6)


def test_the_published_alpha_weighting(batch):
    """α · label + (1 - α) · rationale is α · L at λ = (1 - α) / α."""
    for alpha in (0.2, 0.5, 0.9):
        _, means = numpy_loss(*batch, 1.0, "token_mean")
        published = alpha * means[LABEL] + (1 - alpha) * means[RATIONALE]
        ours = losses.join(our_sums(*batch), (1 - alpha) / alpha)
        np.testing.assert_allclose(alpha * ours, published, rtol=1e-6)


def test_counts_and_accuracy(batch):
    logits, targets, parts, _segments = batch
    metrics = losses.summarize(our_sums(*batch), 1.0)
    for part, name, target_count in ((LABEL, "label", 3), (RATIONALE, "rationale", 4)):
        mine = parts == part
        assert metrics[f"{name}_tokens"] == mine.sum()
        assert metrics[f"{name}_targets"] == target_count
        np.testing.assert_allclose(
            metrics[f"{name}_accuracy"], (logits.argmax(-1) == targets)[mine].mean(), rtol=1e-6
        )


@pytest.mark.parametrize("normalization", ["token_mean", "example_mean"])
def test_an_empty_part_contributes_zero_and_no_gradient(batch, normalization):
    logits, targets, parts, segments = batch
    label_only = np.where(parts == LABEL, parts, PADDING)

    def loss(logits):
        sums = our_sums(logits, targets, label_only, segments, normalization)
        return losses.join(sums, 1.0), sums

    (value, sums), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(logits))
    assert sums["rationale"].loss == 0.0
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))
    assert np.all(np.asarray(gradient)[label_only == PADDING] == 0.0)
    nothing = our_sums(logits, targets, np.zeros_like(parts), segments, normalization)
    assert losses.join(nothing, 1.0) == 0.0


def test_infinite_logits_on_padding_do_no_harm(batch):
    logits, targets, parts, segments = batch
    poisoned = np.where((parts == PADDING)[..., None], np.inf, logits)
    clean = losses.join(our_sums(logits, targets, parts, segments), 1.0)
    assert losses.join(our_sums(poisoned, targets, parts, segments), 1.0) == clean


@pytest.mark.parametrize("normalization", ["token_mean", "example_mean"])
def test_any_cut_into_microbatches_adds_up(batch, normalization):
    logits, targets, parts, segments = batch
    weights = losses.part_weights(parts, segments, normalization)
    whole = losses.sum_parts(logits, targets, parts, segments, weights)
    pieces = [
        losses.sum_parts(
            logits[rows], targets[rows], parts[rows], segments[rows], weights[np.asarray(rows)]
        )
        for rows in ([0], [1, 3], [2])
    ]
    added = jax.tree.map(lambda *values: sum(values), *pieces)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), added, whole)


def test_token_cross_entropy_agrees_with_optax(batch):
    logits, targets, *_ = batch
    ours, gradient = jax.value_and_grad(
        lambda x: losses.token_cross_entropy(x, targets)[0].sum(), argnums=0
    )(jnp.asarray(logits))
    theirs, expected = jax.value_and_grad(
        lambda x: optax.softmax_cross_entropy_with_integer_labels(x, targets).sum()
    )(jnp.asarray(logits))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.1, 0.0), (0.0, 1e-2), (0.2, 1e-3)])
def test_smoothing_and_z_loss_are_t5x_s(batch, smoothing, z_loss):
    """Against T5X's definition with dense soft targets, in float64; gradient by jax of the same."""
    logits, targets, *_ = batch
    on, off = 1 - smoothing, smoothing / (VOCAB - 1)
    soft = np.where(np.arange(VOCAB) == targets[..., None], on, off)
    entropy = -(on * np.log(on) + (VOCAB - 1) * off * np.log(off + 1e-20))
    log_p = log_softmax(logits)
    log_z = (logits - log_p)[..., 0]
    expected = -(soft * log_p).sum(-1) - entropy + z_loss * log_z**2
    ours, z_term = losses.token_cross_entropy(logits, targets, smoothing, z_loss)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    np.testing.assert_allclose(z_term, z_loss * log_z**2, rtol=1e-5)

    def dense(x):
        log_z = jax.nn.logsumexp(x, axis=-1)
        ce = -(soft * jax.nn.log_softmax(x)).sum(-1)
        return (ce + z_loss * log_z**2).sum()

    gradient = jax.grad(
        lambda x: losses.token_cross_entropy(x, targets, smoothing, z_loss)[0].sum()
    )
    np.testing.assert_allclose(
        gradient(jnp.asarray(logits)), jax.grad(dense)(jnp.asarray(logits)), atol=1e-5
    )


def test_gradient_is_numerically_right(batch):
    logits, targets, parts, segments = batch

    def loss(x):
        return losses.join(
            our_sums(x, targets, parts, segments, label_smoothing=0.1, z_loss=1e-2), 0.7
        )

    with jax.enable_x64(True):
        check_grads(loss, (jnp.asarray(logits),), order=1, modes=["rev"], rtol=1e-2)


def test_bfloat16_logits_are_reduced_in_float32(batch):
    logits, targets, *_ = batch
    rounded = jnp.asarray(logits, jnp.bfloat16)
    loss, _ = losses.token_cross_entropy(rounded, targets)
    assert loss.dtype == jnp.float32
    exact, _ = losses.token_cross_entropy(rounded.astype(jnp.float32), targets)
    np.testing.assert_allclose(loss, exact, rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"loss_normalization": "mean"}, "LOSS_NORMALIZATION"),
        ({"label_smoothing": 1.0}, "LABEL_SMOOTHING"),
        ({"z_loss": -1.0}, "Z_LOSS"),
        ({"z_loss": float("nan")}, "Z_LOSS"),
    ],
)
def test_bad_hyperparameters_get_a_sentence(changed, says):
    good = {"loss_normalization": "token_mean", "label_smoothing": 0.0, "z_loss": 0.0}
    losses.check_hyperparameters(**good)
    with pytest.raises(UserError, match=says):
        losses.check_hyperparameters(**{**good, **changed})
