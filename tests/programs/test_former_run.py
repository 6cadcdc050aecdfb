"""A run that version 0.1.0 wrote, before settings were grouped: evaluated and resumed as it is.

The archive holds MODEL_DIR after 4 of 8 steps, and in resumed_metrics.jsonl what that version wrote
when it went on to step 8.
"""

import json
import tarfile
from pathlib import Path

import gin
import jax
import numpy as np
import pytest

from sbs_jax.configuration import config as config_lib
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.programs.eval import EvalConfig, EvaluatedSplits, evaluate
from sbs_jax.programs.train import train
from sbs_jax.training.hooks import MEASURED

ARCHIVE = Path(__file__).parent / "run_of_0_1_0.tar.xz"
TRAIN = "sbs_jax.programs.train.train"


@pytest.fixture
def run(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "run_before_assembly"
    flags = [("MODEL_DIR", repr(str(folder))), ("TRAIN_STEPS", "8")]
    config = config_lib.read([str(folder / "config.gin")], flags=flags, target=TRAIN)
    config.check()
    config.apply()
    yield folder
    gin.clear_config()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_evaluates_as_it_did(run, tmp_path):
    mesh = make_mesh(devices=jax.devices()[:1])
    splits = EvaluatedSplits(["validation"])
    config = EvalConfig(str(run), str(tmp_path), evaluated=splits)
    found = evaluate(config, mesh=mesh)["validation"]
    recorded = next(row for row in lines(run / "metrics.jsonl") if row["split"] == "validation")
    for name in ("accuracy", "label_loss", "rationale_loss", "label_tokens", "examples"):
        np.testing.assert_allclose(found[name], recorded[name], rtol=1e-5, err_msg=name)


def test_it_resumes_as_that_version_did(run):
    finished = train(gin.get_bindings(TRAIN)["config"], mesh=make_mesh(devices=jax.devices()[:1]))
    assert finished.step == 8
    assert (run / "checkpoint_8").is_dir()
    expected = lines(run / "resumed_metrics.jsonl")
    found = lines(run / "metrics.jsonl")
    assert len(found) == len(expected) == 10
    for mine, theirs in zip(found, expected, strict=True):
        timings = {"examples_per_second", "tokens_per_second"}
        assert theirs.keys() <= mine.keys()
        assert mine.keys() - theirs.keys() <= set(MEASURED)  # Those that are new since.
        for name in theirs.keys() - timings:
            if isinstance(theirs[name], float):
                np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-5, err_msg=name)
            else:
                assert mine[name] == theirs[name], name
