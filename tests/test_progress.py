"""What a user sees."""

import io

import pytest
from rich.console import Console

from sbs_jax.progress import LINES, Progress

METRICS = {"loss": 1.5, "label_loss": 0.5, "rationale_loss": None, "examples_per_second": 123.4}


def show(steps, *, terminal=False, evaluate_every=None, begin=0, **options):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with Progress(console, **options) as progress:
        progress.begin(begin, steps)
        for step in range(begin + 1, steps + 1):
            progress.train(step, METRICS)
            if evaluate_every and step % evaluate_every == 0:
                progress.evaluated(step, "validation", {"label_accuracy": 0.25, "examples": 7})
    return console.file.getvalue()


@pytest.mark.parametrize("steps", [1, 3, 10, 100, 10_007])
def test_a_log_fits_on_a_screen(steps):
    lines = show(steps, evaluate_every=1).splitlines()
    assert len(lines) <= 2 * (LINES + 1)
    assert lines[0].startswith(f"step 1/{steps} · loss 1.500 · label 0.500 · rationale – · 123 ex")
    assert lines[-1] == f"step {steps}/{steps} · validation: label_accuracy 0.250"


def test_lines_are_spread_evenly():
    steps = [int(line.split()[1].split("/")[0]) for line in show(800).splitlines()]
    assert steps == [1, *range(100, 801, 100)]
    steps = [int(line.split()[1].split("/")[0]) for line in show(800, begin=650).splitlines()]
    assert steps == [651, 700, 800]


def test_time_left():
    lines = show(800).splitlines()
    assert lines[1].endswith(" s left")
    assert "left" not in lines[-1]


def test_a_terminal_gets_a_bar():
    text = show(20, terminal=True)
    for words in (
        "training",
        "20/20",
        "loss 1.500",
        "label 0.500",
        "rationale –",
        "123 examples/s",
    ):
        assert words in text


def test_only_process_0_talks():
    assert show(20, enabled=False) == show(20, terminal=True, enabled=False) == ""
