"""What each package may import: the core runs where there is no TensorFlow and no torch."""

import ast
import re
import subprocess
import sys

import pytest

from tests.paths import ROOT

CORE = (
    "part_templates",
    "parts",
    "methods",
    "errors",
    "files",
    "student",
    "progress",
    "losses",
    "metrics",
    "models",
    "decoding",
    "partitioning",
    "training",
    "checkpoints",
    "planning",
)

COMMANDS = tuple(path.stem for path in (ROOT / "sbs_jax" / "programs").glob("[a-z]*.py"))
COMMANDS = tuple(name for name in COMMANDS if (ROOT / "sbs_jax" / f"{name}.py").is_file())
# These run where there is no TensorFlow.
PROGRAMS_OF_THE_CORE = tuple(
    f"programs.{name}" for name in ("export", "infer", "inspect_task", "select", "serve", "teach")
)

PROGRAM = """
import importlib, pkgutil, sys
packages, forbidden = (argument.split(",") for argument in sys.argv[1:])
for name in packages:
    module = importlib.import_module("sbs_jax." + name)
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), module.__name__ + "."):
        importlib.import_module(found.name)
print(",".join(sorted(set(forbidden) & set(sys.modules))))
"""


def imported(packages, forbidden):
    """Which of `forbidden` a new process has after it imported all modules of `packages`."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ",".join(packages), ",".join(forbidden)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("packages", "forbidden"),
    [
        (CORE, ("tensorflow", "seqio", "transformers", "sbs_jax.data", "sbs_jax.tasks")),
        (CORE, ("torch",)),
        (("inference",), ("tensorflow", "seqio", "transformers", "sbs_jax.tasks")),
        (("teacher",), ("tensorflow", "jax", "torch")),
        (("report", "reports"), ("tensorflow", "jax", "torch")),
        (("student", "inference", "evaluation"), ("sbs_jax.training", "optax")),
        (
            (
                "part_templates",
                "parts",
                "methods",
                "errors",
                "files",
                "json_files",
                "metrics",
                "parsers",
            ),
            ("jax", "tensorflow", "numpy"),
        ),
        (("configuration", *COMMANDS), ("jax", "tensorflow")),
        (("data.settings", "data.packing"), ("gin",)),
        (PROGRAMS_OF_THE_CORE, ("tensorflow", "seqio")),
        (("programs.train",), ("tensorflow", "seqio", "gguf", "sbs_jax.planning")),
    ],
    ids=[
        *("core", "torch", "inference", "teacher", "report", "below training", "leaves"),
        *("commands", "data", "programs", "training"),
    ],
)
def test_importing_pulls_in_nothing_heavy(packages, forbidden):
    assert imported(packages, forbidden) == ""


def test_the_data_room_does_not_know_gin():
    """`configuration` binds its dataclasses. (SeqIO imports gin, so the text is searched.)"""
    pattern = re.compile(r"^\s*(import gin\b|from gin\b)", re.MULTILINE)
    files = (ROOT / "sbs_jax" / "data").rglob("*.py")
    assert [path.name for path in files if pattern.search(path.read_text("utf-8"))] == []


def test_the_data_room_has_a_map_that_names_every_module_once():
    """`sbs_jax/data/__init__.py` is the map."""
    room = ROOT / "sbs_jax" / "data"
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text("utf-8")))
    listed = re.findall(r"^    (\w+(?:, \w+)*)", text, re.MULTILINE)
    named = [name for line in listed for name in line.split(", ")]
    modules = {path.stem for path in room.iterdir() if not path.name.startswith("__")}
    assert sorted(named) == sorted(modules)


def test_the_public_names_are_found_when_they_are_asked_for():
    program = (
        "import sys, sbs_jax\n"
        "assert not {'jax', 'tensorflow'} & set(sys.modules)\n"
        "from sbs_jax import load_predictor\n"
        "assert 'tensorflow' not in sys.modules\n"
        "from sbs_jax import TrainConfig, register_dataset, train\n"
        "assert callable(train) and callable(register_dataset) and callable(load_predictor)\n"
        "assert {'train', 'load_predictor', 'register_dataset'} <= set(dir(sbs_jax))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_check_itself_sees_what_is_imported():
    assert imported(("models",), ("jax", "tensorflow")) == "jax"


def test_no_test_imports_another_test():
    """What tests share lies in support files; importing a test runs its fixtures and marks too."""
    pattern = re.compile(r"^\s*(from|import) tests[\w.]*\.test_|^\s*from tests[\w.]* import test_")
    wrong = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if pattern.match(line)
    ]
    assert wrong == []


def stands_on():
    """The table of docs/architecture.md: each room with the rooms that it may import."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    lines = text.partition("| room | stands on |")[2].split("\n\n")[0].splitlines()[2:]
    cells = [[re.findall(r"`(\w+)`", cell) for cell in line.split("|")[1:3]] for line in lines]
    rooms = {room for (room,), _ in cells}
    return {
        room: rooms - {room, *others} if "every room but" in line else set(others)
        for line, ((room,), others) in zip(lines, cells, strict=True)
    }


def imports_of(room):
    """The rooms that modules of a room import, wherever in them."""
    found = set()
    folder = ROOT / ("tasks" if room == "tasks" else f"sbs_jax/{room}")
    for path in folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module == "sbs_jax":
                names = [f"sbs_jax.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found |= {name.split(".")[1] for name in names if name.startswith("sbs_jax.")}
    return found


def test_rooms_import_what_the_architecture_says():
    allowed = stands_on()
    packages = {path.parent.name for path in (ROOT / "sbs_jax").glob("*/__init__.py")}
    assert packages | {"tasks", "student"} == set(allowed)
    wrong = {
        f"{room} imports {other}"
        for room, others in allowed.items()
        for other in imports_of(room) & set(allowed) - {room, *others}
    }
    assert wrong == set()
