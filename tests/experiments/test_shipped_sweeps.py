"""Every sweep that we ship can be started as its head says."""

import functools
import re
import shlex

import pytest

from sbs_jax.configuration import reader
from sbs_jax.experiments import planning
from sbs_jax.experiments import runs as runs_lib
from sbs_jax.experiments.runs import SweepFolder

SWEEPS = [
    name
    for name in reader.shipped_files()
    if name.startswith("sweeps/") and name != "sweeps/published.gin"
]
PUBLISHED = [name for name in SWEEPS if "quickstart" not in name]


@functools.cache
def plan_of(name):
    """The plan of the command in a sweep's head."""
    head = (reader.gin_folder() / name).read_text().split("\n\n")[0]
    command = re.search(r"python -m sbs_jax\.sweep (.*)", head.replace("\\\n#", " "))[1]
    argv = shlex.split(command)
    assert f"--gin_file={name}" in argv
    own, flags = planning.parse(argv)
    return planning.read_plan(own, flags, argv, SweepFolder(own.sweep_dir)), head


def test_the_published_settings_are_there():
    assert len(PUBLISHED) >= 5


@pytest.mark.parametrize("name", SWEEPS)
def test_the_command_in_the_head_plans_the_runs_that_it_says(name):
    plan, head = plan_of(name)  # Checks every run.
    assert len({run.name for run in plan.runs}) == len(plan.runs) > 1
    stated = re.search(r"(\d+) (?:runs|small students)", head)
    if stated:
        assert int(stated[1]) == len(plan.runs)
    seeds = next(axis for axis in plan.axes if axis.name == "SEED")
    assert f"{len(seeds.values)} seeds" in head


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sweeps_have_the_published_settings(name):
    plan, head = plan_of(name)
    assert "ublished" in head
    for run in plan.runs:
        config = plan.configs[run.name]
        size = runs_lib.model_name(config)
        expected = {
            "LEARNING_RATE": 5e-5,
            "WARMUP_STEPS": 0,
            "WEIGHT_DECAY": 0.0,
            "MAX_GRAD_NORM": 1.0,
            "EVAL_PERIOD": 250,
            "TASK_FEATURE_LENGTHS": {"inputs": 1024, "targets": 256},
            "TRAIN_STEPS": 4_000 if size == "t5_1_1_xxl" else 10_000,
            "EXAMPLES_PER_BATCH": 32 if size == "t5_1_1_xxl" else 64,
        }
        assert {key: runs_lib.macro(config, key) for key in expected} == expected
        assert runs_lib.macro(config, "INITIAL_CHECKPOINT_PATH") == "PATH"


def test_fractions_are_the_papers():
    plan, _ = plan_of("sweeps/fractions.gin")
    axis = next(axis for axis in plan.axes if axis.name == "TRAIN_FRACTION")
    assert axis.values == [0.125, 0.25, 0.5, 0.75, 0.8, 1.0]
