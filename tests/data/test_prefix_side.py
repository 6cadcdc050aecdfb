"""PREFIX_SIDE = 'decoder': the prefixes begin what is decoded, and inputs are encoded once."""

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest

from sbs_jax.data import batch_arrays, pipeline, registry
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.batch_arrays import measure_fill
from sbs_jax.data.batching import Batching, EvalBatches, TrainBatches
from sbs_jax.data.records import join_records, shared_sources
from sbs_jax.data.registration import register_dataset
from sbs_jax.data.resolving import resolve_task
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError
from sbs_jax.parts import LABEL, PADDING, RATIONALE
from tests.data.synthetic import make_records

LENGTHS = {"inputs": 40, "targets": 24}
TASK_LENGTHS = {"inputs": 64, "targets": 48}
NAME = "prefix_side_toy"
MODES = [
    {"batch_size": 4, "pack": True},
    {"batch_size": 4, "pack": False},
    {"examples_per_batch": 8, "row_multiple": 2},
]


def load(split, settings):
    return [
        {
            "id": f"{split}{i}",
            "input": f"question {i}",
            "label": f"gold {i}",
            "rationale": "",
            "llm_label": f"said {i}",
            "llm_rationale": [f"why {i} {'abc'[k]}" for k in range(i % 3 + 1)] if i != 4 else "",
        }
        for i in range(9)
    ]


if not registry.is_dataset(NAME):
    register_dataset(NAME, load=load, own_validation=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("vocabulary"))


def use(folder, **changes):
    options = {"prefix_side": "decoder", "vocabulary_size": 400} | changes
    return settings_lib.override(DataSettings(model_dir=folder, **options))


@pytest.fixture
def shared(monkeypatch):
    """48 examples of 1 to 3 records; those of one example have the same inputs."""
    monkeypatch.setattr(batch_arrays, "WINDOW", 20)
    records = make_records(examples=48, records_of=lambda index: index % 3 + 1)
    tokens = records.input_tokens.copy()
    for record in range(1, len(records)):
        if records.example[record] == records.example[record - 1]:
            before, start, end = records.input_offsets[record - 1 : record + 2]
            tokens[start:end] = tokens[before:start]
    source = shared_sources(tokens, records.input_offsets, records.example)
    return dataclasses.replace(records, input_tokens=tokens, source=source)


def take_apart(batch):
    """Returns (input tokens, target tokens, part) of each target, naively."""
    found = []
    for row in range(batch["encoder_input_tokens"].shape[0]):
        one = {name: array[row] for name, array in batch.items()}
        targets = range(1, one["decoder_segment_ids"].max(initial=0) + 1)
        for target in targets:
            mask = one["decoder_segment_ids"] == target
            assert np.flatnonzero(np.diff(mask)).size <= 2  # contiguous
            sources = set(one["decoder_source_ids"][mask].tolist())
            assert len(sources) == 1
            inputs = one["encoder_input_tokens"][one["encoder_segment_ids"] == sources.pop()]
            tokens = one["decoder_target_tokens"][mask]
            assert list(one["decoder_input_tokens"][mask]) == [0, *tokens[:-1]]
            part = int(one["decoder_target_parts"][mask][-1])
            found.append((tuple(inputs.tolist()), tuple(tokens.tolist()), part))
        # Every copy of inputs is about some target, and padding is nobody's.
        assert set(one["encoder_segment_ids"]) - {0} == set(one["decoder_source_ids"]) - {0}
        assert not one["decoder_source_ids"][one["decoder_segment_ids"] == 0].any()
    return found


def expected(records):
    return Counter(
        (
            tuple(records.input_tokens[slice(*records.input_offsets[i : i + 2])].tolist()),
            tuple(records.target_tokens[slice(*records.target_offsets[i : i + 2])].tolist()),
            int(records.target_parts[records.target_offsets[i]]),
        )
        for i in range(len(records))
    )


@pytest.mark.parametrize("mode", MODES)
def test_every_target_comes_once_an_epoch_beside_its_inputs(shared, mode):
    batching = Batching(LENGTHS, **{k: v for k, v in mode.items() if k != "row_multiple"})
    row_multiple = mode.get("row_multiple", 1)
    batches = TrainBatches(shared, batching, seed=0, row_multiple=row_multiple)
    stream = itertools.chain.from_iterable(map(take_apart, batches))
    for _ in range(2):
        assert Counter(itertools.islice(stream, len(shared))) == expected(shared)


def test_inputs_are_there_once_where_their_targets_fit(shared, monkeypatch):
    monkeypatch.setattr(batch_arrays, "WINDOW", 1000)  # or a window may end within an example
    batches = EvalBatches(shared, 4, LENGTHS, pack=True)
    inputs = np.concatenate([batch["encoder_input_tokens"].reshape(-1) for batch in batches])
    counts = Counter(inputs[inputs > 1].tolist())  # tokens of different examples all differ
    repeated = {token for token, count in counts.items() if count > 1}
    assert len(counts) > 200
    # Three records of an example need up to 21 tokens, a row has 24: all fit.
    assert not repeated
    fill = measure_fill(shared, LENGTHS)
    assert fill.input_tokens == batches.fill.input_tokens == np.count_nonzero(inputs)


def test_targets_that_do_not_fit_into_a_row_get_another_copy(shared):
    lengths = {"inputs": 40, "targets": 9}
    batches = TrainBatches(shared, Batching(lengths, batch_size=4), seed=0)
    stream = itertools.chain.from_iterable(map(take_apart, batches))
    assert Counter(itertools.islice(stream, len(shared))) == expected(shared)
    fill = measure_fill(shared, lengths)
    assert fill.input_tokens > measure_fill(shared, LENGTHS).input_tokens


def test_a_run_does_not_go_on_with_the_other_side(shared):
    alone = dataclasses.replace(shared, source=None)
    options = {"batching": Batching(LENGTHS, batch_size=4), "seed": 0}
    state = TrainBatches(alone, **options).state()
    with pytest.raises(UserError, match="other data or settings"):
        TrainBatches(shared, **options).restore(state)


def test_joined_records_share_within_their_task(shared):
    joined = join_records([shared, dataclasses.replace(shared, source=None)], [1.0, 1.0])
    count = len(shared)
    assert np.array_equal(joined.source[:count], shared.source)
    assert np.array_equal(joined.source[count:], np.arange(count, 2 * count))


def test_the_prompt_stands_before_the_target_and_is_of_no_part(folder):
    with use(folder):
        records = pipeline.load_records(resolve_task(f"{NAME}_sbs"), "train", TASK_LENGTHS)
        vocabulary = resolve_task(f"{NAME}_sbs").vocabulary
    prompts = {LABEL: vocabulary.encode("predict: "), RATIONALE: vocabulary.encode("explain: ")}
    assert all(prompts.values())
    assert (records.counts.label_records, records.counts.rationale_records) == (9, 16)
    assert records.counts.blank_rationales == 1
    for record in range(len(records)):
        inputs = records.input_tokens[slice(*records.input_offsets[record : record + 2])]
        place = slice(*records.target_offsets[record : record + 2])
        targets, parts = records.target_tokens[place], records.target_parts[place]
        assert vocabulary.decode(inputs[:-1].tolist()) == f"question {records.example[record]}"
        part = int(parts[-1])
        prompt = prompts[part]
        assert targets[: len(prompt)].tolist() == prompt
        assert set(parts[: len(prompt)]) == {PADDING}
        assert set(parts[len(prompt) :]) == {part}
        text = vocabulary.decode(targets[len(prompt) : -1].tolist())
        assert text.startswith("gold" if part == LABEL else "why")
        assert targets[-1] == 1
    # All records of an example share their inputs.
    first = np.flatnonzero(np.diff(records.example, prepend=-1))
    assert np.array_equal(np.unique(records.source), first)


def test_one_rationale_an_epoch_shares_too(folder):
    with use(folder, rationales_per_epoch="one"):
        records = pipeline.load_records(resolve_task(f"{NAME}_sbs"), "train", TASK_LENGTHS)
    batches = TrainBatches(records, Batching(TASK_LENGTHS, batch_size=2), seed=0)
    targets = [t for batch in itertools.islice(batches, 6) for t in take_apart(batch)]
    assert {part for *_, part in targets} == {LABEL, RATIONALE}


@pytest.mark.parametrize("method", ["joint", "rationale_input", "standard"])
def test_other_methods_have_it_too(folder, method):
    with use(folder):
        records = pipeline.load_records(resolve_task(f"{NAME}_{method}"), "train", TASK_LENGTHS)
        vocabulary = resolve_task(f"{NAME}_{method}").vocabulary
    prompt = vocabulary.encode("predict: ")
    for start, end in itertools.pairwise(records.target_offsets):
        assert records.target_tokens[start:end][: len(prompt)].tolist() == prompt
    # The inputs of `rationale_input` differ between the rationales of an example.
    alone = records.source.tolist() == list(range(len(records)))
    assert alone == (method != "joint")


def test_evaluation_asks_with_a_prompt(folder):
    with use(folder):
        vocabulary = resolve_task(f"{NAME}_sbs").vocabulary
        found = pipeline.load_eval_examples(resolve_task(f"{NAME}_sbs"), "validation", TASK_LENGTHS)
    assert np.array_equal(found.label_inputs, found.rationale_inputs)
    assert found.label_prompt.tolist() == vocabulary.encode("predict: ")
    assert found.rationale_prompt.tolist() == vocabulary.encode("explain: ")
    with use(folder, prefix_side="encoder"):
        found = pipeline.load_eval_examples(resolve_task(f"{NAME}_sbs"), "validation", TASK_LENGTHS)
    assert found.label_prompt.size == found.rationale_prompt.size == 0


def test_bad_settings():
    with pytest.raises(UserError, match="PREFIX_SIDE must be 'encoder' or 'decoder', not 'both'"):
        DataSettings(prefix_side="both")
    with pytest.raises(UserError, match="nothing else tells the two parts apart"):
        DataSettings(prefix_side="decoder", label_prefix="x", rationale_prefix="x")
