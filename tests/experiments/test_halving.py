import pytest

from sbs_jax.experiments import halving
from sbs_jax.experiments.grid import Run


def run(weight, seed):
    return Run(f"{weight}/{seed}", {"RATIONALE_WEIGHT": weight, "SEED": seed})


@pytest.mark.parametrize(
    ("factor", "first", "expected"),
    [(2, 0.25, [0.25, 0.5, 1.0]), (3, 0.1, [0.1, 0.3, 0.9, 1.0]), (4, 0.5, [0.5, 1.0])],
)
def test_rungs_have_a_factor_more_steps_each(factor, first, expected):
    assert halving.shares(factor, first) == pytest.approx(expected)


def test_the_mean_over_seeds_decides():
    runs = [run(weight, seed) for weight in (1, 2, 3) for seed in (0, 1)]
    accuracies = {"1/0": 0.9, "1/1": 0.1, "2/0": 0.6, "2/1": 0.6, "3/0": 0.2, "3/1": None}
    kept = halving.survivors(runs, accuracies, 3)
    assert [one.name for one in kept] == ["2/0", "2/1"]
    kept = halving.survivors(runs, accuracies, 2)
    assert [one.name for one in kept] == ["1/0", "1/1", "2/0", "2/1"]


def test_somebody_always_goes_on():
    assert halving.survivors([run(1, 0)], {}, 9) == [run(1, 0)]
