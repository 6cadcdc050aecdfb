"""T5X's two formats, from checkpoints that the tests write as T5X does, and from real ones."""

import dataclasses
import os
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util

from sbs_jax.checkpoints.loading import identify, load_params
from sbs_jax.checkpoints.networks import require_same_network
from sbs_jax.errors import UserError
from sbs_jax.models import stacking
from sbs_jax.models.config import T5Config
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.student import Student
from tests.checkpoints.t5x_layout import write_legacy, write_orbax
from tests.t5_weights import our_model

REAL = os.environ.get("SBS_T5X_CHECKPOINTS_DIR")
CONFIG, PARAMS = our_model("v1.1", "plain")
FLAT = traverse_util.flatten_dict(PARAMS, sep="/")


@pytest.fixture(scope="module")
def student():
    return Student(CONFIG, make_mesh(2, 4), fsdp=True)


def assert_loaded(student, path, expected=FLAT):
    loaded = load_params(identify(path), student.placed_params)
    flat = traverse_util.flatten_dict(loaded, sep="/")
    assert flat.keys() == expected.keys()
    for name, array in flat.items():
        assert array.sharding == traverse_util.flatten_dict(student.param_shardings, sep="/")[name]
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("style", ["now", "gfile", "bucket", "moved"])
def test_legacy(student, tmp_path, style):
    folder = write_legacy(tmp_path / "checkpoint_120", FLAT, style)
    source = identify(folder)
    assert (source.kind, source.step, source.config) == ("t5x", 120, None)
    assert (source.settings, source.vocabulary_path) == ({}, None)
    assert_loaded(student, folder)
    # The run's folder means its latest checkpoint, as does the msgpack file itself.
    assert identify(tmp_path).folder == identify(folder / "checkpoint").folder == source.folder


def test_the_vocabulary_of_a_run_on_our_gin_files(tmp_path):
    folder = write_legacy(tmp_path / "checkpoint_120", FLAT)
    vocabulary = tmp_path / "vocabulary" / "spiece.model"
    vocabulary.parent.mkdir()
    vocabulary.touch()
    assert identify(folder).vocabulary_path == vocabulary


def test_legacy_flat_or_without_a_frame_or_in_bfloat16(student, tmp_path):
    assert_loaded(student, write_legacy(tmp_path / "flat", FLAT, flat=True))
    assert_loaded(student, write_legacy(tmp_path / "bare", FLAT, nested_in=None))
    rounded = {
        name: x if x.ndim < 2 else x.astype(ml_dtypes.bfloat16).astype(np.float32)
        for name, x in FLAT.items()
    }
    assert_loaded(student, write_legacy(tmp_path / "uint16", FLAT, dtype="uint16"), rounded)


@pytest.mark.parametrize("ocdbt", [True, False])
def test_orbax(student, tmp_path, ocdbt):
    folder = write_orbax(tmp_path / "checkpoint_80", PARAMS, ocdbt=ocdbt)
    source = identify(tmp_path)
    assert (source.kind, source.step, str(source.folder)) == ("t5x_orbax", 80, str(folder))
    assert_loaded(student, folder)
    # Checkpoints of before Orbax described its trees.
    (folder / "state" / "_METADATA").unlink()
    assert_loaded(student, folder)


def test_a_misfit_names_the_parameter_and_its_shapes(tmp_path):
    folder = write_legacy(tmp_path / "checkpoint_120", FLAT)

    def message(**changes):
        config = T5Config(**{**vars(CONFIG), **changes})
        with pytest.raises(UserError) as caught:
            load_params(identify(folder), Student(config, make_mesh(8, 1)).placed_params)
        return str(caught.value)

    assert (
        "the shape of parameter decoder/layers_0/mlp/wi_0/kernel is [32, 48] in this checkpoint "
        "but [32, 56] in this run (12 parameters differ)"
    ) in message(mlp_dim=56)
    assert (
        "parameter decoder/logits_dense/kernel is [32, 64] in this checkpoint but not in this run;"
    ) in message(logits_via_embedding=True)
    require_same_network(identify(folder), CONFIG)  # T5X's says nothing beyond its shapes


def scanned_params():
    """All layers of a stack in one array, along axis 1, as T5X's scalable networks have them."""
    stacked = stacking.stack_layers(PARAMS, lambda layers: np.stack(layers, axis=1))
    flat = traverse_util.flatten_dict(stacked, sep="/")
    return {re.sub(r"^(encoder|decoder)/layers/", r"\1/\1/", name): flat[name] for name in flat}


@pytest.mark.parametrize("write", [write_legacy, write_orbax])
def test_layers_that_t5x_scanned_over(student, tmp_path, write):
    params = scanned_params()
    assert any(name.startswith("decoder/decoder/") for name in params)
    if write is write_orbax:
        params = traverse_util.unflatten_dict(params, sep="/")
    folder = write(tmp_path / "checkpoint_80", params)
    assert_loaded(student, folder)
    config = dataclasses.replace(CONFIG, scan_layers=True)
    loaded = load_params(identify(folder), Student(config, make_mesh(2, 4)).placed_params)
    assert stacking.is_stacked(loaded)
    again = traverse_util.flatten_dict(stacking.unstack_layers(loaded), sep="/")
    for name, array in FLAT.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


def test_damage_and_other_kinds_are_told_in_a_sentence(student, tmp_path):
    def message(folder):
        with pytest.raises(UserError) as caught:
            load_params(identify(folder), student.placed_params)
        return str(caught.value)

    lost = write_legacy(tmp_path / "lost", FLAT)
    (lost / "target.token_embedder.embedding" / "0.0").unlink()
    assert "target.token_embedder.embedding: cannot be read" in message(lost)
    (lost / "target.token_embedder.embedding" / ".zarray").unlink()
    assert "target.token_embedder.embedding: cannot be read" in message(lost)

    (lost / "checkpoint").write_bytes((lost / "checkpoint").read_bytes()[:200])
    assert "checkpoint: is no T5X checkpoint that can be read" in message(lost)
    (lost / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-1000"\n')
    assert "checkpoint: is no T5X checkpoint that can be read" in message(lost)
    (lost / "model.ckpt-1000.index").touch()
    assert "is a TensorFlow checkpoint; T5X's convert_tf_checkpoint.py" in message(lost)

    orbax = write_orbax(tmp_path / "orbax", PARAMS)
    (orbax / "state" / "_METADATA").write_text("{")
    assert "_METADATA: is no readable description" in message(orbax)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("orbax", [True, False])
def test_scanned_layers_are_read_one_by_one(tmp_path, axis, orbax):
    """As T5X's scalable_t5 writes them; each of its layers has position biases of its own."""
    config = dataclasses.replace(CONFIG, relative_attention_per_layer=True, num_decoder_layers=3)
    student = Student(config, make_mesh(2, 4), fsdp=True)
    rng = np.random.default_rng(0)
    expected = {
        name: rng.normal(size=leaf.shape).astype(np.float32)
        for name, leaf in traverse_util.flatten_dict(student.abstract_params, sep="/").items()
    }
    stored, layers = {}, {}
    for name, array in expected.items():
        stack, layer, rest = (*name.split("/", 2), "")[:3]
        if layer.startswith("layers_"):
            path = f"{stack}/layers/{rest.replace('relpos_bias', 'relative_posemb')}"
            layers.setdefault(path, []).append(array)
        else:
            stored[name] = array
    stored |= {path: np.stack(arrays, axis) for path, arrays in layers.items()}
    folder = tmp_path / "checkpoint_80"
    if orbax:
        write_orbax(folder, traverse_util.unflatten_dict(stored, sep="/"))
    else:
        write_legacy(folder, stored)
    assert_loaded(student, folder, expected)


@pytest.mark.skipif(
    REAL is None, reason="SBS_T5X_CHECKPOINTS_DIR does not name the checkpoints that T5X wrote"
)
def test_checkpoints_that_t5x_wrote():
    config = T5Config(
        vocab_size=2048,
        emb_dim=64,
        num_heads=4,
        num_encoder_layers=2,
        num_decoder_layers=2,
        head_dim=16,
        mlp_dim=128,
    )
    student = Student(config, make_mesh(2, 4), fsdp=True)
    legacy, orbax = (identify(Path(REAL) / name) for name in ("legacy", "orbax"))
    assert (legacy.kind, legacy.step) == ("t5x", 6)
    assert (orbax.kind, orbax.step) == ("t5x_orbax", 80)
    early, late = (
        traverse_util.flatten_dict(load_params(source, student.placed_params), sep="/")
        for source in (legacy, orbax)
    )
    # Both began at one seed: whatever is not where it belongs would be unrelated.
    for name, array in early.items():
        if array.ndim == 2:
            assert np.corrcoef(np.ravel(array), np.ravel(late[name]))[0, 1] > 0.8, name
