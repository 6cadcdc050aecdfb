"""Mesh shapes and the sentences about impossible ones (8 virtual devices)."""

import types

import jax
import numpy as np
import pytest

from sbs_jax.errors import UserError
from sbs_jax.partitioning import distributed
from sbs_jax.partitioning.mesh import arrange_devices, check_batch_size, make_mesh
from sbs_jax.partitioning.rules import logical_axis_rules


@pytest.mark.parametrize(
    ("data", "model", "shape"), [(-1, 1, (8, 1)), (-1, 4, (2, 4)), (1, 8, (1, 8)), (4, 2, (4, 2))]
)
def test_shapes(data, model, shape):
    mesh = make_mesh(data, model)
    assert tuple(mesh.shape.values()) == shape
    assert mesh.axis_names == ("data", "model")
    assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(
    ("data", "model", "says"),
    [
        (-1, 3, "MODEL_PARALLEL = 3 does not divide the 8 CPU devices; choose one of 1, 2, 4, 8"),
        (4, 4, "needs 16 devices, but there are 8"),
        (0, 1, "impossible"),
        (-1, 0, "impossible"),
    ],
)
def test_impossible_shapes_get_a_sentence(data, model, says):
    with pytest.raises(UserError, match=says):
        make_mesh(data, model)


def test_batch_size_must_fill_every_device():
    mesh = make_mesh(4, 2)
    check_batch_size(16, mesh, num_microbatches=2)
    with pytest.raises(UserError, match=r"BATCH_SIZE = 12 .* nearest are 8 and 16"):
        check_batch_size(12, mesh, num_microbatches=2)


def test_axes_that_do_not_divide_are_replicated():
    mesh = make_mesh(2, 4)
    sizes = {"vocab": 32, "heads": 6, "joined_kv": 384, "mlp": 10, "embed": 16, "kv": 64}
    rules = dict(logical_axis_rules(mesh, sizes))
    assert rules["batch"] == "data"
    assert (rules["vocab"], rules["joined_kv"]) == ("model", "model")
    assert (rules["heads"], rules["mlp"], rules["embed"], rules["kv"]) == (None,) * 4
    assert dict(logical_axis_rules(mesh, sizes, fsdp=True))["embed"] == "data"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("localhost:1", 2, None), "must be given together"),
        ((None, 2, 0), "must be given together"),
        (("localhost:1", 2, 2), "--process_index=2 must lie between 0"),
    ],
)
def test_incomplete_start_up_flags_get_a_sentence(arguments, says):
    with pytest.raises(UserError, match=says):
        distributed.initialize(*arguments)


def tpu_devices(kind, bounds, cores=1):
    """Stand-ins that tell where they are in a slice, which is all that an arrangement reads."""
    return [
        types.SimpleNamespace(
            platform="tpu", device_kind=kind, coords=[x, y, z], core_on_chip=core, process_index=0
        )
        for z in range(bounds[2])
        for y in range(bounds[1])
        for x in range(bounds[0])
        for core in range(cores)
    ]


SLICES = {
    "v5e:4x4": ("TPU v5 lite", (4, 4, 1), 1),
    "v5e:4x8": ("TPU v5 lite", (4, 8, 1), 1),
    "v5e:8x8": ("TPU v5 lite", (8, 8, 1), 1),
    "v5e:16x16": ("TPU v5 lite", (16, 16, 1), 1),
    "v6e:8x8": ("TPU v6 lite", (8, 8, 1), 1),
    "v5p:4x4x4": ("TPU v5", (4, 4, 4), 1),
    "v4:2x2x2": ("TPU v4", (2, 2, 2), 2),
    "v4:4x4x4": ("TPU v4", (4, 4, 4), 2),
    "tpu7x:2x2x2": ("TPU7x", (2, 2, 2), 2),
}


@pytest.mark.parametrize("name", SLICES)
def test_every_model_axis_on_every_slice(name):
    devices = tpu_devices(*SLICES[name])
    model = 1
    while model <= len(devices):
        grid = arrange_devices(len(devices) // model, model, devices)
        assert grid.shape == (len(devices) // model, model)
        assert {id(device) for device in grid.flat} == {id(device) for device in devices}
        model *= 2


def test_both_cores_of_a_v4_chip_are_neighbours():
    devices = tpu_devices("TPU v4", (2, 2, 1), 2)
    grid = arrange_devices(2, 4, devices)
    assert all(
        a.coords == b.coords for a, b in zip(grid[:, ::2].flat, grid[:, 1::2].flat, strict=True)
    )
    grid = arrange_devices(8, 1, devices)
    assert all(a.coords == b.coords for a, b in zip(grid[::2].flat, grid[1::2].flat, strict=True))
    assert not np.any(grid[::2] == grid[1::2])
