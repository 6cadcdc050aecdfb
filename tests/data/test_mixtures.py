"""Several tasks as one SeqIO mixture, through our own pipeline."""

import collections

import numpy as np
import pytest

from sbs_jax.data import choosing, pipeline, registration
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.batching import Batching, TrainBatches
from sbs_jax.data.records import join_records
from sbs_jax.data.resolving import resolve_task
from sbs_jax.data.tensorflow_setup import seqio
from sbs_jax.errors import UserError
from tests.data.synthetic import make_records, unpack

LENGTHS = {"inputs": 256, "targets": 128}
SHORT = {"inputs": 24, "targets": 24}


def drawn(batches, count):
    """How often each first input token (which names an example) came in `count` batches."""
    seen = collections.Counter()
    for _ in range(count):
        for inputs, _, part in unpack(next(batches)):
            if part == 1:
                seen[inputs[0]] += 1
    return seen


def test_rates_hold_and_every_example_comes_in_turn():
    small, big = make_records(examples=10, seed=1), make_records(examples=90, seed=9)
    records = join_records([small, big], [1, 1])
    assert len(records) == len(small) + len(big)
    assert records.counts.examples == 100
    batches = TrainBatches(records, Batching(SHORT, examples_per_batch=100), seed=0)
    for _ in range(3):  # an epoch each: 50 of the small task's 10 examples, 50 of the big one's 90
        seen = drawn(batches, 1)
        of_small = {token: n for token, n in seen.items() if token in set(small.input_tokens)}
        assert sum(of_small.values()) == 50
        assert set(of_small.values()) == {5}
        assert max(n for token, n in seen.items() if token not in of_small) <= 2
    # In 9 epochs the big task is gone through exactly 5 times.
    again = TrainBatches(records, Batching(SHORT, examples_per_batch=100), seed=0)
    seen = drawn(again, 9)
    assert {n for token, n in seen.items() if token not in of_small} == {5}


def test_batches_of_a_mixture_resume(use):
    records = join_records([make_records(examples=7, seed=1), make_records(seed=9)], [3, 1])
    one, two = (TrainBatches(records, Batching(SHORT, batch_size=3), seed=4) for _ in range(2))
    for _ in range(40):
        next(one)
    two.restore(one.state())
    for _ in range(10):
        a, b = next(one), next(two)
        assert all(np.array_equal(a[name], b[name]) for name in a)
    other = join_records([make_records(examples=7, seed=1), make_records(seed=9)], [1, 1])
    with pytest.raises(UserError, match="belongs to other data"):
        TrainBatches(other, Batching(SHORT, batch_size=3), seed=4).restore(one.state())


def test_a_seqio_mixture_shares_one_vocabulary(use, tmp_path):
    seqio.MixtureRegistry.add("both_toys", [("svamp_sbs", 2), ("cqa_standard", 1)])
    try:
        with use(model_dir=str(tmp_path)):
            records = pipeline.load_records(resolve_task("both_toys"), "train", LENGTHS)
            vocabulary = resolve_task("both_toys").vocabulary
            assert (tmp_path / "vocabulary" / "spiece.model").is_file()
            assert settings_lib.current().vocabulary_path is None
        # In the order of the tasks' names.
        assert records.mixture == ((36, 1.0), (36, 2.0))
        assert records.counts.label_records == 72
        first = records.input_tokens[: records.input_offsets[1]]
        assert "Answer Choices: (a)" in vocabulary.decode(first.tolist())
        assert registration.mixture_rates("both_toys") == {"cqa_standard": 1, "svamp_sbs": 2}
        with pytest.raises(UserError, match="METHOD = 'joint' goes with the name of a data set"):
            choosing.choose_task("both_toys", method="joint")
    finally:
        seqio.MixtureRegistry.remove("both_toys")
        registration.mixture_vocabulary.cache_clear()


def test_modules_of_the_users_are_imported(tmp_path, monkeypatch):
    (tmp_path / "their_tasks.py").write_text("imported = True")
    monkeypatch.syspath_prepend(str(tmp_path))
    registration.import_tasks("their_tasks")
    registration.import_tasks(None)
    with pytest.raises(UserError, match="MIXTURE_OR_TASK_MODULE = 'thier_tasks' cannot be import"):
        registration.import_tasks("thier_tasks")
    (tmp_path / "broken_tasks.py").write_text("import not_there")
    with pytest.raises(UserError, match=r"cannot be imported \(No module named 'not_there'\)\.$"):
        registration.import_tasks("broken_tasks")
    for wrong in ("thier_tasks", "their_tasks.py", ".their_tasks"):
        with pytest.raises(UserError, match=r"cannot be imported .*it is a dotted name"):
            registration.import_tasks(wrong)
