"""Compiled programs as they are read: operations, traffic, collectives (8 virtual devices)."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.planning import flops, hlo


def test_loops_count_as_often_as_they_turn():
    def many(x, kernels):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    arguments = (
        jax.ShapeDtypeStruct((16, 32), jnp.float32),
        jax.ShapeDtypeStruct((7, 32, 32), jnp.float32),
    )
    program = hlo.read_program(jax.jit(many).lower(*arguments).compile().as_text())
    assert program.flops == flops.count_flops(many, *arguments) == 7 * 2 * 16 * 32 * 32
    # A kernel is cut out, read and written; the array of all is not read seven times.
    assert 7 * 32 * 32 * 4 < program.traffic < 6 * 7 * 32 * 32 * 4


def test_what_a_loop_saves_is_written_and_read_once():
    """Traffic grows with the turns, not with their square: stacks are updated in place."""

    def traffic(turns):
        def loss(x, kernels):
            return jax.lax.scan(lambda x, k: (jnp.tanh(x @ k), None), x, kernels)[0].sum()

        arguments = (
            jax.ShapeDtypeStruct((64, 32), jnp.float32),
            jax.ShapeDtypeStruct((turns, 32, 32), jnp.float32),
        )
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
        return hlo.read_program(gradient.lower(*arguments).compile().as_text()).traffic

    assert traffic(64) < 4.5 * traffic(16)


def test_a_loop_whose_end_depends_on_data_counts_as_often_as_is_said():
    def until_all_are_negative(x, kernel):
        return jax.lax.while_loop(lambda x: jnp.sum(x > 0) > 0, lambda x: jnp.sin(x @ kernel), x)

    arguments = [jax.ShapeDtypeStruct((8, 8), jnp.float32)] * 2
    text = jax.jit(until_all_are_negative).lower(*arguments).compile().as_text()
    once = 2 * 8 * 8 * 8
    assert hlo.read_program(text).flops == once
    assert hlo.read_program(text, turns=5).flops == 5 * once
    assert flops.count_flops(until_all_are_negative, *arguments, turns=5) == 5 * once


def test_recomputation_counts_as_often_as_it_happens():
    def layer(x, kernel):
        return jnp.tanh(jnp.tanh(x @ kernel) @ kernel)

    arguments = [jax.ShapeDtypeStruct((8, 8), jnp.float32)] * 2

    def total(function):
        return flops.count_flops(jax.grad(lambda x, k: function(x, k).sum(), (0, 1)), *arguments)

    assert total(layer) == 6 * 2 * 8**3
    full = jax.checkpoint(layer, policy=jax.checkpoint_policies.nothing_saveable)
    # The last product's own result is needed by its tanh's gradient, so both are computed again.
    assert total(full) == 8 * 2 * 8**3


@pytest.mark.parametrize(("axis", "group"), [("data", 4), ("model", 2)])
def test_a_reduction_over_an_axis(axis, group):
    mesh = make_mesh(4, 2)
    other = {"data": "model", "model": "data"}[axis]
    spread = NamedSharding(mesh, PartitionSpec(axis, other))
    result = NamedSharding(mesh, PartitionSpec(other))
    summed = jax.jit(lambda x: x.sum(axis=0), in_shardings=spread, out_shardings=result)
    lowered = summed.lower(jax.ShapeDtypeStruct((16, 64), jnp.float32))
    (one,) = hlo.read_program(lowered.compile().as_text(), 8).collectives
    assert (one.kind, one.group, one.count) == ("all-reduce", group, 1)
    assert one.bytes == 64 // (8 // group) * 4
    assert sorted(device for members in one.groups for device in members) == list(range(8))
    apart = 2 if axis == "data" else 1
    assert all(members[1] - members[0] == apart for members in one.groups)


HEADER = """HloModule made, entry_computation_layout={()->f32[4]}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

"""


def entry(*lines):
    body = "\n".join(f"  {line}" for line in lines)
    return f"{HEADER}ENTRY %main (p: f32[4,8]) -> f32[4] {{\n{body}\n}}\n"


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("{{0,1},{2,3}}", ((0, 1), (2, 3))),
        ("[2,2]<=[4]", ((0, 1), (2, 3))),
        ("[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("mesh['a'=2,'b'=2] {'a'}", ((0, 2), (1, 3))),
        ("mesh['a'=2,'b'=2] {'b'}", ((0, 1), (2, 3))),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", ((0, 2), (1, 3))),
        ("mesh['a'=2,'b'=4] {'b':(1)2}", ((0, 2), (1, 3), (4, 6), (5, 7))),
    ],
)
def test_all_ways_to_write_groups(groups, expected):
    text = entry(
        "%p = f32[4,8]{1,0} parameter(0)",
        f"ROOT %r = f32[4,8]{{1,0}} all-reduce(%p), channel_id=1, replica_groups={groups}, "
        "use_global_device_ids=true, to_apply=%add",
    )
    (one,) = hlo.read_program(text, 8).collectives
    assert one.groups == expected
    assert one.bytes == 128


def test_asynchronous_collectives_count_once():
    text = entry(
        "%p = f32[4,8]{1,0} parameter(0)",
        "%s = (f32[4,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%p), replica_groups={{0,1}}",
        "ROOT %d = f32[8,8]{1,0} all-gather-done(%s)",
    )
    (one,) = hlo.read_program(text, 2).collectives
    assert (one.shape, one.bytes, one.count, one.group) == ("f32[8,8]", 256, 1, 2)


def test_products_of_batches_that_a_tpu_writes_as_convolutions():
    # [3, 4, 8] times [3, 8, 5]: a window over a batch of 3 that meets its own entry alone.
    text = entry(
        "%p = bf16[3,4,8]{2,1,0} parameter(0)",
        "%q = bf16[3,8,5]{2,1,0:S(1)} parameter(1)",
        "ROOT %c = f32[3,4,5]{2,1,0} convolution(%p, %q), window={size=3 stride=2 pad=0_0 "
        "lhs_dilate=3}, dim_labels=0bf_0io->0bf",
    )
    program = hlo.read_program(text)
    assert program.flops == 2 * 3 * 4 * 5 * 8
    assert program.traffic == 3 * 4 * 8 * 2 + 3 * 4 * 5 * 4  # %q lies in the scratchpad


def test_what_a_tpu_copies_into_its_scratchpad_is_read_once():
    text = entry(
        "%p = f32[4,8]{1,0} parameter(0)",
        '%b = f32[64,8]{1,0} custom-call(), custom_call_target="AllocateBuffer"',
        "%s = ((f32[4,8]{1,0}), f32[1,8]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%p), "
        "slice={[0:1], [0:8]}",
        "%t = f32[1,8]{1,0:S(1)} slice-done(%s)",
        "%c = (f32[4,8]{1,0:S(1)}, f32[4,8]{1,0}, u32[]{:S(2)}) copy-start(%p)",
        "ROOT %d = f32[4,8]{1,0:S(1)} copy-done(%c)",
    )
    assert hlo.read_program(text).traffic == (1 + 4) * 8 * 4


def test_of_what_a_fusion_within_a_fusion_cuts_the_cut_counts():
    inner = """%cut (a: f32[4,8]) -> f32[1,8] {
  %a = f32[4,8]{1,0} parameter(0)
  ROOT %s = f32[1,8]{1,0} slice(%a), slice={[2:3], [0:8]}
}

%outer (b: f32[4,8]) -> f32[1,8] {
  %b = f32[4,8]{1,0} parameter(0)
  %f = f32[1,8]{1,0} fusion(%b), kind=kLoop, calls=%cut
  ROOT %n = f32[1,8]{1,0} negate(%f)
}

"""
    main = entry(
        "%p = f32[4,8]{1,0} parameter(0)",
        "ROOT %r = f32[1,8]{1,0} fusion(%p), kind=kLoop, calls=%outer",
    ).removeprefix(HEADER)
    assert hlo.read_program(HEADER + inner + main).traffic == 2 * 8 * 4


def test_calls_of_libraries():
    text = entry(
        "%p = bf16[16,32]{1,0} parameter(0)",
        "%q = bf16[32,64]{1,0} parameter(1)",
        "%g = (bf16[16,64]{1,0}, s8[33]{0}) custom-call(%p, %q), custom_call_target="
        '"__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":'
        '{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}',
    )
    # Its scratch memory is no product.
    assert hlo.read_program(text).flops == 2 * 16 * 64 * 32


def test_a_loop_that_data_may_end_counts_to_its_greatest_length():
    def many(x, kernel):
        def turn(carry):
            step, x = carry
            return step + 1, jnp.tanh(x @ kernel)

        return jax.lax.while_loop(lambda carry: (carry[0] < 7) & (carry[1] < 2).all(), turn, (0, x))

    arguments = [jax.ShapeDtypeStruct((8, 8), jnp.float32)] * 2
    program = hlo.read_program(jax.jit(many).lower(*arguments).compile().as_text())
    assert program.flops == flops.count_flops(many, *arguments, turns=7) == 7 * 2 * 8**3
    assert flops.count_flops(many, *arguments) == 2 * 8**3


def test_a_loop_whose_condition_a_gpu_fuses():
    text = """HloModule made

%fused_and (ended: pred[], step: s32[]) -> pred[] {
  %step = s32[] parameter(1)
  %most = s32[] constant(16)
  %lt = pred[] compare(%step, %most), direction=LT
  %ended = pred[] parameter(0)
  ROOT %and = pred[] and(%lt, %ended)
}

%condition (state: (s32[], f32[4,4], pred[])) -> pred[] {
  %state = (s32[], f32[4,4], pred[]) parameter(0)
  %at = s32[] get-tuple-element(%state), index=0
  %done = pred[] get-tuple-element(%state), index=2
  ROOT %go_on = pred[] fusion(%done, %at), kind=kLoop, calls=%fused_and
}

%body (state: (s32[], f32[4,4], pred[])) -> (s32[], f32[4,4], pred[]) {
  %state = (s32[], f32[4,4], pred[]) parameter(0)
  %at = s32[] get-tuple-element(%state), index=0
  %x = f32[4,4] get-tuple-element(%state), index=1
  %done = pred[] get-tuple-element(%state), index=2
  %product = f32[4,4] dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %next = (s32[], f32[4,4], pred[]) tuple(%at, %product, %done)
}

ENTRY %main (start: (s32[], f32[4,4], pred[])) -> (s32[], f32[4,4], pred[]) {
  %start = (s32[], f32[4,4], pred[]) parameter(0)
  ROOT %loop = (s32[], f32[4,4], pred[]) while(%start), condition=%condition, body=%body
}
"""
    assert hlo.read_program(text).flops == 16 * 2 * 4**3
