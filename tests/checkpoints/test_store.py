"""Orbax is met in one file, and its v1 interface reads the checkpoints that we write."""

import re

import jax
import numpy as np
import pytest

from sbs_jax.checkpoints import folders, reading
from sbs_jax.checkpoints.manager import CheckpointManager
from tests.paths import ROOT
from tests.training.toy_run import fresh_state, mesh_of


def orbax_v1():
    """Orbax's v1 interface, where the installed version has it."""
    try:
        from orbax.checkpoint import v1
    except ImportError:
        v1 = pytest.importorskip("orbax.checkpoint.experimental.v1")
    return v1


def test_one_file_imports_orbax():
    found = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "sbs_jax").rglob("*.py")
        if re.search(r"^\s*(from|import) orbax", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert found == ["sbs_jax/checkpoints/store.py"]


def test_orbax_v1_reads_our_checkpoints(tmp_path):
    v1 = orbax_v1()
    state = fresh_state(mesh_of(2, 4))
    with CheckpointManager(tmp_path) as manager:
        manager.save(3, state, extra={"position": {"data": 5}})
        folder = manager.path_of(3)
    for name, tree in zip((folders.PARAMS, folders.TRAINING), reading.split(state), strict=True):
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
        )
        read = v1.load(folder, abstract, checkpointable_name=name)
        assert jax.tree.structure(read) == jax.tree.structure(tree)
        for ours, theirs in zip(jax.tree.leaves(tree), jax.tree.leaves(read), strict=True):
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
            assert theirs.sharding == ours.sharding
    shapes = v1.metadata(folder, checkpointable_name=folders.PARAMS).metadata
    assert jax.tree.map(lambda leaf: tuple(leaf.shape), shapes) == jax.tree.map(
        lambda leaf: leaf.shape, reading.split(state)[0]
    )
