"""Installs sbs_jax for each supported Python and JAX, runs tests, and tabulates what resolved.

    python launch/versions.py                       # every combination, the whole suite
    python launch/versions.py --core 3.12:0.11 3.13:0.12
    python launch/versions.py --quick 3.12:0.11 3.13:0.12   # some minutes: what .ci/run does

Combinations are PYTHON:JAX; by default all that SUPPORTED names and whose interpreter is there
(pythonX.Y on the PATH, or one of pyenv's). Each gets a virtual environment below --folder, which
is used again as long as setup.py is the same. With --core TensorFlow is not installed, and the
tests are those of CORE_TESTS: what a GPU image without TensorFlow runs; --quick runs the few of
QUICK_TESTS. --table writes the table to a file as well. Exits 1 if any combination fails; one whose
interpreter is not there is named and left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUPPORTED = ("3.11:0.10", "3.12:0.11", "3.12:0.12", "3.13:0.11", "3.13:0.12")
CORE_TESTS = (
    "tests/test_losses.py",
    "tests/test_metrics.py",
    "tests/test_parsers.py",
    "tests/test_student.py",
    "tests/models/test_network.py",
    "tests/models/test_layers.py",
    "tests/models/test_dropout.py",
    "tests/partitioning/test_mesh.py",
    "tests/training/test_step.py",
    "tests/training/test_optimizers.py",
    "tests/checkpoints/test_manager.py",
    "tests/checkpoints/test_t5x.py",
    "tests/decoding/test_greedy.py",
    "tests/decoding/test_ranking.py",
)
# Losses, the training step of a network, sharding, and checkpoints from mesh to mesh.
QUICK_TESTS = (
    "tests/test_losses.py",
    "tests/training/test_step.py",
    "tests/partitioning/test_mesh.py",
    "tests/checkpoints/test_manager.py::test_restores_onto_any_mesh[mesh1]",
    "tests/checkpoints/test_store.py",
)
PACKAGES = (
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "tensorflow",
    "tensorflow-text",
    "seqio",
    "sentencepiece",
)


@dataclasses.dataclass(frozen=True)
class Combination:
    """A version of Python and one of JAX, each as `major.minor`."""

    python: str
    jax: str

    @classmethod
    def parse(cls, text: str) -> Combination:
        """`3.12:0.11` → Combination("3.12", "0.11")."""
        if not re.fullmatch(r"3\.\d+:0\.\d+", text):
            raise argparse.ArgumentTypeError(f"{text!r} must look like 3.12:0.11")
        return cls(*text.split(":"))

    def interpreter(self) -> str | None:
        """The path of a Python of this version, or None if there is none."""
        pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
        candidates = [
            shutil.which(f"python{self.python}"),
            *sorted(map(str, pyenv.glob(f"{self.python}.*/bin/python"))),
        ]
        probe = (
            "import sys, venv, ensurepip;"
            f"sys.exit('%d.%d' % sys.version_info[:2] != '{self.python}')"
        )
        for candidate in filter(None, candidates):
            # It is run, not only looked up: pyenv's shims exist for versions not installed.
            if subprocess.run([candidate, "-c", probe], capture_output=True).returncode == 0:
                return candidate
        return None


def main() -> int:
    """Runs what the flags say; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("combinations", nargs="*", type=Combination.parse, metavar="PYTHON:JAX")
    parser.add_argument("--core", action="store_true", help="without TensorFlow; CORE_TESTS alone")
    parser.add_argument("--quick", action="store_true", help="the same, of QUICK_TESTS alone")
    parser.add_argument("--folder", type=Path, default=ROOT / ".venvs")
    parser.add_argument("--table", type=Path, help="file to write the table to")
    args = parser.parse_args()
    tests = QUICK_TESTS if args.quick else CORE_TESTS if args.core else None
    rows = []
    for combination in args.combinations or map(Combination.parse, SUPPORTED):
        interpreter = combination.interpreter()
        if interpreter is None:
            print(f"Python {combination.python} is not here: skipped.", flush=True)
            continue
        rows.append(_try(combination, interpreter, args.folder, tests))
    table = _table([row for _, row in rows])
    print(table)
    if args.table:
        args.table.write_text(table, encoding="utf-8")
    return 0 if all(passed for passed, _ in rows) else 1


def _try(
    combination: Combination, interpreter: str, folder: Path, tests: Sequence[str] | None
) -> tuple[bool, dict[str, str]]:
    """Whether the tests pass (those of the core given, or the suite), and the row of the table."""
    core = tests is not None
    name = f"py{combination.python}-jax{combination.jax}{'-core' if core else ''}"
    print(f"== {name}", flush=True)
    started = time.monotonic()
    python = _environment(folder / name, interpreter, combination, core=core)
    versions = _versions(python)
    installed = time.monotonic()
    chosen = ["--numprocesses=2", "--dist=loadfile"] if tests is None else tests
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen],
        cwd=ROOT,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(folder / name / "jax-cache")},
        stdout=subprocess.PIPE,
        text=True,
    )
    print(done.stdout[-4000:] if done.returncode else done.stdout.splitlines()[-1], flush=True)
    print(
        f"{installed - started:.0f} s to install, {time.monotonic() - installed:.0f} s of tests",
        flush=True,
    )
    summary = done.stdout.strip().splitlines()[-1].strip("= ") if done.stdout.strip() else "nothing"
    row = {"Python": combination.python} | {name: versions.get(name, "–") for name in PACKAGES}
    return done.returncode == 0, row | {"tests": re.sub(r" in [\d.]+s.*", "", summary)}


def _environment(folder: Path, interpreter: str, combination: Combination, *, core: bool) -> str:
    """Makes the virtual environment, if it is not there; returns its Python."""
    python = str(folder / "bin" / "python")
    stamp = folder / "installed"
    want = hashlib.sha256((ROOT / "setup.py").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == want:
        return python
    subprocess.run([interpreter, "-m", "venv", "--clear", folder], check=True)
    pip = [python, "-m", "pip", "install", "-qq", "--no-compile", "--no-input"]
    pip += ["--disable-pip-version-check"]
    jax = f"jax=={combination.jax}.*"
    if core:
        # The tests run from the checkout; only what is needed has to be installed.
        subprocess.run([*pip, jax, *_core_requirements(), "pytest", "hypothesis"], check=True)
    else:
        subprocess.run([*pip, jax, "--editable", f"{ROOT}[test]"], check=True)
    stamp.write_text(want)
    return python


def _core_requirements() -> list[str]:
    """What setup.py requires, without TensorFlow and what needs it."""
    # This Python may have no setuptools, and nothing is to be set up.
    stub = types.ModuleType("setuptools")
    stub.setup = stub.find_packages = lambda **_: []
    sys.modules["setuptools"] = stub
    return runpy.run_path(str(ROOT / "setup.py"))["CORE"]


def _versions(python: str) -> dict[str, str]:
    """Installed package → version."""
    done = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split("==", 1) for line in done.stdout.splitlines() if "==" in line)


def _table(rows: list[dict[str, str]]) -> str:
    """The rows as Markdown."""
    if not rows:
        return "No supported Python was found.\n"
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *(list(row.values()) for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    sys.exit(main())
