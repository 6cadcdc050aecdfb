"""`sbs`: every program behind one command, completion in the shell, and what is installed."""

import importlib.metadata
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sbs_jax import __main__ as sbs
from sbs_jax.programs import completion, doctor

ROOT = Path(__file__).parents[2]


def test_every_command_has_one_program_and_one_line(capsys):
    assert sbs.main(["--help"]) == 0
    shown = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in shown] == sbs.commands()
    assert {"train", "eval", "teach", "infer", "serve", "inspect_task"} <= set(sbs.commands())
    assert not {"dry_run", "__init__", "inspect"} & set(sbs.commands())
    assert all(len(line.split()) > 3 for line in shown)


def test_a_command_is_handed_its_arguments(capsys):
    assert sbs.main(["inspect-task", "--gin_file=nowhere.gin"]) == 1
    assert "'nowhere.gin' does not exist" in capsys.readouterr().err
    assert sbs.main(["tran"]) == 1
    assert capsys.readouterr().err == "error: tran: unknown command; did you mean train?\n"


def test_modules_of_the_working_folder_are_found_as_by_python_m(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert sbs.main(["doctor", "--help"]) == 0
    assert sys.path[0] == str(tmp_path)
    assert sbs.main(["doctor", "--help"]) == 0
    assert sys.path.count(str(tmp_path)) == 1


@pytest.mark.parametrize("arguments", [["completion", "bash"], ["--help"], ["doctor", "--help"]])
def test_whoever_reads_the_output_may_stop_early(arguments, monkeypatch, tmp_path):
    discarded = tmp_path / "output"

    class ClosedPipe(io.StringIO):
        def flush(self):
            raise BrokenPipeError

        def fileno(self):
            return file.fileno()

    with discarded.open("wb") as file:
        monkeypatch.setattr(sys, "stdout", ClosedPipe())
        assert sbs.main(arguments) == 0
        os.write(file.fileno(), b"what is flushed at exit")
    assert discarded.read_bytes() == b""


def test_the_former_name_of_a_command_and_its_help_are_accepted_and_import_nothing_slow():
    program = (
        "import sys; from sbs_jax.inspect import main\n"
        "assert main(['--gin_file=runs/inspect.gin', '--help']) == 0\n"
        "assert not {'jax', 'tensorflow'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: python -m sbs_jax.inspect_task ")
    assert "TASK_FEATURE_LENGTHS  " in done.stdout


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sbs ins", ["inspect_task"]),
        ("sbs train --gin_fi", ["--gin_file="]),
        ("sbs train --dry_", ["--dry_run"]),
        ("sbs train --gin_file=runs/tr", ["--gin_file=runs/train.gin"]),
        ("sbs train --gin_file mine", ["mine.gin"]),
        ("sbs train --gin_file=", None),
        ("sbs train --gin_file=runs/train.gin --gin.EVAL_P", ["--gin.EVAL_PERIOD="]),
        ("sbs train --gin_file=not_there.gin --gin.EVAL_P", []),
    ],
)
def test_what_a_line_may_become(line, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.gin").write_text("")
    found = completion.candidates(line)
    if expected is None:
        assert {"--gin_file=mine.gin", "--gin_file=tasks/svamp.gin"} <= set(found)
    else:
        assert found == expected


def test_bash_completes_behind_an_equals_sign(tmp_path):
    (tmp_path / "sbs").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sbs_jax "$@"\n')
    (tmp_path / "sbs").chmod(0o755)
    line = "sbs train --gin_file=runs/tr"
    script = f"""
    eval "$(sbs completion bash)"
    COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDBREAKS='='
    _sbs; echo "${{COMPREPLY[@]}}"
    """
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout == "runs/train.gin\n", done.stderr


def test_the_doctor_says_what_is_there_and_what_is_not(capsys, monkeypatch):
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert "CPU" in out.upper() and "jax " in out and "compiled programs" in out
    assert "Nothing is missing for training." in out
    monkeypatch.setattr(doctor, "PACKAGES", ("jax", "no-such-package"))
    assert doctor.main([]) == 1
    assert "problem: no-such-package is not installed" in capsys.readouterr().out
    assert doctor.main(["--fix"]) == 1
    monkeypatch.undo()
    monkeypatch.setattr(doctor, "WITH_TENSORFLOW", ("no-such-package",))
    assert doctor.main([]) == 0
    assert "pip install no-such-package" in capsys.readouterr().out


def test_an_extra_that_asks_for_an_extra_of_another_package(tmp_path, monkeypatch):
    """`jax[tpu]` names jax, which is there; what its extra asks for may not be."""
    for name, requires in {
        "outer": "inner[fast]; extra == 'x'",
        "inner": "gone; extra == 'fast'",
    }.items():
        folder = tmp_path / f"{name}-1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Name: {name}\nVersion: 1\nRequires-Dist: {requires}\n")
    monkeypatch.syspath_prepend(tmp_path)
    outer = importlib.metadata.distribution("outer")
    assert doctor.missing_from(outer, "x") == ["gone"]
    assert doctor.missing_from(outer, "y") == []
