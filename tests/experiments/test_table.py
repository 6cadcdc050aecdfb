import io

from rich.console import Console

from sbs_jax.experiments import table
from sbs_jax.experiments.runs import RunProgress
from sbs_jax.experiments.table import LiveTable


def shown(**options):
    console = Console(file=io.StringIO(), width=100, height=60, **options)
    names = [f"seed={seed}" for seed in range(40)]
    with LiveTable(names, console) as live:
        live.rows["seed=1"].total = 20
        live.change("seed=1", table.RUNNING)
        live.refresh({"seed=1": RunProgress(10, 1.25, 0.5)})
        live.change("seed=0", table.DONE, score=0.75)
        live.note("a sentence")
        live.change("seed=2", table.FAILED)
    return console.file.getvalue()


def test_a_terminal_shows_a_table_with_what_is_at_work_first():
    last = shown(force_terminal=True, color_system=None).rsplit("2 of 40 runs ended", 1)[1]
    rows = [line.split() for line in last.splitlines() if "seed=" in line]
    assert rows[0] == ["seed=1", "running", "10/20", "1.250", "50.0%"]
    assert rows[1] == ["seed=2", "failed"]
    assert rows[2] == ["seed=0", "done", "75.0%"]
    assert "and 10 more" in last


def test_elsewhere_every_change_is_a_line():
    assert shown().splitlines() == [
        "[0/40] seed=1: running",
        "[1/40] seed=0: done, accuracy on validation 75.0%",
        "a sentence",
        "[2/40] seed=2: failed",
    ]
