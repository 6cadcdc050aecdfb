"""Runs that are killed, stopped, poisoned and damaged, and what becomes of them."""

import contextlib
import io
import json
import multiprocessing
import os
import pickle
import random
import signal
import socket
import sys
import threading
import time

import jax
import numpy as np
import pytest
from rich.console import Console

from sbs_jax.checkpoints import folders
from sbs_jax.checkpoints.manager import CheckpointManager, restore_params
from sbs_jax.errors import UserError
from sbs_jax.partitioning.stopping import StopRequest
from sbs_jax.training import hooks
from sbs_jax.training.loop import batch_counts, fit
from sbs_jax.training.start import Start
from tests.training import five_parts, toy_run
from tests.training.toy_run import Options, abstract_state, mesh_of

STEPS = 40
RATES = hooks.MEASURED


def run(model_dir, *, mesh=None, console=None, **options):
    console = console or Console(file=io.StringIO())
    return toy_run.run(
        model_dir, Options(**{"steps": STEPS, **options}), mesh=mesh, console=console
    )


def state_of(model_dir, mesh=(1, 8)):
    with CheckpointManager(model_dir, keep=None) as manager:
        return jax.device_get(manager.restore_latest(abstract_state(mesh_of(*mesh))).state)


def record_of(model_dir):
    """The lines of the record without what depends on the clock."""
    lines = [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in RATES} for line in lines]


def last_recorded_step(model_dir):
    try:
        lines = (model_dir / "metrics.jsonl").read_text().splitlines()
        return json.loads(lines[-1])["step"]
    except (OSError, IndexError, ValueError):
        return 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed."""
    model_dir = tmp_path_factory.mktemp("whole")
    run(model_dir)
    return model_dir


def assert_same_run(model_dir, whole):
    jax.tree.map(np.testing.assert_array_equal, state_of(model_dir), state_of(whole))
    assert record_of(model_dir) == record_of(whole)
    assert list(folders.complete_checkpoints(model_dir)) == [10, 36, 40]


def child_main(arguments, output):
    sys.stdout.flush()
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["toy_run", *arguments]
    toy_run.main()


@pytest.fixture(scope="module")
def start_child():
    """Starts toy_run in a process of its own, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.test_loop"])
    children = []

    def start(*arguments, output):
        child = context.Process(target=child_main, args=([str(a) for a in arguments], output))
        child.start()
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.join()


def wait_for(condition, *children, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert all(child.exitcode is None for child in children), "a child ended too early"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def test_a_batch_that_was_left_on_the_host_is_an_error():
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        fit(
            start=Start(toy_run.fresh_state(mesh_of(1, 8))),
            step_fn=toy_run.step_fn,
            batches=toy_run.ToyBatches(),
            train_steps=2,
            to_device=lambda batch: batch,
        )


def test_records_evaluates_and_saves(whole):
    record = record_of(whole)
    train = [line for line in record if line["split"] == "train"]
    assert [line["step"] for line in train] == [*range(3, 40, 3), 40]
    assert [line["step"] for line in record if line["split"] == "validation"] == [*range(5, 41, 5)]
    assert [line["step"] for line in record] == sorted(line["step"] for line in record)
    assert train[0]["label_tokens"] == 24  # Counts of the window's three steps are added up.
    assert list(train[0])[2:5] == ["loss", "label_loss", "label_targets"]
    last = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-2])
    assert last["split"] == "train" and last["examples_per_second"] > 0
    assert last["step_seconds"] > last["data_wait_seconds"] >= 0
    assert last["host_memory_bytes"] > 2**20
    assert last["model_flops_per_second"] is None  # Toy batches say nothing of it.
    # The last line has one step alone: the 40th, which has no rationale (39 % 3 == 0).
    assert last["rationale_loss"] is None and last["rationale_tokens"] == 0
    assert (whole / "tensorboard").is_dir()
    # The best one (step 10, evaluated, though not a multiple of 4) and the latest two.
    assert list(folders.complete_checkpoints(whole)) == [10, 36, 40]


def test_every_step_has_a_line_by_default(tmp_path):
    run(tmp_path, steps=5, log_period=1)
    losses = [line["loss"] for line in record_of(tmp_path) if line["split"] == "train"]
    state, expected = toy_run.fresh_state(mesh_of(1, 8)), []
    batches = toy_run.ToyBatches()
    for _ in range(5):
        state, metrics = toy_run.step_fn(state, next(batches))
        expected.append(metrics["loss"].item())
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_killed_at_any_moment(whole, tmp_path, start_child):
    """Steps take some 10 ms and every fourth saves: kills hit saves, evaluations and steps."""
    choose = random.Random(0)
    model_dir, kills = tmp_path / "run", 0
    for number in range(5):
        before = last_recorded_step(model_dir)
        child = start_child(model_dir, "--steps=40", "--pause=0.01", output=tmp_path / "out")
        goal = min(before + choose.randint(1, 9), STEPS - 2) if number else 0
        wait_for(lambda goal=goal: last_recorded_step(model_dir) >= goal, child)
        time.sleep(choose.uniform(0.0, 0.05))
        child.kill()
        child.join()
        kills += child.exitcode == -signal.SIGKILL
    assert kills >= 4
    run(model_dir)
    assert_same_run(model_dir, whole)
    assert not list(model_dir.glob("*tmp*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stops_when_asked_to_and_goes_on(whole, tmp_path, start_child, number):
    model_dir, output = tmp_path / "run", tmp_path / "out"
    child = start_child(model_dir, "--steps=40", "--pause=0.01", output=output)
    wait_for(lambda: last_recorded_step(model_dir) >= 6, child)
    os.kill(child.pid, number)
    child.join()
    assert child.exitcode == 0
    step = max(folders.complete_checkpoints(model_dir))
    assert 6 <= step < STEPS
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    text = output.read_text()
    assert f"Stopped by {name} after step {step} of 40; saved as" in text
    assert "The same command goes on from there." in text
    assert "Traceback" not in text
    run(model_dir)
    assert_same_run(model_dir, whole)


def test_two_processes_stop_at_the_same_step(whole, tmp_path, start_child):
    """Only one of them gets the signal; the run goes on in one process, on another mesh.

    Before they end, they take a step with five parts: it is that of one process.
    """
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    model_dir, outputs = tmp_path / "run", [tmp_path / f"out{index}" for index in range(2)]
    children = [
        start_child(
            model_dir, "--steps=40", "--pause=0.01", f"--port={port}", f"--process={index}",
            f"--five_parts={tmp_path / 'five'}", output=outputs[index],
        )
        for index in range(2)
    ]  # fmt: skip
    wait_for(lambda: last_recorded_step(model_dir) >= 6, *children)
    os.kill(children[1].pid, signal.SIGTERM)
    for child in children:
        child.join()
    texts = [output.read_text() for output in outputs]
    assert [child.exitcode for child in children] == [0, 0], texts
    step = max(folders.complete_checkpoints(model_dir))
    assert 6 <= step < STEPS
    assert f"Stopped by a signal to another process after step {step}" in texts[0]
    assert "step" not in texts[1].lower()  # Only process 0 talks (Gloo aside).
    records, params = five_parts.make_records(), five_parts.make_params()
    alone = five_parts.train(records, params, mesh_of(1, 1), pack=False)
    five_parts.assert_equal(pickle.loads((tmp_path / "five").read_bytes()), alone)
    run(model_dir)
    # The mesh cuts sums elsewhere: equal to float32's rounding over 40 steps, not to the bit.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        state_of(model_dir),
        state_of(whole),
    )
    assert [line["step"] for line in record_of(model_dir)] == [
        line["step"] for line in record_of(whole)
    ]


@pytest.mark.slow
def test_a_run_goes_on_in_more_processes_and_in_fewer(whole, tmp_path, start_child):
    """2 processes, then 4, of two devices each, then one of eight: the same steps and batches.

    What 2 processes save, 4 restore to the bit: saved again by these, it has the same digests.
    """
    model_dir, again = tmp_path / "run", tmp_path / "again"

    def run_in(processes, folder, *flags):
        with contextlib.closing(socket.socket()) as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        outputs = [tmp_path / f"{processes}-{index}" for index in range(processes)]
        children = [
            start_child(
                folder, f"--port={port}", f"--processes={processes}", f"--process={index}",
                "--devices=2", "--log_period=2", *flags, output=outputs[index],
            )
            for index in range(processes)
        ]  # fmt: skip
        for child in children:
            child.join()
        texts = [output.read_text() for output in outputs]
        assert [child.exitcode for child in children] == [0] * processes, texts

    def info(folder):
        found = folders.complete_checkpoints(folder)
        return folders.read_info(found[max(found)])

    run_in(2, model_dir, "--steps=12")
    first = info(model_dir)
    assert first["step"] == 12
    run_in(4, model_dir, "--steps=24", f"--save_again={again}")
    assert info(again)["digests"] == first["digests"]
    assert info(model_dir)["extra"]["position"]["data"] == {"index": 24}
    run(model_dir)
    # The mesh cuts sums elsewhere: equal to float32's rounding over 40 steps, not to the bit.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        state_of(model_dir),
        state_of(whole),
    )


def test_a_damaged_checkpoint_costs_only_time(whole, tmp_path):
    run(tmp_path, steps=24)
    # The record of a run that was to end at step 24 has a line more than that of one to 40: none
    # here, as 24 is a multiple of the log period.
    for file in (tmp_path / "checkpoint_24").rglob("d/*"):
        file.write_bytes(b"")
    run(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, state_of(tmp_path), state_of(whole))
    assert [line for line in record_of(tmp_path) if line["split"] == "train"] == [
        line for line in record_of(whole) if line["split"] == "train"
    ]
    assert (tmp_path / "checkpoint_24.unreadable").is_dir()


@pytest.mark.parametrize("nan_at", [7, 8, 9, 40])
def test_a_loss_that_is_nan_stops_the_run(tmp_path, nan_at):
    good = (nan_at - 1) // 4 * 4
    words = rf"Step {nan_at}: the loss is nan; the last good checkpoint is .*checkpoint_{good};"
    with pytest.raises(UserError, match=words):
        run(tmp_path, nan_at=nan_at, log_period=1, eval_period=50)
    assert max(folders.complete_checkpoints(tmp_path)) == good
    assert np.isfinite(state_of(tmp_path).params["dense"]["kernel"]).all()
    record = record_of(tmp_path)
    assert record[-1]["step"] == nan_at - 1
    # With better data (or another learning rate) the run goes on.
    run(tmp_path, log_period=1, eval_period=50)
    assert max(folders.complete_checkpoints(tmp_path)) == STEPS


def test_nan_before_anything_is_saved(tmp_path):
    with pytest.raises(UserError, match="Step 2: the loss is nan; nothing was saved before it"):
        run(tmp_path, nan_at=2)
    assert not folders.complete_checkpoints(tmp_path)


def test_a_best_metric_that_does_not_exist_shows_at_the_first_evaluation(tmp_path):
    """Where it comes with a save, the run goes on."""
    console = Console(file=io.StringIO(), width=500)
    run(tmp_path / "a", steps=2, best_metric="validation/scor", checkpoint_period=2,
        eval_period=2, console=console)  # fmt: skip
    said = "No best checkpoint is kept: BEST_METRIC = 'validation/scor' is not among the metrics"
    assert said in console.file.getvalue()
    assert list(folders.complete_checkpoints(tmp_path / "a")) == [2]
    with pytest.raises(UserError, match="BEST_METRIC = 'validation/scor' is not among"):
        run(tmp_path / "b", steps=4, best_metric="validation/scor", eval_period=2)


def test_nothing_left_to_train(whole, tmp_path):
    before = (whole / "metrics.jsonl").read_text()
    console = Console(file=io.StringIO())
    finished = run(whole, console=console)
    assert finished.step == STEPS and not finished.interrupted
    assert "Nothing to train: step 40 of 40" in console.file.getvalue()
    assert (whole / "metrics.jsonl").read_text() == before


def test_restores_onto_another_mesh(whole, tmp_path):
    run(tmp_path, steps=20, mesh=mesh_of(4, 2))
    run(tmp_path, mesh=mesh_of(2, 4))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        state_of(tmp_path),
        state_of(whole),
    )


def test_the_host_stays_a_step_behind():
    """Metrics of a step are fetched when the next is under way, and at once where they decide."""
    events = []

    class Spy:
        def __init__(self, name):
            self.name = name

        def copy_to_host_async(self):
            pass

        def __array__(self, dtype=None, copy=None):
            events.append(f"fetch {self.name}")
            return np.float32(1.0)

    def step_fn(state, batch):
        events.append(f"step {state + 1}")
        return state + 1, {"loss": Spy(state + 1)}

    def evaluate(state, step):
        events.append(f"evaluate {step}")
        return {}

    fit(
        start=Start(0),
        step_fn=step_fn,
        batches=toy_run.ToyBatches(),
        train_steps=4,
        to_device=lambda batch: batch,
        evaluate=evaluate,
        eval_period=3,
    )
    assert list(dict.fromkeys(events)) == [
        "step 1", "step 2", "fetch 1", "step 3", "fetch 2", "fetch 3", "evaluate 3",
        "step 4", "fetch 4", "evaluate 4",
    ]  # fmt: skip


def test_feed_knows_the_position_of_each_batch():
    batches = toy_run.ToyBatches()
    with hooks.Feed(batches, lambda batch: batch, lambda batch: {"n": 1.0}, ahead=3) as feed:
        for index in range(1, 6):
            fed = next(feed)
            assert fed.position == {"index": index}
            np.testing.assert_array_equal(
                fed.batch["x"],
                np.random.default_rng(index - 1).standard_normal((8, 16), np.float32),
            )
        wait_for(lambda: batches.index > 6)  # It works ahead,
        assert batches.index <= 5 + 3 + 2  # but not without end.
    assert not [t for t in threading.enumerate() if t.name == "sbs_jax-feed"]


@pytest.mark.parametrize("error", [UserError("bad data"), StopIteration()])
def test_errors_of_the_data_reach_the_loop(error):
    class Failing(toy_run.ToyBatches):
        def __next__(self):
            if self.index == 2:
                raise error
            return super().__next__()

    words = "bad data" if isinstance(error, UserError) else "The training data ended"
    with hooks.Feed(Failing(), lambda batch: batch, lambda batch: {}) as feed:
        next(feed)
        next(feed)
        with pytest.raises(UserError, match=words):
            next(feed)


def test_signal_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        with stop:  # `fit` opens it once more.
            pass
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(stop.agreed)
        assert stop.name == "Ctrl-C"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.0)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_signal_before_training_counts(tmp_path):
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(stop.agreed)
        finished = fit(
            start=Start(toy_run.fresh_state(mesh_of(1, 8))),
            step_fn=toy_run.step_fn,
            batches=toy_run.ToyBatches(),
            train_steps=10,
            stop=stop,
        )
    assert finished.interrupted and finished.step == 1


def test_window_survives_json():
    whole, first = hooks.Window(), hooks.Window()
    steps = [
        {"loss": 0.1, "rationale_loss": None, "label_tokens": 3},
        {"loss": 0.2, "rationale_loss": 1 / 3, "label_tokens": 4},
        {"loss": 1 / 7, "rationale_loss": None, "label_tokens": 5},
    ]
    for step in steps:
        whole.add(step)
    first.add(steps[0])
    second = hooks.Window(json.loads(json.dumps(first.state())))
    for step in steps[1:]:
        second.add(step)
    line = whole.take()
    assert line == second.take()
    assert line == {
        "loss": (0.1 + 0.2 + 1 / 7) / 3,
        "rationale_loss": 1 / 3,  # The mean over the steps that had one.
        "label_tokens": 12,
    }
    assert whole.take() == {}


def test_parts_without_tokens_have_no_loss():
    metrics = {"loss": 1.0, "label_loss": 1.0, "label_tokens": 4, "label_targets": 2}
    empty = {"rationale_loss": 0.0, "rationale_accuracy": 0.0, "rationale_tokens": 0.0}
    assert hooks.without_empty_parts(metrics | empty) == metrics | {
        "rationale_loss": None, "rationale_accuracy": None, "rationale_tokens": 0.0,
    }  # fmt: skip


def test_batch_counts():
    batch = {
        "encoder_segment_ids": np.array([[1, 1, 2, 0], [0, 0, 0, 0]], np.int32),
        "decoder_segment_ids": np.array([[1, 2], [0, 0]], np.int32),
    }
    assert batch_counts(batch) == {"input_tokens": 3, "fill": 5 / 12}
    assert batch_counts({"x": np.ones(3)}) == {}


@pytest.mark.parametrize("name", ["eval_period", "checkpoint_period", "log_period"])
def test_bad_periods(tmp_path, name):
    with pytest.raises(UserError, match=f"{name.upper()} = 0 must be at least 1"):
        run(tmp_path, **{name: 0})


def test_params_of_a_run_can_be_read_for_evaluation(whole):
    params = restore_params(whole / "best", abstract_state(mesh_of(1, 1)).params)
    assert params["dense"]["kernel"].shape == (16, 16)
    assert folders.read_info(whole / "checkpoint_10")["extra"]["metadata"] == {"model": "toy"}
