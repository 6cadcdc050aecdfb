"""T5X's trainer and ours: same data, same weights, same losses, same updates."""

import functools

import jax
import numpy as np
import optax
import pytest

from sbs_jax.errors import UserError
from sbs_jax.evaluation.loss_step import make_loss_step
from sbs_jax.parts import RATIONALE, Method, Part
from sbs_jax.training import placement
from sbs_jax.training.optimizers import Optimizer
from sbs_jax.training.step import Loss, make_train_step
from tests.batches import random_batch

pytestmark = pytest.mark.t5x

STEPS = 3
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
LAMBDA = 0.5
PARTS = ("label", "rationale")
OF_FOUR = Method(
    "four",
    (
        Part("label"),
        Part("rationale"),
        Part("hint", weight=0.3),
        Part("plan", normalization="example_mean"),
    ),
)
# Of 8 devices. T5X's CPU mesh ignores num_partitions, and heeds a submesh.
MESHES = {
    "data": {"num_partitions": None, "model_parallel_submesh": (1, 1, 1, 1)},
    "model": {"num_partitions": None, "model_parallel_submesh": (1, 1, 2, 1)},
}
SHAPES = {"data": {"data": 8, "model": 1}, "model": {"data": 4, "model": 2}}


@pytest.fixture(scope="module")
def tiny():
    from tests.t5x import tiny

    return tiny


@pytest.fixture(scope="module")
def params(tiny):
    return tiny.plain(tiny.student(data=1, devices=jax.devices()[:1]).init_params(0))


def batches(tiny, method=None):
    """Batches of labels and rationales; with `OF_FOUR` every other target is of a further part."""
    made = [
        random_batch(rows=tiny.ROWS, inputs=tiny.INPUTS, targets=tiny.TARGETS, seed=seed)
        for seed in range(STEPS)
    ]
    for batch in made if method is OF_FOUR else []:
        parts = batch["decoder_target_parts"]
        parts += 2 * ((parts > 0) & (batch["decoder_segment_ids"] % 4 > 1))
    return made


@pytest.fixture(scope="module")
def ours(tiny, params):
    """Our metrics of each step and our last parameters; on one device, in one piece."""

    @functools.cache
    def run(normalization, rationale_weight=LAMBDA, method=None):
        student = tiny.student(data=1, devices=jax.devices()[:1])
        sgd = Optimizer(optax.sgd(tiny.LEARNING_RATE), lambda step: tiny.LEARNING_RATE)
        loss = Loss(
            rationale_weight=rationale_weight,
            normalization=normalization,
            label_smoothing=0.1,
            z_loss=0.001,
        )
        step = make_train_step(student.apply, sgd, loss if method is None else loss.of(method))
        state = placement.create_state(student, jax.tree.map(jax.numpy.array, params), sgd, 0)
        step = placement.jit_train_step(student, step, placement.abstract_state(student, sgd, 0))
        measured = []
        for batch in batches(tiny, method):
            state, metrics = step(state, batch)
            measured.append({name: float(value) for name, value in metrics.items()})
        return measured, tiny.plain(state.params)

    return run


def theirs(tiny, params, *, mesh="data", microbatches=None, weight=LAMBDA, **options):
    model = tiny.model(rationale_weight=weight, label_smoothing=0.1, z_loss=1e-3, **options)
    partitioner = tiny.partitioner(**MESHES[mesh])
    assert dict(partitioner.mesh.shape) == SHAPES[mesh]
    with tiny.trainer(model, params, partitioner, num_microbatches=microbatches) as trainer:
        measured = []
        for number, batch in enumerate(batches(tiny, options.get("method"))):
            summary = trainer.train(iter([batch]), 1, start_step=number).result()
            jax.block_until_ready(trainer.train_state)
            measured.append({name: value.value for name, value in summary.items()})
        return measured, tiny.plain(trainer.train_state.params)


@pytest.mark.parametrize(
    ("mesh", "microbatches", "normalization"),
    [
        ("data", None, "token_mean"),
        ("data", 4, "token_mean"),
        ("model", None, "token_mean"),
        ("model", 4, "token_mean"),
        ("data", 4, "example_mean"),
    ],
)
def test_losses_and_updates_are_ours(tiny, params, ours, mesh, microbatches, normalization):
    expected, expected_params = ours(normalization)
    measured, new_params = theirs(
        tiny, params, mesh=mesh, microbatches=microbatches, loss_normalization=normalization
    )
    names = ["loss", "z_loss", "rationale_weight"]
    names += [f"{p}_{name}" for p in PARTS for name in ("loss", "accuracy", "tokens", "targets")]
    for mine, other in zip(expected, measured, strict=True):
        for name in names:
            np.testing.assert_allclose(other[name], mine[name], **TOLERANCE, err_msg=name)
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), expected_params, params)
    assert min(jax.tree.leaves(moved)) > 1e-4
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, **TOLERANCE), new_params, expected_params
    )


def test_a_schedule_of_lambda_among_four_parts(tiny, params, ours):
    ramp = optax.linear_schedule(0.0, 1.0, STEPS - 1)
    expected, expected_params = ours("token_mean", ramp, OF_FOUR)
    measured, new_params = theirs(tiny, params, microbatches=4, weight=ramp, method=OF_FOUR)
    assert [float(m["rationale_weight"]) for m in measured] == [0.0, 0.5, 1.0]
    names = ["loss", "hint_weight"]
    names += [
        f"{part.name}_{name}"
        for part in OF_FOUR.parts
        for name in ("loss", "accuracy", "tokens", "targets")
    ]
    for mine, other in zip(expected, measured, strict=True):
        assert all(mine[f"{part.name}_tokens"] > 20 for part in OF_FOUR.parts)
        for name in names:
            np.testing.assert_allclose(other[name], mine[name], **TOLERANCE, err_msg=name)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, **TOLERANCE), new_params, expected_params
    )


def test_evaluation_takes_the_mean_over_all_batches(tiny, params):
    """Several steps and evaluation batches give means over all their tokens, as ours do."""
    student = tiny.student(data=1, devices=jax.devices()[:1])
    step = student.jit(make_loss_step(student.apply))
    sums = [step(params, batch) for batch in batches(tiny)]
    expected = {
        p: float(sum(s[p]["loss"] for s in sums) / sum(s[p]["weight"] for s in sums)) for p in PARTS
    }
    with tiny.trainer(tiny.model(), params, tiny.partitioner()) as trainer:
        summary = trainer.eval({"split": iter(batches(tiny))})["split"]
    for part, value in expected.items():
        np.testing.assert_allclose(summary[f"{part}_loss"].value, value, **TOLERANCE)


def test_a_part_without_tokens_writes_nothing(tiny, params, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (batch, *_) = batches(tiny)
    gone = batch["decoder_target_parts"] == RATIONALE
    for name in ("decoder_target_parts", "decoder_target_tokens", "decoder_segment_ids"):
        batch[name] = np.where(gone, 0, batch[name])
    options = {"summary_dir": str(tmp_path)}
    with tiny.trainer(tiny.model(), params, tiny.partitioner(), **options) as trainer:
        trainer.train(iter([batch]), 1).result()
        jax.block_until_ready(trainer.train_state)
        trainer.eval({"split": iter([batch])})
    for folder in ("train", "training_eval/split"):
        events = EventAccumulator(str(tmp_path / folder), size_guidance={"tensors": 0})
        events.Reload()
        tags = events.Tags()
        names = set(tags["tensors"] + tags["scalars"]) - {"rationale_weight"}
        assert {"loss", "label_loss", "label_accuracy", "label_tokens", "label_targets"} <= names
        assert not [name for name in names if name.startswith("rationale")]


def test_another_trainer_is_refused(tiny, params):
    from t5x import trainer as t5x_trainer

    options = {"cls": t5x_trainer.Trainer, "num_microbatches": 4}
    with (
        tiny.trainer(tiny.model(), params, tiny.partitioner(), **options) as trainer,
        pytest.raises(UserError, match="PartTrainer"),
    ):
        trainer.train(iter(batches(tiny)), 1)


def test_bad_hyperparameters(tiny):
    with pytest.raises(UserError, match="LOSS_NORMALIZATION = 'sum' is unknown"):
        tiny.model(loss_normalization="sum")
    with pytest.raises(UserError, match=r"LABEL_SMOOTHING = 1\.5"):
        tiny.model(label_smoothing=1.5)
