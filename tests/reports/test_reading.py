import json
import shutil

import pytest

from sbs_jax.errors import UserError
from sbs_jax.reports.reading import Score, read_sweep, split_task_name
from tests.reports import synthetic


@pytest.fixture
def sweep(tmp_path):
    """A sweep of its own, to be broken."""
    axes = {"METHOD": ("standard", "sbs"), "SEED": (0, 1)}
    return synthetic.write_sweep(tmp_path / "small", axes, examples=4)


def _change(path, **values):
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | values))


def test_reads_runs_with_their_settings_and_scores(sweeps):
    sweep = read_sweep(sweeps["sizes"])
    assert (sweep.name, len(sweep.runs)) == ("sizes", 24)
    assert sweep.command == "python -m sbs_jax.sweep --gin_file=sweeps/sizes.gin"
    assert sweep.teacher == Score(0.6, 0.02, 12, "PaLM 540B")
    run = sweep.runs[-1]
    assert run.status == "done"
    assert run.settings["MODEL"] == "t5_1_1_base"
    assert (run.settings["METHOD"], run.dataset, run.seed) == ("sbs", "svamp", 1)
    assert run.selected_step == 400
    assert run.seconds == 61.5
    assert set(run.scores) == {"validation", "test"}
    rows = run.predictions("test")
    assert run.scores["test"].accuracy == sum(row["score"] for row in rows) / 12
    assert [step for step, _ in run.metrics("validation", "accuracy")] == list(range(50, 501, 50))
    # A null is no value.
    assert run.metrics("validation", "label_loss") == []


def test_config_gin_is_read_without_where_the_run_lies(sweeps):
    config = read_sweep(sweeps["lambda"]).runs[0].config
    assert config == {
        "BATCH_SIZE": "64",
        "INITIAL_CHECKPOINT_PATH": "None",
        "METHOD": "'sbs'",
        "TASK_FEATURE_LENGTHS": "{'inputs': 96, 'targets': 48}",
        "VOCABULARY_PATH": "'MODEL_DIR/vocabulary/spiece.model'",
        # Under today's names, whatever version wrote the file.
        "train_config.TrainConfig.seed": "%SEED",
        "train.train.config": "@train_config.TrainConfig()",
    }


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("svamp_sbs", ("svamp", "sbs", "")),
        ("a_b_rationale_input_human_teacher", ("a_b", "rationale_input", "_human_teacher")),
        ("coin_flip", ("coin_flip", None, "")),
    ],
)  # fmt: skip
def test_task_names_are_taken_apart(name, parts):
    assert split_task_name(name) == parts


def test_a_task_name_says_what_the_settings_do_not(sweep):
    path = sweep / "runs" / "method=sbs,seed=0" / "run.json"
    _change(path, bindings={}, settings={"task": "svamp_joint_human_teacher", "SEED": 0})
    settings = read_sweep(sweep).runs[2].settings
    assert settings == {
        "METHOD": "sbs",  # The sweep says so.
        "SEED": 0,
        "task": "svamp",
        "LABEL_SOURCE": "teacher",
        "RATIONALE_SOURCE": "human",
    }


def test_runs_that_are_not_done_are_kept_with_the_reason(sweep):
    folders = [sweep / "runs" / run.name for run in read_sweep(sweep).runs]
    shutil.rmtree(folders[0])
    (folders[1] / "run.json").unlink()
    _change(folders[2] / "run.json", status="failed", error=["Traceback", "OOM"])
    (folders[3] / "run.json").write_text('{"status": "do')
    found = [(run.status, run.reason) for run in read_sweep(sweep).runs]
    assert found == [
        ("missing", "not started"),
        ("incomplete", "no record"),
        ("failed", "Traceback\nOOM"),
        ("broken", f"{folders[3] / 'run.json'}: is not valid JSON."),
    ]


def test_the_end_of_the_log_tells_why_a_run_failed(sweep):
    folder = sweep / "runs" / "method=sbs,seed=0"
    _change(folder / "run.json", status="failed")
    (folder / "train.log").write_text("".join(f"line {i}\n\n" for i in range(9)))
    run = next(run for run in read_sweep(sweep).runs if run.name == folder.name)
    assert run.reason == "line 6\nline 7\nline 8"
    # Of one that goes on, where it is.
    _change(folder / "run.json", status="running")
    assert read_sweep(sweep).runs[2].reason == "line 8"
    # What it may have scored before does not count.
    assert run.scores == {}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"test": {"accuracy": 61.2}}, "the accuracy 61.2 of 'test' is not from 0 to 1"),
        ({"test": {"accuracy": None}}, "'test' needs an 'accuracy'"),
        ({"test": {"accuracy": float("nan")}}, "'test' needs an 'accuracy'"),
        ({"test": None, "validation": None}, "is done, but has no accuracy"),
        ({"settings": [1]}, "'settings' must be an object"),
    ],
)
def test_a_broken_record_hides_no_other_run(sweep, values, reason):
    _change(sweep / "runs" / "method=sbs,seed=1" / "run.json", **values)
    runs = read_sweep(sweep).runs
    assert [run.status for run in runs] == ["done", "done", "done", "broken"]
    assert reason in runs[3].reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "sweep.json: is not valid JSON."),
        ("[]", "sweep.json: must hold a JSON object."),
        ('{"runs": [], "runs": []}', "sweep.json: the key 'runs' occurs twice."),
        ('{"runs": 3}', "'runs' must be a list of objects, each with a 'name'"),
        ('{"runs": [{"name": "a"}, {"name": "a"}]}', "two runs have the name 'a'"),
        ('{"runs": [{"name": "../a"}]}', "'../a' is no name of a folder"),
        ('{"runs": [], "axes": {"SEED": 3}}', "'axes' must be an object of lists"),
    ],
)
def test_a_bad_sweep_is_told_in_a_sentence(tmp_path, text, message):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=r"sweep\.json") as caught:
        read_sweep(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        read_sweep(tmp_path / "none")
    with pytest.raises(UserError, match=r"holds no sweep\.json; give the folder"):
        read_sweep(tmp_path)


def test_a_torn_last_line_of_metrics_is_no_error(sweep):
    run = read_sweep(sweep).runs[0]
    path = run.folder / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"step": 550, "spl')
    assert len(run.metrics("validation", "accuracy")) == 10
    path.write_text('{"step": 550, "spl\n' + whole)
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1: not valid JSON"):
        run.metrics("validation", "accuracy")


def test_a_prediction_without_a_field_is_told(sweep):
    run = read_sweep(sweep).runs[0]
    path = run.folder / "predictions" / "test.jsonl"
    path.write_text('{"id": "a", "input": "b", "target": "c", "prediction": "d"}\n')
    with pytest.raises(UserError, match=r"test\.jsonl, line 1: lacks the field 'score'"):
        run.predictions("test")
    path.unlink()
    assert run.predictions("test") is None


def test_the_command_does_not_say_where_the_sweep_lies(sweep):
    _change(sweep / "sweep.json", command=f"python -m sbs_jax.sweep --sweep_dir={sweep} --x")
    assert read_sweep(sweep).command == "python -m sbs_jax.sweep --sweep_dir=small --x"


def test_half_a_character_in_a_record_does_no_harm(sweep):
    _change(sweep / "sweep.json", name="a\ud800b", command="\udfff")
    read = read_sweep(sweep)
    assert (read.name, read.command) == ("a?b", "?")
