"""gin/runs/infer.gin and serve.gin: what they need, and that they bear other files."""

import dataclasses
import inspect

import gin
import pytest

from sbs_jax.configuration import config as config_lib
from sbs_jax.inference.loader import Loader
from sbs_jax.inference.programs import Strategy
from sbs_jax.inference.prompting import PromptingOverrides
from sbs_jax.partitioning.mesh import MeshSettings
from sbs_jax.programs.infer import infer, interact
from sbs_jax.programs.serve import serve

INFER = "sbs_jax.programs.infer.infer"
INTERACT = "sbs_jax.programs.infer.interact"
SERVE = "sbs_jax.programs.serve.serve"


@pytest.fixture(autouse=True)
def _clean():
    yield
    gin.clear_config()


def ready(*files, target, **macros):
    config = config_lib.read(files, flags=list(macros.items()), target=target)
    config.check()
    config.apply()
    return config


@pytest.mark.parametrize(
    ("file", "target", "needed"),
    [
        ("runs/infer.gin", INFER, {"CHECKPOINT_PATH", "OUTPUT_FILE"}),
        ("runs/infer.gin", INTERACT, {"CHECKPOINT_PATH"}),
        ("runs/serve.gin", SERVE, {"CHECKPOINT_PATH"}),
    ],
)
@pytest.mark.parametrize("other", [None, "tasks/svamp.gin", "models/t5_1_1_small.gin"])
def test_what_is_needed_is_enough_beside_files_of_training(file, target, needed, other):
    files = [file, other] if other else [file]
    config = config_lib.read(files, target=target)
    assert {binding.name for binding in config.missing()} == needed
    ready(*files, target=target, **dict.fromkeys(needed, "x"))
    loader = gin.get_bindings(target.removeprefix("sbs_jax."))["loader"]
    assert isinstance(loader, Loader)
    assert loader.checkpoint_path == "x"
    if other == "models/t5_1_1_small.gin":
        assert loader.model_config.emb_dim == 512


def test_every_argument_has_a_macro():
    ready("runs/infer.gin", target=INFER, CHECKPOINT_PATH="x", OUTPUT_FILE="y", TOP_K="3")
    assert set(gin.get_bindings("infer.infer")) == set(inspect.signature(infer).parameters) - {
        "dry_run"
    }
    loader = gin.get_bindings("infer.infer")["loader"]
    assert loader == Loader("x", strategy=Strategy(top_k=3))
    for where, type_ in (
        ("loader.Loader", Loader),
        ("programs.Strategy", Strategy),
        ("prompting.PromptingOverrides", PromptingOverrides),
        ("mesh.MeshSettings", MeshSettings),
    ):
        assert set(gin.get_bindings(where)) == {f.name for f in dataclasses.fields(type_)}
    # At the terminal rationales are shown anyway.
    assert set(inspect.signature(interact).parameters) - {"explain"} == {"loader", "num_best"}


def test_defaults_of_serving_are_those_of_the_code():
    ready("runs/serve.gin", target=SERVE, CHECKPOINT_PATH="x")
    bound = gin.get_bindings("serve.serve")
    parameters = inspect.signature(serve).parameters
    assert set(bound) == set(parameters)
    for name, parameter in parameters.items():
        if name != "loader":
            assert bound[name] == parameter.default, name
