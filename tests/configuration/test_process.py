"""Where compiled programs are kept."""

import jax
import pytest

from sbs_jax.configuration.process import enable_compilation_cache


@pytest.fixture
def _jax_cache():
    names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def cache(_jax_cache, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    return enable_compilation_cache


def test_the_cache_lies_in_the_users_cache_folder(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "xdg/sbs_jax/compiled")
    assert (tmp_path / "xdg/sbs_jax/compiled").is_dir()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "home/.cache/sbs_jax/compiled")


def test_the_cache_may_be_elsewhere_or_off(cache, tmp_path, monkeypatch):
    cache(str(tmp_path / "c"))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "c")
    cache("off")
    assert not jax.config.jax_enable_compilation_cache
    jax.config.update("jax_compilation_cache_dir", "untouched")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own"))
    cache()
    assert jax.config.jax_compilation_cache_dir == "untouched"


def test_a_cache_that_cannot_be_written_is_no_error(cache, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    jax.config.update("jax_compilation_cache_dir", None)
    cache(str(tmp_path / "file/c"))
    assert jax.config.jax_compilation_cache_dir is None
    assert "is not writable" in caplog.text
