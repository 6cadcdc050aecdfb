"""The vote of a label, an expression and a rationale."""

import pytest

from sbs_jax.scores.voting import vote


@pytest.mark.parametrize(
    ("label", "expression", "rationale", "winner"),
    [
        ("6", "2 + 4", "2 + 4 = 6.", "6"),
        ("7", "2 + 4", "2 + 4 = 6.", "6"),
        ("6", "2 + 5", "2 + 4 = 6.", "6"),
        ("(2 + 4)", "2 * 3", "", "(2 + 4)"),  # the label keeps its form
        ("7", "2 + 4", "", "7"),  # no majority
        ("7", "2 + 4", "2 + 6 = 8.", "7"),
        ("7", "2 +", "nothing to add", "7"),
        ("7", "__import__('os')", "2 + 4 = 6.", "7"),
        ("yes", "", "", "yes"),
    ],
)
def test_vote(label, expression, rationale, winner):
    assert vote(label, expression, rationale) == winner
