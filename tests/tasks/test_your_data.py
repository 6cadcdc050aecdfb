import json

import gin
import pytest

from sbs_jax.data import pipeline, registry
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.resolving import resolve_task
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError
from sbs_jax.programs.teach import TaskSource
from sbs_jax.tasks import your_data
from tests.examples import load_examples


@pytest.fixture(autouse=True)
def _clear_gin():
    gin.clear_config()
    yield
    gin.clear_config()


def bind(**values):
    for name, value in values.items():
        gin.bind_parameter(f"your_data.Files.{name}", value)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(split):
    return your_data.load(split, DataSettings())


def rows(count, **more):
    return [
        {"input": f"x{i}", "label": f"y{i}", "rationale": f"r{i}", **more} for i in range(count)
    ]


def test_the_default_fields(tmp_path):
    bind(
        train_file=write(tmp_path / "my.jsonl", rows(3)),
        eval_file=write(tmp_path / "dev.jsonl", rows(2, llm_label="t", llm_rationale=["a", "b"])),
    )
    assert load("train")[1] == {
        "id": "train-2",
        "input": "x1",
        "label": "y1",
        "rationale": "r1",
        "llm_rationale": "r1",
    }
    (first, _) = load("validation")
    assert (first["llm_label"], first["llm_rationale"]) == ("t", ["a", "b"])
    assert load("test")[0]["input"] == "x0"


def test_other_names_numbers_and_csv(tmp_path):
    (tmp_path / "d.csv").write_text("q,a,why,key\nx,3,because,k1\ny,4,,k2\n")
    bind(
        train_file=str(tmp_path / "d.csv"),
        eval_file=str(tmp_path / "d.csv"),
        input_field="q",
        label_field="a",
        llm_rationale_field="why",
        id_field="key",
    )
    first, second = load("train")
    assert (first["id"], first["label"], first["llm_rationale"]) == ("k1", "3", "because")
    assert second["llm_rationale"] == second["rationale"] == ""
    write(tmp_path / "n.jsonl", [{"q": "x", "a": 3}, {"q": "x", "a": True}, {"q": "x", "a": 0.5}])
    bind(train_file=str(tmp_path / "n.jsonl"))
    assert [example["label"] for example in load("train")] == ["3", "True", "0.5"]


def test_without_an_eval_file_a_tenth_is_held_out(tmp_path):
    bind(train_file=write(tmp_path / "my.jsonl", rows(20)))
    train, validation = (load_examples("your_data", split) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (18, 2)
    assert {example["input"] for example in train + validation} == {f"x{i}" for i in range(20)}
    # A teacher explains those that are held out, too.
    assert [example["input"] for example in TaskSource("your_data", "train")()] == [
        f"x{i}" for i in range(20)
    ]
    with pytest.raises(UserError, match=r"no test examples: give --gin\.TEST_FILE"):
        load("test")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input": "x"}, "line 1: has no field 'label'"),
        ({"label": "x"}, "line 1: has no field 'input'"),
        ({"input": " ", "label": "y"}, "line 1: field 'input' is empty"),
        ({"input": "x", "label": ["y"]}, "field 'label' must be a text, not a list"),
        ({"input": "x", "label": "y", "rationale": [1]}, "'rationale' must be a list of texts"),
        ({"input": "x", "label": "y", "llm_rationale": {}}, "must be a text, not an object"),
    ],
)
def test_malformed_rows(tmp_path, row, message):
    bind(train_file=write(tmp_path / "my.jsonl", [row]), eval_file="unused")
    with pytest.raises(UserError, match=message):
        load("train")


def test_labels_and_scorer_by_gin(tmp_path):
    path = write(tmp_path / "my.jsonl", rows(3))
    bind(train_file=path, eval_file=path, labels=("y0", "y1"), scorer="value")
    assert registry.find_dataset("your_data").scorer == "value"
    with pytest.raises(UserError, match="example 'train-3': its label 'y2' is none of y0, y1"):
        load_examples("your_data", "train")
    bind(scorer="bleu")
    with pytest.raises(UserError, match="scorer 'bleu', but there are exact_match, value"):
        _ = registry.find_dataset("your_data").scorer
    gin.clear_config()
    with pytest.raises(UserError, match="TRAIN_FILE is missing"):
        load("train")


def test_nul_bytes_and_blank_rationales_train(tmp_path):
    data = rows(12)
    data[3]["rationale"] = ""
    data[4]["rationale"] = "a\0b"
    data[5]["rationale"] = ["one", "two"]
    path = write(tmp_path / "my.jsonl", data)
    bind(train_file=path, eval_file=path)
    settings = DataSettings(model_dir=str(tmp_path / "m"), vocabulary_size=400)
    with settings_lib.override(settings):
        records = pipeline.load_records(
            resolve_task("your_data"), "train", {"inputs": 32, "targets": 32}
        )
    assert records.counts.blank_rationales == 1
    assert records.counts.rationale_records == 12


def counts_of(tmp_path, task):
    settings = DataSettings(model_dir=str(tmp_path / "m"), vocabulary_size=400)
    with settings_lib.override(settings):
        return pipeline.load_records(
            resolve_task(task), "train", {"inputs": 32, "targets": 32}
        ).counts


def test_a_misspelt_rationale_field_is_an_error_that_names_the_fields_seen(tmp_path):
    path = write(tmp_path / "my.jsonl", rows(20))
    bind(train_file=path, rationale_field="reason")
    seen = (
        r"RATIONALE_FIELD = 'reason' is in no row and LLM_RATIONALE_FIELD = 'llm_rationale' is in "
        r"no row; its fields are input, label, rationale\."
    )
    with pytest.raises(
        UserError,
        match=rf"'your_data_sbs' needs rationales, but none of the 18 .*'standard'.*{seen}",
    ):
        counts_of(tmp_path, "your_data")
    with pytest.raises(UserError, match=rf"needs people's rationales, but .*{seen}"):
        counts_of(tmp_path, "your_data_joint_human")
    assert counts_of(tmp_path, "your_data_standard").label_records == 18
    bind(train_file=write(tmp_path / "blank.jsonl", [{**row, "reason": " "} for row in rows(20)]))
    with pytest.raises(UserError, match=r"RATIONALE_FIELD = 'reason' is empty in every row and"):
        counts_of(tmp_path, "your_data")


def test_where_most_examples_lack_a_rationale_a_warning_counts_them(tmp_path, caplog):
    data = rows(20)
    for row in data[8:]:
        row["rationale"] = ""
    bind(train_file=write(tmp_path / "my.jsonl", data), eval_file=write(tmp_path / "e.jsonl", data))
    assert counts_of(tmp_path, "your_data").blank_rationales == 12
    assert "12 of the 20 training examples of 'your_data' have no rationale" in caplog.text
    caplog.clear()
    bind(llm_rationale_field="llm")
    counts_of(tmp_path, "your_data_standard")
    assert "no row has the field LLM_RATIONALE_FIELD = 'llm'; 'rationale' stands" in caplog.text
    assert "have no rationale" not in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "a"}, r"my\.jsonl, line 4: the id 'a' occurs twice in .* \(first: .*, line 2\)"),
        ({"label": float("nan")}, r"my\.jsonl, line 2: field 'label' must be .* number, not nan"),
        ({"label": float("inf")}, r"my\.jsonl, line 2: field 'label' must be .* not inf"),
        ({"label": "a\0b"}, r"my\.jsonl, line 2: field 'label' holds a NUL character"),
        ({"input": "\0"}, r"my\.jsonl, line 2: field 'input' holds a NUL character"),
        ({"label": "y99"}, r"my\.jsonl, line 2: .*: its label 'y99' is none of y0, y1"),
    ],
)
def test_what_no_data_set_may_hold_is_named_with_file_and_line(tmp_path, change, message):
    data = [{**row, "label": "y0"} for row in rows(12)]
    data[1] |= change
    data[3] |= {"id": "a"}
    path = write(tmp_path / "my.jsonl", data)
    bind(train_file=path, eval_file=path, labels=() if "NUL" in message else ("y0", "y1"))
    with pytest.raises(UserError, match=message):
        load_examples("your_data", "train")


def test_nul_in_a_rationale_becomes_a_space(tmp_path):
    path = write(tmp_path / "my.jsonl", rows(12, rationale="a\0b"))
    bind(train_file=path, eval_file=path)
    assert load_examples("your_data", "train")[0]["rationale"] == "a b"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scorer": "f1"}, "SCORER names the scorer 'f1', but there are exact_match, value"),
        ({"encoding": "klingon"}, "ENCODING = 'klingon' is no encoding of texts"),
    ],
)
def test_what_gin_gives_is_checked_even_where_it_is_not_used(tmp_path, values, message):
    bind(train_file=write(tmp_path / "my.jsonl", rows(3)), **values)
    with pytest.raises(UserError, match=message):
        load("train")


def test_the_encoding_of_jsonl(tmp_path):
    (tmp_path / "my.jsonl").write_bytes('{"input": "ä", "label": "y"}\n'.encode("utf-16"))
    bind(train_file=str(tmp_path / "my.jsonl"), eval_file="unused", encoding="utf-16")
    assert load("train")[0]["input"] == "ä"


def test_strict_lengths_name_file_and_line(tmp_path):
    data = rows(30)
    data[20]["input"] = "long " * 40
    data[25]["rationale"] = "longer " * 50
    path = write(tmp_path / "my.jsonl", data)
    bind(train_file=path, eval_file=path)
    settings = DataSettings(model_dir=str(tmp_path / "m"), vocabulary_size=400, strict_lengths=True)
    with settings_lib.override(settings):
        task = resolve_task("your_data")
        line = r"my\.jsonl, line 21"
        with pytest.raises(UserError, match=rf"2 of the 60 inputs of .*first: .*{line}; the long"):
            pipeline.load_records(task, "train", {"inputs": 32, "targets": 400})
        with pytest.raises(UserError, match=r"1 of the 60 targets of .*the longest: .* line 26\)"):
            pipeline.load_records(task, "train", {"inputs": 400, "targets": 32})
        with pytest.raises(UserError, match=rf"2 of the 60 inputs of .*first: .*{line}; the long"):
            pipeline.load_eval_examples(task, "validation", {"inputs": 32, "targets": 32})


def test_a_remote_file_that_is_not_there_is_named_by_its_url(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bind(train_file="memory://lake/none.jsonl")
    with pytest.raises(UserError, match=r"^memory://lake/none\.jsonl: there is nothing to read"):
        load("train")
