"""PREFIX_SIDE = 'decoder' against Hugging Face's T5, an input encoded anew for every target."""

import jax
import numpy as np
import pytest

from sbs_jax import losses
from sbs_jax.data.batching import Batching, TrainBatches
from sbs_jax.data.records import Counts, Records, shared_sources
from sbs_jax.evaluation.loss_step import make_loss_step
from sbs_jax.parts import LABEL, PADDING, RATIONALE
from tests.batches import network_inputs, part_sums
from tests.hf_models import hf_model, torch
from tests.hf_weights import params_from_huggingface
from tests.t5_weights import apply, our_model

PROMPTS = {LABEL: [7, 8], RATIONALE: [9]}
LAMBDA = 0.7


@pytest.fixture(scope="module")
def examples():
    """(question, {part: target}) of six examples, all but one with both parts."""
    rng = np.random.default_rng(2)
    return [
        (
            [*rng.integers(10, 64, rng.integers(3, 12)), 1],
            {
                part: [*rng.integers(10, 64, rng.integers(1, longest)), 1]
                for part, longest in ((LABEL, 4), (RATIONALE, 12))
                if (index, part) != (3, RATIONALE)
            },
        )
        for index in range(6)
    ]


def ragged(sequences):
    offsets = np.cumsum([0, *map(len, sequences)]).astype(np.int64)
    return np.concatenate(sequences).astype(np.int32), offsets


@pytest.fixture(scope="module")
def records(examples):
    rows = [
        (index, question, PROMPTS[part] + target, [PADDING] * len(PROMPTS[part]), part)
        for index, (question, targets) in enumerate(examples)
        for part, target in targets.items()
    ]
    inputs, input_offsets = ragged([row[1] for row in rows])
    targets, target_offsets = ragged([row[2] for row in rows])
    parts = [row[3] + [row[4]] * (len(row[2]) - len(row[3])) for row in rows]
    example = np.array([row[0] for row in rows], np.int32)
    return Records(
        input_tokens=inputs,
        input_offsets=input_offsets,
        target_tokens=targets,
        target_parts=np.concatenate(parts).astype(np.int8),
        target_offsets=target_offsets,
        example=example,
        counts=Counts(6, 6, 5),
        source=shared_sources(inputs, input_offsets, example),
    )


def reference(model, examples):
    """The losses of both parts and the gradient, in torch: a forward pass for every target."""
    model.zero_grad()
    sums = {LABEL: [0.0, 0], RATIONALE: [0.0, 0]}
    for question, targets in examples:
        for part, target in targets.items():
            sequence = PROMPTS[part] + target
            labels = [-100] * len(PROMPTS[part]) + target
            logits = model(
                input_ids=torch.tensor([question]),
                decoder_input_ids=torch.tensor([[0, *sequence[:-1]]]),
            ).logits[0]
            sums[part][0] += torch.nn.functional.cross_entropy(
                logits, torch.tensor(labels), ignore_index=-100, reduction="sum"
            )
            sums[part][1] += len(target)
    means = {part: total / count for part, (total, count) in sums.items()}
    (means[LABEL] + LAMBDA * means[RATIONALE]).backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    return {part: mean.item() for part, mean in means.items()}, gradients


def our_sums(config, params, batch):
    return part_sums(apply(config, params, **network_inputs(batch)), batch)


@pytest.mark.parametrize("pack", [True, False])
def test_equals_a_forward_pass_for_every_target(records, examples, pack):
    """Losses of both parts to 1e-5 relative, every gradient to 1e-4 of its norm."""
    config, params = our_model("v1.1", "plain")
    batch = next(
        TrainBatches(
            records,
            Batching({"inputs": 32, "targets": 32}, pack=pack, examples_per_batch=6),
            seed=0,
        )
    )
    # Eleven targets share six inputs, whatever the rows are.
    assert np.count_nonzero(batch["encoder_input_tokens"]) == sum(len(q) for q, _ in examples)

    def loss_fn(params):
        sums = our_sums(config, params, batch)
        return losses.join(sums, LAMBDA), sums

    (_, sums), ours = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
    expected, gradients = reference(hf_model("v1.1", "plain"), examples)
    for part, name in ((LABEL, "label"), (RATIONALE, "rationale")):
        np.testing.assert_allclose(sums[name].loss, expected[part], rtol=1e-5)
    assert (sums["label"].targets, sums["rationale"].targets) == (6, 5)
    wanted = params_from_huggingface(gradients, config)
    for (path, mine), theirs in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(wanted), strict=True
    ):
        difference = np.linalg.norm(np.asarray(mine) - theirs)
        assert difference <= 1e-4 * np.linalg.norm(theirs), path


def test_example_means_leave_the_prompt_out(records, examples):
    """Each target's mean is over its own tokens, to 1e-5."""
    config, params = our_model("v1.1", "plain")
    batches = TrainBatches(
        records, Batching({"inputs": 32, "targets": 32}, examples_per_batch=6), seed=0
    )

    def apply_fn(params, batch, dropout_rng):
        return apply(config, params, **network_inputs(batch))

    step = make_loss_step(apply_fn, loss_normalization="example_mean")
    sums = jax.jit(step)(params, next(batches))
    model = hf_model("v1.1", "plain")
    for part, name in ((LABEL, "label"), (RATIONALE, "rationale")):
        means = []
        for question, targets in examples:
            if part in targets:
                sequence = PROMPTS[part] + targets[part]
                with torch.no_grad():
                    logits = model(
                        input_ids=torch.tensor([question]),
                        decoder_input_ids=torch.tensor([[0, *sequence[:-1]]]),
                    ).logits[0, len(PROMPTS[part]) :]
                means.append(
                    torch.nn.functional.cross_entropy(logits, torch.tensor(targets[part])).item()
                )
        np.testing.assert_allclose(
            sums[name]["loss"] / sums[name]["weight"], np.mean(means), rtol=1e-5
        )
