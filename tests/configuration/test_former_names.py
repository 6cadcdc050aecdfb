"""Gin files of earlier versions mean what they meant when they were written."""

import dataclasses
import doctest
import importlib
import shlex
from pathlib import Path

import gin
import pytest

from sbs_jax.configuration import config as config_lib
from sbs_jax.configuration import former_names, reader, statements
from sbs_jax.configuration.flags import parse_flags

TRAIN = "sbs_jax.programs.train.train"
CONFIG = "sbs_jax.programs.train_config.TrainConfig"


@pytest.fixture(autouse=True)
def _clean(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    yield
    gin.clear_config()


def parsed(text):
    return config_lib.GinConfig(reader.read_text(text, "x.gin"))


def bindings(text):
    """The parameters that a file binds: full name to value."""
    return {f"{b.full_name}.{b.parameter}": b.value for b in parsed(text).bindings.values()}


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
sbs_jax.data.report.inspect_task.method = 'joint'
"""


def test_modules_and_references_are_translated():
    assert bindings(OLD) == {
        f"{TRAIN}.config": statements.Reference("train_config.TrainConfig", True),
        f"{CONFIG}.batching": statements.Reference("batching.Batching", True),
        "sbs_jax.data.batching.Batching.batch_size": 8,
        "sbs_jax.data.batching.Batching.feature_lengths": {
            "path": [statements.Reference("teach.smollm2_path", True)]
        },
        f"{CONFIG}.loss": statements.Reference("step.Loss", True),
        "sbs_jax.training.step.Loss.rationale_weight": statements.Reference(
            "train.linear_ramp", True
        ),
        "sbs_jax.programs.inspect_task.inspect_task.examples": 3,
        "sbs_jax.programs.inspect_task.inspect_task.task": statements.Reference(
            "resolving.TaskChoice", True
        ),
        "sbs_jax.data.resolving.TaskChoice.method": "joint",
    }


def test_gin_finds_what_is_translated(tmp_path):
    # The name `train` is taken in this file: the program's module needs another one.
    (tmp_path / "old.gin").write_text(OLD.replace("[@teaching.smollm2_path()]", "96"))
    config_lib.read(["old.gin"], flags=[("trainer.train.seed", "7")]).apply()
    assert gin.get_bindings("batching.Batching")["batch_size"] == 8
    assert gin.get_bindings(CONFIG, resolve_references=False)["seed"] == 7


def test_a_parameter_that_became_a_field_of_a_dataclass(monkeypatch):
    monkeypatch.setitem(former_names.MOVED, f"{TRAIN}.fsdp", f"{TRAIN}.mesh.shape.fsdp")
    monkeypatch.setitem(former_names.BUILT_BY, f"{TRAIN}.mesh", "sbs_jax.partitioning.mesh.Mesh")
    monkeypatch.setitem(
        former_names.BUILT_BY, "sbs_jax.partitioning.mesh.Mesh.shape", "sbs_jax.models.config.Shape"
    )
    new = bindings("from sbs_jax import trainer\ntrainer.train.fsdp = True")
    assert new == {
        f"{TRAIN}.mesh": statements.Reference("mesh.Mesh", True),
        "sbs_jax.partitioning.mesh.Mesh.shape": statements.Reference("config.Shape", True),
        "sbs_jax.models.config.Shape.fsdp": True,
    }


@pytest.mark.parametrize(
    ("function", "count"),
    [
        (TRAIN, 33),
        ("sbs_jax.programs.eval.evaluate", 22),
        ("sbs_jax.inference.loader.Loader", 7),
        ("sbs_jax.programs.serve.serve", 6),
    ],
)
def test_every_former_parameter_is_a_setting_of_today(function, count):
    former = [name for name in former_names.MOVED if name.startswith(f"{function}.")]
    assert len(former) == count
    for name in former:
        place = former_names.place(function, name.removeprefix(f"{function}."))
        module, _, group = place.function.rpartition(".")
        fields = dataclasses.fields(getattr(importlib.import_module(module), group))
        assert place.parameter in {field.name for field in fields}


@pytest.mark.parametrize("module", ["assembly", "train_config"])  # before it moved, and today
def test_a_configuration_has_the_same_first_names_in_every_version(module):
    text = (
        "from __gin__ import dynamic_registration\n"
        f"from sbs_jax.programs import {module}\nfrom sbs_jax.programs import train\n"
        "from sbs_jax.training import step\n"
        f"train.train.config = @{module}.TrainConfig()\n"
        f"{module}.TrainConfig.loss = @step.Loss()\n"
        "step.Loss.z_loss = %Z\nZ = 1.0\n"
    )
    assert bindings(text)[f"{CONFIG}.loss"] == statements.Reference("step.Loss", True)
    old = "from sbs_jax import trainer\ntrainer.train.z_loss = %Z\nZ = 1.0\n"
    names = {"/sbs_jax.trainer.train/z_loss", "/Z/"}
    assert [set(parsed(t).by_first_name()) for t in (text, old)] == [names, names]


# Written by version 0.1.0 as of November 2026: `train` and `eval` by runs, `sweep` by the first run
# of a sweep (MODEL_DIR and the first line were edited), the others by gin's dump of what the
# command binds.
FORMER = Path(__file__).parent / "former"
TARGETS = {
    "cache": "cache.write_cache",
    "eval": "eval.evaluate",
    "export": "export.export",
    "infer": "infer.infer",
    "inspect": "inspect_task.inspect_task",
    "serve": "serve.serve",
    "sweep": "train.train",
    "teach": "teach.teach",
    "train": "train.train",
}


def applied(files, target, flags=()):
    """What gin binds parameters to, a line each, with every macro replaced by its value."""
    config = config_lib.read(files, flags=flags, target=target)
    config.apply()
    lines = set()
    for (scope, selector), bound in gin.config._CONFIG.items():
        if selector != "gin.macro":
            function = gin.config._REGISTRY[selector].wrapped
            name = f"{scope}/{function.__module__}.{function.__qualname__}"
            values = {key: _value(config, value) for key, value in bound.items()}
            values.pop("api_key_env", None)  # blotted out
            if function.__qualname__ == "DataSettings" and "prefix_side" in values:
                # None, today's default, is 'encoder' for the T5s of these runs.
                values["prefix_side"] = values["prefix_side"] or "encoder"
            lines |= {f"{name}.{key} = {value!r}" for key, value in values.items()}
    return lines


def _value(config, value):
    if isinstance(value, gin.config.ConfigurableReference) and value.selector == "gin.macro":
        return _value(config, config.macros[value.scoped_selector.split("/")[0]].value)
    if isinstance(value, gin.config.ConfigurableReference):
        return f"@{value.configurable.wrapped.__module__}.{value.configurable.wrapped.__name__}"
    return value


@pytest.mark.parametrize("name", TARGETS)
def test_a_saved_configuration_means_what_its_command_means_today(name, monkeypatch):
    monkeypatch.chdir(FORMER)
    target = f"sbs_jax.programs.{TARGETS[name]}"
    header = (FORMER / f"{name}.gin").read_text().splitlines()[0]
    flags = parse_flags(shlex.split(header)[6:])
    command = applied(flags.gin_file, target, flags.gin)
    saved = applied([f"{name}.gin"], target)
    # The command also binds parameters that came later, to their defaults.
    assert len(saved) > 5
    assert saved - command == set()


def test_the_former_files_have_former_names():
    texts = {name: (FORMER / f"{name}.gin").read_text() for name in TARGETS}
    assert "trainer.train.seed = %SEED" in texts["train"]
    assert "evaluate.evaluate.batch_size = %BATCH_SIZE" in texts["eval"]
    assert "settings.data_settings.data_dir = %DATA_DIR" in texts["teach"]


def test_shipped_gin_files_go_by_their_former_names():
    assert reader.read_files(["runs/inspect.gin"])[0].name == "runs/inspect_task.gin"


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(former_names).failed == 0
