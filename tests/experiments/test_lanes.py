"""Lanes against steps taken alone: parameters and metrics equal to 1e-5."""

import dataclasses
import threading
from concurrent import futures

import jax
import numpy as np
import pytest

from sbs_jax.checkpoints import lora
from sbs_jax.errors import UserError
from sbs_jax.experiments.lanes import Lanes, make_lane_step, stack_batches
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.parts import Method, Part
from sbs_jax.student import Student
from sbs_jax.training import placement
from sbs_jax.training.optimizers import adamw, freeze
from sbs_jax.training.schedules import linear_decay
from sbs_jax.training.step import Loss, make_train_step
from tests import toy
from tests.batches import random_batch

CONFIG = dataclasses.replace(toy.CONFIG, vocab_size=64, dropout_rate=0.1)
WEIGHTS = (0.0, 0.3, 3.0)
ROWS = (8, 8, 4)  # lanes may need different numbers of rows
STEPS = 3


@pytest.fixture(scope="module")
def student():
    return Student(CONFIG, make_mesh(2, 1, jax.devices()[:2]))


@pytest.fixture(scope="module")
def optimizer():
    return adamw(1e-2)


def fresh(student, optimizer, lane):
    return placement.create_state(student, student.init_params(lane), optimizer, lane)


def batch_of(lane, step):
    return random_batch(rows=ROWS[lane], seed=10 * lane + step)


@pytest.fixture(scope="module")
def alone(student, optimizer):
    """By lane: parameters after all steps, and the loss of each."""
    results = []
    for lane, weight in enumerate(WEIGHTS):
        abstract = placement.abstract_state(student, optimizer, lane)
        step = make_train_step(student.apply, optimizer, Loss(rationale_weight=weight))
        step = placement.jit_train_step(student, step, abstract)
        state, losses = fresh(student, optimizer, lane), []
        for number in range(STEPS):
            state, metrics = step(state, batch_of(lane, number))
            losses.append(float(metrics["loss"]))
        results.append((jax.device_get(state.params), losses))
    return results


def together(student, optimizer, steps=(STEPS,) * 3, **options):
    """The same, by lanes that take so many steps each, in threads that meet."""
    abstract = placement.abstract_state(student, optimizer, 0)
    meeting = Lanes(student, make_lane_step(student, optimizer), abstract, WEIGHTS, **options)
    results = [None] * len(WEIGHTS)

    def go(lane):
        try:
            state, losses = fresh(student, optimizer, lane), []
            for number in range(steps[lane]):
                state, metrics = meeting.step(lane, state, batch_of(lane, number))
                losses.append(jax.device_get(metrics)["loss"].item())
                state.block_until_ready()
            results[lane] = (jax.device_get(state.params), losses)
        finally:
            meeting.leave(lane)

    threads = [threading.Thread(target=go, args=(lane,)) for lane in range(len(WEIGHTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def assert_equal(one, two):
    params, losses = one
    expected, expected_losses = two
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), params, expected
    )


@pytest.mark.parametrize("side_by_side", [True, False])
def test_lanes_are_what_separate_runs_are(student, optimizer, alone, side_by_side):
    """Side by side as on an accelerator, and one after another as on a CPU."""
    for lane, result in enumerate(together(student, optimizer, side_by_side=side_by_side)):
        assert_equal(result, alone[lane])


def test_the_weights_of_all_parts_are_lanes(student, optimizer):
    parts = (Part("label", weight=1.0), Part("rationale"))
    of_lanes = ({"label": 0.5, "rationale": 2.0}, {"label": 3.0, "rationale": 0.0})
    meeting = Lanes(
        student,
        make_lane_step(student, optimizer, Loss().of(Method("weighed", parts))),
        placement.abstract_state(student, optimizer, 0),
        of_lanes,
    )
    with futures.ThreadPoolExecutor(2) as threads:
        started = [
            threads.submit(meeting.step, lane, fresh(student, optimizer, 0), batch_of(0, 0))
            for lane in range(2)
        ]
    for (_, metrics), own in zip((one.result() for one in started), of_lanes, strict=True):
        found = {name: float(np.asarray(value)) for name, value in metrics.items()}
        assert {name: found[f"{name}_weight"] for name in own} == own
        expected = sum(weight * found[f"{name}_loss"] for name, weight in own.items())
        np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)


def test_a_lane_that_leaves_does_not_disturb_the_others(student, optimizer, alone):
    results = together(student, optimizer, steps=(1, STEPS, STEPS))
    assert len(results[0][1]) == 1
    for lane in (1, 2):
        assert_equal(results[lane], alone[lane])


def test_all_lanes_stop_at_the_same_step(student, optimizer):
    abstract = placement.abstract_state(student, optimizer, 0)
    asked = iter([False, True])
    meeting = Lanes(
        student,
        make_lane_step(student, optimizer),
        abstract,
        (1.0,),
        stopping=lambda: next(asked),
    )
    state, _ = meeting.step(0, fresh(student, optimizer, 0), batch_of(0, 0))
    assert not meeting.stops
    meeting.step(0, state, batch_of(0, 1))
    assert meeting.stops


def test_every_lane_hears_of_an_error(student, optimizer):
    abstract = placement.abstract_state(student, optimizer, 0)
    meeting = Lanes(student, lambda *_: 1 / 0, abstract, (1.0, 1.0))
    errors = []

    def go(lane):
        try:
            meeting.step(lane, fresh(student, optimizer, lane), batch_of(lane, 0))
        except RuntimeError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=go, args=(lane,)) for lane in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == ["the step of all lanes failed: division by zero"] * 2


def test_a_state_of_an_earlier_step_is_refused(student, optimizer):
    abstract = placement.abstract_state(student, optimizer, 0)
    meeting = Lanes(student, make_lane_step(student, optimizer), abstract, (1.0,))
    first, _ = meeting.step(0, fresh(student, optimizer, 0), batch_of(0, 0))
    meeting.step(0, first, batch_of(0, 1))
    with pytest.raises(RuntimeError, match="earlier step"):
        first.materialize()


def test_lanes_of_adapters_share_the_weights_that_they_adapt():
    """Each with a learning rate of its own."""
    config = dataclasses.replace(toy.DECODER, vocab_size=64, lora_rank=2)
    student = Student(config, make_mesh(devices=jax.devices()[:1]))
    rates = (1e-2, linear_decay(3e-2, STEPS))
    optimizers = [freeze(adamw(rate), (lora.FROZEN,)) for rate in rates]
    abstract = placement.abstract_state(student, optimizers[0], 0)
    base = lora.split(student.init_params(0))[0]

    def begin(lane):
        params = lora.join(base, lora.adapters_of(student.init_params(lane)))
        state = placement.create_state(student, student.init_params(0), optimizers[lane], lane)
        return dataclasses.replace(state, params=params)

    schedules = [optimizer.learning_rate for optimizer in optimizers]
    lane_step = make_lane_step(student, optimizers[0], learning_rates=schedules)
    meeting = Lanes(student, lane_step, abstract, WEIGHTS[1:], side_by_side=True, adapters=True)
    states = [begin(0), begin(1)]
    with futures.ThreadPoolExecutor(2) as threads:
        for number in range(STEPS):
            batches = [batch_of(0, number), batch_of(1, number)]
            done = list(threads.map(meeting.step, (0, 1), states, batches))
            states = [state for state, _ in done]
    found = [jax.device_get(state.params) for state in states]
    for lane, weight in enumerate(WEIGHTS[1:]):
        loss = Loss(rationale_weight=weight)
        step = make_train_step(student.hidden, optimizers[lane], loss, head=student.head)
        step = student.jit(step)
        state = begin(lane)
        for number in range(STEPS):
            state, metrics = step(state, batch_of(lane, number))
        assert np.asarray(done[lane][1]["learning_rate"]) == metrics["learning_rate"]
        np.testing.assert_allclose(np.asarray(done[lane][1]["loss"]), metrics["loss"], rtol=1e-5)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
            found[lane],
            state.params,
        )
    with pytest.raises(UserError, match="adapt different weights"):
        others = Lanes(student, lane_step, abstract, (1.0, 1.0), adapters=True)
        copied = dataclasses.replace(begin(0), params=student.init_params(0))
        with futures.ThreadPoolExecutor(2) as threads:
            list(threads.map(others.step, (0, 1), (begin(0), copied), batches))


def test_short_batches_get_empty_rows_at_their_end():
    stacked = stack_batches([batch_of(lane, 0) for lane in range(3)])
    assert stacked["encoder_input_tokens"].shape == (3, 8, 24)
    assert not stacked["decoder_segment_ids"][2, 4:].any()
    np.testing.assert_array_equal(
        stacked["decoder_target_tokens"][2, :4], batch_of(2, 0)["decoder_target_tokens"]
    )
