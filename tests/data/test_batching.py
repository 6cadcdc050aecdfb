import doctest
import itertools
import json
from collections import Counter

import numpy as np
import pytest

from sbs_jax.data import batch_arrays, ragged
from sbs_jax.data.batch_arrays import measure_fill
from sbs_jax.data.batching import Batching, EvalBatches, TrainBatches
from sbs_jax.errors import UserError
from tests.data.synthetic import expected_records, make_records, unpack

LENGTHS = {"inputs": 40, "targets": 24}

MODES = [
    {"batch_size": 4, "pack": True},
    {"batch_size": 4, "pack": False},
    {"examples_per_batch": 8, "row_multiple": 2},
    {"examples_per_batch": 8, "pack": False},
]


def train(records, mode, seed=0, lengths=LENGTHS):
    batching = Batching(lengths, **{k: v for k, v in mode.items() if k != "row_multiple"})
    row_multiple = mode.get("row_multiple", 1)
    return TrainBatches(records, batching, seed=seed, row_multiple=row_multiple)


def same(one, two):
    return one.keys() == two.keys() and all(np.array_equal(one[key], two[key]) for key in one)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(batch_arrays, "WINDOW", 20)


def test_examples_in_docstrings():
    assert doctest.testmod(ragged).attempted == 1
    assert doctest.testmod(ragged).failed == 0


@pytest.mark.parametrize("mode", MODES)
def test_every_record_comes_exactly_once_an_epoch(mode):
    records = make_records(examples=53, records_of=lambda index: (2, 1, 2, 0)[index % 4])
    batches = train(records, mode)
    expected = Counter(expected_records(records))
    stream = itertools.chain.from_iterable(map(unpack, batches))
    for _ in range(3):
        epoch = list(itertools.islice(stream, len(records)))
        # With rows, the rows of an epoch end with the epoch; batches may end later.
        assert Counter(epoch) == expected
    total = batches.fill
    assert 0 < total.inputs <= 1
    assert 0 < total.targets <= 1


@pytest.mark.parametrize("mode", MODES)
def test_batches_have_the_promised_shapes_and_types(mode):
    batches = train(make_records(), mode)
    for batch in itertools.islice(batches, 10):
        assert set(batch) == {
            "encoder_input_tokens", "encoder_segment_ids", "decoder_input_tokens",
            "decoder_target_tokens", "decoder_target_parts", "decoder_segment_ids",
        }  # fmt: skip
        rows = batch["encoder_input_tokens"].shape[0]
        if mode.get("batch_size"):
            assert rows == mode.get("batch_size")
        else:
            assert rows % mode.get("row_multiple", 1) == 0
        for name, array in batch.items():
            assert array.dtype == np.int32
            assert array.shape == (rows, 40 if name.startswith("encoder") else 24)


@pytest.mark.parametrize("mode", MODES)
def test_batches_depend_on_the_seed_alone(mode):
    records = make_records()
    first = list(itertools.islice(train(records, mode), 12))
    again = list(itertools.islice(train(records, mode), 12))
    other = list(itertools.islice(train(records, mode, seed=1), 12))
    assert all(map(same, first, again))
    assert not any(map(same, first, other))
    # Another epoch comes in another order.
    assert len({batch["decoder_target_tokens"].tobytes() for batch in first}) == 12


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stop", [0, 1, 3, 7, 19, 20, 33])
def test_a_restored_iterator_goes_on_identically(mode, stop):
    records = make_records()
    running = train(records, mode)
    for _ in range(stop):
        next(running)
    state = json.loads(json.dumps(running.state()))
    restored = train(make_records(), mode)
    next(restored)
    restored.restore(state)
    for _ in range(15):
        assert same(next(running), next(restored))
    assert running.state() == restored.state()


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"lengths": {"inputs": 41, "targets": 24}},
        {"records": make_records(seed=3)},
        {"mode": {"batch_size": 4, "pack": False}},
    ],
)
def test_a_position_in_other_data_is_refused(change):
    state = train(make_records(), MODES[0]).state()
    other = train(**{"records": make_records(), "mode": MODES[0]} | change)
    with pytest.raises(UserError, match="new MODEL_DIR"):
        other.restore(state)


@pytest.mark.parametrize(
    ("mode", "kind", "more"),
    [
        (MODES[0], "packed", []),
        (MODES[1], "single", []),
        (MODES[2], "examples", []),
        ({"padding_free": True, "examples_per_batch": 8}, "padding-free", []),
        ({"padding_free": True, "batch_size": 4}, "padding-free", ["10.929 examples a batch"]),
    ],
)
def test_saved_positions_of_former_versions_stay_good(mode, kind, more):
    """What a checkpoint holds of the data decides whether a run can be resumed."""
    state = train(make_records(), mode).state()
    fingerprint = make_records().fingerprint()
    assert state == {
        "epoch": 0,
        "example": 0,
        "window": 0,
        "row": 0,
        "identity": [kind, 0, 40, 24, fingerprint, *more],
    }


def test_batch_size_may_change_on_restart():
    running = train(make_records(), {"batch_size": 4})
    next(running)
    wider = train(make_records(), {"batch_size": 8})
    wider.restore(running.state())
    both = unpack(next(running)) + unpack(next(running))
    assert unpack(next(wider)) == both


@pytest.mark.parametrize("pack", [True, False])
def test_a_batch_of_examples_holds_all_their_records(pack):
    records = make_records(examples=21)
    mode = {"examples_per_batch": 8, "pack": pack}
    known = {record: records.example[i] for i, record in enumerate(expected_records(records))}
    seen = []
    for batch in itertools.islice(train(records, mode), 21):
        examples = Counter(known[record] for record in unpack(batch))
        assert sum(examples.values()) == 16  # 8 examples of two records, also across epochs
        assert all(count % 2 == 0 for count in examples.values())
        seen += examples.elements()
    assert set(Counter(seen).values()) == {16}  # 8 epochs


def test_unpacked_records_of_one_example_are_neighbours():
    records = make_records(examples=30)
    known = {record: records.example[i] for i, record in enumerate(expected_records(records))}
    batches = train(records, {"batch_size": 4, "pack": False})
    stream = list(itertools.chain.from_iterable(unpack(next(batches)) for _ in range(15)))
    examples = [known[record] for record in stream]
    assert examples[0::2] == examples[1::2]
    assert [record[2] for record in stream] == [1, 2] * 30
    assert examples[0::2] != sorted(examples[0::2])


def test_packed_rows_do_not_come_sorted_by_length():
    records = make_records(examples=400)
    batches = train(records, {"batch_size": 1})
    counts = [len(unpack(next(batches))) for _ in range(100)]
    assert counts != sorted(counts)
    assert counts != sorted(counts, reverse=True)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("examples", [1, 4, 57])
def test_eval_batches_hold_every_record_once(pack, examples):
    records = make_records(examples=examples)
    batches = EvalBatches(records, 8, LENGTHS, pack)
    for _ in range(2):  # it may be gone through again
        made = list(batches)
        assert len(made) == len(batches)
        assert all(batch["encoder_input_tokens"].shape == (8, 40) for batch in made)
        found = list(itertools.chain.from_iterable(map(unpack, made)))
        assert Counter(found) == Counter(expected_records(records))
    if not pack:
        assert found == expected_records(records)


def test_eval_batches_of_nothing():
    records = make_records(examples=2, records_of=lambda index: 0)
    assert len(EvalBatches(records, 8, LENGTHS)) == 0
    assert list(EvalBatches(records, 8, LENGTHS)) == []


@pytest.mark.parametrize("pack", [True, False])
def test_fill_counts_what_batches_hold(pack):
    records = make_records(examples=57)
    batches = EvalBatches(records, 1, LENGTHS, pack)
    made = list(batches)
    tokens = sum(int((batch["encoder_segment_ids"] > 0).sum()) for batch in made)
    assert batches.fill.inputs == pytest.approx(tokens / (len(made) * 40))
    tokens = sum(int((batch["decoder_segment_ids"] > 0).sum()) for batch in made)
    assert batches.fill.targets == pytest.approx(tokens / (len(made) * 24))
    assert batches.fill == measure_fill(records, LENGTHS, pack)
    assert "records a row" in str(batches.fill)


def test_packing_fills_rows():
    records = make_records(examples=500)
    assert measure_fill(records, LENGTHS).inputs > 0.9
    assert measure_fill(records, LENGTHS, pack=False).inputs < 0.3


def test_bad_arguments():
    records = make_records()
    with pytest.raises(UserError, match="BATCH_SIZE must be a positive whole number, not 0"):
        train(records, {"batch_size": 0})
    with pytest.raises(UserError, match="BATCH_SIZE must be"):
        train(records, {"batch_size": None})
    with pytest.raises(UserError, match=r"EXAMPLES_PER_BATCH must be .* -1"):
        train(records, {"examples_per_batch": -1})
    with pytest.raises(UserError, match=r"EXAMPLES_PER_BATCH must be .* 0"):
        train(records, {"examples_per_batch": 0})
    with pytest.raises(UserError, match=r"TASK_FEATURE_LENGTHS .* 'targets'"):
        train(records, MODES[0], lengths={"inputs": 40})
    with pytest.raises(UserError, match="nothing to train on: 3 examples"):
        train(make_records(examples=3, records_of=lambda index: 0), MODES[0])
    with pytest.raises(ValueError, match="longer than these feature lengths"):
        train(records, MODES[0], lengths={"inputs": 4, "targets": 4})
