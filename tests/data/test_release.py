import json

import pytest

from sbs_jax.data.release import (
    Row,
    completion_files,
    load_release,
    make_examples,
    read_completions,
)
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError
from sbs_jax.parsers import ParsedCompletion
from tests.release_layout import write_jsonl


def convert(row):
    return {
        "id": str(row.line),
        "input": row.text("input"),
        "label": row.text("label"),
        "rationale": row.text("why", blank=True),
    }


def parser(completion):
    return ParsedCompletion(f"because {completion}", completion.upper())


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "toy" / "llm").mkdir(parents=True)
    return tmp_path / "toy"


def load(folder, split="train"):
    settings = DataSettings(data_dir=str(folder.parent))
    return load_release(settings, "toy", split, convert=convert, parser=parser)


def test_reads_examples_and_completions_in_numeric_order(folder):
    write_jsonl(
        folder / "toy_train.json", [{"input": str(i), "label": "x", "why": ""} for i in range(12)]
    )
    for number in range(12):
        (folder / "llm" / f"train_CoT_{number}.json").write_text(json.dumps([f"c{number}"]))
    examples = load(folder)
    assert [example["llm_label"] for example in examples] == [f"C{i}" for i in range(12)]
    assert examples[11] == {
        "id": "12",
        "input": "11",
        "label": "x",
        "rationale": "",
        "llm_label": "C11",
        "llm_rationale": "because c11",
    }


def test_without_completions_the_teachers_texts_are_missing(folder):
    write_jsonl(folder / "toy_test.json", [{"input": "i", "label": "l"}])
    assert load(folder, "test") == [{"id": "1", "input": "i", "label": "l", "rationale": ""}]


def test_blank_lines_count_as_lines(folder):
    (folder / "toy_train.json").write_text('\n{"input": "i", "label": "l"}\n\n')
    assert load(folder)[0]["id"] == "2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"input": "i", "label": "l"}\n{"input": ', r"toy_train\.json, line 2: not valid JSON"),
        ('{"input": "i"}', r"line 1: has no field 'label' \(fields: input\)\."),
        ('{"input": "i", "label": 3}', "line 1: field 'label' must be a text, not a number"),
        ('{"input": " ", "label": "l"}', "line 1: field 'input' is empty"),
        ('{"input": "i", "label": "l", "why": []}', "field 'why' must be a text, not a list"),
        ("[1]", "entry 1: expected an object, found a number"),
        ("\n\n", r"toy_train\.json: holds no examples"),
    ],
)
def test_malformed_examples_are_named(folder, text, message):
    (folder / "toy_train.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load(folder)


def test_missing_examples_are_named(folder):
    with pytest.raises(UserError, match=r"toy_train\.json: cannot be read \(No such file"):
        load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["a",\n"b"\n"c"]', r"train_CoT_0\.json, line 3: not valid JSON"),
        ('["a", 3]', r"train_CoT_0\.json, entry 2: expected a text, found a number\."),
        ('["a", null]', "entry 2: expected a text, found null"),
        ('{"a": 1}', "expected a JSON list of completions, found an object"),
        ("[" * 100_000, "nested too deeply"),
        ("", "line 1: not valid JSON"),
    ],
)
def test_malformed_completions_are_named(folder, text, message):
    path = folder / "llm" / "train_CoT_0.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_completions(path)


def test_completions_may_be_objects(folder):
    path = folder / "llm" / "train_CoT_0.json"
    path.write_text(json.dumps([{"id": 3, "completion": "a"}, "b", {"text": "c"}]))
    assert read_completions(path) == ["a", "b", "c"]
    path.write_text(json.dumps(["a", {"said": "b"}]))
    with pytest.raises(UserError, match=r"entry 2: expected a text in one of .*, found said\."):
        read_completions(path)


def test_completions_of_another_encoding(folder):
    path = folder / "train_CoT_0.json"
    path.write_bytes('["é"]'.encode("latin-1"))
    with pytest.raises(UserError, match=r"train_CoT_0\.json: not UTF-8 text"):
        read_completions(path)


def test_counts_must_agree(folder):
    write_jsonl(folder / "toy_train.json", [{"input": "i", "label": "l"}] * 3)
    (folder / "llm" / "train_CoT_0.json").write_text('["a", "b"]')
    with pytest.raises(UserError) as caught:
        load(folder)
    assert str(caught.value) == (
        f"{folder}/toy_train.json holds 3 examples but {folder}/llm/train_CoT_0.json 2 "
        "completions; every example needs one, in the same order."
    )
    (folder / "llm" / "train_CoT_1.json").write_text('["c", "d"]')
    with pytest.raises(UserError, match=r"train_CoT_0\.json to train_CoT_1\.json 4 completions"):
        load(folder)


def test_a_gap_between_completion_files_is_named(folder):
    for number in (0, 2):
        (folder / f"train_CoT_{number}.json").write_text("[]")
    (folder / "train_CoT_x.json").write_text("not counted")
    with pytest.raises(UserError, match=r"train_CoT_1\.json: is missing, though .*_CoT_2\.json"):
        completion_files(folder, "train")


def test_row_is_a_mapping_with_a_place(tmp_path):
    row = Row({"choices": ["a", "b"], "n": 1}, tmp_path / "f.json", 7)
    assert dict(row) == {"choices": ["a", "b"], "n": 1}
    assert row.texts("choices") == ["a", "b"]
    assert "missing" not in row
    with pytest.raises(UserError, match=r"f\.json, line 7: field 'n' must be a list of texts\."):
        row.texts("n")


def test_a_failure_of_a_tasks_own_code_names_the_row(tmp_path):
    def to_example(row):
        return {"input": row["stars"] > "3"}

    with pytest.raises(TypeError) as caught:
        make_examples(
            [Row({"stars": 5}, tmp_path / "a.jsonl", 7)], None, convert=to_example, parser=str
        )
    assert caught.value.__notes__ == [
        f"{tmp_path / 'a.jsonl'}, line 7: to_example fails for this row."
    ]
