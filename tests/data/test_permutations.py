"""Permutations that are computed entry by entry, and the epochs that are made of them."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest

from sbs_jax.data import batch_arrays, epochs, permutations
from sbs_jax.data.batching import Batching, TrainBatches
from sbs_jax.data.records import join_records
from tests.data.synthetic import expected_records, make_records, unpack

LENGTHS = {"inputs": 40, "targets": 24}


@pytest.mark.parametrize("size", [1, 2, 3, 10, 99, 100, 101, 4095, 20_011])
def test_every_number_comes_once(size):
    key = permutations.key_of(3, size)
    whole = permutations.permuted(np.arange(size), size, key)
    assert np.array_equal(np.sort(whole), np.arange(size))
    some = np.arange(size)[:: max(1, size // 7)]
    assert np.array_equal(permutations.permuted(some, size, key), whole[some])


def test_a_permutation_is_no_other_one_and_looks_like_chance():
    size = 40_000
    one, two = (
        permutations.permuted(np.arange(size), size, permutations.key_of(0, epoch))
        for epoch in range(2)
    )
    # Neighbours, the same places of two epochs, and place against number: all within 4 standard
    # errors of no correlation. As many stay in their place as chance lets, which is one.
    for first, second in ((one[:-1], one[1:]), (one, two), (one, np.arange(size))):
        assert abs(np.corrcoef(first, second)[0, 1]) < 4 / size**0.5
    assert (one == two).sum() < 10 and (one == np.arange(size)).sum() < 10


@pytest.fixture
def computed(monkeypatch):
    monkeypatch.setattr(epochs, "COMPUTED_ABOVE", 10)
    monkeypatch.setattr(batch_arrays, "WINDOW", 20)


def train(records, seed=0):
    return TrainBatches(records, Batching(LENGTHS, batch_size=4), seed=seed)


def test_a_computed_epoch_has_every_record_once_and_resumes(computed):
    records = make_records(examples=53, records_of=lambda index: (2, 1, 2, 0)[index % 4])
    stream = itertools.chain.from_iterable(map(unpack, train(records)))
    for _ in range(2):
        epoch = list(itertools.islice(stream, len(records)))
        assert Counter(epoch) == Counter(expected_records(records))
    running, again, other = train(records), train(records), train(records, seed=1)
    assert [next(running)["decoder_target_tokens"].tolist() for _ in range(5)] != [
        next(other)["decoder_target_tokens"].tolist() for _ in range(5)
    ]
    again.restore(json.loads(json.dumps(running.state())))
    for _ in range(9):
        one, two = next(running), next(again)
        assert all(np.array_equal(one[name], two[name]) for name in one)


def test_a_computed_mixture_has_its_rates_and_every_example_in_turn(computed):
    parts = [make_records(examples=30), make_records(examples=20, seed=1)]
    mixed = join_records(parts, [1.0, 4.0])
    counted = [Counter(), Counter()]
    for number in range(6):
        epoch = epochs.Epoch(mixed, mixed.example_starts, 0, number)
        assert epoch.computed and epoch.size == 50
        found = np.concatenate([epoch.examples(0, 33), epoch.examples(33, 99)])
        counted[0].update(found[found < 30].tolist())
        counted[1].update(found[found >= 30].tolist())
        assert (found < 30).sum() == 10
    assert counted[0] == dict.fromkeys(range(30), 2)  # 6 × 10 of 30
    assert counted[1] == dict.fromkeys(range(30, 50), 12)  # 6 × 40 of 20


def test_a_computed_epoch_draws_one_variant_of_each_example(computed):
    records = make_records(examples=400, records_of=lambda index: 3)
    variant = np.tile(np.array([-1, 0, 1], np.int32), 400)
    records = type(records)(**vars(records) | {"variant": variant, "draw": True})
    drawn = [
        epochs.Epoch(records, records.example_starts, 0, number).drawn(np.arange(1200))
        for number in range(2)
    ]
    for ids in drawn:
        assert ids.size == 800 and (variant[ids] == -1).sum() == 400
        assert np.array_equal(np.unique(ids // 3), np.arange(400))
        assert 160 < (variant[ids] == 1).sum() < 240
    assert not np.array_equal(*drawn)
    epoch = epochs.Epoch(records, records.example_starts, 0, 0)
    some = np.arange(30, 60)
    assert np.array_equal(epoch.drawn(some), drawn[0][(drawn[0] >= 30) & (drawn[0] < 60)])


def test_batches_are_those_of_the_first_release():
    """Golden: what a resumed run goes on with."""
    import hashlib

    records = make_records(examples=300, records_of=lambda index: (2, 1, 3, 0)[index % 4])
    mixed = join_records([records, make_records(examples=70, seed=5)], [1.0, 0.7])
    found = []
    for one in (records, mixed):
        batches = TrainBatches(one, Batching(LENGTHS, batch_size=4), seed=3)
        digest = hashlib.sha256()
        for batch in itertools.islice(batches, 40):
            for name in sorted(batch):
                digest.update(batch[name].tobytes())
        found.append(digest.hexdigest()[:16])
    assert found == ["2693f1ae821a3578", "240b90459186cded"]
