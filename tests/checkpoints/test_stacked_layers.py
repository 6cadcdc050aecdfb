"""Runs that scan over layers and runs that do not take each other's parameters."""

import dataclasses

import jax
import numpy as np
import pytest

from sbs_jax.checkpoints.loading import identify, load_params
from sbs_jax.checkpoints.manager import CheckpointManager
from sbs_jax.models import stacking
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.student import Student
from sbs_jax.training import optimizers, placement
from tests.toy import LAYERS as CONFIG


@pytest.mark.parametrize("stacked", [True, False])
def test_either_way_saved_becomes_either_way_wanted(tmp_path, stacked):
    single = Student(CONFIG, make_mesh(2, 4), fsdp=True)
    scanned = Student(dataclasses.replace(CONFIG, scan_layers=True), make_mesh(4, 2), fsdp=True)
    writer, reader = (scanned, single) if stacked else (single, scanned)
    optimizer = optimizers.sgd(0.1)
    state = placement.create_state(writer, writer.init_params(0), optimizer, 0)
    with CheckpointManager(tmp_path, best_metric=None) as checkpoints:
        checkpoints.save(5, state)
    source = identify(tmp_path)
    assert source.layers_are_stacked == stacked
    loaded = load_params(source, reader.placed_params)
    assert stacking.is_stacked(loaded) != stacked
    jax.tree.map(
        lambda leaf, sharding: np.testing.assert_(leaf.sharding == sharding),
        loaded,
        reader.param_shardings,
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        stacking.unstack_layers(jax.device_get(loaded)),
        stacking.unstack_layers(jax.device_get(state.params)),
    )
    same = load_params(source, writer.placed_params)
    jax.tree.map(np.testing.assert_array_equal, same, state.params)
