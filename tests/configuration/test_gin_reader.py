"""gin-config finds our files, whatever folders the working directory has."""

import logging

import gin
import pytest
from gin import config

from sbs_jax.configuration import gin_reader

NAME = "runs/data.gin"


@pytest.fixture
def installed(monkeypatch, tmp_path):
    gin.clear_config()  # a program that another test ran leaves it locked
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "_FILE_READERS", [*config._FILE_READERS])
    gin_reader.install()
    gin_reader.install()  # once more changes nothing
    yield tmp_path
    gin.clear_config()


@pytest.mark.parametrize("has_folder", [False, True], ids=["plain", "with runs/"])
def test_an_include_is_found_in_silence(installed, has_folder, caplog):
    if has_folder:
        (installed / "runs").mkdir()
    with caplog.at_level(logging.WARNING):
        found = gin.parse_config_file(NAME, skip_unknown=True)
    assert found.filename == NAME
    assert gin.query_parameter("VOCABULARY_SIZE/gin.macro.value") is not None
    assert not caplog.records


def test_a_file_of_the_users_own_comes_first(installed):
    (installed / "runs").mkdir()
    (installed / NAME).write_text("VOCABULARY_SIZE = 17\n")
    gin.parse_config_file(NAME)
    assert gin.query_parameter("VOCABULARY_SIZE/gin.macro.value") == 17


def test_another_name_is_still_not_found(installed):
    with pytest.raises(OSError, match="Unable to open file"):
        gin.parse_config_file("t5x/no_such.gin")
