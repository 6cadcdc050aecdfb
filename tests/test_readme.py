"""The README's Python is executed as it stands, and its command trains."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import gin
import pytest

from sbs_jax.configuration import config as config_lib
from sbs_jax.experiments import runs as runs_lib
from sbs_jax.programs import running
from sbs_jax.programs.assembly import assemble
from tests.release_layout import write_jsonl

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def film_reviews(tmp_path):
    """A working folder with the README's task in it, and data."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "film_reviews.py").write_text(code)
    (tmp_path / "data" / "film_reviews").mkdir(parents=True)
    rows = [
        {"review": f"Film {i} was {'so slow' * (i % 2) or 'a joy'}.", "stars": 5 - i % 2 * 4,
         "why": "Slow is bad." if i % 2 else "A joy is good."}
        for i in range(40)
    ]  # fmt: skip
    for split in ("train", "test"):
        write_jsonl(tmp_path / "data" / "film_reviews" / f"{split}.jsonl", rows)
    return tmp_path


def test_the_task_is_ten_lines_and_its_command_is_valid(film_reviews):
    code = (film_reviews / "film_reviews.py").read_text().splitlines()
    assert len([line for line in code if line and not line.startswith("#")]) <= 10
    commands = re.findall(r"^    python -m sbs_jax\.train ((?:.*\\\n)*.*)", README, re.MULTILINE)
    (command,) = (command for command in commands if "film_reviews" in command)
    arguments = shlex.split(command.replace("\\\n", " "))
    assert "--gin.TRAIN_STEPS=1000" in arguments
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sbs_jax.train", *arguments, "--dry_run"),
            *("--gin.VOCABULARY_SIZE=400", "--gin.BATCH_SIZE=8"),
        ],
        cwd=film_reviews,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{film_reviews}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "rationale: 'explain: Film" in done.stdout
    assert "→ 'A joy is good.'" in done.stdout


def test_a_part_of_ones_own_is_ten_lines_of_gin(tmp_path, monkeypatch):
    (code,) = re.findall(r"```gin\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line and not line.startswith("#")]) <= 10
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("hinted.gin").write_text(code)
    rows = [
        {"input": f"What is {i} + 1?", "label": f"{i + 1}", "hint": f"Count on from {i}."}
        for i in range(30)
    ]  # fmt: skip
    write_jsonl(tmp_path / "train.jsonl", [{**row, "rationale": "It is next."} for row in rows])
    (command,) = re.findall(r"^    python -m sbs_jax\.train (--gin_file=hinted.*)", README, re.M)
    pairs = [flag.removeprefix("--gin").split("=", 1) for flag in shlex.split(command)]
    files = [value for name, value in pairs if name == "_file"]
    macros = [(name[1:], value) for name, value in pairs if name != "_file"]
    own = [*macros, ("HINT_WEIGHT", "0.25"), ("VOCABULARY_SIZE", "400")]
    config = config_lib.read(files, [], own, [], target=runs_lib.TRAIN)
    config.check()
    try:
        config.apply()
        run = assemble(gin.get_bindings(runs_lib.TRAIN)["config"], writes=False)
        assert run.task.name == "your_data_hinted"
        assert run.records.counts.other_records == {"hint": 27}
        assert run.loss.names == ("label", "rationale", "hint")
        assert run.loss.constant_weights == {"rationale": 1.0, "hint": 0.25}
        assert running.metadata(run, None)["part_weights"] == {"hint": 0.25}
    finally:
        gin.clear_config()
