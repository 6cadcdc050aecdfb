"""The tutorial is executed as it stands, with fewer steps; other pages name what exists."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.paths import GIN, ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A page's own placeholders, and T5X's files.
ELSEWHERE = re.compile(r"[A-Z]{3,}|^t5x/examples/|…")


def blocks(text):
    """The page's Python and commands in order: `("python" | "shell", code)`."""
    pattern = r"^```python\n(.*?)^```|((?:^    [^\n]*\n)+)"
    for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        if match[1] is not None:
            yield "python", match[1]
        elif match[2].strip().startswith(("python ", "sbs ")):
            yield "shell", re.sub(r"^    ", "", match[2], flags=re.MULTILINE)


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }
    found = list(blocks((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")))
    assert [kind for kind, _ in found].count("shell") == 6
    for kind, code in found:
        if kind == "python":
            arguments = ["-c", code]
        else:
            command, python, *arguments = [None, *shlex.split(code.replace("\\\n", " "))]
            assert (command, python) == (None, "python")
            arguments = [a.replace("TRAIN_STEPS=300", "TRAIN_STEPS=3") for a in arguments]
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{code}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 50
    assert (tmp_path / "exported" / "fruit" / "model.safetensors").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_files_and_programs_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"--gin_file=([^\s`'\"]+)", text):
        if not ELSEWHERE.search(name) and "/" in name and not name.startswith("runs/x"):
            assert (GIN / name).is_file(), name
    for name in re.findall(r"python -m sbs_jax\.(\w+)", text):
        if name != "X":
            assert (ROOT / "sbs_jax" / f"{name}.py").is_file(), name
    for name in re.findall(r"`((?:tests|launch|benchmarks|sbs_jax)/[\w/]+\.(?:py|sh|yaml))`", text):
        assert (ROOT / name).is_file() or "NAME" in name or "X.py" in name, name
