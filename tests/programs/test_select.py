"""`select`: scores against whole forward passes, the rules, resuming, and refusals."""

import json

import numpy as np
import pytest

from sbs_jax.errors import UserError
from sbs_jax.inference.loader import Loader
from sbs_jax.inference.predictor import Predictor
from sbs_jax.inference.selection import Selection, selected_row
from sbs_jax.programs import select as select_lib
from tests.inference import toy
from tests.t5_weights import apply
from tests.toy import CONFIG

EOS_ID = 1
COUNT = 21
INPUT_LENGTH = 80


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return toy.write_model_dir(
        tmp_path_factory.mktemp("student") / "run",
        method="rationale_input",
        feature_lengths={"inputs": INPUT_LENGTH, "targets": 8},
    )


def rows():
    """Rows with one rationale, with three, and with none."""
    made = []
    for number, text in enumerate(toy.texts(COUNT)):
        row = {"id": f"q{number}", "input": text, "label": toy.LABELS[number % 3], "flags": {}}
        row |= {"llm_label": "no", "llm_rationale": f"{number} and {number % 5} more"}
        if number % 4 == 1:
            row["llm_rationales"] = [row["llm_rationale"], "it is so", f"because {number}"]
            row["llm_labels"] = ["no", "yes", "perhaps"]
        if number % 7 == 3:
            row |= {"llm_rationale": "", "llm_label": ""}
        made.append(row)
    return made


@pytest.fixture
def taught(tmp_path):
    return write(tmp_path / "taught.jsonl", rows())


def write(path, lines):
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def select(model_dir, taught, folder, *, rule=None, batch_size=8, **options):
    return select_lib.select(
        loader=Loader(str(model_dir), batch_size=batch_size),
        selection=Selection(**(rule or {})),
        rationales_file=str(taught),
        output_dir=str(folder),
        **options,
    )


def log_p(pairs):
    """The log-probability of each (input, label) by one forward pass and numpy's log-softmax."""
    tokenizer = toy.predictor().tokenizer
    _, params = toy.student()
    inputs = np.zeros((len(pairs), INPUT_LENGTH), np.int32)
    targets = np.zeros((len(pairs), 16), np.int32)
    for row, (text, label) in enumerate(pairs):
        ids = [*tokenizer.encode("predict: " + text)[: INPUT_LENGTH - 1], EOS_ID]
        inputs[row, : len(ids)] = ids
        ids = [*tokenizer.encode(label), EOS_ID]
        targets[row, : len(ids)] = ids
    fed = np.concatenate([np.zeros_like(targets[:, :1]), targets[:, :-1]], axis=1)
    logits = np.asarray(apply(CONFIG, params, inputs, fed), np.float64)
    logits -= logits.max(-1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_probs, targets[..., None], axis=2)[..., 0]
    return np.where(targets > 0, chosen, 0).sum(axis=1)


def test_scores_are_differences_of_log_softmax_and_a_stopped_call_goes_on(
    model_dir, taught, tmp_path, monkeypatch
):
    monkeypatch.setattr(select_lib, "WINDOW", 1)
    whole = tmp_path / "whole"
    run = select(model_dir, taught, whole)
    scored = read(whole / "scores.jsonl")
    asked, given, cut, scores = [], [], [], []
    for row, found in zip(rows(), scored, strict=True):
        texts = [text for text in row.get("llm_rationales") or [row["llm_rationale"]] if text]
        assert (found["id"], len(found["scores"])) == (row["id"], len(texts))
        asked += [(f"{row['input']} explanation: {text}", row["label"]) for text in texts]
        asked += [(row["input"], row["label"]) for _ in texts]
        given += [*found["log_p_with"], *found["log_p_without"]]
        scores += found["scores"]
        cut += found["truncated"]
    expected = log_p(asked)
    np.testing.assert_allclose(given, expected, atol=1e-5)
    differences, place = [], 0
    for found in scored:
        count = len(found["scores"])
        differences += list(
            expected[place : place + count] - expected[place + count : place + 2 * count]
        )
        place += 2 * count
    np.testing.assert_allclose(scores, differences, atol=1e-5)
    assert 0 < sum(cut) == run["counts"]["truncated_rationales"] < len(cut)
    # Nothing is rejected by default: the rows are as they were, with their scores.
    for row, found, new in zip(rows(), scored, read(whole / "rationales.jsonl"), strict=True):
        assert new.pop("rationale_scores") == found["scores"]
        if "llm_rationales" in row and found["scores"]:
            best = found["scores"].index(max(found["scores"]))
            row["llm_rationale"] = row["llm_rationales"][best]
            row["llm_label"] = row["llm_labels"][best]
        assert new == row

    # A signal before the second window, a torn window, and the same command again.
    stopped = tmp_path / "stopped"
    asked = iter([False, True])

    class Signal:
        name = "SIGTERM"

        def __init__(self, what):
            del what

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def agreed(self):
            return next(asked, False)

    monkeypatch.setattr(select_lib, "StopRequest", Signal)
    with pytest.raises(InterruptedError):
        select(model_dir, taught, stopped)
    assert len(read(stopped / "scores.jsonl")) == 8
    assert not (stopped / "rationales.jsonl").exists()
    torn = (whole / "scores.jsonl").read_bytes().splitlines(keepends=True)
    (stopped / "scores.jsonl").write_bytes(b"".join(torn[:11]) + torn[11][:9])
    again = select(model_dir, taught, stopped)
    assert (stopped / "scores.jsonl").read_bytes() == (whole / "scores.jsonl").read_bytes()
    assert (stopped / "rationales.jsonl").read_bytes() == (whole / "rationales.jsonl").read_bytes()
    assert again["counts"] == run["counts"]

    # Another rule asks the student nothing; other rationales or another checkpoint are refused.
    monkeypatch.setattr(Predictor, "log_probabilities", None)
    best = select(model_dir, taught, whole, rule={"best": 1, "weight": "sigmoid"})
    assert best["counts"]["kept_rationales"] == best["counts"]["examples_with_rationale"]
    write(taught, rows()[:-1])
    with pytest.raises(UserError, match=r"begun with RATIONALES_FILE = .*name another OUTPUT_DIR"):
        select(model_dir, taught, whole)


def test_another_student_reads_the_inputs_alone(model_dir, taught, tmp_path):
    other = toy.write_model_dir(tmp_path / "base", seed=1, method="standard")
    write(taught, rows()[:3])
    one, two = tmp_path / "one", tmp_path / "two"
    select(model_dir, taught, one)
    select(model_dir, taught, two, base_checkpoint_path=str(other), label_source="teacher")
    for first, second in zip(read(one / "scores.jsonl"), read(two / "scores.jsonl"), strict=True):
        assert first["log_p_without"] != second["log_p_without"]


def row_with(scores, **rule):
    row = {"id": "a", "input": "x", "label": "y", "llm_label": "l0", "llm_rationale": "r0"}
    row["llm_rationales"] = [f"r{place}" for place in range(len(scores))]
    row["llm_labels"] = [f"l{place}" for place in range(len(scores))]
    selection = Selection(**rule)
    return selected_row(row, scores, selection, selection.cutoff(scores))


def test_rules():
    scores = [0.5, -1.0, 2.0, 0.0]
    new = row_with(scores, min_score=0.0)
    assert new["llm_rationales"] == ["r0", "r2", "r3"]
    assert (new["llm_rationale"], new["llm_label"]) == ("r2", "l2")
    assert row_with(scores, best=2)["rationale_scores"] == [0.5, 2.0]
    assert row_with(scores, share=0.25)["llm_labels"] == ["l2"]
    assert row_with(scores, min_score=1.0, share=0.5, best=3)["llm_rationales"] == ["r2"]
    none = row_with(scores, min_score=3.0, weight="sigmoid")
    assert (none["llm_rationale"], none["llm_rationales"], none["llm_label"]) == ("", [], "l0")
    assert "weight" not in none
    one = row_with(scores, weight="sigmoid", temperature=2.0, best=1)
    assert one["weight"] == pytest.approx(1 / (1 + np.exp(-1.0)), rel=1e-12)
    assert one["rationale_weights"] == [[0, 2, one["weight"]]]
    with pytest.raises(UserError, match=r"the example 'a' keeps 4 rationales.*set BEST = 1"):
        row_with(scores, weight="sigmoid")
    assert row_with([800.0], weight="sigmoid")["weight"] == 1.0


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ({"best": 0}, "BEST = 0 must be a whole number from 1"),
        ({"share": 1.5}, "KEEP_SHARE = 1.5 must be a number above 0"),
        ({"weight": "linear"}, "WEIGHT = 'linear' must be None or sigmoid"),
        ({"min_score": float("nan")}, "MIN_SCORE = nan must be a finite number"),
        ({"temperature": 0}, "WEIGHT_TEMPERATURE = 0 must be above 0"),
    ],
)
def test_impossible_rules_are_refused(rule, sentence):
    with pytest.raises(UserError, match=sentence):
        Selection(**rule)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"label": ""}, "line 2: field 'label' is empty.*LABEL_SOURCE = 'teacher'"),
        ({"id": "q0"}, "line 2: the id 'q0' occurs twice"),
        ({"input": None}, "line 2: field 'input' must be a text"),
        ({"llm_rationale": 3}, "line 2: 'llm_rationale' and 'llm_rationales' must be texts"),
    ],
)
def test_bad_lines_are_named_before_the_student_is_loaded(tmp_path, taught, change, sentence):
    write(taught, [rows()[0], rows()[2] | change])
    with pytest.raises(UserError, match=sentence):
        select(tmp_path / "no student", taught, tmp_path / "out")


def test_what_cannot_be_scored_is_refused(model_dir, taught, tmp_path):
    with pytest.raises(UserError, match="is the folder of RATIONALES_FILE"):
        select(model_dir, write(tmp_path / "rationales.jsonl", rows()), tmp_path)
    with pytest.raises(UserError, match="holds no rows"):
        select(model_dir, write(tmp_path / "empty.jsonl", []), tmp_path / "out")
    human = [{"id": "1", "input": "x", "label": "y", "rationale": "r"}]
    with pytest.raises(UserError, match="no row has a rationale in 'llm_rationale'"):
        select(model_dir, write(tmp_path / "human.jsonl", human), tmp_path / "out")
    joint = toy.write_model_dir(tmp_path / "joint", method="joint")
    with pytest.raises(UserError, match="cannot be given one"):
        select(joint, taught, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert select(model_dir, taught, tmp_path / "out", dry_run=True) is None
    assert not (tmp_path / "out").exists()
