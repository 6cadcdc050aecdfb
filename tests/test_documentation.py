"""What README and documentation name exists: gin files, programs, files of the repository."""

import re

import pytest

from tests.paths import GIN, ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A page's own placeholders, and T5X's files.
ELSEWHERE = re.compile(r"[A-Z]{3,}|^t5x/examples/|…")


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
