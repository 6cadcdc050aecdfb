"""Weights of words from a field of the data: where they end up among the tokens, and errors."""

import dataclasses

import numpy as np
import pytest

from sbs_jax.data import pipeline, registration, registry, tokenizing
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.batching import EvalBatches
from sbs_jax.data.resolving import TaskChoice, resolve_task
from sbs_jax.data.settings import DataSettings
from sbs_jax.data.token_weights import word_weights
from sbs_jax.errors import UserError
from sbs_jax.programs.cache import write_cache

NAME = "weighed_toy"
LENGTHS = {"inputs": 32, "targets": 64}
RATIONALE = "First, apples weigh. So 5"
EXAMPLE = {
    "input": "q",
    "label": "five",
    "rationale": "",
    "llm_label": "",
    "llm_rationale": RATIONALE,
}
WEIGHED = ({"rationale_weights": [0, 2, 0.5, 1, 3]}, {"rationale_weights": [[0, 6, 0.25]]}, {})


if not registry.is_dataset(NAME):
    registration.register_dataset(
        NAME,
        load=lambda split, settings: [
            {**EXAMPLE, **one, "id": f"{split}{i}"} for i, one in enumerate(WEIGHED)
        ],
        own_validation=True,
        origin=lambda split, settings: [f"the {split} examples above"],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("vocabulary"))


def weights_by_word(task, records, record):
    """The weights of a record's tokens, each as (pieces of a word, weights of its tokens)."""
    own = slice(*records.target_offsets[record : record + 2])
    pieces = [task.vocabulary.tokenizer.id_to_piece(int(t)) for t in records.target_tokens[own]]
    words = []
    for piece, weight in zip(pieces, records.target_weights[own], strict=True):
        if piece.startswith("▁") or piece == "</s>" or not words:
            words.append(["", set()])
        words[-1][0] += piece.lstrip("▁")
        words[-1][1].add(float(weight))
    return [(word, *weights) for word, weights in words]


@pytest.mark.parametrize("side", ["encoder", "decoder"])
@pytest.mark.parametrize("method", ["sbs", "joint", "weighted_joint"])
def test_weights_of_words_reach_all_their_tokens(folder, method, side):
    settings = DataSettings(model_dir=folder, vocabulary_size=400, prefix_side=side)
    task = resolve_task(TaskChoice(NAME, method=method), settings)
    records = pipeline.load_records(task, "train", LENGTHS)
    every = [weights_by_word(task, records, record) for record in range(len(records))]
    first, second, third = (one for one in every if "So" in dict(one))
    start = len(first) - (6 if method == "sbs" else 8)
    assert (start > 0) == (side == "decoder")  # the prompt, of no part
    assert first[start:][:5] == [
        ("First,", 0.0),
        ("apples", 2.0),
        ("weigh.", 0.5),
        ("So", 1.0),
        ("5", 3.0),
    ]
    assert all(weight == 1.0 for _, weight in first[start + 5 :])  # separator, label and EOS
    assert second[start : start + 2] == [("First,", 0.25), ("apples", 1.0)]
    assert {weight for _, weight in third} == {1.0}
    (batch,) = EvalBatches(records, 8, LENGTHS)
    assert batch["decoder_token_weights"].dtype == np.float32
    assert batch["decoder_token_weights"].sum() == pytest.approx(records.target_weights.sum())


@pytest.mark.parametrize("cache", ["SeqIO's", "records"])
def test_cached_weights_are_those_that_are_read(folder, tmp_path, cache, monkeypatch):
    settings = DataSettings(model_dir=folder, vocabulary_size=400)
    plain = pipeline.load_records(resolve_task(f"{NAME}_sbs", settings), "train", LENGTHS)
    if cache == "records":
        settings = dataclasses.replace(settings, records_cache_dir=str(tmp_path))
        pipeline.load_records(resolve_task(f"{NAME}_sbs", settings), "train", LENGTHS)
        monkeypatch.setattr(tokenizing, "read_columns", None)  # nothing is tokenized again
    else:
        settings = dataclasses.replace(settings, cache_dir=str(tmp_path))
        with settings_lib.override(settings):
            write_cache(task=TaskChoice(f"{NAME}_sbs"), splits=["train"], shards=2)
        settings = dataclasses.replace(settings, use_cached_tasks=True)
    cached = pipeline.load_records(resolve_task(f"{NAME}_sbs", settings), "train", LENGTHS)
    assert {0.0, 0.25, 0.5, 2.0, 3.0} < set(plain.target_weights.tolist())
    for name in ("target_tokens", "target_parts", "target_weights", "target_offsets"):
        np.testing.assert_array_equal(getattr(cached, name), getattr(plain, name))


def test_data_without_weights_has_none(folder):
    settings = DataSettings(model_dir=folder, vocabulary_size=400)
    records = pipeline.load_records(resolve_task(f"{NAME}_standard", settings), "train", LENGTHS)
    assert records.target_weights is None
    assert "decoder_token_weights" not in next(iter(EvalBatches(records, 8, LENGTHS)))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("high", r"f.jsonl, line 3: field 'w' must be a list of one weight for each word, or"),
        ([1, 2], r"line 3: field 'w' has 2 weights, but the text has 3 words"),
        ([1, -2, 1], r"the weight -2 must be a number that is not negative"),
        ([1, float("nan"), 1], r"the weight nan must be a number that is not negative"),
        ([[0, 9, 1.0]], r"the span \[0, 9\] does not lie within the 8 characters"),
        ([[3, 3, 1.0]], r"the span \[3, 3\] does not lie within"),
        ([[0, 1, True]], r"the weight True must be a number"),
    ],
)
def test_weights_out_of_their_range(value, sentence):
    with pytest.raises(UserError, match=sentence):
        word_weights(value, "so it is", "f.jsonl, line 3: field 'w'")
