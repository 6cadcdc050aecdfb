"""Remote folders: `gs://` on a server of that protocol on this machine, and fsspec's `memory://`."""

import contextlib
import json
import os
import threading

import pytest

from sbs_jax import files, remote, remote_copies
from sbs_jax.checkpoints.loading import identify
from sbs_jax.data import pipeline
from sbs_jax.data.resolving import TaskChoice, resolve_task
from sbs_jax.data.settings import DataSettings, override
from sbs_jax.errors import UserError
from sbs_jax.programs import eval as evaluation
from sbs_jax.programs.train import train
from sbs_jax.programs.train_config import EvaluationSettings, Saving
from tests.programs import tiny
from tests.release_layout import write_release

BUCKET = "bucket"


@pytest.fixture(scope="module")
def bucket():
    """`gs://bucket`, which a server in this process holds in memory."""
    with pytest.MonkeyPatch.context() as patch:
        # Before it is imported: it would ask each time for rights that the server does not know.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        pytest.importorskip("gcsfs")
        emulator = pytest.importorskip("gcp_storage_emulator.server")
        server = emulator.create_server("localhost", 0, in_memory=True, default_bucket=BUCKET)
        server.start()
        host = f"http://localhost:{server._api._httpd.socket.getsockname()[1]}"
        patch.setenv("STORAGE_EMULATOR_HOST", host)  # gcsfs
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", host)  # Orbax's arrays
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        patch.setattr(remote, "SETTLE_SECONDS", 0.0)
        yield f"gs://{BUCKET}"
        server.stop()


@pytest.fixture
def memory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    system = remote.file_system("memory://")
    system.store.clear()
    yield system
    system.store.clear()


def upload(system, folder, url):
    for file in folder.rglob("*"):
        if file.is_file():
            system.pipe_file(f"{url}/{file.relative_to(folder).as_posix()}", file.read_bytes())


def config_of(url, steps, data):
    return tiny.config_of(
        url,
        task=TaskChoice("svamp_sbs"),
        data=data,
        train_steps=steps,
        evaluation=EvaluationSettings(splits=()),
        saving=Saving(log_period=1),
    )


@pytest.mark.slow
def test_a_run_lives_in_a_bucket(bucket, tmp_path, monkeypatch):
    import sbs_jax.tasks.svamp  # noqa: F401  (registers the data set)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    system = remote.file_system(bucket)
    upload(system, write_release(tmp_path / "data"), f"{bucket}/data")
    folder = f"{bucket}/runs/one"
    data = DataSettings(data_dir=f"{bucket}/data", vocabulary_size=500)
    mesh = tiny.one_device()
    train(config_of(folder, 2, data), mesh=mesh, config_text="X = 1\n")
    finished = train(config_of(folder, 3, data), mesh=mesh, config_text="X = 2\n")
    assert finished.step == 3

    names = {name.removeprefix(f"{BUCKET}/runs/one/") for name in system.find(folder)}
    assert {"config.gin", "config_history/until_step_2.gin", "student.json"} <= names
    assert {"vocabulary/spiece.model", "checkpoint_3/commit_success.txt"} <= names
    assert any(name.startswith("tensorboard/events") for name in names)
    assert "train.lock" not in names
    lines = system.cat_file(f"{folder}/metrics.jsonl").decode().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]

    with override(data):
        config = evaluation.EvalConfig(
            folder, f"{bucket}/scores", evaluated=evaluation.EvaluatedSplits(steps=1)
        )
        scores = evaluation.evaluate(config, mesh=mesh)["test"]
    written = json.loads(system.cat_file(f"{bucket}/scores/eval_metrics.jsonl"))
    assert written["label_loss"] == pytest.approx(scores["label_loss"])
    assert system.exists(f"{bucket}/scores/predictions/test-3.jsonl")
    # Nothing of a URL became a folder of this machine.
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "data"}

    damaged = f"{folder}/checkpoint_3/info/metadata"
    system.pipe_file(damaged, b"{")
    with pytest.raises(UserError, match="damaged"):
        identify(f"{folder}/checkpoint_3").settings  # noqa: B018  (read when it is asked for)


def test_an_object_appears_whole_or_not_at_all(bucket):
    system = remote.file_system(bucket)
    files.atomic_write_text(f"{bucket}/small/text", "first ä")
    with contextlib.suppress(KeyboardInterrupt), files.atomic_open(f"{bucket}/small/text") as file:
        file.write("second")
        raise KeyboardInterrupt
    assert system.cat_file(f"{bucket}/small/text").decode() == "first ä"
    with files.atomic_open(f"{bucket}/small/bytes", "wb") as file:
        file.write(b"12")
        assert not system.exists(f"{bucket}/small/bytes")
    assert system.cat_file(f"{bucket}/small/bytes") == b"12"


def test_an_outbox_sends_what_has_changed(memory, monkeypatch, caplog):
    sent = []
    monkeypatch.setattr(remote, "write", lambda url, content: sent.append((url, content)))
    with remote.Outbox("memory://run/") as outbox:
        (outbox.folder / "events").mkdir()
        (outbox.folder / "events" / "a").write_text("a")
        (outbox.folder / "metrics").write_text("1")
        outbox.send()
        with (outbox.folder / "metrics").open("a") as file:
            file.write("2")
        outbox.send(after=3600)
        assert len(sent) == 2
    assert sent[2:] == [("memory://run/metrics", b"12")]
    assert not outbox.folder.exists()

    def refuse(url, content):
        raise UserError(f"{url}: no.")

    monkeypatch.setattr(remote, "write", refuse)
    outbox = remote.Outbox("memory://run")
    (outbox.folder / "metrics").write_text("1")
    outbox.send(after=1e-9)  # A run does not end for what it can send later.
    assert "memory://run/metrics: no." in caplog.text
    with pytest.raises(UserError, match=str(outbox.folder)):
        outbox.close()
    assert (outbox.folder / "metrics").read_text() == "1"


@pytest.fixture
def quick(monkeypatch):
    for name, seconds in (("SETTLE", 0.0), ("RENEW", 0.02), ("STALE", 0.2)):
        monkeypatch.setattr(remote, f"{name}_SECONDS", seconds)


def test_a_lease_is_held_by_one_process_and_outlives_none(memory, quick):
    url = "memory://run/train.lock"
    with files.locked(url):
        held = pytest.raises(UserError, match=f"another process is at work.*{os.getpid()}")
        with held, files.locked(url):
            pass
        assert memory.exists(url)
    assert not memory.exists(url)
    # Killed on another host: nobody renews it.
    memory.pipe_file(url, json.dumps({"id": "x", "host": "another", "pid": 1}).encode())
    with files.locked(url):
        assert json.loads(memory.cat_file(url))["pid"] == os.getpid()
    # Killed on this host: known at once.
    remote.STALE_SECONDS = 3600.0
    dead = {"id": "x", "host": remote.socket.gethostname(), "pid": 2**22 + 1}
    memory.pipe_file(url, json.dumps(dead).encode())
    with files.locked(url):
        pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_who_lost_a_lease_ends(memory, quick, monkeypatch):
    url, ended = "memory://run/train.lock", threading.Event()

    def end_thread(code):
        ended.set()
        raise SystemExit(code)

    monkeypatch.setattr(remote.os, "_exit", end_thread)
    with files.locked(url):
        memory.pipe_file(url, json.dumps({"id": "x", "host": "another", "pid": 1}).encode())
        assert ended.wait(10)
    assert memory.exists(url)  # It is the other's.


def test_data_are_copied_when_they_change(memory, tmp_path):
    import sbs_jax.tasks.svamp  # noqa: F401  (registers the data set)

    data = write_release(tmp_path / "data")
    upload(memory, data, "memory://lake/data")
    near = DataSettings(data_dir=str(data), vocabulary_size=500)
    far = DataSettings(data_dir="memory://lake/data", vocabulary_size=500)
    lengths = {"inputs": 64, "targets": 64}

    def fingerprint(settings):
        task = resolve_task(TaskChoice("svamp_sbs"), settings)
        return pipeline.load_records(task, "train", lengths).fingerprint()

    first = fingerprint(near)
    assert fingerprint(far) == first
    copy = far.folder("svamp")
    changed = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    assert far.folder("svamp") == copy and {p: p.stat().st_mtime_ns for p in changed} == changed

    rows = (data / "svamp" / "svamp_train.json").read_text().splitlines()
    rows[0], rows[1] = rows[1], rows[0]
    memory.pipe_file("memory://lake/data/svamp/svamp_train.json", "\n".join(rows).encode())
    assert fingerprint(far) != first
    memory.rm_file("memory://lake/data/svamp/llm/train_CoT_10.json")
    assert not (far.folder("svamp") / "llm" / "train_CoT_10.json").exists()
    with pytest.raises(UserError, match=r"memory://nowhere.*'svamp'"):
        DataSettings(data_dir="memory://nowhere").folder("svamp")


def test_what_cannot_be_reached_is_a_sentence(memory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda: remote.place("s3://bucket/run"),
        lambda: files.atomic_write_text(tmp_path / "s3:/bucket/x", "x"),
        lambda: files.refuse_remote("gs://bucket/cache"),
        lambda: remote_copies.local("nosuchscheme://x/y"),
        lambda: remote.write("memory://", b"x"),
    ):
        with pytest.raises(UserError, match="://"):
            call()
    monkeypatch.setattr(type(memory), "find", _refusing)
    with pytest.raises(UserError, match=r"memory://lake/data/svamp: cannot be read .*no key"):
        DataSettings(data_dir="memory://lake/data").folder("svamp")
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


def test_a_store_that_does_not_answer_is_named_while_it_is_asked(memory, monkeypatch, caplog):
    monkeypatch.setattr(remote, "_PATIENCE_SECONDS", 0.01)
    answered = threading.Event()
    monkeypatch.setattr(type(memory), "pipe_file", lambda *_: answered.wait(0.2))
    remote.write("memory://lake/x", b"x")
    assert "memory://lake/x: cannot be written yet" in caplog.text
    with pytest.raises(UserError, match="write gs://bucket/run, with two slashes"):
        remote.place("gs:/bucket/run")


def _refusing(*arguments, **options):
    raise RuntimeError("no key\nsecond line")
