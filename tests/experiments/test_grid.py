import pytest

from sbs_jax.configuration.statements import Macro, Reference
from sbs_jax.errors import UserError
from sbs_jax.experiments import grid


def runs_of(sweep, *flags):
    return grid.expand(grid.parse_axes(sweep, flags))


def test_the_grid_is_the_product_and_names_say_what_differs():
    runs = runs_of({"RATIONALE_WEIGHT": [0.0, 0.1], "SEED": "0:3"})
    assert len(runs) == 6
    assert runs[1].name == "rationale_weight=0,seed=1"
    assert runs[-1].name == "rationale_weight=0.1,seed=2"
    assert runs[-1].bindings == {"RATIONALE_WEIGHT": 0.1, "SEED": 2}


def test_flags_add_axes_and_replace_those_of_the_file():
    axes = grid.parse_axes(
        {"SEED": "0:3"}, ["SEED=5,7", "METHOD=sbs,'joint'", "TASK_FEATURE_LENGTHS=[1,2],[3]"]
    )
    assert [axis.values for axis in axes] == [[5, 7], ["sbs", "joint"], [[1, 2], [3]]]


def test_ranges_may_have_a_step():
    assert grid.parse_axes({}, ["SEED=0:7:3"])[0].values == [0, 3, 6]


def test_groups_bind_several_things_and_gin_files():
    sizes = {
        "small": {"gin_file": "models/t5_1_1_small.gin", "BATCH_SIZE": 64},
        "base": {"gin_file": "models/t5_1_1_base.gin", "BATCH_SIZE": 32},
    }
    first, last = runs_of({"SIZE": sizes})
    assert (first.name, last.name) == ("size=small", "size=base")
    assert first.gin_files == ["models/t5_1_1_small.gin"]
    assert last.flags == [("BATCH_SIZE", "32")]


def test_a_gin_file_is_an_axis_named_by_its_stem():
    (run,) = runs_of({}, "gin_file=models/t5_1_1_small.gin")
    assert run.name == "gin_file=t5_1_1_small"
    assert run.gin_files == ["models/t5_1_1_small.gin"]
    assert run.flags == []


def test_values_become_gin_source():
    (run,) = runs_of(
        {"A": ["10"], "B": [Macro("SEED")], "C": [Reference("schedules.rsqrt", True)], "D": [None]}
    )
    assert dict(run.flags) == {"A": "'10'", "B": "%SEED", "C": "@schedules.rsqrt()", "D": "None"}


def test_names_are_safe_for_a_file_system():
    (run,) = runs_of({"INITIAL_CHECKPOINT_PATH": ["/a/b c"], "optimizers.adamw.b1": [0.5]})
    assert run.name == "initial_checkpoint_path=a_b_c,b1=0.5"


@pytest.mark.parametrize(
    ("sweep", "flags", "sentence"),
    [
        ({}, [], "There is nothing to sweep: bind SWEEP in a gin file, or give --sweep."),
        ({"SEED": []}, [], "SWEEP: SEED has no values."),
        ({"SEED": 3}, [], "SWEEP: SEED is 3; give a list of values"),
        ({"SEED": [1, 1]}, [], "SWEEP: SEED has the same value twice: [1, 1]."),
        ({"S": {"a": 3}}, [], "SWEEP: every value of S must be a dict of bindings."),
        ({"SEED": [0], "S": {"a": {"SEED": 1}}}, [], "the axes SEED and S both set SEED."),
        ({"S": ["a b", "a/b"]}, [], "SWEEP: S has the same value twice"),
        ([1], [], "SWEEP = [1] must be a dict"),
        ({}, ["SEED"], "--sweep SEED: write --sweep NAME=v1,v2 or --sweep NAME=0:4."),
        ({}, ["SEED="], "--sweep SEED=: write"),
    ],
)
def test_mistakes_are_told_in_a_sentence(sweep, flags, sentence):
    with pytest.raises(UserError) as error:
        runs_of(sweep, *flags)
    assert sentence in str(error.value)
