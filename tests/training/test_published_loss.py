"""Our packed step against the published trainer's loss: two padded passes of Hugging Face's T5.

The published trainer computes α · loss(label) + (1 - α) · loss(rationale), each the token mean of
one forward pass over the padded batch of that part. We pack both parts into rows and compute
L = mean_label + λ · mean_rationale with λ = (1 - α) / α, so the published loss is α · L.
"""

import jax
import numpy as np
import pytest

from sbs_jax import losses
from sbs_jax.data.batching import Batching, TrainBatches
from sbs_jax.data.records import Counts, Records
from sbs_jax.parts import LABEL, RATIONALE
from tests.batches import network_inputs, part_sums
from tests.hf_models import hf_model, torch
from tests.hf_weights import params_from_huggingface
from tests.t5_weights import apply, our_model

EXAMPLES = 6


def ragged(sequences):
    return (
        np.concatenate(sequences).astype(np.int32),
        np.cumsum([0, *map(len, sequences)]).astype(np.int64),
    )


@pytest.fixture(scope="module")
def records():
    """Six examples: a label record and a rationale record each, of random lengths."""
    rng = np.random.default_rng(5)
    inputs, targets, parts = [], [], []
    for _ in range(EXAMPLES):
        question = rng.integers(2, 64, rng.integers(3, 12))
        for part, longest in ((LABEL, 4), (RATIONALE, 14)):
            inputs.append(np.concatenate([[part + 10], question, [1]]))
            target = np.append(rng.integers(2, 64, rng.integers(1, longest)), 1)
            targets.append(target)
            parts.append(np.full(target.size, part))
    input_tokens, input_offsets = ragged(inputs)
    target_tokens, target_offsets = ragged(targets)
    return Records(
        input_tokens=input_tokens,
        input_offsets=input_offsets,
        target_tokens=target_tokens,
        target_parts=np.concatenate(parts).astype(np.int8),
        target_offsets=target_offsets,
        example=np.repeat(np.arange(EXAMPLES, dtype=np.int32), 2),
        counts=Counts(EXAMPLES, EXAMPLES, EXAMPLES),
    )


def batch_of(records, pack):
    batches = TrainBatches(
        records,
        Batching({"inputs": 32, "targets": 32}, pack=pack, examples_per_batch=EXAMPLES),
        seed=0,
    )
    return next(batches)


def published_loss(model, records, alpha):
    """`compute_loss` of the published trainer, in torch, with its gradients."""
    model.zero_grad()
    parts = np.asarray([records.target_parts[start] for start in records.target_offsets[:-1]])
    total = 0.0
    for part, weight in ((LABEL, alpha), (RATIONALE, 1 - alpha)):
        rows = np.flatnonzero(parts == part)
        input_ids = padded(records.input_tokens, records.input_offsets, rows, 0)
        total = (
            total
            + weight
            * model(
                input_ids=input_ids,
                attention_mask=(input_ids > 0).long(),
                labels=padded(records.target_tokens, records.target_offsets, rows, -100),
            ).loss
        )
    total.backward()
    return total.item(), {name: p.grad.numpy() for name, p in model.named_parameters()}


def padded(tokens, offsets, rows, padding):
    longest = max(offsets[row + 1] - offsets[row] for row in rows)
    array = np.full((len(rows), longest), padding, np.int64)
    for index, row in enumerate(rows):
        sequence = tokens[offsets[row] : offsets[row + 1]]
        array[index, : sequence.size] = sequence
    return torch.tensor(array)


def our_loss(config, params, batch, lambda_):
    def loss_fn(params):
        logits = apply(config, params, **network_inputs(batch))
        return losses.join(part_sums(logits, batch), lambda_)

    return jax.jit(jax.value_and_grad(loss_fn))(params)


@pytest.mark.parametrize("version", ["v1.0", "v1.1"])
def test_packed_step_equals_the_published_trainer(records, version):
    """Loss to 1e-5 relative at three values of α; every gradient to 1e-4 of its norm."""
    config, params = our_model(version, "plain")
    batch = batch_of(records, pack=True)
    assert batch["decoder_segment_ids"].max() > 1  # really packed
    for alpha in (0.5, 0.2, 0.9):
        expected, gradients = published_loss(hf_model(version, "plain"), records, alpha)
        loss, ours = our_loss(config, params, batch, (1 - alpha) / alpha)
        np.testing.assert_allclose(alpha * loss, expected, rtol=1e-5)
        wanted = params_from_huggingface(gradients, config)
        for (path, mine), theirs in zip(
            jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(wanted), strict=True
        ):
            difference = np.linalg.norm(alpha * np.asarray(mine) - theirs)
            assert difference <= 1e-4 * np.linalg.norm(theirs), path


def test_packed_equals_unpacked(records):
    """Loss and gradients to 1e-5."""
    config, params = our_model("v1.1", "plain")
    packed, single = batch_of(records, pack=True), batch_of(records, pack=False)
    assert len(packed["decoder_segment_ids"]) < len(single["decoder_segment_ids"])
    loss, gradients = our_loss(config, params, packed, 0.7)
    expected, wanted = our_loss(config, params, single, 0.7)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for (path, mine), theirs in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(wanted), strict=True
    ):
        difference = np.linalg.norm(np.asarray(mine) - np.asarray(theirs))
        assert difference <= 1e-5 * np.linalg.norm(theirs), path
