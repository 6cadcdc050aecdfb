"""Data sets from tensorflow-datasets and from Hugging Face folders, both written here, small."""

import dataclasses
import json

import datasets as hugging_face
import pyarrow
import pyarrow.parquet
import pytest

from sbs_jax.data import datasets, pipeline, registry
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.resolving import resolve_task
from sbs_jax.data.settings import DataSettings
from sbs_jax.data.tensorflow_setup import tfds
from sbs_jax.errors import UserError
from sbs_jax.tasks import anli1, asdiv, cqa, esnli, gsm8k, mawps, strategyqa, svamp
from tests.examples import load_examples

NLI = [
    {"premise": f"P{i}", "hypothesis": f"H{i}", "label": i % 3, "explanation_1": f"E{i}"}
    for i in range(12)
]
LABELS = ("entailment", "neutral", "contradiction")
CQA = [
    {
        "id": f"q{i}",
        "question": f"Q{i}?",
        "choices": ["sea", "river", "zoo", "park", "home"],
        "answer": "river",
        "abstractive_explanation": f"because {i}",
        "extractive_explanation": "Q",
    }
    for i in range(12)
]
GSM8K = [
    {"question": f"Q{i}?", "answer": f"1+{i} = <<1+{i}={1 + i}>>{1 + i}.\n#### {1 + i}"}
    for i in range(12)
]


def tfds_settings(folder):
    return DataSettings(data_dir=str(folder), data_source="tfds")


def prepare(name, folder, splits, monkeypatch):
    """Prepares a data set of tensorflow-datasets with the real builder, but for its download."""
    builder = tfds.builder(name, data_dir=str(folder))
    made = {split: iter(enumerate(rows)) for split, rows in splits.items()}
    monkeypatch.setattr(type(builder), "_split_generators", lambda *_: made)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False, num_shards=2)
    )


def save(rows, folder, split, name=None):
    path = folder / (name or f"{split}-00000-of-00001.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def hf_settings(folder):
    return DataSettings(data_dir=str(folder), data_source="huggingface")


def test_esnli_of_tfds(tmp_path, monkeypatch):
    rows = [{**row, "explanation_2": "", "explanation_3": "More."} for row in NLI]
    prepare(
        "esnli", tmp_path, {"train": rows, "validation": rows[:2], "test": rows[:2]}, monkeypatch
    )
    examples = esnli.load("train", tfds_settings(tmp_path))
    assert [example["id"] for example in examples] == [f"train-{i}" for i in range(1, 13)]
    by_input = {example["input"]: example for example in examples}
    for i, row in enumerate(NLI):
        example = by_input[f"P{i}</s>H{i}"]
        assert example["label"] == LABELS[row["label"]]
        assert example["rationale"] == [f"E{i}", "More."]
        assert "llm_label" not in example
    assert examples == esnli.load("train", tfds_settings(tmp_path))
    assert len(esnli.load("validation", tfds_settings(tmp_path))) == 2


def test_anli_cos_e_and_gsm8k_of_tfds(tmp_path, monkeypatch):
    rows = [
        {"uid": f"u{i}", "context": f"P{i}", "hypothesis": f"H{i}", "label": "enc"[i % 3]}
        for i in range(6)
    ]
    splits = {"train": rows, "validation": rows, "test": rows}
    prepare("anli/r1", tmp_path, splits, monkeypatch)
    found = {example["id"]: example for example in anli1.load("test", tfds_settings(tmp_path))}
    assert {i: found[f"u{i}"]["label"] for i in range(3)} == dict(enumerate(LABELS))
    assert found["u4"]["input"] == "P4</s>H4"
    prepare("cos_e", tmp_path, {"train": CQA, "validation": CQA[:3]}, monkeypatch)
    found = {example["id"]: example for example in cqa.load("test", tfds_settings(tmp_path))}
    assert set(found) == {"q0", "q1", "q2"}
    assert found["q1"]["rationale"] == "because 1"
    assert found["q1"]["input"].startswith("Q1?\nAnswer Choices:\n(a) sea\n(b) river")
    rows = [{**row, "annotation": "A", "short_answer": "S"} for row in GSM8K]
    prepare("gsm8k", tmp_path, {"train": rows, "test": rows[:2]}, monkeypatch)
    example = min(gsm8k.load("test", tfds_settings(tmp_path)), key=lambda e: e["input"])
    assert (example["input"], example["label"], example["rationale"]) == ("Q0?", "1", "1+0 = 1.")
    with pytest.raises(UserError, match=r"has no split 'validation'; it has train, test\."):
        gsm8k.load("validation", tfds_settings(tmp_path))


def test_what_tfds_lacks(tmp_path):
    with pytest.raises(UserError, match=r"'esnli' is not prepared in .*; run: python -c .*prepare"):
        esnli.load("train", tfds_settings(tmp_path))
    with pytest.raises(UserError, match="tensorflow-datasets has no data set 'svamp'"):
        svamp.load("train", tfds_settings(tmp_path))
    with (
        settings_lib.override(tfds_settings(tmp_path)),
        pytest.raises(UserError, match="the data set 'coin_flip' is read in one way alone"),
    ):
        load_examples("coin_flip", "train")
    with pytest.raises(UserError, match="DATA_SOURCE must be one of release, tfds, huggingface"):
        DataSettings(data_source="hub")


def test_parquet_layouts_and_completions_in_order(tmp_path):
    save(NLI[:7], tmp_path / "esnli" / "data", "train", "train-00000-of-00002.parquet")
    save(NLI[7:], tmp_path / "esnli" / "data", "train", "train-00001-of-00002.parquet")
    save(NLI[:2], tmp_path / "esnli" / "data", "train", "train_extra-00000-of-00001.parquet")
    (tmp_path / "esnli" / "llm").mkdir()
    completions = [f"R{i}.\nAnswer: neutral" for i in range(12)]
    (tmp_path / "esnli" / "llm" / "train_CoT_0.json").write_text(json.dumps(completions))
    examples = esnli.load("train", hf_settings(tmp_path))
    assert [example["input"] for example in examples] == [f"P{i}</s>H{i}" for i in range(12)]
    assert [example["llm_rationale"] for example in examples] == [f"R{i}." for i in range(12)]
    assert len({example["id"] for example in examples}) == 12
    save(NLI[:2], tmp_path / "esnli" / "other", "train", "train/0000.parquet")
    with pytest.raises(UserError, match="several folders hold Parquet files of the split 'train'"):
        esnli.load("train", hf_settings(tmp_path))
    with pytest.raises(UserError, match="nor a Parquet file of the split 'test'"):
        esnli.load("test", hf_settings(tmp_path))
    with pytest.raises(
        UserError, match=r"there is no folder .*gsm8k; run: .*'openai/gsm8k', 'main"
    ):
        gsm8k.load("test", hf_settings(tmp_path))


def test_every_data_set_of_hugging_face(tmp_path):
    rows = [{"uid": "u", "premise": "P", "hypothesis": "H", "label": 1, "reason": "Why"}]
    save(rows, tmp_path / "anli1" / "plain_text", "dev_r1")
    (example,) = anli1.load("validation", hf_settings(tmp_path))
    assert (example["id"], example["label"], example["rationale"]) == ("u", "neutral", "Why")
    save(GSM8K, tmp_path / "gsm8k" / "main", "test")
    assert gsm8k.load("test", hf_settings(tmp_path))[3]["label"] == "4"
    own = {
        "id": "x",
        "question": "Q?",
        "question_concept": "c",
        "choices": {"label": list("ABCDE"), "text": ["sea", "river", "zoo", "park", "home"]},
        "answerKey": "C",
    }
    save([own], tmp_path / "cqa", "validation")
    (example,) = cqa.load("test", hf_settings(tmp_path))
    assert (example["label"], example["id"]) == ("zoo", "x")
    save([{"Body": "B", "Question": "Q?", "Equation": "( 1.0 + 2.0 )"}], tmp_path / "svamp", "test")
    (example,) = svamp.load("test", hf_settings(tmp_path))
    assert (example["input"], example["label"]) == ("B\nQ?", "( 1.0 + 2.0 )")
    row = {"body": "B.", "question": "Q?", "answer": "9 (apples)", "formula": "7+2=9"}
    save([row], tmp_path / "asdiv" / "asdiv", "validation")
    (example,) = asdiv.load("train", hf_settings(tmp_path))
    assert (example["input"], example["label"]) == ("B.\nQ?", "9")
    save([{"question": "Q?", "result": "12"}], tmp_path / "mawps", "train")
    assert mawps.load("train", hf_settings(tmp_path))[0]["label"] == "12"
    save(
        [{"qid": "s", "question": "Q?", "answer": True, "facts": "One."}],
        tmp_path / "strategyqa",
        "test",
    )
    (example,) = strategyqa.load("test", hf_settings(tmp_path))
    assert (example["label"], example["rationale"]) == ("yes", "One.")


def test_saved_to_disk(tmp_path):
    both = {
        split: hugging_face.Dataset.from_list(GSM8K[:n]) for split, n in (("train", 8), ("test", 3))
    }
    hugging_face.DatasetDict(both).save_to_disk(str(tmp_path / "gsm8k"))
    assert [e["label"] for e in gsm8k.load("test", hf_settings(tmp_path))] == ["1", "2", "3"]
    assert len(gsm8k.load("train", hf_settings(tmp_path))) == 8
    with pytest.raises(UserError, match=r"has no split 'validation'; it has train, test\."):
        gsm8k.load("validation", hf_settings(tmp_path))


def test_a_teachers_rationales_join_by_id(tmp_path, monkeypatch):
    prepare("cos_e", tmp_path, {"train": CQA, "validation": CQA[:3]}, monkeypatch)
    written = [
        {"id": f"q{i}", "llm_label": "river", "llm_rationale": f"L{i}", "flags": {}}
        for i in (3, 1, 2, 0, 8)
    ]
    written[1] |= {"llm_rationales": ["L1", "M1"], "llm_labels": ["river", "river"]}
    path = tmp_path / "rationales.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in written))
    settings = dataclasses.replace(
        tfds_settings(tmp_path),
        rationales_file=str(path),
        model_dir=str(tmp_path / "model"),
        vocabulary_size=400,
    )
    with settings_lib.override(settings):
        examples = load_examples("cqa", "train") + load_examples("cqa", "validation")
        found = {example["id"]: example for example in examples}
        assert found["q2"]["llm_rationale"] == "L2"
        assert found["q1"]["llm_rationale"] == ["L1", "M1"]
        assert found["q5"]["llm_label"] == ""
        records = pipeline.load_records(
            resolve_task("cqa_sbs"), "train", {"inputs": 256, "targets": 64}
        )
        explained = sum(bool(e["llm_rationale"]) for e in load_examples("cqa", "train"))
    assert records.counts.blank_rationales == records.counts.examples - explained
    path.write_text(json.dumps(written[0] | {"input": "other"}) + "\n")
    with (
        settings_lib.override(settings),
        pytest.raises(UserError, match="the row with id 'q3' has another input than that example"),
    ):
        datasets.split_examples(registry.find_dataset("cqa"), "train", settings)
    path.write_text(json.dumps(written[0]) + "\n" + json.dumps(written[0]) + "\n")
    with (
        settings_lib.override(settings),
        pytest.raises(UserError, match=r"line 2: the id 'q3' occurs twice"),
    ):
        load_examples("cqa", "train")
