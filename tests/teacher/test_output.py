"""Restarts that fail never shrink what is there; what a disk refuses is a sentence."""

import io
import json
import os
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from sbs_jax.errors import UserError
from sbs_jax.teacher.backends.batch_file import BatchFileBackend
from sbs_jax.teacher.backends.openai_compat import OpenAICompatBackend
from sbs_jax.teacher.backends.scripted import ScriptedBackend, explain_expression
from sbs_jax.teacher.sampling import Sampling
from sbs_jax.teacher.stats import show_stats
from tests import disks
from tests.teacher.support import ask, examples, quick, read_jsonl

KEY = "sk-very/secret+0123456789"


def damage(journal, lines):
    """Breaks some lines of a journal, as a disk might."""
    content = journal.read_bytes().splitlines(keepends=True)
    for line in lines:
        content[line] = b"\0" * (len(content[line]) - 1) + b"\n"
    journal.write_bytes(b"".join(content))


def stats_of(folder):
    console = Console(file=io.StringIO(), width=200)
    show_stats(folder, console)
    return console.file.getvalue()


def test_a_failing_restart_keeps_the_complete_output(mock_server, tmp_path):
    server = mock_server()
    ask(tmp_path, examples(300), url=server.url)
    before = {name: (tmp_path / name).read_bytes() for name in ("rationales.jsonl", "run.json")}
    damage(tmp_path / "generations.jsonl", [3, 90, 150, 222])
    refusing = mock_server(status=401)
    with pytest.raises(UserError, match="answered 401"):
        ask(tmp_path, examples(300), url=refusing.url)
    for name, content in before.items():
        assert (tmp_path / name).read_bytes() == content
    # What this run has lies beside: all that the journal still holds, not only what it came to.
    rows = read_jsonl(tmp_path / "rationales.incomplete.jsonl")
    assert sum(bool(row["llm_label"]) for row in rows) == 296
    assert json.loads((tmp_path / "run.incomplete.json").read_text())["status"].startswith("stopp")
    assert "A later run has less than this" in stats_of(tmp_path)
    # With other parameters nothing is answered: no reason to throw away what was.
    with pytest.raises(UserError, match="answered 401"):
        ask(tmp_path, examples(300), url=refusing.url, sampling=Sampling(max_tokens=99))
    assert (tmp_path / "rationales.jsonl").read_bytes() == before["rationales.jsonl"]
    run, rows, _ = ask(tmp_path, examples(300), url=server.url)
    assert run["status"] == "complete"
    assert run["this_run"]["asked"] == 4
    assert len(run["history"]) == 4
    assert (tmp_path / "rationales.jsonl").read_bytes() == before["rationales.jsonl"]
    assert not list(tmp_path.glob("*.incomplete.*"))


def test_a_restart_that_gets_further_replaces_what_was_there(mock_server, tmp_path):
    for allowed in (40, 100):
        with pytest.raises(UserError, match="answered 401"):
            ask(
                tmp_path,
                examples(200),
                url=mock_server(fail_after=allowed).url,
                flow=quick(concurrency=2),
            )
        answered = sum(bool(row["llm_label"]) for row in read_jsonl(tmp_path / "rationales.jsonl"))
        assert answered == len(read_jsonl(tmp_path / "generations.jsonl")) >= allowed
    assert not list(tmp_path.glob("*.incomplete.*"))


def test_a_complete_run_over_fewer_examples_keeps_the_larger_output_beside(tmp_path):
    ask(tmp_path, examples(20), backend=ScriptedBackend())
    before = (tmp_path / "rationales.jsonl").read_bytes()
    _, rows, said = ask(tmp_path, examples(20), backend=ScriptedBackend(), limit=5)
    assert len(rows) == 5
    assert (tmp_path / "rationales.previous.jsonl").read_bytes() == before
    assert json.loads((tmp_path / "run.previous.json").read_text())["status"] == "complete"
    assert "is kept as" in said


def test_text_of_the_server_is_no_markup(mock_server, tmp_path):
    message = " cannot read [/data/llama] or [bold]this[/bold]"
    server = mock_server(status=403, message=message)
    with pytest.raises(UserError, match=r"cannot read \[/data/llama\] or \[bold\]this\[/bold\]"):
        ask(tmp_path, examples(5), url=server.url)
    said = stats_of(tmp_path)
    assert "[/data/llama]" in said and "[bold]this" in said


@pytest.mark.parametrize("name", ["a[/b]c", "[red]"])
def test_names_of_folders_and_examples_are_no_markup(tmp_path, name):
    folder = tmp_path / name
    rows = [{**row, "id": name} for row in examples(2)]
    *_, said = ask(folder, rows, backend=ScriptedBackend(model=name))
    with open(folder / "generations.jsonl", "ab") as file:
        file.write(b"{}\n{torn")
    *_, again = ask(folder, rows, backend=ScriptedBackend(model=name))
    assert f"{name}/rationales.jsonl" in said
    assert f"{name}/generations.jsonl (the last" in again
    *_, shown = ask(tmp_path / "p", rows, backend=ScriptedBackend(model=name), preview=1)
    assert f"example {name}" in shown


def all_bytes(folder):
    return b"".join(path.read_bytes() for path in Path(folder).rglob("*") if path.is_file())


def test_a_server_that_echoes_the_key_is_blotted_out(mock_server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = mock_server(echo=1)
    sampling = Sampling(extra_body={"api_key": "in-the-body-1234", "top_k": 3})
    run, _, said = ask(tmp_path, examples(3), url=server.url, sampling=sampling)
    assert run["sampling"]["extra_body"] == {"api_key": "<redacted>", "top_k": 3}
    (row, *_) = read_jsonl(tmp_path / "generations.jsonl")
    assert "Authorization: Bearer [key]" in row["text"] and '"api_key":"[key]"' in row["text"]
    for secret in (KEY, "in-the-body-1234"):
        assert secret.encode() not in all_bytes(tmp_path)
        assert secret not in said
    refusing = mock_server(status=403, message=f": {'x' * 200} in-the-body-1234")
    with pytest.raises(UserError, match=r"refused \[key\]: x+ \[key\]") as caught:
        ask(tmp_path / "2", examples(3), url=refusing.url, sampling=sampling)
    assert "in-the-body" not in str(caught.value)
    assert b"in-the-body" not in all_bytes(tmp_path)


def test_garbage_that_begins_with_the_key_shows_no_part_of_it(monkeypatch):
    key = "k" * 60 + "tail-of-the-key" * 8
    monkeypatch.setenv("OPENAI_API_KEY", key)
    backend = OpenAICompatBackend("mock", "http://127.0.0.1:9/v1")
    with pytest.raises(Exception, match=r"not a completion: '<p>\[key\]") as caught:
        backend.completions_in(f"<p>{key}".encode(), [None], 0.0)
    assert "kkkk" not in str(caught.value)


def test_keys_do_not_go_into_files_for_a_batch_service(tmp_path):
    backend = BatchFileBackend("m", str(tmp_path))
    sampling = Sampling(extra_body={"api_key": "in-the-body-1234"})
    with pytest.raises(UserError, match="EXTRA_BODY holds a key"):
        ask(tmp_path, examples(2), backend=backend, sampling=sampling)
    assert b"in-the-body" not in all_bytes(tmp_path)


def test_a_disk_that_fills_while_rationales_are_derived(tmp_path):
    rows = [{**row, "input": row["input"] + " long" * 2000} for row in examples(8)]
    ask(tmp_path, rows[:2], backend=ScriptedBackend())
    before = (tmp_path / "rationales.jsonl").read_bytes()
    with (
        disks.full_after(50_000),
        pytest.raises(UserError, match=r"rationales\.incomplete\.jsonl: cannot be written"),
    ):
        ask(tmp_path, rows, backend=ScriptedBackend())
    assert (tmp_path / "rationales.jsonl").read_bytes() == before
    run, done, _ = ask(tmp_path, rows, backend=ScriptedBackend())
    assert (run["status"], run["this_run"]["asked"], len(done)) == ("complete", 0, 8)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_disk_that_is_full_when_answers_come(tmp_path):
    ask(tmp_path, examples(1), backend=ScriptedBackend())
    size = (tmp_path / "generations.jsonl").stat().st_size
    with (
        disks.full_after(2 * size + 100),
        pytest.raises(UserError, match=r"generations\.jsonl: cannot be written \(File too large"),
    ):
        ask(tmp_path, examples(50), backend=ScriptedBackend())
    assert (tmp_path / "generations.jsonl").stat().st_size > size
    assert ask(tmp_path, examples(50), backend=ScriptedBackend())[0]["status"] == "complete"


def test_half_written_files_of_killed_runs_are_removed(tmp_path):
    ask(tmp_path, examples(2), backend=ScriptedBackend())
    (tmp_path / ".rationales.incomplete.jsonl.abc.tmp").write_text("half")
    ask(tmp_path, examples(2), backend=ScriptedBackend())
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_journal_that_is_removed_while_it_is_written(tmp_path):
    def remove(example, sample):
        if example.id == "e7":
            shutil.rmtree(tmp_path / "out")
        return explain_expression(example, sample)

    with pytest.raises(UserError, match=r"generations\.jsonl: was removed or replaced while"):
        ask(tmp_path / "out", examples(20), backend=ScriptedBackend(remove))


@pytest.mark.parametrize("place", ["file", "file/below", "lock"])
def test_folders_that_cannot_be_made(tmp_path, place):
    (tmp_path / "file").write_text("x")
    folder = tmp_path / place
    if place == "lock":
        (folder / ".lock").mkdir(parents=True)
    with pytest.raises(UserError, match=f"{place}.*: cannot be written"):
        ask(folder, examples(2), backend=ScriptedBackend())
    assert os.listdir(tmp_path) == ["file"] or place == "lock"
