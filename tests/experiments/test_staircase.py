import itertools

import pytest

from sbs_jax.experiments import staircase

SIZES, SHARES = ("s", "m", "l"), (0.125, 0.25, 0.5, 1.0)


def monotone_tables():
    """All ways in which larger students need no more data: the least share's index, by size."""
    for needs in itertools.product(range(len(SHARES) + 1), repeat=len(SIZES)):
        if list(needs) == sorted(needs, reverse=True):
            yield dict(zip(SIZES, needs, strict=True))


@pytest.mark.parametrize("needs", list(monotone_tables()), ids=str)
def test_the_walk_finds_the_whole_border_within_its_budget(needs):
    asked = []

    def accuracy(size, share):
        asked.append((size, share))
        return 0.9 if SHARES.index(share) >= needs[size] else 0.1

    visits = staircase.walk(SIZES, SHARES, accuracy, 0.5)
    assert len(asked) == len(set(asked)) == len(visits)
    assert len(visits) <= staircase.budget(len(SIZES), len(SHARES)) == 6
    found = staircase.frontier(visits)
    able = [size for size in SIZES if needs[size] < len(SHARES)]
    if not able:
        assert not found
        return
    # The smallest student that gets there at all, and the least data that any needs.
    assert found[0].size == able[0]
    assert found[-1].share == SHARES[min(needs.values())]
    for visit in found:
        assert SHARES.index(visit.share) == needs[visit.size]


def test_the_target_itself_is_enough():
    (visit, _) = staircase.walk(["s"], [0.5, 1.0], lambda *_: 0.5, 0.5)
    assert visit.beats
