"""What is read many records at a time is what SeqIO gives one by one."""

import numpy as np
import pytest

from sbs_jax.data import choosing, reading, registry
from sbs_jax.data.preprocessors import METHODS
from sbs_jax.data.resolving import resolve_task
from sbs_jax.data.tensorflow_setup import tf

NAMES = ("inputs", "targets", "part", "example", "example_count", "variant")


def one_by_one(task, split):
    dataset = task.get_dataset(
        None, split, shuffle=False, num_epochs=1, trim_output_features=False, try_in_mem_cache=False
    )
    return list(dataset.as_numpy_iterator())


def assert_equal(columns, records):
    for name in NAMES:
        flat, lengths = columns[name]
        ends = np.cumsum(lengths)
        assert lengths.size == len(records)
        for record, start, end in zip(records, ends - lengths, ends, strict=True):
            assert flat[start:end].tolist() == np.atleast_1d(record[name]).tolist(), name


@pytest.mark.parametrize("side", ["encoder", "decoder"])
@pytest.mark.parametrize("method", METHODS)
def test_batched_equals_seqios_own(use, method, side, monkeypatch):
    monkeypatch.setattr("sbs_jax.data.preprocessors.CHUNK", 7)  # the end of a chunk shows
    monkeypatch.setattr(reading, "CHUNK", 7)
    with use("cqa", prefix_side=side, keep_blank_rationales=method == "rationale"):
        task = choosing.find_task(f"cqa_{method}")
        columns = reading.read_columns(resolve_task(task.name), "train")
        records = one_by_one(task, "train")
    assert len(records) >= 30
    assert_equal(columns, records)
    assert all(record["inputs"][-1] == record["targets"][-1] == 1 for record in records)


def test_eos_within_texts_and_empty_texts_are_encoded_alike(use):
    texts = ["one </s>two", "", "</s>", "plain", "</s></s> x"]
    with use("svamp"):
        vocabulary = registry.find_dataset("svamp").vocabulary
        batch = vocabulary.encode_tf(tf.constant(texts))
        single = [vocabulary.encode_tf(tf.constant(text)).numpy().tolist() for text in texts]
        assert batch.to_list() == single
        assert single == [list(ids) for ids in vocabulary.encode_batch(texts)]
        assert single[2] == [1]
        flat, lengths = vocabulary.encode_flat(texts)
        assert np.split(flat, np.cumsum(lengths)[:-1])[0].dtype == np.int32
        pieces = [ids.tolist() for ids in np.split(flat, np.cumsum(lengths)[:-1])]
        assert pieces == [[*ids, 1] for ids in single]
