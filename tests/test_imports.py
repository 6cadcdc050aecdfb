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
    ],
    ids=["core", "torch", "inference", "teacher", "report", "below training", "leaves"],
)
def test_importing_pulls_in_nothing_heavy(packages, forbidden):
    assert imported(packages, forbidden) == ""


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
