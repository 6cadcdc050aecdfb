"""Every gin file that we ship can be used as it says, and holds to the layers of DESIGN.md."""

import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import gin
import pytest

from sbs_jax.configuration import config as config_lib
from sbs_jax.configuration import dump, reader, statements
from sbs_jax.configuration.statements import Binding
from sbs_jax.errors import UserError
from sbs_jax.models.config import T5Config
from sbs_jax.models.configs import ModelConfig
from sbs_jax.training.optimizers import Optimizer
from tests.hf_models import hf_model
from tests.t5_weights import our_model

FILES = reader.shipped_files()
TRAIN = "sbs_jax.programs.train.train"
EVAL = "sbs_jax.programs.eval.evaluate"


def of(folder):
    return [name for name in FILES if name.startswith(f"{folder}/")]


# Files that only make sense inside others.
PARTS = (
    "models/adapters.gin",
    "models/computing.gin",
    "models/decoder_computing.gin",
    *(f"models/{name}.gin" for name in ("t5", "t5_1_1", "llama", "qwen2", "qwen3", "gemma3")),
    "models/t5gemma2.gin",
    "optimizers/schedules.gin",
    "runs/data.gin",
)
# Reads the dimensions off weights.
FROM_CHECKPOINT = "models/from_checkpoint.gin"
MODELS = [name for name in of("models") if name not in (*PARTS, FROM_CHECKPOINT)]
OPTIMIZERS = [name for name in of("optimizers") if name not in PARTS]
TASKS = of("tasks")
EXAMPLES = of("examples")


@pytest.fixture(autouse=True)
def _clean(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    yield
    gin.clear_config()


def ready(*files, target=TRAIN, **macros):
    config = config_lib.read(files, flags=list(macros.items()), target=target)
    config.check()
    config.apply()
    return config


def train_with(*, model=MODELS[0], optimizer=OPTIMIZERS[0], task=TASKS[0]):
    files = ("runs/train.gin", model, optimizer, task)
    missing = config_lib.read(files, target=TRAIN).missing()
    macros = {binding.name: "x" for binding in missing} | {"TRAIN_STEPS": "100"}
    return ready(*files, **macros)


def own_bindings(name):
    (file, _) = reader.read_files([name])
    return [s for s in file.statements if isinstance(s, Binding)]


def test_there_is_something_of_each_kind():
    assert MODELS and OPTIMIZERS and TASKS and EXAMPLES
    assert set(PARTS) <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_every_file_parses_by_itself(name):
    reader.read_files([name])


@pytest.mark.parametrize("model", MODELS)
def test_every_model_can_be_trained(model):
    config = train_with(model=model)
    value = gin.get_bindings("programs.train.train")["config"].model_config
    assert isinstance(value, ModelConfig)
    of_t5 = isinstance(value, T5Config)
    macro = "DROPOUT_RATE" if of_t5 else "DECODER_DROPOUT_RATE"
    assert value.dropout_rate == config.macros[macro].value == (0.1 if of_t5 else 0.0)
    assert value.dtype == "float32"


def test_the_model_may_come_from_weights(tmp_path):
    hf_model("v1.1", "plain").save_pretrained(tmp_path)
    files = ("runs/train.gin", FROM_CHECKPOINT, OPTIMIZERS[0], TASKS[0])
    macros = {binding.name: "x" for binding in config_lib.read(files, target=TRAIN).missing()}
    macros |= {"TRAIN_STEPS": "100", "DROPOUT_RATE": "0.2"}
    with pytest.raises(UserError, match=r"give\s+--gin\.INITIAL_CHECKPOINT_PATH=PATH"):
        ready(*files, **macros)
        gin.get_bindings("programs.train.train")
    gin.clear_config()
    ready(*files, **macros, INITIAL_CHECKPOINT_PATH=str(tmp_path))
    config = gin.get_bindings("programs.train.train")["config"].model_config
    expected = our_model("v1.1", "plain")[0]
    assert config == dataclasses.replace(expected, dropout_rate=0.2)


@pytest.mark.parametrize("model", MODELS)
def test_a_size_binds_dimensions_only(model):
    dimensions = {"vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim"}
    bound = {binding.parameter for binding in own_bindings(model)}
    stacks = {"num_encoder_layers", "num_decoder_layers"}
    if stacks <= bound and "num_kv_heads" not in bound:
        assert bound == dimensions | stacks
        return
    dimensions |= stacks if stacks <= bound else {"num_layers"}
    dimensions |= {"num_kv_heads", "max_positions"}
    # Sizes of one family of decoders differ in these, too.
    context = {"rope_theta", "rope_scaling", "rope_factor", "sliding_window"}
    assert dimensions <= bound <= dimensions | context | {"pad_id", "eos_id"}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", ["constant", "linear_decay", "cosine_decay", "rsqrt"])
def test_every_optimizer_works_with_every_schedule(optimizer, schedule):
    flags = {"MODEL_DIR": "x", "TRAIN_STEPS": "100", "LEARNING_RATE": "1e-3"}
    if schedule != "constant":
        flags["WARMUP_STEPS"] = "10"
    ready(
        "runs/train.gin",
        MODELS[0],
        optimizer,
        TASKS[0],
        LEARNING_RATE_SCHEDULE=f"@schedules.{schedule}()",
        **flags,
    )
    value = gin.get_bindings("programs.train.train")["config"].optimizer
    assert isinstance(value, Optimizer)
    assert float(value.learning_rate(10)) == pytest.approx(1e-3)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_registered_by_its_file(task):

    from sbs_jax.data import choosing

    config = train_with(task=task)
    assert choosing.task_info(config.macros["MIXTURE_OR_TASK_NAME"].value) is not None
    assert set(config.macros["TASK_FEATURE_LENGTHS"].value) == {"inputs", "targets"}


def test_files_may_be_named_in_any_order():
    files = ["runs/train.gin", MODELS[0], OPTIMIZERS[0], TASKS[0]]
    texts = []
    for order in (files, files[::-1], [*files[2:], *files[:2]]):
        ready(*order, MODEL_DIR="x", TRAIN_STEPS="100")
        texts.append(dump.config_text())
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_includes_and_ten_lines(example):
    lines = (reader.gin_folder() / example).read_text().splitlines()
    code = [line for line in lines if line.strip() and not line.startswith("#")]
    assert len([line for line in code if not line.startswith("include ")]) <= 10
    assert "include 'runs/train.gin'" in code


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_command_in_an_examples_head_works(example):
    text = (reader.gin_folder() / example).read_text()
    head = text.split("\n\n")[0]
    command = re.search(r"python -m sbs_jax\.train (.*)", head.replace("\\\n#", " "))[1]
    arguments = shlex.split(command)
    assert f"--gin_file={example}" in arguments
    flags = [a.removeprefix("--gin.").split("=", 1) for a in arguments if a.startswith("--gin.")]
    ready(example, **dict(flags))
    bound = gin.get_bindings("programs.train.train")["config"]
    assert isinstance(bound.model_config, ModelConfig)
    assert bound.train_steps > 0


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_dump_of_an_example_gives_the_same_run(example):
    ready(example, MODEL_DIR="runs/x", DATA_DIR="data", RATIONALE_WEIGHT="0.5")
    text = dump.config_text()
    Path("config.gin").write_text(text)
    ready("config.gin")
    assert dump.config_text() == text


def test_evaluation_needs_two_macros():
    config = config_lib.read(["runs/eval.gin"], target=EVAL)
    assert [binding.name for binding in config.missing()] == ["CHECKPOINT_PATH", "EVAL_OUTPUT_DIR"]
    ready("runs/eval.gin", target=EVAL, CHECKPOINT_PATH="a", EVAL_OUTPUT_DIR="b")
    bound = gin.get_bindings("programs.eval.evaluate")["config"]
    assert bound.evaluated.splits == ["test"]
    assert bound.checkpoint_path == "a"


@pytest.mark.parametrize("others", [[MODELS[0]], [TASKS[0]], ["runs/train.gin"], [EXAMPLES[0]]])
@pytest.mark.parametrize("first", [True, False])
def test_evaluation_bears_the_files_of_training(others, first):
    files = [*others, "runs/eval.gin"] if first else ["runs/eval.gin", *others]
    ready(*files, target=EVAL, CHECKPOINT_PATH="a", EVAL_OUTPUT_DIR="b")


def named(full_name):
    """The function or class of a dotted name."""
    module, name = full_name.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def values_of(file, full_name):
    return {b.parameter: b.value for b in own_bindings(file) if b.full_name == full_name}


TRAIN_CONFIG = "sbs_jax.programs.train_config.TrainConfig"
EVAL_CONFIG = "sbs_jax.programs.eval.EvalConfig"
GROUPS = {
    "task": "sbs_jax.data.resolving.TaskChoice",
    "batching": "sbs_jax.data.batching.Batching",
    "loss": "sbs_jax.training.step.Loss",
    "mesh": "sbs_jax.partitioning.mesh.MeshSettings",
    "evaluation": "sbs_jax.programs.train_config.EvaluationSettings",
    "saving": "sbs_jax.programs.train_config.Saving",
}
INNER = {"balancing": "sbs_jax.training.balancing.Balancing"}  # of the loss
EVAL_GROUPS = {
    "task": "sbs_jax.programs.eval.EvaluatedTask",
    "evaluated": "sbs_jax.programs.eval.EvaluatedSplits",
    "mesh": "sbs_jax.partitioning.mesh.MeshSettings",
}


@pytest.mark.parametrize(
    ("file", "function", "config_name", "groups", "inner"),
    [
        ("runs/train.gin", TRAIN, TRAIN_CONFIG, GROUPS, INNER),
        ("runs/eval.gin", EVAL, EVAL_CONFIG, EVAL_GROUPS, {}),
    ],
)
def test_every_setting_has_a_macro_whose_default_is_the_classs(
    file, function, config_name, groups, inner
):
    config_class = ".".join(config_name.split(".")[-2:])
    assert [repr(value) for value in values_of(file, function).values()] == [f"@{config_class}()"]
    config = values_of(file, config_name)
    assert {
        name for name, value in config.items() if isinstance(value, statements.Reference)
    } == set(groups)
    macros = {b.name: b for b in own_bindings(file) if b.is_macro}
    for full_name in (config_name, *groups.values(), *inner.values()):
        bound = values_of(file, full_name)
        fields = {field.name: field for field in dataclasses.fields(named(full_name))}
        assert set(bound) == set(fields) - {"data"}, full_name
        for name, value in bound.items():
            if isinstance(value, statements.Reference):
                assert value.selector.endswith((groups | inner)[name].rsplit(".", 1)[1])
                continue
            assert isinstance(value, statements.Macro), (full_name, name)
            default, macro = fields[name].default, macros[value.name]
            if default is dataclasses.MISSING:
                assert macro.is_required or value.name == "SEED", value.name
            else:
                given = tuple(macro.value) if isinstance(macro.value, list) else macro.value
                assert given == default, value.name


@pytest.mark.parametrize("file", ["runs/train.gin", "runs/data.gin"])
def test_macros_explain_themselves(file):
    obvious = {"DROPOUT_RATE"}
    silent = {b.name for b in own_bindings(file) if b.is_macro and not b.comment}
    assert silent <= obvious


def test_a_macro_is_bound_in_one_layer_only():
    layers = {}
    for name in FILES:
        folder = name.split("/")[0]
        if folder in ("examples", "runs", "sweeps"):
            continue  # Own values are the point of examples; runs bind defaults for all the rest.
        for binding in own_bindings(name):
            if binding.is_macro and not binding.is_required:
                layers.setdefault(binding.name, set()).add(folder)
    assert {name: where for name, where in layers.items() if len(where) > 1} == {}
    train, data = (
        {b.name for b in own_bindings(name) if b.is_macro}
        for name in ("runs/train.gin", "runs/data.gin")
    )
    assert not train & data


@pytest.mark.parametrize("name", FILES)
def test_every_macro_is_used_by_some_file(name):
    vocabulary = config_lib.shipped_macros()
    assert {b.name for b in own_bindings(name) if b.is_macro} <= vocabulary
