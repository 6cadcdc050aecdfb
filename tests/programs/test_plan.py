"""`python -m sbs_jax.plan`: its sentences, and a plan for the devices at hand."""

import json

import pytest

from sbs_jax.errors import UserError
from sbs_jax.programs import plan
from sbs_jax.programs.plan import main

RUN = [
    "--gin_file=models/t5_1_1_tiny.gin",
    "--gin_file=optimizers/adamw.gin",
    "--gin_file=tasks/svamp.gin",
    "--gin_file=runs/train.gin",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 32}",
    "--gin.TRAIN_STEPS=10",
    "--gin.BATCH_SIZE=8",
]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--target=h1000:8"], "did you mean h100?"),
        (["--target=v5e:5x5"], "even numbers"),
        (["--programs=train,test"], "choose among train, eval, decode, infer"),
        (["--programs="], "choose among train, eval, decode, infer"),
        (["--max_compiles=0"], "--max_compiles=0 must be at least 1"),
        (["--max_compiles=x"], "argument --max_compiles: invalid int value: 'x'"),
        (["--max_compiles=2"], "add --search, or leave it out"),
        (["--search", "--programs=eval"], "leave --programs out"),
        (["--search=3"], "argument --search: ignored explicit argument '3'"),
        (["--target"], "argument --target: expected one argument"),
        (["--gin.REMAT='ful'"], "must be one of 'none', 'dots', 'minimal', 'full'"),
        (["--gin.BATCH_SIZES=8"], "BATCH_SIZES"),
        (["--bogus"], "--bogus: unknown flag"),
    ],
)
def test_mistakes_get_a_sentence(flags, says, capsys):
    assert main([*RUN, *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert says in error


def test_a_wrong_target_is_named_whatever_else_is_missing(capsys):
    assert main(["--target=h1000:8"]) == 1
    assert "did you mean h100?" in capsys.readouterr().err


def test_help_lists_its_flags(capsys):
    assert main([*RUN, "--help"]) == 0
    printed = capsys.readouterr().out
    assert "--target KIND:SIZE" in printed
    assert "BATCH_SIZE" in printed


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ([], ["encode-labels", "insert-labels", "advance-labels",
              "encode-rationales", "insert-rationales", "advance-rationales"]),
        (["--gin_file=runs/predictor.gin", "--gin.RATIONALE_DECODING=beam"],
         ["search", "encode-labels", "insert-labels", "advance-labels"]),
        (["--gin.CANDIDATES=['yes', 'no']", "--gin_file=runs/predictor.gin"],
         ["rank", "encode-rationales", "insert-rationales", "advance-rationales"]),
    ],
)  # fmt: skip
def test_gin_files_of_an_inference_say_what_it_runs(flags, parts, monkeypatch, capsys):
    found = []

    def compiled(planned, name, layout):
        found.append(name)
        raise UserError("that is enough")

    def parts_of(planned, group, original=plan.Planned._parts):
        found.extend(original(planned, group))
        return found[:1]

    monkeypatch.setattr(plan.Planned, "_parts", parts_of)
    monkeypatch.setattr(plan.Planned, "compiled", compiled)
    assert main([*RUN, "--programs=infer", *flags]) == 1
    assert found == [f"infer/{part}" for part in [*parts, parts[0]]]
    assert "that is enough" in capsys.readouterr().err


@pytest.mark.slow
def test_a_plan_for_the_devices_at_hand(tmp_path, capsys):
    flags = ["--gin.FSDP=True", "--programs=train,decode", f"--json={tmp_path / 'plan.jsonl'}"]
    assert main([*RUN, *flags]) == 0
    printed = capsys.readouterr().out
    assert "1,836,800 parameters on the devices of this machine (data 8 × model 1)" in printed
    assert "train step (compiled in" in printed
    assert "all-gather" in printed
    step, encode, insert, advance = map(
        json.loads, (tmp_path / "plan.jsonl").read_text().splitlines()
    )
    # Most parameters are cut in eight, and AdamW has two moments of each.
    assert 4 * 1_836_800 / 8 < step["parameter_bytes"] < 1.2 * 4 * 1_836_800 / 8
    assert step["optimizer_bytes"] == pytest.approx(2 * step["parameter_bytes"], rel=1e-3)
    known = step["parameter_bytes"] + step["optimizer_bytes"] + step["temporary_bytes"]
    assert known <= step["peak_bytes"] < 1.1 * known
    assert step["fits"] is None
    assert step["bound_seconds"] is None
    assert [one["program"] for one in (encode, insert, advance)] == [
        "encoding of 8 inputs",
        "insertion of 8 encoded inputs into 8 slots",
        "decoding of answers, 32 tokens in 8 slots",
    ]
    for one in (encode, insert, advance):
        # All of the parameters are there whether a program reads them or not.
        assert one["peak_bytes"] >= one["parameter_bytes"]
        assert one["flops"] >= 0.95 * one["model_flops"]
    assert advance["flops"] > 0 and insert["flops"] == 0
