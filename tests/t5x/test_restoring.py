"""Weights go both ways: T5X reads ours, and our loader what T5X wrote, in both of its formats."""

import functools

import jax
import numpy as np
import pytest

from sbs_jax.checkpoints import loading
from sbs_jax.checkpoints.manager import CheckpointManager
from sbs_jax.decoding.greedy import greedy_decode
from sbs_jax.errors import UserError
from sbs_jax.training import placement
from sbs_jax.training.optimizers import adamw
from sbs_jax.training.schedules import constant
from tests.batches import random_batch

pytestmark = pytest.mark.t5x


@pytest.fixture(scope="module")
def tiny():
    from tests.t5x import tiny

    return tiny


@pytest.fixture(scope="module")
def params(tiny):
    return tiny.plain(tiny.student().init_params(7))


@pytest.fixture(scope="module")
def model_dir(tiny, params, tmp_path_factory):
    """A MODEL_DIR of ours, with a checkpoint of step 3."""
    folder = tmp_path_factory.mktemp("ours")
    student = tiny.student()
    state = placement.create_state(
        student, jax.device_put(params, student.param_shardings), adamw(constant(1e-3)), 0
    )
    with CheckpointManager(folder) as manager:
        manager.save(3, state)
    return folder


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def written_by_t5x(tiny, params, folder, kind):
    from t5x import adafactor, checkpoints

    model = tiny.model(
        adafactor.Adafactor(
            1e-3,
            decay_rate=0.8,
            step_offset=0,
            logical_factor_rules=adafactor.standard_logical_factor_rules(),
        )
    )
    partitioner = tiny.partitioner()
    init = tiny.initializer(model, partitioner)
    with tiny.trainer(model, params, partitioner) as trainer:
        state = trainer.train_state
    shape = init.global_train_state_shape
    if kind == "t5x":
        checkpoints.Checkpointer(shape, partitioner, str(folder)).save(state)
    else:
        manager = checkpoints.OrbaxCheckpointManagerInterface(str(folder), shape, partitioner)
        manager.save(state)
        manager.wait_until_finished()
        manager.close()
    return folder / "checkpoint_0"


@pytest.mark.parametrize("kind", ["t5x", "t5x_orbax"])
def test_our_loader_reads_what_t5x_writes(tiny, params, tmp_path, kind):
    folder = written_by_t5x(tiny, params, tmp_path, kind)
    source = loading.identify(folder)
    assert source.kind == kind
    assert_same(tiny.plain(loading.load_params(source, tiny.student().placed_params)), params)


@pytest.mark.parametrize("submesh", [(1, 1, 1, 1), (1, 1, 2, 1)])
def test_t5x_starts_from_ours(tiny, params, model_dir, submesh):
    from sbs_jax.t5x.restoring import TrainStateInitializer, t5x_checkpoint

    partitioner = tiny.partitioner(model_parallel_submesh=submesh)
    init = tiny.initializer(
        tiny.model(), partitioner, cls=TrainStateInitializer, weights_path=str(model_dir)
    )
    state = init.from_scratch(jax.random.PRNGKey(0))
    assert_same(tiny.plain(state.params), params)
    assert int(state.step) == 0
    shardings = jax.tree.map(lambda leaf: leaf.sharding.spec, state.params)
    assert jax.tree.leaves(shardings) == jax.tree.leaves(init.train_state_axes.params)
    assert t5x_checkpoint(str(model_dir)) is None  # T5X itself has nothing to restore


def test_t5x_evaluates_ours(tiny, params, model_dir):
    from sbs_jax.t5x import restoring

    partitioner = tiny.partitioner()
    init = tiny.initializer(tiny.model(), partitioner, optimizer=False)
    folder = model_dir / "checkpoint_3"
    manager = restoring.CheckpointManager(str(folder), init.global_train_state_shape, partitioner)
    state = manager.restore(path=str(folder))
    manager.close()
    assert_same(tiny.plain(state.params), params)


def test_t5x_still_reads_its_own(tiny, params, tmp_path):
    from sbs_jax.t5x import restoring

    folder = written_by_t5x(tiny, params, tmp_path, "t5x_orbax")
    assert restoring.t5x_checkpoint(str(folder)) == str(folder)
    assert restoring.t5x_checkpoint(None) is None
    partitioner = tiny.partitioner()
    init = tiny.initializer(tiny.model(), partitioner, optimizer=False)
    manager = restoring.CheckpointManager(str(folder), init.global_train_state_shape, partitioner)
    state = manager.restore(path=str(folder))
    manager.close()
    assert_same(tiny.plain(state.params), params)


def test_weights_of_another_size_are_refused(tiny, model_dir, monkeypatch):
    from sbs_jax.t5x.restoring import TrainStateInitializer

    monkeypatch.setitem(tiny.DIMENSIONS, "mlp_dim", 48)
    init = tiny.initializer(
        tiny.model(), tiny.partitioner(), cls=TrainStateInitializer, weights_path=str(model_dir)
    )
    with pytest.raises(UserError, match="mlp/w"):
        init.from_scratch(jax.random.PRNGKey(0))


def test_the_same_weights_decode_the_same(tiny, params):
    from t5x import decoding

    greedy = functools.partial(decoding.temperature_sample, temperature=0.0, topk=1)
    model = tiny.model(decode_fn=greedy)
    tokens = random_batch(rows=8, inputs=12, targets=4, seed=5)["encoder_input_tokens"]
    batch = {"encoder_input_tokens": tokens, "decoder_input_tokens": np.zeros((8, 10), np.int32)}
    theirs = np.asarray(jax.jit(model.predict_batch)(params, batch, jax.random.PRNGKey(0)))
    student = tiny.student(data=1, devices=jax.devices()[:1])
    decode = student.jit(functools.partial(greedy_decode, student.model, max_decode_len=10))
    ours = np.asarray(decode(params, tokens))
    assert len(np.unique(ours)) > 5
    real = tokens.any(axis=1)  # ours answers an empty row with nothing
    assert real.sum() == 7
    np.testing.assert_array_equal(ours[real], theirs[real, :10])
