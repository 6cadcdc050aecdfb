"""What others wrote is shown as it is: rich must not read it as markup."""

import io
import re
from pathlib import Path

from rich.console import Console

import sbs_jax
from sbs_jax.experiments import table
from sbs_jax.experiments.table import LiveTable


def test_no_console_of_ours_reads_markup():
    """`[/x]` in a path, a run's name or a server's message would raise, and `[x]` would vanish."""
    made = [
        (path.name, arguments)
        for path in Path(sbs_jax.__file__).parent.rglob("*.py")
        for arguments in re.findall(r"(?<!\w)Console\(([^)]*)\)", path.read_text())
    ]
    assert len(made) > 8
    assert [one for one in made if "markup=False" not in one[1]] == []


def test_names_of_runs_are_no_markup():
    console = Console(file=io.StringIO(), width=100, height=60, force_terminal=True)
    with LiveTable(["a[/b]", "[red]"], console) as live:
        live.change("[red]", table.RUNNING)
    assert "a[/b]" in console.file.getvalue()
    assert "[red]" in console.file.getvalue()
