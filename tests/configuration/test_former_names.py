"""Gin files of earlier versions mean what they meant when they were written."""

import doctest

import gin
import pytest

from sbs_jax.configuration import config as config_lib
from sbs_jax.configuration import former_names, reader

TRAIN = "sbs_jax.programs.train.train"


@pytest.fixture(autouse=True)
def _clean(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    yield
    gin.clear_config()


def bindings(text, flags=()):
    """The parameters that a file binds: full name to value."""
    config = config_lib.GinConfig(
        [reader.GinFile("x", tuple(reader._Reader([reader.gin_folder()]).text(text, "x.gin")))]
    )
    return {f"{b.full_name}.{b.parameter}": b.value for b in config.bindings.values()}


OLD = """
from __gin__ import dynamic_registration
from sbs_jax import trainer
from sbs_jax import teaching
import sbs_jax.data.report
from sbs_jax.training import schedules as train

trainer.train:
  batch_size = 8
  rationale_weight = @train.linear_ramp()
  feature_lengths = {'path': [@teaching.smollm2_path()]}
sbs_jax.data.report.inspect_task.examples = 3
"""


def test_modules_and_references_are_translated():
    assert bindings(OLD) == {
        f"{TRAIN}.batch_size": 8,
        f"{TRAIN}.rationale_weight": reader.Reference("train.linear_ramp", True),
        f"{TRAIN}.feature_lengths": {"path": [reader.Reference("teach.smollm2_path", True)]},
        "sbs_jax.programs.inspect_task.inspect_task.examples": 3,
    }


def test_gin_finds_what_is_translated(tmp_path):
    # The name `train` is taken in this file: the program's module needs another one.
    (tmp_path / "old.gin").write_text(OLD.replace("[@teaching.smollm2_path()]", "96"))
    config_lib.read(["old.gin"], flags=[("trainer.train.seed", "7")]).apply()
    assert gin.get_bindings(TRAIN, resolve_references=False)["batch_size"] == 8
    assert gin.get_bindings(TRAIN, resolve_references=False)["seed"] == 7


def test_a_parameter_that_became_a_field_of_a_dataclass(monkeypatch):
    monkeypatch.setitem(former_names.MOVED, f"{TRAIN}.fsdp", f"{TRAIN}.mesh.shape.fsdp")
    monkeypatch.setitem(former_names.BUILT_BY, f"{TRAIN}.mesh", "sbs_jax.partitioning.mesh.Mesh")
    monkeypatch.setitem(
        former_names.BUILT_BY, "sbs_jax.partitioning.mesh.Mesh.shape", "sbs_jax.models.config.Shape"
    )
    new = bindings("from sbs_jax import trainer\ntrainer.train.fsdp = True")
    assert new == {
        f"{TRAIN}.mesh": reader.Reference("mesh.Mesh", True),
        "sbs_jax.partitioning.mesh.Mesh.shape": reader.Reference("config.Shape", True),
        "sbs_jax.models.config.Shape.fsdp": True,
    }


def test_shipped_gin_files_go_by_their_former_names():
    assert reader.read_files(["runs/inspect.gin"])[0].name == "runs/inspect_task.gin"


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(former_names).failed == 0
