"""A program as `run_main` runs it: flags, mistakes, help, the final configuration."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import gin
import pytest

from sbs_jax.configuration import config as config_lib
from sbs_jax.configuration import dump, process
from sbs_jax.configuration import main as main_lib
from sbs_jax.configuration.flags import parse_flags
from sbs_jax.configuration.main import run_main
from sbs_jax.errors import UNFINISHED, UserError
from sbs_jax.files import atomic_write_text
from tests import disks
from tests.configuration import toy

RUN = """
from __gin__ import dynamic_registration
from tests.configuration import toy

MODEL_DIR = %gin.REQUIRED  # folder of the run
STEPS = 3
toy.train:
  model = @toy.Model()
  model_dir = %MODEL_DIR
  steps = %STEPS
toy.Model.width = 4
toy.fail.message = %MESSAGE
toy.interrupt.model_dir = %MODEL_DIR
toy.stop.message = %MESSAGE
toy.write.message = %MESSAGE
MESSAGE = 'bad data.'
"""
FILE = "--gin_file=run.gin"


@pytest.fixture(autouse=True)
def _process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.gin").write_text(RUN)
    monkeypatch.setattr(process, "enable_compilation_cache", lambda folder: None)
    handlers, level = logging.root.handlers[:], logging.root.level
    toy.calls.clear()
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    logging.getLogger("sbs_jax").setLevel(logging.NOTSET)
    gin.clear_config()


def run(*argv, function="train"):
    return run_main(f"tests.configuration.toy:{function}", list(argv), description="Trains a toy.")


@pytest.mark.parametrize(
    "argument", ["--gin.MODEL_DIR=a/b", '--gin.MODEL_DIR="a/b"', "--gin.MODEL_DIR='a/b'"]
)
def test_strings_may_be_quoted_or_not(argument):
    assert run(FILE, argument) == 0
    assert toy.calls[-1]["model_dir"] == "a/b"


def test_flags_in_both_forms(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/more.gin").write_text("STEPS = 5\n")
    argv = ["--gin_file", "run.gin", "--gin_search_paths", "none,sub", "--gin_file=more.gin"]
    assert run(*argv, "--gin.MODEL_DIR=x") == 0
    assert toy.calls[-1]["steps"] == 5
    assert run(*argv, "--gin_bindings=MODEL_DIR = 'x'", "--gin_bindings", "STEPS = 6") == 0
    assert toy.calls[-1]["steps"] == 6
    assert not toy.calls[-1]["dry_run"]


def test_profile_steps_is_short_for_its_macro():
    assert parse_flags(["--profile_steps=10:15"]).gin == (("PROFILE_STEPS", "10:15"),)


@pytest.mark.parametrize("flag", ["--dry_run", "--dry-run"])
def test_dry_run_is_passed_on(flag):
    assert run(FILE, "--gin.MODEL_DIR=x", flag) == 0
    assert toy.calls[-1]["dry_run"] is True


def test_dry_run_where_there_is_none(capsys):
    assert run(FILE, "--gin.MODEL_DIR=x", "--dry_run", function="fail") == 1
    assert "has no dry run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--gin_fil=x"], "--gin_fil=x: unknown flag; did you mean --gin_file?"),
        (["--wat"], "--wat: unknown flag; see --help."),
        (["run.gin"], "run.gin: unknown argument; see --help."),
        (["--gin.X", "3"], "--gin.X: write --gin.NAME=VALUE, without spaces around the =."),
        (
            ["--gin.MODEL-DIR=3"],
            "--gin.MODEL-DIR: 'MODEL-DIR' is not the name of a macro or of a "
            "parameter; write --gin.NAME=VALUE or --gin.module.function.parameter=VALUE.",
        ),
        (
            ["--process_count=two"],
            "argument --process_count: invalid int value: 'two'; see --help.",
        ),
        (["--verbosity=loud"], "argument --verbosity: invalid choice: 'loud'"),
        (
            [FILE, "--gin.MODEL_DIR=x", "--process_count=2"],
            "--coordinator_address, --process_count and --process_index must be given together",
        ),
        ([FILE], "Not set, but required: MODEL_DIR (run.gin, line 5: folder of the run)."),
        (
            [FILE, "--gin.MODEL_DIR=x", "--gin.STPES=3"],
            "--gin.STPES is set, but nothing in this run uses it; did you mean STEPS?",
        ),
        (["--gin_file=rnu.gin"], "the gin file 'rnu.gin' does not exist"),
        ([], "Nothing configures tests.configuration.toy.train; give a gin file that does"),
    ],
)
def test_mistakes_are_one_line_on_stderr(argv, message, capsys):
    assert run(*argv) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert not toy.calls


def test_a_users_error_is_printed_without_gins_call_sites(capsys):
    assert run(FILE, "--gin.MODEL_DIR=x", function="fail") == 1
    assert capsys.readouterr().err == "error: bad data.\n"


def test_debug_shows_the_traceback_of_a_users_error(capsys):
    assert run(FILE, "--gin.MODEL_DIR=x", "--verbosity=debug", function="fail") == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "helper" not in err
    assert err.endswith("error: bad data.\n")


def test_a_bug_is_not_hidden(tmp_path):
    (tmp_path / "crash.gin").write_text(
        "from __gin__ import dynamic_registration\n"
        "from tests.configuration import toy\n"
        "toy.train.model = @toy.crash()\n"
    )
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run(FILE, "--gin.MODEL_DIR=x", "--gin_file=crash.gin")


@pytest.mark.parametrize("how", ["signal", "interrupted"])
def test_work_that_was_stopped_ends_with_75_or_0_if_asked(how):
    flags = [FILE, "--gin.MODEL_DIR=x", f"--gin.MESSAGE={how}"]
    assert run(*flags, function="stop") == UNFINISHED == 75
    assert run(*flags, "--exit_zero_when_stopped", function="stop") == 0
    assert run(FILE, "--gin.MODEL_DIR=x", function="stop") == 0


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/file"])
def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, capsys, place):
    (tmp_path / "file").write_text("x")
    flags = [FILE, "--gin.MODEL_DIR=x", f"--gin.MESSAGE={place}"]
    assert run(*flags, function="write") == 1
    error = capsys.readouterr().err
    assert error.startswith(("error: file", "error: /proc/file"))
    assert ": cannot be read or written (" in error
    assert error.count("\n") == 1


def test_a_full_disk_is_one_sentence(tmp_path, capsys):
    flags = [FILE, "--gin.MODEL_DIR=x", "--gin.MESSAGE=new"]
    with disks.full_after(0):
        assert run(*flags, function="write") == 1
    assert "cannot be written (File too large)" in capsys.readouterr().err


def test_interrupt(capsys):
    assert run(FILE, "--gin.MODEL_DIR=x", function="interrupt") == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_help_lists_flags_and_macros_and_imports_nothing(tmp_path, capsys):
    (tmp_path / "more.gin").write_text(
        "import not_there\nHUB_TOKEN = 'abc'\nx.f.token = %HUB_TOKEN\n"
    )
    assert run(FILE, "--gin_file=more.gin", "--help", "--gin.STEPS=9") == 0
    out, err = capsys.readouterr()
    assert err == ""
    for flag in (
        "--gin_file",
        "--gin.NAME",
        "--gin_bindings",
        "--gin_search_paths",
        "--dry_run",
        "--verbosity",
        "--coordinator_address",
        "--process_count",
        "--process_index",
    ):
        assert flag in out
    macros = out[out.index("macros of run.gin, more.gin") :].splitlines()[1:]
    assert macros[0].split() == ["MODEL_DIR", "REQUIRED", "folder", "of", "the", "run"]
    assert any(line.split() == ["STEPS", "9", "--gin.STEPS"] for line in macros)
    assert "abc" not in out
    assert not toy.calls


def test_help_groups_macros_by_the_headings_of_the_gin_files(tmp_path, capsys):
    (tmp_path / "more.gin").write_text(
        "# More.\n\nSTEPS = 5\nA = 1\n\n# Sizes.\nB = 2  # wide\nC = 3\n\n"
        "x.f:\n  a = %A\n  b = %B\n  c = %C\n\n# Others.\nSTEPS = 8\n"
    )
    assert run(FILE, "--gin_file=more.gin", "--help", "--gin.C=9") == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out[out.index("\nOthers:") :].splitlines() if line]
    assert lines == [
        ["Others:"],
        ["STEPS", "8", "more.gin,", "line", "16"],
        ["run.gin:"],
        ["MESSAGE", "'bad", "data.'", "run.gin,", "line", "16"],
        ["more.gin:"],
        ["A", "1", "more.gin,", "line", "4"],
        ["Sizes:"],
        ["B", "2", "wide"],
        ["C", "9", "--gin.C"],
    ]


def test_help_without_a_file_lists_the_shipped_ones(capsys):
    assert run("--help") == 0
    assert "  runs/train.gin\n" in capsys.readouterr().out


def test_the_final_configuration_is_handed_on_and_can_be_used_again(tmp_path):
    assert run(FILE, "--gin.MODEL_DIR=x", "--gin.STEPS=7", "--gin.toy.train.api_key=abc") == 0
    text = toy.calls[-1]["config_text"]
    assert text.startswith("# sbs_jax ")
    assert "STEPS = 7" in text
    assert "abc" not in text
    atomic_write_text(tmp_path / "x/config.gin", text)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["config.gin"]
    first = {**toy.calls[-1], "config_text": "", "api_key": ""}
    assert run("--gin_file=x/config.gin") == 0
    assert {**toy.calls[-1], "config_text": "", "api_key": ""} == first


def test_the_configuration_is_what_is_bound():
    config_lib.read(["run.gin"], flags=[("MODEL_DIR", "x")]).apply()
    assert "MODEL_DIR = 'x'" in dump.config_text()


def test_parse_flags_rejects_what_it_does_not_know():
    with pytest.raises(UserError, match="unknown flag"):
        parse_flags(["--logtostderr"])


def test_errors_come_before_slow_imports(tmp_path):
    code = (
        "import sys\n"
        "from sbs_jax.configuration.main import run_main\n"
        "code = run_main('tests.configuration.toy:train', sys.argv[1:], description='')\n"
        "assert code == 1\n"
        "assert not {'jax', 'tensorflow'} & set(sys.modules), 'imported before the check'\n"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code, FILE],
        env={**os.environ, "PYTHONPATH": root},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("error: Not set, but required: MODEL_DIR")


def test_ctrl_c_while_modules_are_imported_ends_the_process_at_once(monkeypatch, capfd):
    """An exception would fly through the start of jaxlib, which it may crash."""
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with main_lib.leaving_at_once():
            signal.raise_signal(signal.SIGINT)
        assert codes == [130] and capfd.readouterr().err == "interrupted\n"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Somebody else's handler stays.
        with main_lib.leaving_at_once():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
