"""benchmarks/evidence.py in miniature, on a CPU: its lanes against runs of the train program."""

import json

import numpy as np
import pytest

from sbs_jax.data.batching import Batching
from sbs_jax.data.resolving import TaskChoice
from sbs_jax.data.settings import DataSettings
from sbs_jax.programs.train import train
from sbs_jax.programs.train_config import EvaluationSettings, Saving, TrainConfig
from sbs_jax.training import optimizers, schedules
from sbs_jax.training.step import Loss
from tests import benchmarks
from tests.decoder import students
from tests.paths import ROOT
from tests.release_layout import write_release

LENGTHS = {"inputs": 160, "targets": 176}
STEPS = 3


@pytest.fixture(scope="module")
def evidence():
    module = benchmarks.load("evidence")
    module.ROWS = (tuple(LENGTHS.values()),) * 2
    module.BATCH_ROWS, module.LANES = 6, 2
    module.PARTS = {"svamp-240": module.Part("svamp", 30)}
    module.ORDER = (("svamp-240", "svamp-240", range(2)),)
    module.LEARNING_RATES = module.SBS_RATES = (1e-3,)
    module.LEARNING_RATES += (1e-2,)
    module.LAMBDAS = (0.3, 3.0)
    module.DECODED_ROWS, module.DECODED_LABEL, module.JUDGED_ROWS = 8, 4, 2
    return module


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evidence")
    write_release(folder / "release", train=60, test=9)
    return students.run(folder / "start", steps=1), folder / "release"


def test_lanes_lose_as_runs_of_the_train_program_do(evidence, folders, tmp_path):
    start, release = folders
    part = evidence.PARTS["svamp-240"]
    read = evidence.Start.read(str(start), str(release))
    chosen = [evidence.Setting(1e-3, 0.3), evidence.Setting(1e-2, 3.0)]
    trainer = evidence.Trainer(read, "sbs")
    _, found = trainer.train(part, chosen, [3, 4], steps=STEPS)
    for lane, (setting, seed) in enumerate(zip(chosen, [3, 4], strict=True)):
        schedule = schedules.linear_decay(setting.learning_rate, part.steps, 1)
        train(
            TrainConfig(
                model_config=read.student.config,
                model_dir=str(tmp_path / str(lane)),
                task=TaskChoice("svamp", method="sbs"),
                batching=Batching(LENGTHS, examples_per_batch=evidence.EXAMPLES),
                optimizer=optimizers.adamw(schedule),
                train_steps=STEPS,
                data=DataSettings(
                    data_dir=str(release), train_examples=part.examples, prefix_side="decoder"
                ),
                loss=Loss(rationale_weight=setting.rationale_weight),
                evaluation=EvaluationSettings(splits=()),
                saving=Saving(initial_checkpoint_path=str(start), log_period=1),
                seed=seed,
            ),
            mesh=students.one_device(),
        )
        lines = (tmp_path / str(lane) / "metrics.jsonl").read_text().splitlines()
        losses = [json.loads(line)["loss"] for line in lines][:STEPS]
        np.testing.assert_allclose([step[lane] for step in found], losses, rtol=1e-5)


def test_a_second_call_does_what_is_left(evidence, folders, tmp_path, capsys):
    start, release = folders
    flags = [f"--release_dir={release}", f"--checkpoint={start}", "--steps=1"]
    flags.append(f"--output={tmp_path / 'found.jsonl'}")
    assert evidence.main([*flags, "--methods", "standard"]) == 0
    assert evidence.main([*flags, "--methods", "standard", "sbs"]) == 0
    rows = evidence.read(tmp_path / "found.jsonl")
    assert [(row["method"], row["stage"], row["seed"]) for row in rows] == [
        (method, stage, seed)
        for method in ("standard", "sbs")
        for stage, seeds in (("select", (100, 100)), ("test", (0, 1)))
        for seed in seeds
    ]
    assert {len(row["scores"]) for row in rows if row["stage"] == "test"} == {9}
    assert all(np.isfinite(row["label_loss"]) for row in rows)
    # Ablations take the settings of sbs, and nothing is chosen for them.
    assert evidence.main([*flags, "--methods", "permuted", "falling"]) == 0
    ablations = evidence.read(tmp_path / "found.jsonl")[len(rows) :]
    chosen = evidence.best(evidence.selected(rows, "sbs", "svamp-240"))
    assert [(row["method"], row["stage"], row["seed"]) for row in ablations] == [
        (method, "test", seed) for method in ("permuted", "falling") for seed in (0, 1)
    ]
    assert {(row["learning_rate"], row["rationale_weight"]) for row in ablations} == {
        (chosen.learning_rate, chosen.rationale_weight)
    }
    picture = tmp_path / "found.png"
    report = [f"--figure={picture}", "--report", str(tmp_path / "found.jsonl")]
    assert evidence.main(report) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "| svamp-240 | standard | +0.0 | [+0.0, +0.0] |" in capsys.readouterr().out


def test_rationales_of_the_ablations(evidence, folders, tmp_path):
    said = evidence.write_rationales(str(folders[1]), tmp_path)
    files = [
        {row["id"]: row for row in map(json.loads, (tmp_path / name).read_text().splitlines())}
        for name in ("permuted.jsonl", "right.jsonl")
    ]
    permuted, right = files
    assert f"{len(permuted)} with a rationale; {len(right)} of these" in said
    own = {one["llm_rationale"] for one in permuted.values()}
    assert set(right) <= set(permuted) and len(own) > 1
    for name, row in right.items():
        assert row["llm_rationale"] in own and row["input"] == permuted[name]["input"]
        assert row["llm_rationale"] != permuted[name]["llm_rationale"]


def test_the_setting_is_chosen_by_accuracy_then_by_loss(evidence):
    rows = [
        {"accuracy": accuracy, "label_loss": loss, "learning_rate": rate, "rationale_weight": 1.0}
        for accuracy, loss, rate in ((0.2, 0.1, 1e-5), (0.3, 0.4, 2e-5), (0.3, 0.3, 3e-5))
    ]
    assert evidence.best(rows).learning_rate == 3e-5


def test_the_page_says_what_the_runs_say(evidence, monkeypatch):
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    names = ("svamp-240", "svamp-720", "cqa-877")
    monkeypatch.setattr(evidence, "PARTS", dict.fromkeys(names))
    tables = evidence.report([ROOT / "docs" / "evidence_runs.jsonl"])
    rows = [line.strip("| ").split(" | ") for line in tables.splitlines() if line[:7] == "| svamp"]
    accuracies = [row for row in rows if len(row) == 7]
    assert len(accuracies) == 8
    for _, _, mean, each, *_ in accuracies:
        assert f"| {each} | {mean} |" in page
    differences = [row for row in rows if row[-1].startswith("[")]
    assert len(differences) == 6
    for _, _, difference, interval in differences:
        assert f"| {difference} | {interval} |".replace("-", "−") in page
