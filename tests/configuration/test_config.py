import gin
import pytest

from sbs_jax.configuration import config as config_lib
from sbs_jax.configuration import dump
from sbs_jax.errors import UserError, unglue
from tests.configuration import toy

HEAD = "from __gin__ import dynamic_registration\nfrom tests.configuration import toy\n"
RUN = (
    HEAD
    + """
MODEL_DIR = %gin.REQUIRED  # folder of the run
STEPS = %gin.REQUIRED
WIDTH = 8
LEARNING_RATE = 0.1
MODEL = @toy.Model()
OPTIMIZER = @toy.fast()

toy.Model.width = %WIDTH
toy.fast.learning_rate = %LEARNING_RATE
toy.slow.rate = %LEARNING_RATE
toy.train:
  model = %MODEL
  model_dir = %MODEL_DIR
  steps = %STEPS
  optimizer = %OPTIMIZER
"""
)
FLAGS = [("MODEL_DIR", "x"), ("STEPS", "3")]
TARGET = "tests.configuration.toy.train"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.gin").write_text(RUN)
    toy.calls.clear()
    yield
    gin.clear_config()


def read(*flags, files=("run.gin",), bindings=()):
    return config_lib.read(files, bindings, [*FLAGS, *flags], target=TARGET)


def train(*flags, **options):
    config = read(*flags, **options)
    config.check()
    config.apply()
    gin.get_configurable(toy.train)()
    return toy.calls[-1]


def error(*flags, **options):
    with pytest.raises(UserError) as caught:
        train(*flags, **options)
    message = str(unglue(caught.value))
    assert "\n" not in message
    return message


def test_values_arrive():
    call = train()
    assert (call["model_dir"], call["steps"]) == ("x", 3)
    assert call["model"] == toy.Model(8)
    assert call["optimizer"] == toy.Optimizer("fast", 0.1)


def test_a_parameter_may_be_bound_by_a_flag_or_a_line():
    assert train(("toy.train.shuffle", "True"))["shuffle"] is True
    assert train(bindings=["toy.train.kind = 'b'", "WIDTH = 9"])["model"].width == 9


def test_later_files_and_flags_win(tmp_path):
    (tmp_path / "mine.gin").write_text("WIDTH = 16\n")
    assert train(files=("run.gin", "mine.gin"))["model"].width == 16
    assert train(("WIDTH", "4"), files=("run.gin", "mine.gin"))["model"].width == 4


def test_required_does_not_take_a_value_away(tmp_path):
    (tmp_path / "mine.gin").write_text("STEPS = 7\nMODEL_DIR = 'y'\n")
    config = config_lib.read(["mine.gin", "run.gin"])
    config.check()
    config.apply()
    gin.get_configurable(toy.train)()
    assert toy.calls[-1]["steps"] == 7


@pytest.mark.parametrize("text", ["10", "1e5", "2026_11_22", "007x"])
def test_a_number_that_names_a_folder_stays_as_typed(text):
    assert train(("MODEL_DIR", text))["model_dir"] == text


def test_none_stays_none():
    assert "MODEL_DIR is None, but toy.train wants a string" in error(("MODEL_DIR", "None"))


def test_missing_macros_are_all_named_with_file_line_and_comment():
    with pytest.raises(UserError) as caught:
        config_lib.read(["run.gin"], target=TARGET).check()
    assert str(caught.value) == (
        "Not set, but required: MODEL_DIR (run.gin, line 4: folder of the run); STEPS (run.gin, "
        "line 5). Give each as --gin.NAME=VALUE (here --gin.MODEL_DIR=…) or in a gin file."
    )


def test_a_misspelt_macro_is_named_before_the_missing_one():
    with pytest.raises(UserError) as caught:
        config_lib.read(["run.gin"], flags=[("STPES", "3")]).check()
    assert str(caught.value) == (
        "--gin.STPES is set, but nothing in this run uses it; did you mean STEPS?"
    )


def test_a_misspelt_macro_in_a_file_is_named_with_its_line(tmp_path):
    (tmp_path / "mine.gin").write_text("\nlearning_rate = 3\n")
    assert error(files=("run.gin", "mine.gin")) == (
        "mine.gin, line 2: learning_rate is set, but nothing in this run uses it; did you mean "
        "LEARNING_RATE?"
    )
    (tmp_path / "mine.gin").write_text("XYZ = 3\n")
    assert error(files=("run.gin", "mine.gin")).endswith("--help lists the names that do.")


def test_a_macro_for_a_function_that_is_not_called_is_an_error_on_the_command_line_only(tmp_path):
    (tmp_path / "other.gin").write_text(
        HEAD + "MOMENTUM = 0.5\ntoy.fast.momentum = %MOMENTUM\nOPTIMIZER = @toy.slow()\n"
    )
    files = ("run.gin", "other.gin")
    assert train(files=files)["optimizer"] == toy.Optimizer("slow", 0.1)
    assert error(("MOMENTUM", "0.9"), files=files) == (
        "--gin.MOMENTUM is set, but nothing in this run uses it; the function that it is for is "
        "not called."
    )


def test_macros_used_through_macros_count_as_used():
    assert train(("A", "12"), ("WIDTH", "%A"))["model"].width == 12


def test_circles():
    assert error(("STEPS", "%WIDTH"), ("WIDTH", "%STEPS")) == (
        "--gin.STEPS refers to itself: %STEPS -> %WIDTH -> %STEPS."
    )
    assert "refers to itself: %WIDTH -> %WIDTH." in error(("WIDTH", "[%WIDTH]"))


def test_an_unset_macro_is_named_with_the_nearest():
    assert error(("WIDTH", "%STPES")) == (
        "--gin.WIDTH refers to %STPES, which is not set; did you mean %STEPS?"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("toy.trian.steps = 3", "there is no toy.trian: toy has no trian; did you mean train?"),
        (
            "toy.train.stesp = 3",
            "toy.train has no parameter stesp; did you mean steps?",
        ),
        (
            "tyo.train.steps = 3",
            "there is no tyo.train: tyo is not imported in this file; did you mean toy?",
        ),
        ("WIDTH = @toy.xyz()", "there is no toy.xyz: toy has no xyz."),
        (
            "from tests.configuration import tyo",
            "`from tests.configuration import tyo` fails (No "
            "module named 'tests.configuration.tyo'); check the spelling, and that the module is "
            "installed.",
        ),
        ("toy.trian:\n  steps = 3", "there is no toy.trian: toy has no trian; did you mean train?"),
    ],
)
def test_unknown_names_are_told_with_file_and_line(tmp_path, line, message):
    (tmp_path / "mine.gin").write_text(f"{HEAD}\n{line}\n")
    assert error(files=("run.gin", "mine.gin")) == f"mine.gin, line 4: {message}"


def test_unknown_names_on_the_command_line():
    train()
    # Other tests' functions are registered, too, and may look alike.
    assert error(("toy.trian.steps", "3")).startswith(
        "--gin.toy.trian.steps: there is no toy.trian: did you mean toy.train"
    )
    assert error(("toy.train.stesp", "3")) == (
        "--gin.toy.train.stesp: toy.train has no parameter stesp; did you mean steps?"
    )
    assert "there is no toy.fats" in error(("OPTIMIZER", "@toy.fats()"))


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (("STEPS", "1O"), "--gin.STEPS is '1O', but toy.train wants a whole number for steps."),
        (
            ("STEPS", "1e3"),
            "--gin.STEPS is 1000.0, but toy.train wants a whole number for steps (write 1000).",
        ),
        (("WIDTH", "None"), "--gin.WIDTH is None, but toy.Model wants a whole number for width."),
        (
            ("toy.train.shuffle", "true"),
            "--gin.toy.train.shuffle is 'true', but toy.train wants "
            "True or False for shuffle (write True).",
        ),
        (
            ("toy.train.kind", "c"),
            "--gin.toy.train.kind is 'c', but toy.train wants one of 'a', 'b' for kind.",
        ),
        (
            ("LEARNING_RATE", "0,1"),
            "--gin.LEARNING_RATE is '0,1', but toy.fast wants a number for learning_rate.",
        ),
        (("MODEL", "big"), "--gin.MODEL is 'big', but toy.train wants Model for model."),
    ],
)
def test_values_of_the_wrong_type(flag, message):
    assert error(flag) == message


def test_wrong_types_in_files_are_told_with_the_line(tmp_path):
    (tmp_path / "mine.gin").write_text("WIDTH = '8'\n")
    assert error(files=("run.gin", "mine.gin")) == (
        "mine.gin, line 1: WIDTH is '8', but toy.Model wants a whole number for width."
    )


def test_a_target_that_nothing_configures():
    with pytest.raises(
        UserError, match=r"Nothing configures sbs_jax\.programs\.train\.train; give a gin"
    ):
        config_lib.read(["run.gin"], target="sbs_jax.programs.train.train").check()


def test_one_configuration_serves_several_programs(tmp_path):
    (tmp_path / "eval.gin").write_text(
        HEAD + "MESSAGE = %gin.REQUIRED\ntoy.fail.message = %MESSAGE\n"
    )
    mains = [TARGET, "tests.configuration.toy.fail"]
    for target, missing in zip(mains, (["MODEL_DIR", "STEPS"], ["MESSAGE"]), strict=True):
        config = config_lib.read(
            ["run.gin", "eval.gin"], target=target, programs="tests.configuration"
        )
        assert [binding.name for binding in config.missing()] == missing
    config = config_lib.read(
        ["run.gin", "eval.gin"],
        flags=[("MESSAGE", "x")],
        target=mains[1],
        programs="tests.configuration",
    )
    config.check()
    config.apply()
    with pytest.raises(UserError, match="x"):
        gin.get_configurable(toy.fail)()
    with pytest.raises(UserError, match=r"--gin\.STEPS is set, but .* is not called"):
        config_lib.read(
            ["run.gin", "eval.gin"],
            flags=[("STEPS", "3")],
            target=mains[1],
            programs="tests.configuration",
        ).check()


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    folder = tmp_path / "shipped"
    (folder / "runs").mkdir(parents=True)
    (folder / "examples").mkdir()
    (folder / "runs/base.gin").write_text(RUN)
    monkeypatch.setattr(config_lib.reader, "gin_folder", lambda: folder)
    return folder


def test_files_of_gin_runs_give_defaults_wherever_they_are_named(tmp_path, shipped):
    (tmp_path / "mine.gin").write_text("WIDTH = 16\n")
    (shipped / "model.gin").write_text("LEARNING_RATE = 0.5\n")
    for files in (
        ("mine.gin", "runs/base.gin", "model.gin"),
        ("model.gin", "mine.gin", "runs/base.gin"),
    ):
        call = train(files=files)
        assert call["model"].width == 16
        assert call["optimizer"].learning_rate == 0.5
    (shipped / "runs/other.gin").write_text("WIDTH = 32\n")
    assert train(files=("runs/base.gin", "runs/other.gin"))["model"].width == 32


def test_another_shipped_file_may_not_reset_the_users_value(tmp_path, shipped):
    (shipped / "examples/x.gin").write_text("include 'runs/base.gin'\nWIDTH = 5\n")
    (tmp_path / "mine.gin").write_text("WIDTH = 16\n")
    assert train(files=("examples/x.gin",))["model"].width == 5
    assert train(files=("examples/x.gin", "mine.gin"))["model"].width == 16
    assert error(files=("mine.gin", "examples/x.gin")) == (
        "mine.gin, line 1: WIDTH is set here, but examples/x.gin, line 2, which is read later, "
        "sets it again; name examples/x.gin before mine.gin, so that your own value wins."
    )


def test_an_unused_macro_in_a_shipped_file_must_be_known_to_another(shipped):
    (shipped / "runs/eval.gin").write_text("f.split = %SPLIT\n")
    (shipped / "task.gin").write_text("SPLIT = 'test'\n")
    train(files=("runs/base.gin", "task.gin"))
    (shipped / "task.gin").write_text("SPILT = 'test'\n")
    assert error(files=("runs/base.gin", "task.gin")).startswith(
        "task.gin, line 1: SPILT is set, but nothing in this run uses it"
    )


def test_a_users_error_in_a_function_that_gin_calls_stays_one_sentence():
    assert error(("WIDTH", "0")) == "width = 0 must be at least 1."


def test_unglue_leaves_other_exceptions_and_their_causes_alone():
    inner = ValueError("inner")
    outer = UserError("outer")
    outer.__context__ = inner
    assert unglue(outer) is outer


def test_the_dump_can_be_read_again_and_gives_the_same(tmp_path):
    train(("LENGTHS", "{'inputs': 64, 'targets': 32}"), ("toy.train.lengths", "%LENGTHS"))
    first = toy.calls[-1]
    text = dump.config_text()
    (tmp_path / "config.gin").write_text(text)
    gin.clear_config()
    config = config_lib.read(["config.gin"])
    config.check()
    config.apply()
    gin.get_configurable(toy.train)()
    assert toy.calls[-1] == first
    assert dump.config_text() == text
    assert "MODEL_DIR = 'x'" in text


def test_secrets_are_blotted_out_of_the_dump(tmp_path):
    train(
        ("HUB_TOKEN", "'s3cret-1'"),
        ("toy.train.path", "%HUB_TOKEN"),
        ("HIDDEN", "'s3cret-2'"),
        ("toy.train.api_key", "%HIDDEN"),
        ("PASSWORD_LENGTH", "3"),
        ("toy.fast.momentum", "%PASSWORD_LENGTH"),
    )
    text = dump.config_text()
    assert "s3cret" not in text
    assert "HUB_TOKEN = '<redacted>'" in text
    assert "HIDDEN = '<redacted>'" in text
    assert "PASSWORD_LENGTH = 3" in text
    assert toy.calls[-1]["api_key"] == "s3cret-2"
    (tmp_path / "config.gin").write_text(text)
    config_lib.read(["config.gin"]).check()
