"""The data sets besides SVAMP and CQA, on small files in their published layouts."""

import dataclasses
import json

import gin
import pyarrow
import pyarrow.parquet
import pytest

from sbs_jax import read_rows, register_public
from sbs_jax.data import choosing, datasets, elements, registration, registry, release
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError
from sbs_jax.tasks import (
    anli1,
    asdiv,
    coin_flip,
    cqa,
    esnli,
    gsm8k,
    last_letters,
    mawps,
    strategyqa,
)
from tests.examples import load_examples
from tests.release_layout import write_jsonl


@pytest.fixture(autouse=True)
def _clear_gin():
    gin.clear_config()
    yield
    gin.clear_config()


def settings(folder):
    return DataSettings(data_dir=str(folder))


def write(folder, name, rows, split, completions=(), per_file=2):
    (folder / name / "llm").mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / name / f"{name}_{split}.json", rows)
    for number, start in enumerate(range(0, len(completions), per_file)):
        path = folder / name / "llm" / f"{split}_CoT_{number}.json"
        path.write_text(json.dumps(completions[start : start + per_file]))


def teacher_right(dataset, examples):
    score = registry.find_dataset(dataset).score
    return sum(score(example["llm_label"], example["label"]) for example in examples)


def esnli_rows(labels):
    return [
        {"premise": f"P{i}.", "hypothesis": f"H{i}.", "label": label, "explanation_1": f"E{i}."}
        for i, label in enumerate(labels)
    ]


def test_esnli(tmp_path):
    completions = [
        "A is B.\nAnswer: entailment\n\nPremise: x\nAnswer: neutral",
        "Why.\nAnswer: neutral\n\nPremise: x",
        "Cut off",
        "No.\nAnswer: entailment\n\nPremise",
        "Left out with its line.\nAnswer: neutral\n\nPremise",
        "Odd.\nAnswer: maybe\n\nPremise",
    ]
    write(tmp_path, "esnli", esnli_rows([0, 1, 2, 2, -1, 0]), "train", completions)
    write(tmp_path, "esnli", esnli_rows([1]), "valid", ["R.\nAnswer: neutral\n\nPremise"])
    row = {**esnli_rows([2])[0], "explanation_2": "More.", "explanation_3": ""}
    write(tmp_path, "esnli", [row], "test")
    examples = esnli.load("train", settings(tmp_path))
    assert examples[0] == {
        "id": "esnli_train-1",
        "input": "P0.</s>H0.",
        "label": "entailment",
        "rationale": ["E0."],
        "llm_label": "entailment",
        "llm_rationale": "A is B.",
    }
    labels = [example["label"] for example in examples]
    assert labels == ["entailment", "neutral", "contradiction", "contradiction", "entailment"]
    found = [example["llm_label"] for example in examples]
    assert found == ["entailment", "neutral", "", "entailment", "maybe"]
    assert teacher_right("esnli", examples) == 2
    (validation,) = esnli.load("validation", settings(tmp_path))
    assert validation["llm_label"] == "neutral"
    (test,) = esnli.load("test", settings(tmp_path))
    assert test["rationale"] == ["E0.", "More."]
    assert "llm_label" not in test
    with settings_lib.override(settings(tmp_path)):
        task = choosing.task_info("esnli_standard_teacher")
        targets = [element["target_label"] for element in elements.read_targets(task, "train")]
        assert targets == ["entailment", "neutral", "", "entailment", ""]  # 'maybe' is no label


@pytest.mark.parametrize("folder", ["anli1", "anli"])
def test_anli(tmp_path, folder):
    row = {"uid": "u1", "premise": "P", "hypothesis": "H", "label": 2, "reason": "Because."}
    rows = [row, {**row, "uid": "u2", "reason": ""}, {**row, "uid": "u3"}]
    completions = [
        "R. So the answer is contradiction.\n\nPremise: x So the answer is neutral.",
        "R. So the answer is neutral.\n\nPremise: x",
        "Never ends",
    ]
    write(tmp_path, folder, rows, "train", completions, per_file=1)
    examples = anli1.load("train", settings(tmp_path))
    assert examples[0] == {
        "id": "u1",
        "input": "P</s>H",
        "label": "contradiction",
        "rationale": "Because.",
        "llm_label": "contradiction",
        "llm_rationale": "R.",
    }
    assert [example["llm_label"] for example in examples] == ["contradiction", "neutral", ""]
    assert teacher_right("anli1", examples) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 3}, r"line 1: field 'label' must be 0 .*, 1 .* or 2 .*, not 3"),
        ({"label": True}, "not True"),
        ({"label": "maybe"}, "not 'maybe'"),
        ({"premise": 3}, "field 'premise' must be a text, not a number"),
        ({"explanation_1": []}, "field 'explanation_1' must be a text, not a list"),
    ],
)
def test_malformed_nli(tmp_path, change, message):
    write(tmp_path, "esnli", [{**esnli_rows([0])[0], **change}], "train")
    with pytest.raises(UserError, match=message):
        esnli.load("train", settings(tmp_path))


def test_nli_needs_both_texts_but_they_may_be_empty_and_labels_named(tmp_path):
    write(tmp_path, "esnli", [{"premise": "P", "hypothesis": "", "label": "Neutral"}], "train")
    assert esnli.load("train", settings(tmp_path))[0]["input"] == "P</s>"
    assert esnli.load("train", settings(tmp_path))[0]["label"] == "neutral"
    write(tmp_path, "esnli", [{"premise": "P", "label": 0}], "train")
    with pytest.raises(UserError, match="has no field 'hypothesis'"):
        esnli.load("train", settings(tmp_path))


def test_asdiv_helps_svamp_without_labels(tmp_path):
    rows = [{"input": f"Q{i}", "label": f"( {i} + 1 )"} for i in range(10)]
    write(tmp_path, "svamp", rows, "train", [f"R. The answer is ({i} + 1)." for i in range(10)])
    write(tmp_path, "svamp", rows[:2], "test")
    rows = [{"Body": "B.", "Question": "Q?", "Formula": "7+2=9", "Answer": "9 (apples)"}]
    write(tmp_path, "asdiv", rows, "train", ["7 + 2 = 9. The answer is (7 + 2)."])
    (example,) = asdiv.load("train", settings(tmp_path))
    assert (example["input"], example["label"]) == ("B.\nQ?", "9")
    assert teacher_right("asdiv", [example]) == 1
    with settings_lib.override(settings(tmp_path)):
        plain = {s: load_examples("svamp", s) for s in datasets.SPLITS}
        more = {s: load_examples("svamp_asdiv", s) for s in datasets.SPLITS}
        teacher = elements.read_targets(choosing.task_info("svamp_asdiv_sbs_teacher"), "train")
    assert more["validation"] == plain["validation"]
    assert more["test"] == plain["test"]
    assert more["train"][:-1] == plain["train"]
    assert more["train"][-1]["label"] == ""
    assert teacher[-1]["target_label"] == "(7 + 2)"
    assert teacher[-1]["target_rationale"] == "7 + 2 = 9."


def test_svamp_with_asdiv_needs_the_teachers_completions_for_asdiv(tmp_path):
    rows = [{"input": f"Q{i}", "label": f"( {i} + 1 )"} for i in range(10)]
    write(tmp_path, "svamp", rows, "train", [f"R. The answer is ({i} + 1)." for i in range(10)])
    write(tmp_path, "asdiv", [{"Body": "B.", "Question": "Q?", "Answer": "9"}], "train")
    with (
        settings_lib.override(settings(tmp_path)),
        pytest.raises(UserError, match=r"no completions for its 1 problems: .*asdiv/llm/train_CoT"),
    ):
        load_examples("svamp_asdiv", "train")


ASDIV = """<?xml version="1.0" encoding="UTF-8" ?>
<Machine-Reading-Corpus-File>
<ProblemSet>
%s
</ProblemSet>
</Machine-Reading-Corpus-File>
"""
PROBLEM = """<Problem ID="nluds-%04d" Grade="1" Source="x">
  <Body>Body %d &amp; more.</Body> <Question>Q?</Question>
  <Solution-Type>Sum</Solution-Type> <Answer>%s</Answer> <Formula>7+2=9</Formula>
</Problem>"""


def write_asdiv(folder, answers, completions=()):
    (folder / "asdiv" / "llm").mkdir(parents=True, exist_ok=True)
    problems = [PROBLEM % (i + 1, i, answer) for i, answer in enumerate(answers)]
    (folder / "asdiv" / "ASDiv.xml").write_text(ASDIV % "\n".join(problems))
    if completions:
        (folder / "asdiv" / "llm" / "train_CoT_0.json").write_text(json.dumps(completions))


def test_asdiv_as_its_owners_publish_it(tmp_path, caplog):
    answers = ["9 (apples)", "Mrs. Hilt", "3:30 p.m.", "1,200 (km)", "5:6"] * 4
    write_asdiv(tmp_path, answers, [f"R{i}. The answer is ({i} + 1)." for i in range(20)])
    train, test = (asdiv.load(split, settings(tmp_path)) for split in ("train", "test"))
    assert (len(train), len(test)) == (16, 4)
    found = {example["id"]: example for example in train + test}
    assert [found[f"nluds-{i + 1:04d}"]["label"] for i in range(5)] == [
        "9", "Mrs. Hilt", "3:30 p.m.", "1,200", "5:6",
    ]  # fmt: skip
    assert found["nluds-0002"]["input"] == "Body 1 & more.\nQ?"
    assert found["nluds-0002"]["llm_rationale"] == "R1."
    assert release.where(found["nluds-0002"]).endswith("ASDiv.xml, line 8")
    texts = [
        sum(ex["label"] in ("Mrs. Hilt", "3:30 p.m.", "5:6") for ex in s) for s in (train, test)
    ]
    assert sum(texts) == 12
    assert f"asdiv (train): {texts[0]} of 16 answers are no number" in caplog.text
    score = registry.find_dataset("asdiv").score
    assert (
        score("(4 + 5)", "9")
        and score("3:30 p.m.", "3:30 p.m.")
        and score("Mrs. Hilt", "Mrs. Hilt")
    )
    assert not score("3:30", "3:30 p.m.") and not score("nine", "9")

    rows = [{"input": f"Q{i}", "label": f"( {i} + 1 )"} for i in range(10)]
    write(tmp_path, "svamp", rows, "train", [f"R. The answer is ({i} + 1)." for i in range(10)])
    with settings_lib.override(settings(tmp_path)):
        helpers = load_examples("svamp_asdiv", "train")[9:]
    assert [helper["id"] for helper in helpers] == [f"nluds-{i + 1:04d}" for i in range(20)]
    assert [helper["llm_label"] for helper in helpers] == [f"({i} + 1)" for i in range(20)]
    assert {helper["label"] for helper in helpers} == {""}


def test_what_is_wrong_with_asdivs_file(tmp_path):
    (tmp_path / "asdiv").mkdir()
    path = tmp_path / "asdiv" / "ASDiv.xml"
    with pytest.raises(
        UserError, match=rf"{path}: cannot be read .*curl --create-dirs -o '{path}'"
    ):
        asdiv.load("train", settings(tmp_path))
    path.write_text("<a>\n<b>\n</a>")
    with pytest.raises(UserError, match=r"ASDiv\.xml, line 3: not valid XML"):
        asdiv.load("train", settings(tmp_path))
    path.write_text("<a/>")
    with pytest.raises(UserError, match="holds no element 'Problem'"):
        asdiv.load("train", settings(tmp_path))
    write_asdiv(tmp_path, ["9", "", "8"])
    with pytest.raises(UserError, match=r"ASDiv\.xml, line 8: field 'Answer' must be a number or"):
        asdiv.load("train", settings(tmp_path))


def test_each_data_set_of_a_mixture_may_have_its_own_source(tmp_path):
    write_asdiv(tmp_path, ["9"] * 5)
    pages = tmp_path / "gsm8k" / "main"
    pages.mkdir(parents=True)
    row = {"question": "Q?", "answer": "#### 3"}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), pages / "test.parquet")
    both = DataSettings(data_dir=str(tmp_path), data_source={"gsm8k": "huggingface"})
    assert len(gsm8k.load("test", both)) == len(asdiv.load("test", both)) == 1
    assert hash(both) == hash(DataSettings(**json.loads(json.dumps(dataclasses.asdict(both)))))
    with pytest.raises(UserError, match=r"DATA_SOURCE must be one of .*, not 'hub'; or a dict"):
        DataSettings(data_source={"gsm8k": "hub"})
    misspelt = DataSettings(data_dir=str(tmp_path), data_source={"gsm": "huggingface"})
    with pytest.raises(UserError, match="There is no data set 'gsm'; did you mean 'gsm8k'"):
        gsm8k.load("test", misspelt)


def test_gsm8k(tmp_path):
    (tmp_path / "gsm8k" / "llm").mkdir(parents=True)
    answer = "She sold 48/2 = <<48/2=24>>24 in May.\nIn all 1,072.\n#### 1,072"
    rows = [{"question": "Q?", "answer": answer}, {"question": "R?", "answer": "#### -3.5"}]
    write_jsonl(tmp_path / "gsm8k" / "train.jsonl", rows)
    completions = ["48/2 = 24. The answer is $1,072.\n\nQ: The answer is 1.", "So.\n#### 3.5"]
    (tmp_path / "gsm8k" / "llm" / "train_CoT_0.json").write_text(json.dumps(completions))
    first, second = gsm8k.load("train", settings(tmp_path))
    assert first["label"] == "1072"
    assert first["rationale"] == "She sold 48/2 = 24 in May.\nIn all 1,072."
    assert (first["llm_label"], first["llm_rationale"]) == ("1072", "48/2 = 24.")
    assert (second["label"], second["rationale"], second["llm_label"]) == ("-3.5", "", "3.5")
    assert teacher_right("gsm8k", [first, second]) == 1
    gin.bind_parameter("annotations.keep", True)
    assert "<<48/2=24>>24" in gsm8k.load("train", settings(tmp_path))[0]["rationale"]
    write_jsonl(tmp_path / "gsm8k" / "test.jsonl", [{"question": "Q?", "answer": "42"}])
    with pytest.raises(UserError, match=r"test.jsonl, line 1: field 'answer' must end in '####"):
        gsm8k.load("test", settings(tmp_path))


def test_mawps_in_its_copies(tmp_path):
    folder = tmp_path / "mawps"
    folder.mkdir()
    theirs = [{"iIndex": i, "sQuestion": f"Q{i}?", "lSolutions": [float(i)]} for i in range(10)]
    (folder / "MAWPS.json").write_text(json.dumps(theirs, indent=1))
    train, test = (mawps.load(split, settings(tmp_path)) for split in ("train", "test"))
    assert (len(train), len(test)) == (8, 2)
    assert sorted(ex["label"] for ex in train + test) == [str(i) for i in range(10)]
    (folder / "train.csv").write_text(
        'Question,Numbers,Equation,Answer\n"A has number0 , B number1 .",3.0 4.5,+ a b,7.5\n'
    )
    (example,) = mawps.load("train", settings(tmp_path))
    assert (example["input"], example["label"]) == ("A has 3 , B 4.5 .", "7.5")
    (folder / "train.csv").write_text("question,answer\nQ,many\n")
    with pytest.raises(UserError, match="line 2: the answer must be a number, not 'many'"):
        mawps.load("train", settings(tmp_path))


def test_strategyqa(tmp_path):
    folder = tmp_path / "strategyqa"
    folder.mkdir()
    rows = [
        {"qid": f"q{i}", "question": f"Q{i}?", "answer": i % 2 == 0, "facts": ["One.", "Two."]}
        for i in range(10)
    ]
    (folder / "strategyqa_train.json").write_text(json.dumps(rows))
    (folder / "strategyqa_test.json").write_text(json.dumps([{"qid": "t", "question": "T?"}]))
    train, test = (strategyqa.load(split, settings(tmp_path)) for split in ("train", "test"))
    assert (len(train), len(test)) == (8, 2)
    assert {example["rationale"] for example in train} == {"One. Two."}
    found = {example["id"]: example["label"] for example in train + test}
    assert found == {f"q{i}": "no" if i % 2 else "yes" for i in range(10)}
    (folder / "strategyqa_test.json").write_text(json.dumps(rows[:1]))
    assert len(strategyqa.load("train", settings(tmp_path))) == 10
    assert len(strategyqa.load("test", settings(tmp_path))) == 1
    task = {"name": "s", "examples": [{"input": "Q?", "target_scores": {"Yes": 0, "No": 1}}] * 5}
    (folder / "strategyqa_test.json").unlink()
    (folder / "strategyqa_train.json").write_text(json.dumps(task, indent=2))
    assert {ex["label"] for ex in strategyqa.load("train", settings(tmp_path))} == {"no"}


@pytest.mark.parametrize(
    ("module", "name"), [(last_letters, "last_letters"), (coin_flip, "coin_flip")]
)
def test_procedural(module, name):
    splits = {split: module.load(split, DataSettings()) for split in datasets.SPLITS}
    assert [len(examples) for examples in splits.values()] == [1000, 200, 500]
    texts = [example["input"] for examples in splits.values() for example in examples]
    assert len(set(texts)) == len(texts)
    assert splits["train"] == module.load("train", DataSettings())
    for example in splits["train"]:
        assert example["label"] == example["llm_label"]
        assert example["llm_rationale"]
    gin.bind_parameter(f"{name}.Sizes.train", 10)
    assert module.load("train", DataSettings()) == splits["train"][:10]
    gin.bind_parameter(f"{name}.Sizes.puzzle_seed", 1)
    assert module.load("train", DataSettings())[0] != splits["train"][0]
    gin.bind_parameter(f"{name}.Sizes.ood_length", 7)
    longer = registry.find_dataset(f"{name}_ood").load("test", DataSettings())
    assert min(len(ex["input"]) for ex in longer) > max(len(text) for text in texts) / 2
    if name == "last_letters":
        assert {len(example["label"]) for example in longer} == {7}
        assert {len(example["label"]) for example in splits["test"]} == {2}
    else:
        assert {ex["input"].count(" flip") for ex in longer} == {7}
    gin.bind_parameter(f"{name}.Sizes.length", 0)
    with pytest.raises(UserError, match="sizes: length = 0 is below 1"):
        module.load("train", DataSettings())


def test_procedural_answers_are_right():
    for example in last_letters.load("test", DataSettings()):
        words = example["input"].split('"')[1].split()
        assert example["label"] == "".join(word[-1] for word in words)
    for example in coin_flip.load("test", DataSettings()):
        flips = example["input"].count(" flips ")
        assert example["label"] == ("no" if flips % 2 else "yes")
    with pytest.raises(UserError, match="There are not 500 different puzzles"):
        gin.bind_parameter("coin_flip.Sizes.length", 1)
        coin_flip.load("test", DataSettings())
    gin.bind_parameter("coin_flip.Sizes.length", 999)
    with pytest.raises(UserError, match=r"coin_flip\.sizes: a length of 999 is above"):
        coin_flip.load("test", DataSettings())


@pytest.mark.parametrize(
    ("gold", "label"),
    [
        ("#### 1,234", "1234"),
        ("So.\n####-5", "-5"),
        ("#### $3.50", "3.50"),
        ("#### 10%", "10"),
        ("a #### b\n#### 7 ", "7"),
        ("#### −3", "-3"),
    ],
)
def test_gold_numbers_of_gsm8k(tmp_path, gold, label):
    (tmp_path / "gsm8k").mkdir()
    write_jsonl(tmp_path / "gsm8k" / "train.jsonl", [{"question": "Q?", "answer": gold}])
    (example,) = gsm8k.load("train", settings(tmp_path))
    assert example["label"] == label


@pytest.mark.parametrize("gold", ["42", "#### many", "####", "#### 4 or 5"])
def test_gold_answers_of_gsm8k_without_a_number(tmp_path, gold):
    (tmp_path / "gsm8k").mkdir()
    write_jsonl(tmp_path / "gsm8k" / "train.jsonl", [{"question": "Q?", "answer": gold}])
    with pytest.raises(UserError, match=r"line 1: field 'answer' must end in '#### NUMBER'"):
        gsm8k.load("train", settings(tmp_path))


def test_numbered_completions_of_gsm8k_and_anli_in_numeric_order(tmp_path):
    rows = [{"question": f"Q{i}?", "answer": f"#### {i}"} for i in range(11)]
    write(tmp_path, "gsm8k", rows, "train", [f"So. The answer is {i}." for i in range(11)], 1)
    assert teacher_right("gsm8k", gsm8k.load("train", settings(tmp_path))) == 11
    row = {"uid": "u", "premise": "P", "hypothesis": "H", "label": 0, "reason": ""}
    write(tmp_path, "anli1", [row], "train", ["R. So the answer is entailment."])
    (tmp_path / "anli1").rename(tmp_path / "anli")  # the folder alone goes by another name
    assert teacher_right("anli1", anli1.load("train", settings(tmp_path))) == 1
    with pytest.raises(UserError, match=r"anli1_valid\.json: cannot be read"):
        anli1.load("validation", settings(tmp_path))


def write_cqa(folder):
    rows = [
        {
            "id": f"q{i}",
            "question": f"Q{i}?",
            "choices": ["a", "b"],
            "answer": "a",
            "abstractive_explanation": f"cose {i}",
        }
        for i in range(4)
    ]
    write(folder, "cqa", rows, "train")


def test_human_rationales_of_ecqa(tmp_path):
    write_cqa(tmp_path)
    assert cqa.load("train", settings(tmp_path))[2]["rationale"] == "cose 2"
    gin.bind_parameter("cqa.human_rationales.source", "ecqa")
    (tmp_path / "ecqa").mkdir()
    with pytest.raises(UserError, match=r"ecqa holds no file with the fields q_no and taskB"):
        cqa.load("train", settings(tmp_path))
    fields = "q_no,q_concept,q_text,q_op1,q_op2,q_op3,q_op4,q_op5,q_ans,taskA_pos,taskA_neg,taskB\n"
    line = '{},c,"Q, or so?",a,b,c,d,e,a,"A is good.","B is bad.","Because {},\nand so on."\n'
    for split, number in (("train", 1), ("val", 3), ("test", 99)):
        path = tmp_path / "ecqa" / f"cqa_data_{split}.csv"
        path.write_text(fields + line.format(f"q{number}", number))
    (tmp_path / "ecqa" / "author_split.json").write_text('["q1"]'.replace('"q1"', '{"id": "q1"}'))
    examples = cqa.load("train", settings(tmp_path))
    assert [e["rationale"] for e in examples] == [
        "",
        "Because 1,\nand so on.",
        "",
        "Because 3,\nand so on.",
    ]
    for path in (tmp_path / "ecqa").iterdir():
        path.unlink()
    rows = [{"id": "q0", "positives": ["p"], "negatives": [], "explanation": "E0"}]
    write_jsonl(tmp_path / "ecqa" / "ecqa.jsonl", rows)
    assert cqa.load("train", settings(tmp_path))[0]["rationale"] == "E0"
    with settings_lib.override(settings(tmp_path)):
        task = choosing.task_info("cqa_rationale_human")
        assert elements.read_targets(task, "train")
    write_jsonl(tmp_path / "ecqa" / "ecqa.jsonl", [{"id": "z", "explanation": "E0"}])
    with pytest.raises(UserError, match=r"explains none of the train examples; its ids \('z'\)"):
        cqa.load("train", settings(tmp_path))
    gin.bind_parameter("cqa.human_rationales.source", "people")
    with pytest.raises(UserError, match="HUMAN_RATIONALES must be 'cos_e' or 'ecqa'"):
        cqa.load("train", settings(tmp_path))


def test_the_template_works_as_it_is(tmp_path):
    import sbs_jax.tasks.template  # noqa: F401 (registers my_reviews)

    load = registry.find_dataset("my_reviews").load
    rows = [{"text": f"T{i}", "stars": i % 5 + 1, "why": "W"} for i in range(10)]
    (tmp_path / "my_reviews").mkdir()
    write_jsonl(tmp_path / "my_reviews" / "train.jsonl", rows)
    with settings_lib.override(settings(tmp_path)):
        assert len(load_examples("my_reviews", "train")) == 9
    assert load("train", settings(tmp_path))[4] == {
        "id": "train-5",
        "input": "T4",
        "label": "good",
        "rationale": "W",
    }
    write_jsonl(tmp_path / "my_reviews" / "train.jsonl", [{"text": "T", "stars": 9}])
    with pytest.raises(
        UserError, match=r"train.jsonl, line 1: field 'stars' must be 1 to 5, not 9"
    ):
        load("train", settings(tmp_path))


def convert(fields):
    return lambda row: fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input": "x", "label": 3}, "must make a text of the field 'label', not 3"),
        ({"input": "x"}, "must make a text of the field 'label', not None"),
        ({"input": "x", "label": "y", "id": 7}, "must make a text of the field 'id', not 7"),
        ({"input": "x", "label": "y", "reason": ""}, "makes a field 'reason', but an example has"),
        (
            {"input": "x", "label": "y", "rationale": [1]},
            "make a text of the field 'rationale', not .1.",
        ),
    ],
)
def test_what_a_task_may_make_of_a_row(tmp_path, fields, message):
    (row,) = read_rows(_jsonl(tmp_path / "a.jsonl", [{}]))
    with pytest.raises(UserError, match=rf"a\.jsonl, line 1: the task .*{message}"):
        release.example_of(row, fields)


def _jsonl(path, rows):
    write_jsonl(path, rows)
    return path


def test_files_of_any_format_and_their_completions(tmp_path):
    folder = tmp_path / "any_format"
    (folder / "llm").mkdir(parents=True)
    dataset = registration.register_dataset(
        "any_format",
        convert=lambda row: {"input": row["q"], "label": row["a"]} if row["q"] != "-" else None,
    )
    (folder / "test.tsv").write_text("q\ta\nQ\tA\n-\t\n")
    (folder / "llm" / "test_CoT_0.json").write_text('["R. The answer is A.", "out"]')
    (example,) = dataset.load("test", settings(tmp_path))
    assert (example["llm_label"], example["llm_rationale"]) == ("A", "R.")
    assert release.where(example) == f"{folder / 'test.tsv'}, line 2"
    assert release.where(release.changed(example, label="B")) == release.where(example)
    with pytest.raises(UserError, match="needs either `load` or `convert`"):
        registration.register_dataset("neither")
    with pytest.raises(UserError, match=r"no parser 'xml'; sbs_jax/parsers\.py has cqa,"):
        register_public("no_parser", convert=convert({}), parser="xml")
