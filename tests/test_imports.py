"""What each package may import: the core runs where there is no TensorFlow and no torch."""

import re
import subprocess
import sys

import pytest

from tests.paths import ROOT

CORE = (
    "parts",
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
PROGRAMS_OF_THE_CORE = tuple(f"programs.{name}" for name in ("export", "infer", "serve", "teach"))

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
        (("parts", "errors", "files", "metrics", "parsers"), ("jax", "tensorflow", "numpy")),
        (("configuration", *COMMANDS), ("jax", "tensorflow")),
        (("data.settings", "data.packing"), ("gin",)),
        (PROGRAMS_OF_THE_CORE, ("tensorflow", "seqio")),
    ],
    ids=[
        *("core", "torch", "inference", "teacher", "report", "below training", "leaves"),
        *("commands", "data", "programs"),
    ],
)
def test_importing_pulls_in_nothing_heavy(packages, forbidden):
    assert imported(packages, forbidden) == ""


def test_the_data_room_does_not_know_gin():
    """`configuration` binds its dataclasses. (SeqIO imports gin, so the text is searched.)"""
    pattern = re.compile(r"^\s*(import gin\b|from gin\b)", re.MULTILINE)
    files = (ROOT / "sbs_jax" / "data").rglob("*.py")
    assert [path.name for path in files if pattern.search(path.read_text("utf-8"))] == []


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
