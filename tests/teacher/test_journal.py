"""The journal: what is written stays, what is torn goes, two runs never share a folder."""

import os
import subprocess
import sys

import pytest

from sbs_jax.errors import UserError
from sbs_jax.teacher.journal import Journal
from sbs_jax.teacher.types import AskedExample, Completion, CompletionRequest


def request(number):
    key = f"{number:032x}"
    return CompletionRequest(
        key, AskedExample(str(number), "x"), "rationale", 0, 0, "p", b"{}", 10, 0
    )


def test_what_is_appended_is_there_after_reopening(tmp_path):
    nasty = "a\nb\0c\ud800 \u2028 " + "x" * 100_000
    with Journal(tmp_path) as journal:
        journal.append(request(1), Completion(nasty, "stop", 5, 6, logprob=-1.5, server={"m": 1}))
        journal.append(request(2), Completion("", error="too long"))
        journal.append(request(3), Completion("", error="later"), final=False)
        assert journal.get(request(1).key).text == nasty
    with Journal(tmp_path) as journal:
        found = journal.get(request(1).key)
        assert (found.text, found.logprob, found.server) == (nasty, -1.5, {"m": 1})
        assert journal.get(request(2).key).error == "too long"
        assert request(3).key not in journal
        assert journal.get(request(4).key) is None
        assert (journal.totals.completions, journal.totals.errors) == (1, 2)
        assert journal.totals.prompt_tokens == 5
    assert (tmp_path / "generations.jsonl").read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("cut", [1, 2, 30, 100])
def test_a_torn_last_line_is_dropped_wherever_it_was_torn(tmp_path, cut):
    with Journal(tmp_path) as journal:
        for number in range(5):
            journal.append(request(number), Completion(f"text {number}"))
    path = tmp_path / "generations.jsonl"
    os.truncate(path, path.stat().st_size - cut)
    with Journal(tmp_path) as journal:
        assert [request(n).key in journal for n in range(5)] == [True] * 4 + [False]
        assert journal.dropped_bytes > 0
        journal.append(request(4), Completion("again"))
    with Journal(tmp_path) as journal:
        assert journal.get(request(4).key).text == "again"


def test_a_file_that_is_one_torn_line_is_emptied(tmp_path):
    (tmp_path / "generations.jsonl").write_bytes(b"x" * 200_000)
    with Journal(tmp_path) as journal:
        assert journal.dropped_bytes == 200_000
    assert (tmp_path / "generations.jsonl").read_bytes() == b""


def test_damaged_lines_in_the_middle_are_counted_and_missing(tmp_path):
    with Journal(tmp_path) as journal:
        for number in range(3):
            journal.append(request(number), Completion("text"))
    path = tmp_path / "generations.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[1] = b"\0" * len(lines[1])
    path.write_bytes(b"\n".join([*lines[:2], b"[1]", b"[" * 9999, b'{"key": 3}', *lines[2:]]))
    with Journal(tmp_path) as journal:
        assert journal.totals.damaged_lines == 4
        assert [request(n).key in journal for n in range(3)] == [True, False, True]


def test_half_written_files_of_a_killed_run_are_removed(tmp_path):
    left = tmp_path / ".rationales.jsonl.x1y2z3_8.tmp"
    left.write_text("{")
    with Journal(tmp_path):
        assert not left.exists()


def test_two_runs_in_one_folder_are_refused(tmp_path):
    with Journal(tmp_path):
        with pytest.raises(UserError, match=f"in use by another run .process {os.getpid()}"):
            Journal(tmp_path)
        code = "import pathlib; from sbs_jax.teacher.journal import Journal; "
        code += f"Journal(pathlib.Path({str(tmp_path)!r}))"
        # Another process is refused too.
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "in use by another run" in done.stderr
    Journal(tmp_path).close()


def test_a_full_disk_stops_with_a_sentence_and_leaves_whole_lines(tmp_path, monkeypatch):
    with Journal(tmp_path) as journal:
        journal.append(request(1), Completion("text"))
        real = os.write
        calls = []

        def full(fd, data):
            calls.append(1)
            if len(calls) > 1:
                raise OSError(28, "No space left on device")
            return real(fd, data[:10])

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(UserError, match="No space left"):
                journal.append(request(2), Completion("text"))
        assert request(2).key not in journal
        journal.append(request(3), Completion("text"))
    with Journal(tmp_path) as journal:
        assert journal.totals.damaged_lines == 0 and journal.dropped_bytes == 0
        assert request(3).key in journal
