"""What the sdist and the wheel hold, and that the wheel works away from the checkout."""

import os
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests.paths import ROOT


def run(*command, **options):
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folders: that of the sdist and of the wheel that was built from it, and the source's."""
    folder = tmp_path_factory.mktemp("built")
    # A copy, since building leaves `build/` behind.
    source = folder / "source"
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in run(*command, cwd=ROOT).splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", source)
    return folder / "dist", source


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built[0].glob("*.whl")
    return path, built[1]


@pytest.mark.slow
def test_twine_has_nothing_to_say(built):
    output = run(
        sys.executable, "-m", "twine", "--no-color", "check", "--strict", *built[0].iterdir()
    )
    assert output.count("PASSED") == 2


@pytest.mark.slow
def test_an_sdist_holds_what_the_wheel_is_built_of(built):
    (path,) = built[0].glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "setup.py", "pyproject.toml", "sbs_jax/py.typed"} <= names


@pytest.mark.slow
def test_a_wheel_holds_tasks_and_every_gin_file(wheel):
    path, source = wheel
    names = set(zipfile.ZipFile(path).namelist())
    for folder, pattern in (("gin", "*.gin"), ("tasks", "*.py")):
        files = list((source / folder).rglob(pattern))
        assert len(files) > 2
        for file in files:
            assert f"sbs_jax/{file.relative_to(source).as_posix()}" in names
    assert {"sbs_jax/reports/page_files/page.js", "sbs_jax/py.typed"} <= names
    # Nothing that would shadow a user's own module, or gin-config.
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"sbs_jax"}
    assert "sbs_jax/gin/__init__.py" not in names


@pytest.mark.slow
def test_a_wheel_works_from_another_folder(wheel, tmp_path):
    """Installed where no checkout is: gin files, tasks and programs are those of the wheel."""
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--target", site, wheel[0])
    python = [sys.executable, "-P", "-m"]
    options = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(site)}}
    output = run(
        *python, "sbs_jax.train", "--help", "--gin_file=examples/svamp_t5_1_1_small.gin", **options
    )
    assert "RATIONALE_WEIGHT" in output
    assert "'svamp'" in output
    output = run(
        *python, "sbs_jax.inspect_task", "--gin_file=runs/inspect_task.gin",
        "--gin_file=tasks/arithmetic.gin", "--gin.TRAIN_PROBLEMS=20",
        f"--gin.MODEL_DIR={tmp_path / 'run'}", **options,
    )  # fmt: skip
    assert "predict: " in output
