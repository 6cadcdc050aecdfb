"""Bounds from published figures, and the search over layouts; no compiler is asked."""

import dataclasses

import pytest

from sbs_jax.planning import compiling, hlo, isolation, report, roofline, search, targets

H100 = targets.parse_target("h100:8")


def collective(kind="all-reduce", size=450e9, group=8, groups=()):
    return hlo.Collective(kind, "f32[1]", (1,), int(size), 1, group, groups)


def test_links_and_adapters():
    assert roofline.link_seconds(collective(), H100) == pytest.approx(2 * 7 / 8)
    assert roofline.link_seconds(collective("all-gather"), H100) == pytest.approx(7 / 8)
    assert roofline.link_seconds(collective("collective-permute", group=2), H100) == 1
    two_hosts = targets.parse_target("h100:16")
    hosts = [0] * 8 + [1] * 8
    everybody = collective("all-gather", group=16)
    # Half of 450 GB comes over eight adapters of 50 GB/s; NVLink takes longer over its 15/16.
    assert roofline.link_seconds(everybody, two_hosts, hosts) == pytest.approx(15 / 16)
    pairs = collective("all-gather", group=2, groups=tuple((i, i + 8) for i in range(8)))
    assert roofline.link_seconds(pairs, two_hosts, hosts) == pytest.approx(225 / 50)
    within = collective("all-gather", group=8, groups=(tuple(range(8)), tuple(range(8, 16))))
    assert roofline.link_seconds(within, two_hosts, hosts) == pytest.approx(7 / 8)


def compiled(target=H100, peak=2**30, flops=989.4e12, exhausted=None, seconds=None):
    program = hlo.Program(flops, 0.0, ())
    memory = None if exhausted else compiling.MemoryUse(0, 0, peak // 2, 0, peak)
    bound = roofline.bound(program, target)
    if seconds is not None:
        bound = dataclasses.replace(bound, compute=seconds)
    return compiling.Compiled(
        name="train step",
        target=target,
        parameter_bytes=10,
        optimizer_bytes=20,
        memory=memory,
        program=None if exhausted else program,
        exhausted=exhausted,
        seconds=1.0,
        model_flops=4 * 989.4e12,
        num_devices=8,
        bound=None if exhausted else bound,
    )


def test_utilization_leaves_recomputation_out():
    one = compiled()
    assert one.bound.seconds == pytest.approx(1.0)
    assert one.bound.limit == "compute"
    assert one.utilization == pytest.approx(0.5)
    assert "roofline bound: at least" in report.bound_in_words(one)
    assert "MFU of 50%; a real execution takes longer" in report.bound_in_words(one)


def test_what_fits():
    assert compiled().fits
    assert compiled().memory_fraction is None
    large = compiled(peak=75 * 10**9)
    assert large.fits
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95" in report.verdict(large)
    assert not compiled(peak=84 * 10**9).fits
    message = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G."
    )
    none = compiled(targets.parse_target("v5e:4x4"), exhausted=message)
    assert none.fits is False
    assert report.verdict(none) == "peak 20.50 GiB of 16.00 GiB: does not fit"
    assert report.as_json(none)["fits"] is False


def test_the_search_stops_at_the_first_layout_of_a_mesh_that_fits():
    asked = []

    def compile_layout(layout):
        asked.append(layout)
        fits = layout.model > 1 and layout.remat == "full"
        seconds = 1.0 / layout.model + (0.5 if layout.fsdp else 0.0)
        return compiled(peak=2**30 if fits else 2**40, seconds=seconds)

    tried = search.search(
        8,
        64,
        static_bytes=lambda layout: 2**50 if layout.model == 1 else 0,
        usable_bytes=H100.usable_bytes,
        compile_layout=compile_layout,
        most=100,
    )
    assert all(layout.model > 1 for layout in asked)  # the others cannot hold their parameters
    assert [one.remat for one in asked[:3]] == ["none", "minimal", "full"]
    assert all(layout.microbatches == 1 for layout in asked)
    fitting = [one for one in tried if one.fits]
    assert [str(one.layout) for one in fitting[:2]] == [
        "data 1 × model 8, 1 microbatches, remat full",
        "data 2 × model 4, 1 microbatches, remat full",
    ]
    assert tried[-1].compiled is None
    assert "--gin.MODEL_PARALLEL=8" in fitting[0].layout.macros()


def test_the_search_passes_over_a_layout_on_which_the_compiler_crashes():
    def compile_layout(layout):
        if layout.remat != "full":
            raise isolation.CompilerCrash("the compiler crashed (SIGSEGV)")
        return compiled(peak=2**30)

    tried = search.search(
        1, 8, static_bytes=lambda _: 0, usable_bytes=2**40, compile_layout=compile_layout
    )
    assert [(one.layout.remat, one.fits) for one in tried] == [
        ("full", True),
        ("none", False),
        ("minimal", False),
    ]
    assert tried[-1].failure == "the compiler crashed (SIGSEGV)"


def test_the_search_cuts_batches_when_nothing_else_helps():
    tried = search.search(
        1,
        8,
        static_bytes=lambda _: 0,
        usable_bytes=None,
        compile_layout=lambda layout: compiled(peak=2**30 if layout.microbatches == 8 else 2**40),
    )
    assert [one.layout.microbatches for one in tried if one.fits] == [8]


def test_no_more_is_compiled_than_asked_for():
    asked = []
    search.search(
        64,
        64,
        static_bytes=lambda _: 0,
        usable_bytes=None,
        compile_layout=lambda layout: asked.append(layout) or compiled(peak=2**40),
        most=3,
    )
    assert len(asked) == 3


@pytest.mark.parametrize(("devices", "fewest"), [(1, 1), (8, 1), (5, 5), (12, 3)])
def test_rows_that_no_mesh_cuts(devices, fewest):
    assert search.fewest_rows(devices) == fewest
    for rows in range(1, 2 * fewest + 1):
        assert bool(list(search.meshes(devices, rows))) == (rows % fewest == 0)


def test_a_table():
    text = report.table([report.table_row(compiled())])
    head, rule, row = text.splitlines()
    assert head.count("|") == rule.count("|") == row.count("|")
    assert "1.00 GiB" in row
