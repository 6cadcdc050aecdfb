"""Every command of README and docs is accepted by its program, or its page says that it is not run.

A command of `python -m sbs_jax.X` (or `sbs X`) goes through the program's own command line up to
where its work would begin: flags, gin files, macros. What else a page shows (`pip`, `bash`,
benchmarks, T5X) stands below a comment, which covers the next block:

    <!-- not run: WHY -->

The tutorial's and the README's commands are executed whole in test_documentation.py and
test_readme.py.
"""

import importlib
import re
import shlex
import types

import pytest

from sbs_jax import __main__ as all_commands
from sbs_jax.configuration import config as config_lib
from sbs_jax.configuration import main as main_lib
from sbs_jax.configuration import process
from tests.paths import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What `…` stands for at the head of a command: the flags of a command above.
DOTS = {
    "train": ["--gin_file=examples/svamp_t5_1_1_tiny.gin", "--gin.DATA_DIR=D", "--gin.MODEL_DIR=M"],
    "teach": [
        "--gin_file=runs/teach.gin", "--gin_file=tasks/svamp.gin", "--gin.DATA_DIR=D",
        "--gin.OUTPUT_DIR=O", "--gin.TEACHER_MODEL=T", "--gin.BASE_URL=http://localhost/v1",
    ],
    "infer": ["--gin_file=runs/infer.gin", "--gin.CHECKPOINT_PATH=C", "--gin.OUTPUT_FILE=O"],
    "plan": [
        "--gin_file=optimizers/adafactor.gin", "--gin_file=tasks/svamp.gin",
        "--gin_file=runs/train.gin", "--gin.MODEL_DIR=M", "--gin.TRAIN_STEPS=9",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 128}",
    ],
    "frontier": ["--gin.DATA_DIR=D", *(f"--gin.T5_1_1_{s}=W" for s in ("BASE", "LARGE", "XXL"))],
}  # fmt: skip
FIRST_WORDS = re.compile(r"([A-Z_]+=\S+ )?(python|sbs|pip|bash|curl|pre-commit|docker|ct2-\S+) ")


def blocks(text):
    """The indented blocks of commands of a page: (its commands, why they are not run or "")."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    pattern = r"(?:^<!-- not run: (.+?) -->\n)?(?:^|\n)\n?((?:    [^\n]*\n)+)"
    for match in re.finditer(pattern, text, re.MULTILINE):
        code = re.sub(r"^    ", "", match[2], flags=re.MULTILINE)
        if FIRST_WORDS.match(code):
            lines = code.replace("\\\n", " ").splitlines()
            # What stands behind a command is a remark.
            lines = [re.sub(r"\s+# .*", "", line) for line in lines]
            yield [c for line in lines for c in line.split(" && ")], match[1] or ""


def every_command():
    """(page, command, why it is not run)."""
    return [
        (page.relative_to(ROOT).as_posix(), command, why)
        for page in PAGES
        for commands, why in blocks(page.read_text(encoding="utf-8"))
        for command in commands
    ]


def program_of(command):
    """(`train`, its arguments) of a command of ours; None of another."""
    words = shlex.split(command)
    if words[:2] == ["python", "-m"] and words[2].startswith("sbs_jax."):
        return words[2].removeprefix("sbs_jax."), words[3:]
    return (words[1], words[2:]) if words[0] == "sbs" else None


@pytest.fixture
def no_work(monkeypatch, tmp_path):
    """Programs end where their work would begin."""
    from sbs_jax.experiments import searching, sweeping
    from sbs_jax.programs import plan, report

    monkeypatch.chdir(tmp_path)
    nothing = lambda *_, **__: None  # noqa: E731
    monkeypatch.setattr(process, "set_up", nothing)
    monkeypatch.setattr(config_lib.GinConfig, "apply", nothing)
    monkeypatch.setattr(main_lib, "call", nothing)
    # The modules of the work are not imported either.
    stub = types.SimpleNamespace(import_module=lambda _: _Anything())
    monkeypatch.setattr(main_lib, "importlib", stub)
    monkeypatch.setattr(plan, "plan", lambda *_: [])
    monkeypatch.setattr(report, "make_report", nothing)
    monkeypatch.setattr(report, "show", nothing)
    monkeypatch.setattr(sweeping, "show_plan", nothing)
    monkeypatch.setattr(searching, "tell_budget", nothing)
    monkeypatch.setattr(importlib.import_module("sbs_jax.scores.compare"), "compare", nothing)


class _Anything:
    def __getattr__(self, name):
        return None


def run(name, arguments):
    """The exit code of a program, of whose work nothing is done; see `no_work`."""
    module = importlib.import_module(f"sbs_jax.{name}")
    if "…" in arguments:
        arguments = [*DOTS[name], *(a for a in arguments if a != "…")]
    if name in ("sweep", "frontier"):
        arguments = [*arguments, "--dry_run"]
    if name == "report":  # The page shows the usage.
        arguments = [a.strip("[]").split("|")[0] for a in arguments]
    try:
        return module.main(arguments)
    except SystemExit as stop:
        return stop.code


OURS = [(page, command) for page, command, _ in every_command() if program_of(command)]


@pytest.mark.parametrize(("page", "command"), OURS)
def test_a_program_accepts_a_command_of_a_page(page, command, no_work, tmp_path, capsys):
    # Gin files that the page itself shows, with their names.
    text = (ROOT / page).read_text(encoding="utf-8")
    for shown in re.finditer(r"^```gin\n# (\S+\.gin)\n.*?^```", text, re.MULTILINE | re.DOTALL):
        (tmp_path / shown[1]).write_text(shown[0].removeprefix("```gin").removesuffix("```"))
    name, arguments = program_of(command)
    assert name in all_commands.commands()
    assert run(name, arguments) in (0, None), f"{page}: {command}\n{capsys.readouterr().err}"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("python -m sbs_jax.train … --gin.NO_SUCH=1", "NO_SUCH"),
        ("python -m sbs_jax.train … --gin.TRIAN_STEPS=1", "TRIAN_STEPS"),
        ("python -m sbs_jax.eval --gin_file=runs/evil.gin", "runs/evil.gin"),
        ("python -m sbs_jax.sweep --gin_file=sweeps/none.gin --sweep_dir=s", "none.gin"),
        ("python -m sbs_jax.plan --target=v5e:8x8 --gin_fil=x", "--gin_fil"),
        ("python -m sbs_jax.serve --checkpoint runs/mine --prot 8000", "--prot"),
    ],
)  # fmt: skip
def test_a_wrong_command_would_be_noticed(command, message, no_work, capsys):
    assert run(*program_of(command)) not in (0, None)
    assert message in capsys.readouterr().err


def test_other_commands_are_marked_as_not_run():
    unmarked = [
        f"{page}: {command}"
        for page, command, why in every_command()
        if not program_of(command) and not why
    ]
    assert not unmarked, "each wants a comment <!-- not run: WHY --> above its block"


def test_scripts_that_pages_call_have_the_flags_that_they_are_given():
    for page, command, _ in every_command():
        script = re.match(r"(?:[A-Z_]+=\S+ )?(?:python|bash) ((?:benchmarks|launch)/\S+)", command)
        if script:
            source = (ROOT / script[1]).read_text(encoding="utf-8")
            for flag in re.findall(r" (--[\w-]+)", command):
                assert f'"{flag}"' in source, f"{page}: {command}"
