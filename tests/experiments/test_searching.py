"""Searches whose runs are scripted: what a point scores is the RATIONALE_WEIGHT of its size."""

import io
import json

import pytest
from rich.console import Console

from sbs_jax.errors import UserError
from sbs_jax.experiments import searching
from tests.experiments.scripted import attempts

pytestmark = pytest.mark.usefixtures("scripted_workers")

GIN = """
include 'examples/svamp_t5_1_1_tiny.gin'
include 'runs/sweep.gin'

SWEEP = {
    'SIZE': {
        'large': {'gin_file': 'models/t5_1_1_base.gin', 'RATIONALE_WEIGHT': 0.8},
        'small': {'gin_file': 'models/t5_1_1_tiny.gin', 'RATIONALE_WEIGHT': 0.4},
        'middle': {'gin_file': 'models/t5_1_1_small.gin', 'RATIONALE_WEIGHT': 0.6},
    },
    'TRAIN_FRACTION': [0.5, 0.25, 1.0],
    'SEED': '0:2',
}
"""


@pytest.fixture
def gin_file(tmp_path):
    (tmp_path / "sizes.gin").write_text(GIN)
    return f"--gin_file={tmp_path / 'sizes.gin'}"


def search(*flags):
    console = Console(file=io.StringIO(), width=200)
    code = searching.run(flags, console)
    return code, console.file.getvalue()


def test_a_search_trains_few_points_and_finds_the_border(gin_file, tmp_path):
    folder = tmp_path / "sweep"
    flags = (gin_file, f"--sweep_dir={folder}", "--target=0.5", "--cpus_per_run=1")
    code, output = search(*flags)
    assert code == 0
    assert "At most 10 runs (5 points × 2 seeds × 1 searches) instead of the grid's 18." in output
    assert "FLOPs instead of" in output
    record = json.loads((folder / "frontier.json").read_text())
    (found,) = record["searches"].values()
    visited = [(visit["size"], visit["share"], visit["beats"]) for visit in found["visits"]]
    # The smallest student fails with all data; the next one beats the target with any share.
    assert visited == [
        ("small", "1", False),
        ("middle", "1", True),
        ("middle", "0.5", True),
        ("middle", "0.25", True),
    ]
    assert [visit["share"] for visit in found["frontier"]] == ["0.25"]
    assert "Smallest student: middle, with 0.25 of the data." in output
    sweep = json.loads((folder / "sweep.json").read_text())
    assert len(sweep["runs"]) == 8
    # Again: everything is there.
    assert search(*flags)[0] == 0
    for run in sweep["runs"]:
        assert len(attempts(folder, run["name"])) == 1


def test_a_target_that_nobody_reaches(gin_file, tmp_path):
    code, output = search(gin_file, f"--sweep_dir={tmp_path / 'sweep'}", "--target=0.9")
    assert code == 0
    assert "No student reaches the target." in output


def test_the_budget_is_told_before_anything_is_trained(gin_file, tmp_path):
    folder = tmp_path / "sweep"
    code, output = search(gin_file, f"--sweep_dir={folder}", "--target=0.9", "--dry_run")
    assert code == 0
    assert "At most 10 runs" in output
    assert not folder.exists()


def test_each_combination_of_other_axes_is_searched(gin_file, tmp_path):
    flags = (gin_file, f"--sweep_dir={tmp_path}", "--target=0.7", "--sweep=METHOD=sbs,standard")
    _, output = search(*flags, "--dry_run")
    assert "(5 points × 2 seeds × 2 searches)" in output


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "Give --target=ACCURACY"),
        (["--target=65"], "Give --target=ACCURACY"),
        (["--target=high"], "argument --target: invalid float value: 'high'"),
        (["--target=0.5", "--gin.SWEEP={'SEED': '0:2'}"], "needs one axis of students"),
        (["--target=0.5", "--sweep=TRAIN_EXAMPLES=5"], "one axis of training data.* has 2"),
    ],
)
def test_mistakes_are_told_in_a_sentence(gin_file, tmp_path, flags, sentence):
    with pytest.raises(UserError, match=sentence):
        search(gin_file, f"--sweep_dir={tmp_path}", *flags)
