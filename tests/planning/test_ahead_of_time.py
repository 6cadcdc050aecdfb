"""What was compiled for virtual CPU devices alone holds on pods: meshes, constraints, collectives.

Skipped without the compilers, which the extras `plan-tpu` and `plan-cuda` install.
"""

import re

import jax
import jax.numpy as jnp
import pytest

from sbs_jax.models.config import T5Config
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.planning import compiling, flops, targets, topology
from sbs_jax.student import Student
from sbs_jax.training import optimizers, placement
from sbs_jax.training.step import make_train_step

CONFIG = T5Config(
    vocab_size=512,
    emb_dim=128,
    num_heads=4,
    num_encoder_layers=2,
    num_decoder_layers=2,
    head_dim=32,
    mlp_dim=256,
    dtype="bfloat16",
    scan_layers=True,
)
INPUTS, TARGETS = 128, 64
SLICES = {
    "v4": ("2x2x1", "2x2x2", "4x4x4"),
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "4x4x4"),
    "v6e": ("2x2", "4x4", "8x8", "16x16"),
    "tpu7x": ("2x2x1", "4x4x4"),
}


def devices_of(name):
    target = targets.parse_target(name)
    extra = topology.missing_extra(target)
    if extra is not None:
        pytest.skip(f"the extra {extra} is not installed")
    return target, topology.devices_of(target)


@pytest.mark.parametrize("kind", SLICES)
def test_every_model_axis_on_every_slice(kind):
    for shape in SLICES[kind]:
        target, devices = devices_of(f"{kind}:{shape}")
        assert len(devices) == target.num_devices
        model = 1
        while model <= len(devices):
            mesh = make_mesh(-1, model, devices)
            assert dict(mesh.shape) == {"data": len(devices) // model, "model": model}
            assert len(set(mesh.devices.flat)) == len(devices)
            model *= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:2x2", "h100:4"])
def test_a_fully_sharded_step(name):
    target, devices = devices_of(name)
    student = Student(CONFIG, make_mesh(2, 2, devices), fsdp=True)
    optimizer = optimizers.adamw(1e-3)
    state = placement.abstract_state(student, optimizer, seed=0)
    step = placement.jit_train_step(
        student, make_train_step(student.hidden, optimizer, head=student.head), state
    )
    rows = 8 * len(devices)
    batch = {
        f"encoder_{key}": jax.ShapeDtypeStruct((rows, INPUTS), jnp.int32)
        for key in ("input_tokens", "segment_ids")
    } | {
        f"decoder_{key}": jax.ShapeDtypeStruct((rows, TARGETS), jnp.int32)
        for key in ("input_tokens", "target_tokens", "target_parts", "segment_ids")
    }
    lowered = step.lower(state, batch)
    assert len(re.findall(r"sdy\.sharding_constraint", lowered.as_text())) >= 20
    forward = flops.count_flops(
        lambda params, batch: student.apply(params, batch, None), state.params, batch
    )
    compiled = compiling.compile_program(
        "train step",
        lambda: lowered,
        mesh=student.mesh,
        target=target,
        params=state.params,
        opt_state=state.opt_state,
        model_flops=3 * forward,
    )
    assert compiled.fits
    whole = {rows, rows * INPUTS, rows * TARGETS}
    gathered = [one for one in compiled.program.collectives if one.kind == "all-gather"]
    assert gathered  # of parameters
    assert not [one for one in gathered if one.shape[0] in "bf" and one.dims[0] in whole]
    # What a device computes is its share: nothing is computed twice, nothing is left uncounted.
    share = 3 * forward / len(devices)
    assert 0.98 * share < compiled.program.flops < 1.1 * share
    assert 0 < compiled.bound.seconds < 1
    assert 0 < compiled.utilization < 1
