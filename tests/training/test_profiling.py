import jax.numpy as jnp
import pytest

from sbs_jax.errors import UserError
from sbs_jax.training.profiling import Profile


def test_the_steps_asked_for_are_traced(tmp_path):
    with Profile("2:4", tmp_path / "profile") as profile:
        for number in range(1, 6):
            with profile.step(number):
                result = jnp.ones(3) * number
            profile.end_after(number, result)
            assert any((tmp_path / "profile").rglob("*.xplane.pb")) == (number >= 3)
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 0


def test_no_steps_no_trace(tmp_path):
    with Profile(None, tmp_path / "profile") as profile, profile.step(1):
        pass
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize("steps", ["10", "5:5", "0:3", "a:b", ":4"])
def test_what_is_no_range_is_a_sentence(steps):
    with pytest.raises(UserError, match="must be a range of steps, FIRST:END"):
        Profile(steps, "x")
