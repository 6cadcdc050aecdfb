"""`benchmarks/plans.py`: its rows are runs that can be planned, and it goes on where it stopped."""

import json

import pytest

from sbs_jax.configuration import config as config_lib
from sbs_jax.experiments import runs
from sbs_jax.programs import plan
from tests import benchmarks

plans = benchmarks.load("plans")


def test_every_row_is_a_run():
    assert len({plans.key(row) for row in plans.ROWS}) == len(plans.ROWS)
    for row in plans.ROWS:
        _, flags = plan.parse(row.command())
        made = [("MODEL_DIR", "plan"), *flags.gin]
        config_lib.read(flags.gin_file, (), made, (), target=runs.TRAIN).check()


def test_what_was_compiled_is_not_compiled_again(tmp_path, monkeypatch, capsys):
    results = tmp_path / "results.jsonl"
    compiled = []

    def compile_row(row):
        if len(compiled) == 2:
            raise KeyboardInterrupt
        compiled.append(row.target)
        result = {"row": plans.key(row), "student": row.name, "target": row.target}
        if row.target == "v4:2x2x1":
            return result | {"failure": "error: the compiler crashed (SIGSEGV)"}
        return result | {
            "exhausted": None,
            "peak_bytes": 2**30,
            "device_memory_bytes": 2**31,
            "fits": True,
            "flops": 2e12,
            "model_flops": 1e12,
            "bound_seconds": 0.25,
            "bound_by": "memory",
            "compile_seconds": 12.3,
        }

    monkeypatch.setattr(plans, "compile_row", compile_row)
    monkeypatch.setattr("sys.argv", ["plans.py", f"--results={results}", "--only=base"])
    with pytest.raises(KeyboardInterrupt):
        plans.main()
    assert [json.loads(line)["target"] for line in results.open()] == compiled
    with pytest.raises(KeyboardInterrupt):
        plans.main()
    assert len(compiled) == 2  # The third row is the next one again.
    monkeypatch.setattr("sys.argv", ["plans.py", f"--results={results}", "--only=base on v4"])
    capsys.readouterr()
    plans.main()
    crashed, fitting = (
        [cell.strip() for cell in line.split("|")[2:-1]]
        for line in capsys.readouterr().out.splitlines()[2:]
    )
    assert crashed[:2] == ["`v4:2x2x1`", "error: the compiler crashed (SIGSEGV)"]
    assert fitting == [
        *("`v5p:2x2x1`", "1.00 GiB of 2.00 GiB: fits", "2 TFLOP, 1 TFLOP", "250 ms by memory"),
        "12 s",
    ]
