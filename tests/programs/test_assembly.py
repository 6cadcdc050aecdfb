"""One assembly: what every kind of training run is put together from."""

import ast
import dataclasses
import inspect
from pathlib import Path

import jax
import numpy as np
import pytest

import sbs_jax
from sbs_jax.data import resolving
from sbs_jax.data.batching import Batching
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError
from sbs_jax.partitioning.mesh import MeshSettings, make_mesh
from sbs_jax.programs import assembly, running, train_config
from sbs_jax.programs.assembly import assemble
from sbs_jax.programs.train_config import EvaluationSettings, Saving, TrainConfig
from sbs_jax.training.step import Loss
from tests.evaluation import toy
from tests.programs.tiny import config_of, one_device

ROOT = Path(sbs_jax.__path__[0])


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_the_abstract_batch_needs_no_data_and_has_the_shapes_of_batches(tmp_path, side):
    data = DataSettings(vocabulary_size=500, prefix_side=side, model_dir=None)
    run = assemble(config_of(tmp_path, data=data), mesh=one_device())
    abstract = run.abstract_batch()
    assert "records" not in vars(run)
    assert not (tmp_path / "vocabulary").exists()
    batch = next(run.batches())
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        name: (array.shape, np.dtype(array.dtype)) for name, array in abstract.items()
    }


def test_the_step_is_compiled_for_a_mesh_that_is_handed_in(tmp_path):
    mesh = make_mesh(2, 2, jax.devices()[:4])
    run = assemble(config_of(tmp_path), mesh=mesh)
    lowered = run.step_fn.lower(run.abstract_state, run.abstract_batch())
    assert "stablehlo" in lowered.as_text()
    assert run.student.mesh is mesh
    assert not {"records", "task"} & set(vars(run))
    assert not any(tmp_path.iterdir())


def test_rows_that_depend_on_the_examples_have_to_be_given(tmp_path):
    batching = Batching(toy.LENGTHS, examples_per_batch=4)
    run = assemble(config_of(tmp_path, batching=batching), mesh=one_device())
    with pytest.raises(UserError, match="EXAMPLES_PER_BATCH = 4 leaves the number of rows"):
        run.abstract_batch()
    assert run.abstract_batch(3)["encoder_input_tokens"].shape == (3, toy.LENGTHS["inputs"])


def test_the_mesh_has_to_divide_the_batch(tmp_path):
    run = assemble(config_of(tmp_path, batching=Batching(toy.LENGTHS, batch_size=6)))
    with pytest.raises(UserError, match="BATCH_SIZE = 6 is not a multiple"):
        _ = run.step_fn


def test_nothing_selects_where_nothing_is_evaluated(tmp_path):
    config = config_of(tmp_path, evaluation=EvaluationSettings(splits=()))
    assert config.best_metric is None
    assert config_of(tmp_path).best_metric == "validation/accuracy"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train_steps": 0}, "TRAIN_STEPS = 0 must be at least 1"),
        ({"batching": Batching(toy.LENGTHS, batch_size=0)}, "BATCH_SIZE = 0 must be at least 1"),
        ({"evaluation": EvaluationSettings(period=0)}, "EVAL_PERIOD = 0 must be at least 1"),
        ({"saving": Saving(profile_steps="3")}, "PROFILE_STEPS"),
        ({"saving": Saving(keep_checkpoints=0)}, "KEEP_CHECKPOINTS = 0 must be at least 1"),
        ({"saving": Saving(best_mode="best")}, "BEST_MODE = 'best' must be 'max' or 'min'"),
    ],
)
def test_bad_settings_get_a_sentence(tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        dataclasses.replace(config_of(tmp_path), **changes)


def calls(path):
    """Names of the functions and classes that a file calls."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {
        node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "") for node in called
    }


PARTS = {
    "TrainBatches",
    "MetricsWriter",
    "WandbLog",
    "starting_state",
    "jit_train_step",
    "abstract_state",
    "create_state",
    "load_records",
    "resolve_task",
}


def test_no_other_program_puts_a_run_together():
    programs = ROOT / "programs"
    assert calls(programs / "assembly.py") | calls(programs / "running.py") >= PARTS
    others = [
        *(ROOT / "experiments").rglob("*.py"),
        ROOT / "programs" / "train.py",
        ROOT / "programs" / "dry_run.py",
    ]
    found = {path.name: calls(path) & (PARTS | {"Student", "make_mesh"}) for path in others}
    assert {name: parts for name, parts in found.items() if parts} == {}


@pytest.mark.parametrize(
    "group", [TrainConfig, EvaluationSettings, Saving, MeshSettings, Batching, Loss]
)
def test_no_setting_is_forgotten(group):
    """A field that the assembly and what it hands groups to never read would do nothing."""
    from sbs_jax.data import batching
    from sbs_jax.partitioning import mesh
    from sbs_jax.training import step

    modules = (assembly, running, train_config, batching, mesh, step, resolving)
    text = "".join(inspect.getsource(m) for m in modules)
    read = {
        node.attr
        for node in ast.walk(ast.parse(text.replace("from __future__ import annotations", "")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    assert {field.name for field in dataclasses.fields(group)} <= read
