"""What a wheel holds, and that it works away from the checkout."""

import os
import subprocess
import sys
import zipfile

import pytest

from tests.paths import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, since building leaves `build/` behind.
    source = folder / "source"
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    for name in files:
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, source],
        check=True, capture_output=True,
    )  # fmt: skip
    return next(folder.glob("*.whl")), source


@pytest.mark.slow
def test_a_wheel_holds_tasks_and_every_gin_file(wheel):
    path, source = wheel
    names = set(zipfile.ZipFile(path).namelist())
    for folder, pattern in (("gin", "*.gin"), ("tasks", "*.py")):
        files = list((source / folder).rglob(pattern))
        assert len(files) > 2
        for file in files:
            assert f"sbs_jax/{file.relative_to(source).as_posix()}" in names
    assert "sbs_jax/reports/page_files/page.js" in names
    # Nothing that would shadow a user's own module, or gin-config.
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"sbs_jax"}
    assert "sbs_jax/gin/__init__.py" not in names


@pytest.mark.slow
def test_a_wheel_works_from_another_folder(wheel, tmp_path):
    """Unpacked where no checkout is; `--help` reads the gin files that the wheel brings."""
    zipfile.ZipFile(wheel[0]).extractall(tmp_path / "site")
    process = subprocess.run(
        [sys.executable, "-P", "-m", "sbs_jax.train", "--help",
         "--gin_file=examples/svamp_t5_1_1_small.gin"],
        cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "RATIONALE_WEIGHT" in process.stdout
    assert "'svamp'" in process.stdout
