"""Targets by name, and the sentences about those that are none."""

import pytest

from sbs_jax.errors import UserError
from sbs_jax.planning import targets, topology


@pytest.mark.parametrize(
    ("text", "name", "devices", "per_host"),
    [
        ("v5e:4x4", "v5e:4x4", 16, 16),
        ("v5e:1x1", "v5e:1x1", 1, 1),
        ("v5p:4x4x4", "v5p:4x4x4", 64, 64),
        ("V6E:2x2", "v6e:2x2", 4, 4),
        ("v4:2x2x1", "v4:2x2x1", 4, 4),
        ("tpu7x:2x2x1", "tpu7x:2x2x1", 8, 8),
        ("h100", "h100:1", 1, 1),
        ("a100-80:4", "a100-80:4", 4, 4),
        ("h100-80:8", "h100:8", 8, 8),
        ("b200:64", "b200:64", 64, 8),
    ],
)
def test_names(text, name, devices, per_host):
    target = targets.parse_target(text)
    assert (target.name, target.num_devices, target.devices_per_host) == (name, devices, per_host)
    assert targets.parse_target(target.name) == target


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("h1000:8", "is not a known kind of device; did you mean h100?"),
        ("abacus:8", "Known are, for instance, v5e:4x4"),
        ("v5e", "name the slice's shape in chips, as in v5e:4x4"),
        ("v5e:16", "name the slice's shape in chips"),
        ("v5e:4x4x4", "slices of v5e have 2 dimensions, as in v5e:4x4"),
        ("v5p:4x4", "slices of v5p have 3 dimensions, as in v5p:4x4x4"),
        ("v5e:3x4", "even numbers in its first two dimensions"),
        ("v5e:16x32", "a pod of v5e has 256 chips"),
        ("h100:12", "1 to 8, or a multiple of 8"),
        ("h100:0", "1 to 8, or a multiple of 8"),
        ("h100:4x2", "1 to 8, or a multiple of 8"),
    ],
)
def test_names_of_nothing_get_a_sentence(text, says):
    with pytest.raises(UserError) as caught:
        targets.parse_target(text)
    assert f"--target={text}: " in str(caught.value)
    assert says in str(caught.value)


def test_every_chip_has_figures_that_can_be():
    for chip in targets.CHIPS.values():
        assert 1e14 < chip.peak_flops < 3e15
        assert 16 * 2**30 <= chip.memory_bytes < 200 * 10**9
        assert chip.network_bandwidth < chip.link_bandwidth < chip.memory_bandwidth
        assert (chip.gpu is None) == (chip.platform == "tpu")


def test_a_gpu_is_described_to_xla():
    text = topology.gpu_description(targets.parse_target("h200:8"))
    assert "device_memory_size: 151397597184" in text
    assert text.count("{") == text.count("}")


@pytest.mark.parametrize(("name", "extra"), [("v5e:2x2", "plan-tpu"), ("h100:1", "plan-cuda")])
def test_a_compiler_that_is_not_installed_is_named(name, extra, monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda _: None)
    target = targets.parse_target(name)
    topology.devices_of.cache_clear()
    with pytest.raises(UserError, match=rf"pip install 'sbs_jax\[{extra}\]'"):
        topology.devices_of(target)
