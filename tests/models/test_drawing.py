"""Parameters that are there are not drawn again; tests/test_student.py has how they are drawn."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from flax import errors
from flax import linen as nn

from sbs_jax.models.drawing import parameter


class Scale(nn.Module):
    width: int
    draw: Callable[..., jax.Array] = nn.initializers.ones

    @nn.compact
    def __call__(self, x):
        return x * parameter(self, "scale", self.draw, ("embed",), (self.width,))


def test_a_parameter_that_is_there_is_not_drawn_again():
    asked = []

    def ones(key, shape, dtype):
        asked.append(shape)
        return jnp.ones(shape, dtype)

    params = nn.unbox(Scale(3, ones).init(jax.random.key(0), jnp.ones(3)))
    assert asked == [(3,)]
    assert Scale(3, ones).apply(params, jnp.full(3, 2.0)).tolist() == [2.0, 2.0, 2.0]
    assert asked == [(3,)]


def test_a_parameter_of_another_shape_is_refused():
    params = nn.unbox(Scale(3).init(jax.random.key(0), jnp.ones(3)))
    with pytest.raises(errors.ScopeParamShapeError):
        Scale(4).apply(params, jnp.ones(4))
