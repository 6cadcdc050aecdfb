import dataclasses

import gin
import pytest

from sbs_jax.configuration import config as config_lib
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError


@pytest.fixture(autouse=True)
def fresh_gin():
    gin.clear_config()
    yield
    gin.clear_config()
    settings_lib.configure(DataSettings)


def bind(**flags):
    macros = {"SEED": "0", "MODEL_DIR": "None"} | flags
    config_lib.read(["runs/data.gin"], flags=list(macros.items())).apply()


def test_every_field_has_a_macro_with_its_default():
    bind()
    bound = gin.get_bindings(DataSettings)
    assert set(bound) == {field.name for field in dataclasses.fields(DataSettings)}
    assert DataSettings(**bound) == DataSettings() == settings_lib.current()


def test_gin_binds_settings_when_they_are_read():
    assert settings_lib.current().train_fraction == 1.0
    bind(TRAIN_FRACTION="0.25")
    assert settings_lib.current().train_fraction == 0.25


def test_override_wins_and_ends():
    bind(SEED="3")
    with settings_lib.override(DataSettings(seed=5)):
        assert settings_lib.current().seed == 5
    assert settings_lib.current().seed == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_fraction": 0}, r"TRAIN_FRACTION must be a number above 0 and at most 1, not 0\."),
        ({"train_fraction": 1.5}, "TRAIN_FRACTION must be"),
        ({"train_fraction": "half"}, r"TRAIN_FRACTION must be .* 'half'"),
        ({"seed": -1}, "SEED must be a whole number from 0, not -1"),
        ({"validation_seed": 0.5}, "VALIDATION_SEED must be"),
        ({"vocabulary_size": 0}, "VOCABULARY_SIZE must be a positive whole number, not 0"),
        ({"label_prefix": 3}, "LABEL_PREFIX must be a text, not 3"),
    ],
)
def test_bad_values_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        DataSettings(**values)


def test_none_stands_for_the_default():
    names = [field.name for field in dataclasses.fields(DataSettings)]
    assert DataSettings(**dict.fromkeys(names)) == DataSettings()
    bind(LABEL_PREFIX="None", PREFIX_SIDE="None", VALIDATION_SEED="None")
    assert settings_lib.current() == DataSettings()


def test_data_folder(tmp_path):
    assert DataSettings(data_dir=str(tmp_path)).folder("cqa") == tmp_path / "cqa"
    with pytest.raises(UserError, match=r"'cqa' needs a data folder: give --gin.DATA_DIR=PATH"):
        DataSettings().folder("cqa")
    with pytest.raises(UserError, match=r"DATA_DIR=.*nowhere: there is no such folder"):
        DataSettings(data_dir=str(tmp_path / "nowhere")).folder("cqa")
