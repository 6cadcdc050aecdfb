"""`TASK_FEATURE_LENGTHS = 'auto'`: the rule, checked against packing every pair of lengths."""

import dataclasses
import itertools

import numpy as np
import pytest

from sbs_jax.data import auto_lengths
from sbs_jax.data.auto_lengths import propose
from sbs_jax.data.batch_arrays import measure_fill
from sbs_jax.data.batching import AUTO, Batching, EvalBatches, TrainBatches
from sbs_jax.errors import UserError
from tests.data.synthetic import make_records


def cost(records, inputs, targets):
    """The stated cost of all records, packed in their own order (the sample is all of them)."""
    rows = measure_fill(records, {"inputs": inputs, "targets": targets}).rows
    return rows * (inputs + 2 * targets + (inputs**2 + inputs * targets + targets**2) / 1024)


@pytest.mark.parametrize("shared", [False, True])
def test_no_other_rows_cost_less(shared):
    records = make_records(examples=120, inputs=60, targets=45)
    if shared:
        first = np.flatnonzero(np.diff(records.example, prepend=-1))
        records = dataclasses.replace(records, source=first[records.example].astype(np.int32))
    found = propose(records, Batching(AUTO))
    inputs, targets = found.lengths["inputs"], found.lengths["targets"]
    assert inputs >= records.input_lengths.max()
    assert targets >= records.target_lengths.max()
    lengths = itertools.product(range(64, 257, 16), range(48, 193, 16))
    costs = {pair: cost(records, *pair) for pair in lengths}
    # The order in which examples are packed moves the number of rows by a few.
    assert costs[inputs, targets] <= 1.03 * min(costs.values())
    assert costs[inputs, targets] < 0.95 * costs[256, 192]
    fill = measure_fill(records, found.lengths)
    assert (found.inputs_fill, found.targets_fill) == pytest.approx(
        (fill.inputs, fill.targets), abs=0.03
    )


def test_rows_without_packing_are_as_long_as_the_longest():
    records = make_records(examples=50, inputs=60, targets=45)
    longest = (records.input_lengths.max(), records.target_lengths.max())
    found = propose(records, Batching(AUTO, pack=False))
    assert tuple(found.lengths.values()) == tuple(-(-length // 16) * 16 for length in longest)
    assert next(iter(EvalBatches(records, 4, found.lengths, False)))


def test_one_record_in_a_thousand_may_be_cut_unless_none_may():
    records = make_records(examples=600, inputs=12)
    offsets = records.input_offsets.copy()
    offsets[-1] += 5000
    tokens = np.concatenate([records.input_tokens, np.full(5000, 7, np.int32)])
    records = dataclasses.replace(records, input_tokens=tokens, input_offsets=offsets)
    found = propose(records, Batching(AUTO))
    assert found.lengths["inputs"] < 100
    assert (found.cut_inputs, found.cut_targets) == (1, 0)
    assert "1 inputs and 0 targets cut" in str(found)
    assert propose(records, Batching(AUTO), cut_nothing=True).lengths["inputs"] >= 5000


def test_the_rows_that_a_batch_of_few_examples_leaves_half_empty_count():
    records = make_records(examples=64, inputs=60, targets=45)
    few = Batching(AUTO, examples_per_batch=4)
    found = propose(records, few)
    assert found.inputs_fill < propose(records, Batching(AUTO)).inputs_fill - 0.02
    trained = TrainBatches(records, dataclasses.replace(few, feature_lengths=found.lengths), seed=0)
    for _ in range(16):
        next(trained)
    assert (trained.fill.inputs, trained.fill.targets) == (found.inputs_fill, found.targets_fill)


def test_a_sample_of_many_examples_is_as_good(monkeypatch):
    records = make_records(examples=400, inputs=60, targets=45)
    whole = propose(records, Batching(AUTO))
    monkeypatch.setattr(auto_lengths, "SAMPLE", 100)
    assert cost(records, *propose(records, Batching(AUTO)).lengths.values()) == pytest.approx(
        cost(records, *whole.lengths.values()), rel=0.05
    )


def test_without_records_there_is_nothing_to_propose():
    records = make_records(examples=3, records_of=lambda index: 0)
    with pytest.raises(UserError, match="'auto' found no records: 3 examples"):
        propose(records, Batching(AUTO))


def test_other_words_are_refused():
    records = make_records()
    with pytest.raises(UserError, match="must be 'auto' or like"):
        EvalBatches(records, 4, "autos")
