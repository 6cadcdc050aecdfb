"""`python -m sbs_jax.teach`: flags, gin files, tasks and JSONL files, one-line errors."""

import json

import gin
import pytest

from sbs_jax import teach
from tests.release_layout import write_release

TEACH = ["--gin_file=runs/teach.gin", "--compilation_cache_dir=off"]
SCRIPTED = "--gin_file=teachers/scripted.gin"
SVAMP = "--gin_file=tasks/svamp.gin"


@pytest.fixture(autouse=True)
def _clean():
    yield
    gin.clear_config()


@pytest.fixture
def release(tmp_path):
    return write_release(tmp_path / "data")


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_task_is_taught_and_its_rationales_train(release, tmp_path):
    flags = [f"--gin.DATA_DIR={release}", f"--gin.OUTPUT_DIR={tmp_path / 'out'}"]
    assert teach.main([*TEACH, SVAMP, SCRIPTED, *flags, "--gin.KEEP_CONSISTENT=True"]) == 0
    rows = rows_of(tmp_path / "out/rationales.jsonl")
    # All training examples: those that students hold out for validation, too.
    assert len(rows) == 40
    assert all(row["flags"]["right"] for row in rows)
    assert {"id", "input", "label", "llm_label", "llm_rationale"} <= set(rows[0])
    assert teach.main(["--stats", str(tmp_path / "out")]) == 0


def test_the_test_split_gives_the_baseline(release, tmp_path):
    flags = [f"--gin.DATA_DIR={release}", f"--gin.OUTPUT_DIR={tmp_path}", "--gin.PREDICTIONS=True"]
    assert teach.main([*TEACH, SVAMP, SCRIPTED, *flags, "--gin.SPLIT=test"]) == 0
    rows = rows_of(tmp_path / "predictions.jsonl")
    assert len(rows) == 12
    assert set(rows[0]) == {"id", "input", "target", "prediction", "score", "rationale"}
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["result"]["accuracy"] == sum(row["score"] for row in rows) / 12


def test_a_jsonl_file_needs_no_task(tmp_path, capsys):
    (tmp_path / "mine.jsonl").write_text('{"input": "What is 3 + 4?", "label": "(3 + 4)"}\n' * 3)
    flags = [f"--gin.EXAMPLES_PATH={tmp_path / 'mine.jsonl'}", f"--gin.OUTPUT_DIR={tmp_path / 'o'}"]
    assert teach.main([*TEACH, SCRIPTED, *flags, "--gin.PROMPTS=gsm8k", "--preview", "1"]) == 0
    said = capsys.readouterr().err
    assert "What is 3 + 4?" in said and "nothing was sent" in said
    assert not (tmp_path / "o").exists()
    gin.clear_config()
    assert teach.main([*TEACH, SCRIPTED, *flags, "--gin.PROMPTS=gsm8k", "--gin.LIMIT=2"]) == 0
    assert len(rows_of(tmp_path / "o/rationales.jsonl")) == 2


def test_what_is_not_complete_ends_with_75(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"input": "What is 3 + 4?", "label": "(3 + 4)"}\n' * 3)
    flags = [f"--gin.EXAMPLES_PATH={tmp_path / 'mine.jsonl'}", f"--gin.OUTPUT_DIR={tmp_path / 'o'}"]
    flags = [*TEACH, SCRIPTED, *flags, "--gin.PROMPTS=gsm8k"]
    for more, code in (
        (["--offline"], 75),
        (["--gin.TOKEN_BUDGET=10"], 75),
        (["--gin.TOKEN_BUDGET=10", "--exit_zero_when_stopped"], 0),
        ([], 0),
    ):
        gin.clear_config()
        assert teach.main([*flags, *more]) == code, more


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "OUTPUT_DIR"),
        (["--stats"], "--stats: give the OUTPUT_DIR"),
        (["--stats=/nowhere"], "give the OUTPUT_DIR of a run"),
        (["--preview", "x"], "--preview: give a number"),
        ([SCRIPTED, "--gin.OUTPUT_DIR=o"], "needs a data set"),
        ([SCRIPTED, "--gin.OUTPUT_DIR=o", "--gin.EXAMPLES_PATH=no.jsonl"], "no such file"),
        ([SCRIPTED, "--gin.OUTPUT_DIR=o", "--gin.TEMPRATURE=1"], "TEMPRATURE"),
        ([SVAMP, "--gin.OUTPUT_DIR=o"], "TEACHER_MODEL"),
    ],
)
def test_mistakes_are_one_line(flags, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    alone = flags and flags[0].startswith(("--stats", "--preview"))
    assert teach.main(flags if alone else [*TEACH, *flags]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("error: ") and sentence in said[0]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("prompts", [None, "anli", "anli1"])
def test_inference_is_shown_as_premise_and_hypothesis(tmp_path, capsys, prompts):
    (tmp_path / "anli1").mkdir()
    row = {"uid": "u", "premise": "A dog runs.", "hypothesis": "It sleeps.", "label": 2}
    (tmp_path / "anli1/anli1_train.json").write_text(json.dumps(row) + "\n")
    flags = [f"--gin.DATA_DIR={tmp_path}", f"--gin.OUTPUT_DIR={tmp_path / 'o'}", "--preview", "1"]
    flags += [f"--gin.PROMPTS={prompts}"] if prompts else []
    assert teach.main([*TEACH, "--gin_file=tasks/anli1.gin", SCRIPTED, *flags]) == 0
    said = capsys.readouterr().err
    assert "Premise: A dog runs.\nHypothesis: It sleeps." in said
    assert "</s>" not in said
