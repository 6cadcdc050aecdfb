"""`infer` over files: order, resuming, refusals; and as processes that are killed."""

import functools
import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from sbs_jax.errors import UNFINISHED, UserError
from sbs_jax.inference.loader import Loader
from sbs_jax.inference.output import ResumableOutput
from sbs_jax.inference.prompting import PromptingOverrides
from sbs_jax.programs import infer as infer_lib
from tests import disks, processes
from tests.inference import toy
from tests.paths import ROOT

COUNT = 75
MANY = 800
LABELS = list(toy.LABELS)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return toy.write_model_dir(tmp_path_factory.mktemp("student") / "run")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    path = tmp_path_factory.mktemp("inputs") / "questions.jsonl"
    write(path, toy.texts(COUNT))
    return path


def write(path, texts):
    rows = [{"id": f"q{n}", "input": text, "label": "no"} for n, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@functools.cache
def load(model_dir, batch_size, candidates):
    return Loader(model_dir, batch_size=batch_size, candidates=candidates).load()


class SharingLoader(Loader):
    """Loads a student once for all tests, and compiles its programs once."""

    def load(self):
        candidates = self.candidates and tuple(self.candidates)
        return load(self.checkpoint_path, self.batch_size, candidates)


def infer(model_dir, output, questions, candidates=LABELS, batch_size=8, **options):
    loader = SharingLoader(str(model_dir), batch_size=batch_size, candidates=candidates)
    return infer_lib.infer(
        loader=loader, output_file=str(output), input_file=str(questions), **options
    )


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(infer_lib, "WINDOW", 2)


@pytest.fixture(scope="module")
def finished(model_dir, questions, tmp_path_factory):
    """What an undisturbed call wrote in windows of 16."""
    path = tmp_path_factory.mktemp("finished") / "out.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infer_lib, "WINDOW", 2)
        assert infer(model_dir, path, questions, explain=True, num_best=2) == COUNT
    return path


def test_rows_are_those_of_the_predictor_in_the_files_order(finished):
    predictor = toy.predictor(candidates=toy.LABELS)
    expected = predictor.labels(toy.texts(COUNT), num_best=2)
    rationales = predictor.rationales(toy.texts(COUNT))
    rows = read(finished)
    assert [row["id"] for row in rows] == [f"q{n}" for n in range(COUNT)]
    for row, text, prediction, rationale in zip(
        rows, toy.texts(COUNT), expected, rationales, strict=True
    ):
        assert (row["input"], row["target"]) == (text, "no")
        assert (row["label"], row["truncated"]) == (prediction.label, prediction.truncated)
        assert row["confidence"] == pytest.approx(prediction.confidence, rel=1e-4)
        assert row["rationale"] == rationale.text
        assert [best["label"] for best in row["n_best"]] == [
            label for label, _ in prediction.alternatives
        ]


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("kept", [0, 1, 16, 20, COUNT - 1, COUNT])
def test_a_call_goes_on_where_it_was_to_the_bit(
    model_dir, questions, finished, tmp_path, capsys, kept
):
    path = tmp_path / "out.jsonl"
    whole = finished.read_text()
    lines = whole.splitlines(keepends=True)
    path.write_text("".join(lines[:kept]) + ('{"id": "q' if kept < COUNT else ""))
    record = finished.with_name("out.jsonl.run.json").read_text()
    path.with_name("out.jsonl.run.json").write_text(record)
    assert infer(model_dir, path, questions, explain=True, num_best=2) == COUNT
    assert path.read_text() == whole
    if kept == COUNT:
        assert f"({COUNT} were there)" in capsys.readouterr().out


def test_changed_inputs_and_checkpoints_are_refused(
    model_dir, questions, finished, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("changed")
    path = folder / "out.jsonl"
    for name in ("out.jsonl", "out.jsonl.run.json"):
        (folder / name).write_text(finished.with_name(name).read_text())
    before = path.read_text()
    options = {"explain": True, "num_best": 2}
    texts = toy.texts(COUNT)
    write(folder / "other.jsonl", [*texts[:3], "Something else?", *texts[4:]])
    with pytest.raises(UserError, match=r"out\.jsonl, line 4: answers the input 'Anna has 3"):
        infer(model_dir, path, folder / "other.jsonl", **options)
    write(folder / "short.jsonl", texts[:5])
    with pytest.raises(UserError, match="more rows than there are inputs"):
        infer(model_dir, path, folder / "short.jsonl", **options)
    with pytest.raises(UserError, match="begun with EXPLAIN = True, not False"):
        infer(model_dir, path, questions, num_best=2)
    with pytest.raises(UserError, match=r"begun with CANDIDATES = \['yes', 'no', 'perhaps'\], not"):
        infer(model_dir, path, questions, candidates=None, **options)
    other = toy.write_model_dir(folder / "run", seed=1)
    with pytest.raises(UserError, match="begun with another checkpoint"):
        infer(other, path, questions, **options)
    assert path.read_text() == before
    # More inputs at the end are no other inputs.
    write(folder / "longer.jsonl", [*texts, "One more?"])
    assert infer(model_dir, path, folder / "longer.jsonl", **options) == COUNT + 1
    assert path.read_text().startswith("".join(before.splitlines(keepends=True)[:64]))


@pytest.mark.usefixtures("small_windows")
def test_a_malformed_line_is_told_and_what_came_before_it_is_kept(model_dir, tmp_path):
    questions = tmp_path / "q.jsonl"
    write(questions, toy.texts(40))
    with questions.open("a") as file:
        file.write('{"input": "x", "label": "maybe"}\n')
    path = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match=r"q\.jsonl, line 41: The label 'maybe' is none of the"):
        infer(model_dir, path, questions)
    assert [row["id"] for row in read(path)] == [f"q{n}" for n in range(32)]


@pytest.mark.usefixtures("small_windows")
def test_a_signal_stops_behind_a_window_and_the_call_goes_on(
    model_dir, questions, finished, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "out.jsonl"
    options = {"explain": True, "num_best": 2}
    append = ResumableOutput.append

    def append_and_signal(output, rows):
        append(output, rows)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(ResumableOutput, "append", append_and_signal)
        with pytest.raises(InterruptedError):
            infer(model_dir, path, questions, **options)
    assert "Stopped by SIGTERM; the same command goes on" in capsys.readouterr().out
    assert 0 < len(read(path)) < COUNT
    assert len(read(path)) % 16 == 0
    assert infer(model_dir, path, questions, **options) == COUNT
    assert path.read_bytes() == finished.read_bytes()


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("line", ['{"input": 3}', "{", '{"input": ""}'])
def test_a_line_that_cannot_be_read_costs_no_window_before_its_own(model_dir, tmp_path, line):
    questions = tmp_path / "q.jsonl"
    write(questions, toy.texts(40))
    with questions.open("a") as file:
        file.write(line + "\n")
    path = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match=r"q\.jsonl, line 41"):
        infer(model_dir, path, questions)
    assert [row["id"] for row in read(path)] == [f"q{n}" for n in range(32)]


@pytest.mark.usefixtures("small_windows")
def test_a_disk_that_fills_is_a_sentence_and_nothing_is_lost(
    model_dir, questions, finished, tmp_path
):
    path = tmp_path / "out.jsonl"
    options = {"explain": True, "num_best": 2}
    # Somewhere in a line of the third window.
    room = sum(map(len, finished.read_bytes().splitlines(keepends=True)[:37])) + 20
    with disks.full_after(room), pytest.raises(UserError, match=r"out\.jsonl: cannot be written"):
        infer(model_dir, path, questions, **options)
    assert len(read(path)) == 37
    assert infer(model_dir, path, questions, **options) == COUNT
    assert path.read_bytes() == finished.read_bytes()


@pytest.mark.usefixtures("small_windows")
def test_an_output_file_that_is_removed_while_it_is_written(
    model_dir, questions, tmp_path, monkeypatch
):
    path = tmp_path / "out.jsonl"
    append = ResumableOutput.append

    def remove_and_append(output, rows):
        path.unlink()
        append(output, rows)

    monkeypatch.setattr(ResumableOutput, "append", remove_and_append)
    with pytest.raises(UserError, match=r"out\.jsonl: was removed or replaced while"):
        infer(model_dir, path, questions)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_output_file_that_cannot_be_made(model_dir, questions, tmp_path, place):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"OUTPUT_FILE = .*: cannot be written|file.*: exists"):
        infer(model_dir, tmp_path / place, questions)
    assert (tmp_path / "file").read_text() == "x"


def test_mistakes(model_dir, questions, tmp_path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match="Give INPUT_FILE, or MIXTURE_OR_TASK_NAME"):
        infer_lib.infer(loader=Loader(str(model_dir)), output_file=str(out))
    with pytest.raises(UserError, match="NUM_BEST = 0"):
        infer(model_dir, out, questions, num_best=0)
    with pytest.raises(UserError, match=r"OUTPUT_FILE = .*: is the INPUT_FILE; name another"):
        infer(model_dir, questions, questions)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match="holds no inputs"):
        infer(model_dir, out, tmp_path / "empty.txt")
    with pytest.raises(UserError, match="CANDIDATES = 'yes' is no list of labels"):
        Loader("x", candidates="yes")
    with pytest.raises(UserError, match="METHOD = 'both' is unknown"):
        PromptingOverrides(method="both")
    assert not out.exists()


def test_a_dry_run_writes_nothing(model_dir, questions, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert infer(model_dir, out, questions, dry_run=True) is None
    told = capsys.readouterr().out
    assert "first input: Anna has 0 apples?" in told
    assert "'label':" in told
    assert not out.exists()


def test_a_split_of_a_task(model_dir, tmp_path):
    import sbs_jax.tasks  # noqa: F401 (registers svamp)
    from sbs_jax.data import settings
    from sbs_jax.data.settings import DataSettings
    from tests.release_layout import write_release

    write_release(tmp_path / "data", train=20, test=5)
    loader = Loader(str(model_dir), batch_size=8)
    with settings.override(DataSettings(data_dir=str(tmp_path / "data"))):
        infer_lib.infer(
            loader=loader, output_file=str(tmp_path / "out.jsonl"), mixture_or_task_name="svamp"
        )
        with pytest.raises(UserError, match="did you mean"):
            infer_lib.infer(
                loader=loader, output_file=str(tmp_path / "x"), mixture_or_task_name="svamq"
            )
    rows = read(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == [f"svamp_test-{n}" for n in range(1, 6)]
    assert rows[0]["target"].startswith("( ")


def flags(model_dir, questions, output):
    return [
        "--gin_file=runs/infer.gin",
        *processes.macros(
            CHECKPOINT_PATH=model_dir,
            INPUT_FILE=questions,
            OUTPUT_FILE=output,
            EXPLAIN=True,
            BATCH_SIZE=4,
            CANDIDATES=LABELS,
        ),
    ]


def wait_for_rows(process, path):
    """Waits until `process` has written some 10 kB to `path`."""
    deadline = time.monotonic() + 300
    while not (path.exists() and path.stat().st_size >= 10_000):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def start_two(model_dir, questions, output):
    """Starts one call of infer as two processes."""
    address = f"--coordinator_address=localhost:{processes.free_port()}"
    return [
        processes.run(
            "infer",
            *flags(model_dir, questions, output),
            address,
            "--process_count=2",
            f"--process_index={index}",
            wait=False,
        )
        for index in (0, 1)
    ]


@pytest.mark.slow
def test_a_killed_process_and_two_processes_write_what_one_writes(model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    questions = folder / "many.jsonl"
    write(questions, toy.texts(MANY))
    killed = folder / "killed.jsonl"
    process = processes.run("infer", *flags(model_dir, questions, killed), devices=2, wait=False)
    wait_for_rows(process, killed)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = killed.read_bytes().count(b"\n")
    assert 0 < done < MANY
    again = processes.run("infer", *flags(model_dir, questions, killed), devices=2)
    assert "were there" in again.output

    # The same by two processes that have a device each; a signal that one of them gets stops both.
    together = folder / "together.jsonl"
    first = start_two(model_dir, questions, together)
    wait_for_rows(first[0], together)
    first[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120) for process in first]
    assert [process.returncode for process in first] == [UNFINISHED] * 2, outputs
    assert "the same command goes on from there" in outputs[0][0]
    assert 0 < together.read_bytes().count(b"\n") < MANY
    for process in start_two(model_dir, questions, together):
        _, errors = process.communicate(timeout=570)
        assert process.returncode == 0, errors[-3000:]
    assert together.read_bytes() == killed.read_bytes()
    assert len(read(together)) == MANY


@pytest.mark.slow
def test_the_terminal_shows_label_rationale_and_what_mattered(model_dir):
    command = [sys.executable, "-m", "sbs_jax.infer", "--interactive"]
    command += processes.macros(CHECKPOINT_PATH=model_dir, CANDIDATES=LABELS)
    environment = os.environ | {
        "XLA_FLAGS": "",
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm-256color",
        "COLORTERM": "truecolor",
    }
    piped = subprocess.run(
        command,
        input="Anna has 3 apples\n\nAnd now?\n",
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert piped.returncode == 0, piped.stderr
    label = toy.predictor(candidates=toy.LABELS).labels(["Anna has 3 apples"])[0].label
    assert f"label       {label}  (" in piped.stdout
    assert piped.stdout.count("rationale   ") == piped.stdout.count("mattered    ") == 2
    assert "\x1b" not in piped.stdout

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True
    )
    os.close(theirs)
    shown = read_until(ours, b"input> ")
    os.write(ours, b"Anna has 3 apples\n")
    shown += read_until(ours, b"input> ")
    os.write(ours, b"\x04")
    assert process.wait(timeout=60) == 0
    os.close(ours)
    text = shown.decode()
    assert f"{label}  (" in text
    assert "\x1b[1;37;48;2;" in text  # white on a colour: a piece that mattered


def read_until(file, wanted):
    seen = b""
    deadline = time.monotonic() + 300
    while wanted not in seen:
        assert time.monotonic() < deadline, seen
        seen += os.read(file, 4096)
    return seen


def test_a_cascaded_students_labels_read_its_own_rationales(tmp_path):
    parts = {"label": {"reads": "{input} so {rationale}"}, "rationale": {}}
    model = toy.write_model_dir(
        tmp_path / "run",
        method="cascaded",
        feature_lengths={"inputs": 80, "targets": toy.DECODE_LENGTH},
        data_settings={"parts": parts},
    )
    rows = [{"id": f"{n}", "input": f"Ann has {n}", "rationale": "given"} for n in range(5)]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loader = Loader(str(model), batch_size=8)
    assert (
        infer_lib.infer(loader=loader, output_file=str(tmp_path / "o"), input_file=str(path)) == 5
    )
    predictor = loader.load()
    expected = predictor.labels([row["input"] for row in rows])
    assert [row["label"] for row in read(tmp_path / "o")] == [answer.label for answer in expected]
    infer_lib.infer(
        loader=loader, output_file=str(tmp_path / "p"), input_file=str(path), explain=True
    )
    assert [row["rationale"] for row in read(tmp_path / "p")] == [one.rationale for one in expected]
