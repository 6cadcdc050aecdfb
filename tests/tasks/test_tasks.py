import json

import gin
import pytest

from sbs_jax.configuration import data_settings
from sbs_jax.data import choosing
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError
from sbs_jax.tasks import cqa, svamp
from tests.examples import load_examples
from tests.paths import GIN
from tests.release_layout import write_jsonl


def test_svamp_keeps_the_released_equation(generated):
    settings = DataSettings(data_dir=str(generated))
    examples = svamp.load("train", settings)
    first_line = (generated / "svamp" / "svamp_train.json").read_text().splitlines()[0]
    row = json.loads(first_line)
    assert examples[0] == {
        "id": "svamp_train-1",
        "input": row["input"],
        "label": row["label"],
        "rationale": "",
        "llm_label": "",
        "llm_rationale": "",
    }
    parsed = examples[1]
    assert parsed["llm_label"].startswith("(")
    assert parsed["llm_label"].endswith(")")
    assert "The answer is" not in parsed["llm_rationale"]
    assert [i for i, example in enumerate(examples) if not example["llm_label"]] == [0, 10]


def test_cqa_lists_the_choices(generated):
    examples = cqa.load("test", DataSettings(data_dir=str(generated)))
    first_line = (generated / "cqa" / "cqa_test.json").read_text().splitlines()[0]
    row = json.loads(first_line)
    a, b, c, d, e = row["choices"]
    assert examples[0]["input"] == (
        f"{row['question']}\nAnswer Choices:\n(a) {a}\n(b) {b}\n(c) {c}\n(d) {d}\n(e) {e}"
    )
    assert examples[0]["id"] == row["id"]
    assert examples[0]["label"] == row["answer"]
    assert examples[0]["rationale"] == row["abstractive_explanation"]
    assert examples[1]["llm_label"] in examples[1]["input"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "answer": "a"}, "line 1: has no field 'choices'"),
        ({"question": "q", "answer": "a", "choices": "abc"}, "'choices' must be a list of texts"),
        ({"question": "q", "answer": "a", "choices": ["a"]}, "must hold 2 to 26 choices, not 1"),
        ({"question": "q", "choices": ["a", "b"]}, "has no field 'answer'"),
    ],
)
def test_malformed_cqa(tmp_path, row, message):
    (tmp_path / "cqa").mkdir()
    write_jsonl(tmp_path / "cqa" / "cqa_train.json", [row])
    with pytest.raises(UserError, match=message):
        cqa.load("train", DataSettings(data_dir=str(tmp_path)))


@pytest.mark.parametrize("name", ["svamp", "cqa"])
def test_gin_files_name_a_task_and_bind_settings(name, generated, tmp_path):
    gin.clear_config()
    try:
        gin.parse_config_files_and_bindings(
            [str(GIN / "runs" / "data.gin"), str(GIN / "tasks" / f"{name}.gin")],
            [f"DATA_DIR = '{generated}'", f"MODEL_DIR = '{tmp_path}'", "SEED = 4"],
        )
        task = gin.query_parameter("%MIXTURE_OR_TASK_NAME")
        assert choosing.task_info(task).dataset.name == name
        assert set(gin.query_parameter("%TASK_FEATURE_LENGTHS")) == {"inputs", "targets"}
        data_settings.install()
        assert settings_lib.current() == DataSettings(
            data_dir=str(generated), model_dir=str(tmp_path), seed=4
        )
        assert len(load_examples(name, "train")) == 18
    finally:
        gin.clear_config()
        settings_lib.configure(DataSettings)
