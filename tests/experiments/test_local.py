import os

import pytest

from sbs_jax.errors import UserError
from sbs_jax.experiments import local
from sbs_jax.experiments.settings import SweepSettings


def slots(cpus=4, accelerators=(), **settings):
    return local.plan_slots(
        SweepSettings(axes={}, **settings), cpus=range(cpus), accelerators=accelerators
    )


def test_cpus_are_shared_out_without_overlap():
    assert [slot.cpus for slot in slots(parallel_runs=2)] == [(0, 1), (2, 3)]
    assert [slot.cpus for slot in slots(parallel_runs=2, cpus_per_run=1)] == [(0,), (1,)]


def test_more_runs_than_cpus_take_turns():
    assert [slot.cpus for slot in slots(cpus=2, parallel_runs=3)] == [(0,), (1,), (0,)]


def test_each_run_gets_gpus_of_its_own():
    made = slots(accelerators=list("0123"), parallel_runs=2)
    assert [slot.environment for slot in made] == [
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        {"CUDA_VISIBLE_DEVICES": "2,3"},
    ]


def test_runs_that_share_a_gpu_share_its_memory():
    made = slots(accelerators=["5"], parallel_runs=3)
    assert [slot.environment for slot in made] == [
        {"CUDA_VISIBLE_DEVICES": "5", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.300"}
    ] * 3


def test_cpus_can_stand_for_several_devices(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--a")
    (slot,) = slots(devices_per_run=2)
    assert slot.environment == {"XLA_FLAGS": "--a --xla_force_host_platform_device_count=2"}


def test_visible_gpus_are_those_of_the_environment(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert local.find_accelerators() == ["3", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.find_accelerators() == []


def test_cpus_are_those_that_this_process_may_use():
    assert local.find_cpus() == sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"parallel_runs": 0}, "PARALLEL_RUNS = 0 must be at least 1."),
        ({"retries": -1}, "RETRIES = -1 must not be negative."),
        ({"halving_factor": 1}, "HALVING_FACTOR = 1 must be at least 2."),
        ({"halving_first": 1.0}, "HALVING_FIRST = 1.0 must lie between 0 and 1."),
    ],
)
def test_settings_out_of_their_range_are_refused(values, sentence):
    with pytest.raises(UserError, match=sentence.replace(".", r"\.")):
        SweepSettings(axes={}, **values)
