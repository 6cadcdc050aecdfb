"""The methods joint and rationale_input, several rationales, and METHOD with its like."""

import itertools

import numpy as np
import pytest

from sbs_jax.data import choosing, datasets, elements, pipeline, registry
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.choosing import choose_task
from sbs_jax.data.registration import register_dataset
from sbs_jax.data.resolving import resolve_task
from sbs_jax.data.settings import DataSettings
from sbs_jax.data.vocabulary import EOS_ID
from sbs_jax.errors import UserError
from sbs_jax.methods import METHODS
from sbs_jax.parts import LABEL, RATIONALE
from tests.examples import load_examples

LENGTHS = {"inputs": 64, "targets": 48}
NAME = "methods_toy"


def load(split, settings):
    """Example i has i % 3 + 1 teacher's rationales, one person's, and a wrong teacher's label."""
    return [
        {
            "id": f"{split}{i}",
            "input": f"first {i}</s>second {i}",
            "label": f"gold {i}",
            "rationale": f"human {i}" if i % 2 else ["", f"human {i}"],
            "llm_label": f"said {i}",
            "llm_rationale": [f"why {i} {'abc'[k]}" for k in range(i % 3 + 1)] if i != 4 else "",
        }
        for i in range(9)
    ]


if not registry.is_dataset(NAME):
    register_dataset(NAME, load=load, own_validation=True)


@pytest.fixture(scope="module", autouse=True)
def _vocabulary(tmp_path_factory):
    with use(model_dir=str(tmp_path_factory.mktemp("vocabulary")), vocabulary_size=400):
        yield


def use(**changes):
    return settings_lib.override(DataSettings(**changes))


def decode(vocabulary, tokens):
    """SeqIO's own `decode` stops at the first EOS."""
    pieces = np.split(tokens, np.flatnonzero(tokens == EOS_ID))
    return "|".join(vocabulary.tokenizer.decode(piece.tolist()) for piece in pieces).rstrip("|")


def texts(task, split="train", **changes):
    folder = settings_lib.current()
    with use(model_dir=folder.model_dir, vocabulary_size=400, **changes):
        records = pipeline.load_records(resolve_task(task), split, LENGTHS)
        vocabulary = resolve_task(task).vocabulary
    inputs = np.split(records.input_tokens, records.input_offsets[1:-1])
    targets = np.split(records.target_tokens, records.target_offsets[1:-1])
    found = [
        (decode(vocabulary, x), decode(vocabulary, y)) for x, y in zip(inputs, targets, strict=True)
    ]
    return found, records


def test_joint_writes_every_rationale_and_then_the_label():
    found, records = texts(f"{NAME}_joint")
    assert [target for _, target in found[:4]] == [
        "why 0 a Answer: gold 0",
        "why 1 a Answer: gold 1",
        "why 1 b Answer: gold 1",
        "why 2 a Answer: gold 2",
    ]
    assert set(records.target_parts) == {LABEL}
    assert records.counts.examples == 9
    assert records.counts.blank_rationales == 1  # example 4
    assert 4 not in records.example
    assert len(records) == 1 + 2 + 3 + 1 + 3 + 1 + 2 + 3
    teacher, _ = texts(f"{NAME}_joint_teacher", joint_separator=" => ")
    assert teacher[0][1] == "why 0 a => said 0"
    human, _ = texts(f"{NAME}_joint_human")
    assert [target for _, target in human[:2]] == [
        "human 0 Answer: gold 0",
        "human 1 Answer: gold 1",
    ]


def test_rationale_input_shows_the_rationale_and_asks_for_the_label():
    found, records = texts(f"{NAME}_rationale_input")
    assert found[2][0] == "predict: first 1|second 1 explanation: why 1 b"
    assert found[2][1] == "gold 1"
    assert set(records.target_parts) == {LABEL}
    assert records.counts.blank_rationales == 1
    kept, records = texts(f"{NAME}_rationale_input", keep_blank_rationales=True)
    assert "explanation" not in kept[list(records.example).index(4)][0]


def test_evaluation_shows_the_rationale_of_the_evaluated_example():
    vocabulary = resolve_task(NAME).vocabulary

    def inputs(task):
        found = pipeline.load_eval_examples(resolve_task(task), "test", LENGTHS)
        assert found.labels == [f"gold {i}" for i in range(9)]
        return [decode(vocabulary, row[row > 0]) for row in found.label_inputs], found

    shown, _ = inputs(f"{NAME}_rationale_input_teacher")
    assert shown[2].endswith("second 2 explanation: why 2 a")
    assert shown[4].endswith("second 4")
    people, _ = inputs(f"{NAME}_rationale_input_human")
    assert people[2].endswith("explanation: human 2")
    plain, found = inputs(f"{NAME}_sbs")
    assert plain[2].endswith("second 2")
    assert found.take_apart("R. Answer: L") == (None, "R. Answer: L")
    _, joint = inputs(f"{NAME}_joint")
    assert joint.take_apart("R. Answer: L") == ("R.", "L")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 + 3 = 5. Answer: 5", ("2 + 3 = 5.", "5")),
        ("Answer: a. Answer:b ", ("Answer: a.", "b")),
        ("no label", ("no label", "")),
        ("cut Answer:", ("cut", "")),
        ("", ("", "")),
    ],
)
def test_joint_answers_are_taken_apart(text, expected):
    found = METHODS["joint"].target_of("label").take_apart(text, {"JOINT_SEPARATOR": " Answer: "})
    assert (found["rationale"], found["label"]) == expected


def test_labels_come_once_beside_several_rationales():
    found, records = texts(NAME)
    targets = [target for _, target in found]
    assert targets[:5] == ["gold 0", "why 0 a", "gold 1", "why 1 a", "why 1 b"]
    assert records.counts.label_records == 9
    assert records.counts.rationale_records == 16
    assert records.counts.blank_rationales == 1
    assert records.counts.blank_labels == 0
    people, records = texts(f"{NAME}_sbs_human_teacher")
    assert [target for _, target in people[:4]] == ["said 0", "human 0", "said 1", "human 1"]


@pytest.mark.parametrize("examples_per_batch", [None, 9])
def test_one_rationale_is_drawn_for_each_epoch(examples_per_batch):
    _, records = texts(NAME, rationales_per_epoch="one")
    everything = texts(NAME)[1]
    assert not everything.draw

    def epochs(seed, count):
        batches = pipeline.TrainBatches(
            records,
            pipeline.Batching(
                {"inputs": 2000, "targets": 2000},
                batch_size=1,
                examples_per_batch=examples_per_batch,
            ),
            seed=seed,
        )
        return [next(batches) for _ in range(count)], batches

    drawn = set()
    for batch in epochs(0, 12)[0]:  # all records of an epoch fit into one row
        parts = batch["decoder_target_parts"][0]
        segments = batch["decoder_segment_ids"][0]
        kinds = [int(parts[segments == s][0]) for s in range(1, segments.max() + 1)]
        assert kinds.count(LABEL) == 9
        assert kinds.count(RATIONALE) == 8  # example 4 has none
        drawn.add(tuple(np.sort(batch["decoder_target_tokens"][0]).tolist()))
    assert len(drawn) > 3
    first, batches = epochs(3, 3)
    again, _ = epochs(3, 3)
    for a, b in zip(first, again, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)
    following = next(batches)["decoder_target_tokens"]
    _, restored = epochs(3, 0)
    state = epochs(3, 3)[1].state()
    restored.restore(state)
    assert np.array_equal(next(restored)["decoder_target_tokens"], following)
    with pytest.raises(UserError, match="belongs to other data"):
        pipeline.TrainBatches(
            everything, pipeline.Batching({"inputs": 2000, "targets": 2000}, batch_size=1), seed=3
        ).restore(state)


def test_eos_in_an_input_is_one_token_and_in_a_target_none():
    _, records = texts(NAME)
    first = records.input_tokens[: records.input_offsets[1]]
    assert np.count_nonzero(first == EOS_ID) == 2
    vocabulary = resolve_task(NAME).vocabulary
    middle = list(first).index(EOS_ID)
    tokenizer = vocabulary.tokenizer
    assert list(first[:middle]) == tokenizer.encode("predict: first 0")
    assert list(first[middle + 1 : -1]) == tokenizer.encode("second 0")
    found = pipeline.load_eval_examples(resolve_task(NAME), "train", LENGTHS)
    assert list(found.label_inputs[0][: first.size]) == list(first)
    hostile = {"id": "i", "input": "x", "label": "a</s>b", "rationale": ["</s>", "r\ud800"]}
    datasets.clean([hostile])
    assert hostile["label"] == "a b"
    assert hostile["rationale"] == [" ", "r?"]


@pytest.mark.parametrize(
    ("arguments", "task"),
    [
        ({}, "sbs"),
        ({"method": "standard"}, "standard"),
        ({"method": "standard", "label_source": "teacher"}, "standard_teacher"),
        ({"method": "standard", "rationale_source": "human"}, "standard"),
        ({"method": "joint", "label_source": "gold", "rationale_source": "human"}, "joint_human"),
        (
            {"method": "sbs", "label_source": "teacher", "rationale_source": "human"},
            "sbs_human_teacher",
        ),
        ({"method": "rationale", "label_source": "teacher"}, "rationale"),
        ({"method": "rationale_input", "rationale_source": "teacher"}, "rationale_input"),
    ],
)
def test_method_and_sources_choose_a_task(arguments, task):
    name = choose_task(NAME, **arguments)
    assert name == f"{NAME}_{task}"
    info = choosing.task_info(name)
    assert choose_task(name, info.method, info.label_source) == name
    assert choose_task(name, **{k: v for k, v in arguments.items() if k == "method"}) == name


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (NAME, {"method": "jiont"}, "METHOD = 'jiont' is unknown; did you mean 'joint'"),
        (NAME, {"label_source": "human"}, "LABEL_SOURCE = 'human' is unknown; there are gold, t"),
        (
            f"{NAME}_sbs",
            {"method": "joint"},
            f"'{NAME}_sbs' means METHOD = 'sbs', but METHOD = 'joint' is given.*alone: '{NAME}'",
        ),
        (f"{NAME}_sbs", {"label_source": "teacher"}, "means LABEL_SOURCE = 'gold', but"),
        (f"{NAME}_joint", {"rationale_source": "human"}, "means RATIONALE_SOURCE = 'teacher'"),
        ("methods_tyo", {"method": "joint"}, "There is no task 'methods_tyo'; did you mean"),
    ],
)
def test_contradictions_are_one_sentence(name, arguments, message):
    with pytest.raises(UserError, match=message):
        choose_task(name, **arguments)


def test_missing_human_rationales_are_told():
    with pytest.raises(UserError, match=r"people's rationales.*has none \(train\)"):
        elements.require_rationales(
            choosing.task_info(f"{NAME}_sbs_human"), "train", [{"rationale": ""}]
        )


def test_train_examples_are_nested_and_by_seed():
    def ids(**changes):
        with use(**changes):
            return [example["id"] for example in load_examples(NAME, "train")]

    sizes = [ids(train_examples=count) for count in (1, 2, 5, 9)]
    assert [len(chosen) for chosen in sizes] == [1, 2, 5, 9]
    for smaller, larger in itertools.pairwise(sizes):
        assert set(smaller) < set(larger)
    assert ids(train_fraction=0.5) == sizes[2]
    assert ids(train_examples=2, seed=1) != sizes[1]
    with use(train_examples=3):
        assert len(load_examples(NAME, "test")) == len(load_examples(NAME, "validation")) == 9
    with pytest.raises(UserError, match=r"TRAIN_EXAMPLES = 10, but .* has only 9 training"):
        ids(train_examples=10)
    with pytest.raises(UserError, match="both say how much"):
        DataSettings(train_examples=2, train_fraction=0.5)
