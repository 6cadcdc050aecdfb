"""Methods of a user's own (PARTS), and several parts in one target: records, errors, names."""

import doctest
import json

import numpy as np
import pytest

from sbs_jax import methods, part_templates, parts
from sbs_jax.data import pipeline, registration, registry
from sbs_jax.data.resolving import TaskChoice, resolve_task
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError
from sbs_jax.methods import METHODS, find_method
from sbs_jax.parts import LABEL, RATIONALE, Method, Part

LENGTHS = {"inputs": 64, "targets": 48}
NAME = "own_parts_toy"
HINT = 3
PARTS = {
    "label": {},
    "rationale": {"after": "hint", "separator": " because "},
    "hint": {"reads": "{input} ({kind})", "weight": 0.5},
}


def load(split, settings):
    return [
        {
            "id": f"{split}{i}",
            "input": f"question {i}",
            "label": f"gold {i}",
            "rationale": "",
            "llm_label": f"said {i}",
            "llm_rationale": f"reason {i}",
            "hint": f"think {i}" if i != 2 else "",
            "kind": "easy",
        }
        for i in range(4)
    ]


if not registry.is_dataset(NAME):
    registration.register_dataset(NAME, load=load, own_validation=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("vocabulary"))


def read(folder, choice, **settings):
    settings = DataSettings(model_dir=folder, vocabulary_size=400, **settings)
    task = resolve_task(choice, settings)
    records = pipeline.load_records(task, "train", LENGTHS)
    return task, records


def texts(task, records):
    """Of each record its input, and by part code what is written of that part."""
    decode = task.vocabulary.tokenizer.decode
    found = []
    for record in range(len(records)):
        inputs = records.input_tokens[slice(*records.input_offsets[record : record + 2])]
        own = slice(*records.target_offsets[record : record + 2])
        tokens, codes = records.target_tokens[own], records.target_parts[own]
        by_code = {
            code: decode(tokens[codes == code].tolist()) for code in dict.fromkeys(codes.tolist())
        }
        found.append((decode(inputs.tolist()), by_code))
    return found


def test_parts_of_ones_own_read_and_write_any_field(folder):
    choice = TaskChoice(NAME, method="hinted")
    task, records = read(folder, choice, parts=PARTS)
    assert task.name == f"{NAME}_hinted"
    assert task.method.names == ("label", "rationale", "hint")
    assert texts(task, records)[:3] == [
        ("predict: question 0", {LABEL: "gold 0"}),
        ("hint: question 0 (easy)", {HINT: "think 0", RATIONALE: "because reason 0"}),
        ("predict: question 1", {LABEL: "gold 1"}),
    ]
    counts = records.counts
    assert (counts.label_records, counts.rationale_records) == (4, 3)
    assert counts.other_records == {"hint": 3}
    assert "3 hint records" in str(counts)
    # What is saved beside a run finds the task again, and weights are not the data's.
    again = json.loads(json.dumps(task.settings.record()))["parts"]
    same = resolve_task(task.name, DataSettings(parts=again))
    assert same.info.definition == task.info.definition
    assert [part.weight for part in task.method.parts] == [None, None, 0.5]
    assert [part.weight for part in same.method.parts] == [None] * 3


def test_prefixes_on_the_decoders_side(folder):
    choice = TaskChoice(NAME, method="hinted_too")
    task, records = read(folder, choice, parts=PARTS, prefix_side="decoder")
    assert texts(task, records)[1] == (
        "question 0 (easy)",
        {0: "hint:", HINT: "think 0", RATIONALE: "because reason 0"},
    )


def test_weighted_joint_has_the_tokens_of_joint(folder):
    _, joint = read(folder, f"{NAME}_joint")
    task, weighted = read(folder, TaskChoice(NAME, method="weighted_joint"))
    for name in ("input_tokens", "input_offsets", "target_tokens", "target_offsets"):
        np.testing.assert_array_equal(getattr(joint, name), getattr(weighted, name))
    assert texts(task, weighted)[0] == (
        "predict: question 0",
        {RATIONALE: "reason 0", LABEL: "Answer: gold 0"},
    )
    assert weighted.target_parts[weighted.target_offsets[1] - 1] == LABEL  # EOS


def test_a_student_of_any_target_is_taken_apart():
    separators = DataSettings().texts
    first = Method("answer_first", (Part("label"), Part("rationale", after="label")))
    target = first.target_of("label")
    assert target is not None and first.target_of("rationale") == target
    assert target.take_apart("5 explanation: 2 + 3 explanation: so", separators) == {
        "label": "5",
        "rationale": "2 + 3 explanation: so",
    }
    assert target.take_apart("5", separators) == {"label": "5", "rationale": ""}
    weighted = METHODS["weighted_joint"].target_of("label")
    for text in ("R Answer: A. Answer: L", "R"):
        joint = METHODS["joint"].target_of("label").take_apart(text, separators)
        assert weighted.take_apart(text, separators) == joint
    between = Method(
        "three", (Part("rationale"), Part("label", after="rationale"), Part("hint", after="label"))
    ).target_of("label")
    assert between.take_apart("R Answer: L hint: H", separators) == {
        "rationale": "R",
        "label": "L",
        "hint": "H",
    }


def test_evaluation_asks_for_the_target_of_the_label(folder):
    parts = {"label": {"reads": "{input} ({kind})"}, "rationale": {"after": "label"}}
    settings = DataSettings(model_dir=folder, vocabulary_size=400, parts=parts)
    task = resolve_task(TaskChoice(NAME), settings)
    assert task.name == f"{NAME}_custom"
    examples = pipeline.load_eval_examples(task, "validation", LENGTHS)
    asked = examples.label_inputs[0]
    assert task.vocabulary.decode(asked[asked > 1].tolist()) == "predict: question 0 (easy)"
    assert examples.explains
    assert examples.take_apart("5 explanation: why") == ("why", "5")


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        (3, r"PARTS = 3 must be a dict of parts by name"),
        ({"hint": 3}, r"the part 'hint' must be a dict of prefix, reads"),
        ({"hint": {"read": "x"}}, r"the part 'hint' has the key 'read', but a part has prefix"),
        ({"Hint": {}}, r"'Hint' cannot be a part's name"),
        ({"input": {}}, r"'input' cannot be a part's name"),
        ({"hint": {"reads": "no field"}}, r"'reads' = 'no field' names no field"),
        ({"hint": {"reads": "{A}{input}"}}, r"{A} is neither a field nor one of LABEL_PREFIX"),
        ({"hint": {"prefix": "{input}"}}, r"'prefix' = '{input}' must not name a field"),
        ({"hint": {"weight": -1}}, r"'weight' = -1 must be a number that is not negative"),
        ({"hint": {"normalization": "mean"}}, r"'normalization' = 'mean' is unknown"),
        ({"hint": {"after": "label"}}, r"'after' = 'label' is no other part; there are hint"),
        ({"hint": {"separator": " "}}, r"has a 'separator', but no 'after'"),
        ({"label": {"writes": "hint"}}, r"the part 'label' is what is scored"),
        (
            {"a": {"after": "b"}, "b": {"after": "a"}},
            r"every part has an 'after', so no target has a beginning",
        ),
        (
            {"a": {"after": "b"}, "b": {"after": "a"}, "label": {}},
            r"the part 'a' stands after itself",
        ),
        (
            {"label": {}, "a": {"after": "label"}, "b": {"after": "label"}},
            r"a and b both stand after 'label'",
        ),
        ({"label": {}, "a": {"after": "label", "reads": "x"}}, r"belong to the first part of it"),
    ],
)
def test_parts_that_are_not_well_described(parts, sentence):
    with pytest.raises(UserError, match=sentence):
        DataSettings(parts=parts)


def test_a_field_that_no_example_has(folder):
    with pytest.raises(
        UserError, match=r"needs the field 'clue' \(PARTS: clue\).*fields are id,.*"
    ):
        read(folder, TaskChoice(NAME, method="clued"), parts={"label": {}, "clue": {}})


def test_names_that_contradict():
    settings = DataSettings(parts=PARTS)
    with pytest.raises(UserError, match=r"METHOD = 'sbs' is a method of its own, but PARTS"):
        resolve_task(TaskChoice(NAME, method="sbs"), settings)
    with pytest.raises(UserError, match=r"PARTS describes a method, but MIXTURE_OR_TASK_NAME"):
        resolve_task(f"{NAME}_sbs", settings)
    with pytest.raises(UserError, match=r"METHOD = 'hintd' is unknown"):
        resolve_task(TaskChoice(NAME, method="hintd"), DataSettings())
    with pytest.raises(UserError, match=r"have the same prefix 'predict: '; with PREFIX_SIDE"):
        DataSettings(parts={"label": {}, "hint": {"prefix": "predict: "}}, prefix_side="decoder")
    assert find_method("sbs") is METHODS["sbs"]


def test_files_of_several_teachers_are_fields(folder, tmp_path):
    files = {}
    for field, word in (("rationale", "first"), ("second", "second")):
        rows = [
            {"id": f"train{i}", "llm_label": "l", "llm_rationale": f"{word} {i}"} for i in (0, 2)
        ]
        files[field] = str(tmp_path / f"{field}.jsonl")
        (tmp_path / f"{field}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = {"label": {}, "rationale": {}, "second": {}}
    choice = TaskChoice(NAME, method="two_teachers")
    task, records = read(folder, choice, parts=parts, rationales_file=files)
    found = texts(task, records)
    assert found[:4] == [
        ("predict: question 0", {LABEL: "gold 0"}),
        ("explain: question 0", {RATIONALE: "first 0"}),
        ("second: question 0", {3: "second 0"}),
        ("predict: question 1", {LABEL: "gold 1"}),
    ]
    assert len(found) == 4 + 2 + 2
    assert json.loads(json.dumps(task.settings.record()))["rationales_file"] == files
    with pytest.raises(UserError, match="must be a file, or a dict of files by the field"):
        DataSettings(rationales_file={"a b": "c"})


@pytest.mark.parametrize("module", [parts, methods, part_templates])
def test_examples_of_the_docstrings(module):
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted
