"""The parts of a T5 layer besides attention: kernels, norms, embeddings, the MLP."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int

from sbs_jax.models.config import T5Config, adapted_name
from sbs_jax.models.decoder.config import LayerConfig
from sbs_jax.models.drawing import Initializer, parameter
from sbs_jax.models.dropout import Seed, dropout

ACTIVATION_FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "gelu": functools.partial(nn.gelu, approximate=True),
    "gelu_erf": functools.partial(nn.gelu, approximate=False),
    "silu": nn.silu,
    "linear": lambda x: x,
}


class Adapted(NamedTuple):
    """A matrix with a low-rank adapter (LoRA): kernel + scale · down · up, never added up.

    Attributes:
      kernel: [inputs, outputs].
      down: [inputs, r].
      up: [r, outputs].
      scale: a number.
    """

    kernel: Float[Array, "inputs outputs"]
    down: Float[Array, "inputs r"]
    up: Float[Array, "r outputs"]
    scale: float


Matrix = jax.Array | Adapted
"""What `project` multiplies by."""


class Kernel(nn.Module):
    """A float32 weight matrix of its own scope, so that its path ends in `NAME/kernel` as in T5X.

    Attributes:
      shape: (input width, output width).
      axes: the logical names of both axes.
      initializer: draws it.
      config: says whether a projection of this name has an adapter; None for none.
    """

    shape: tuple[int, int]
    axes: tuple[str, str]
    initializer: Initializer
    config: T5Config | None = None

    @nn.compact
    def __call__(self) -> Matrix:
        """The matrix."""
        kernel = parameter(self, "kernel", self.initializer, self.axes, self.shape)
        return with_adapter(self, kernel, self.axes, self.config)


def with_adapter(
    module: nn.Module,
    kernel: jax.Array,
    axes: tuple[str, str],
    config: T5Config | LayerConfig | None,
) -> Matrix:
    """Gives a projection its adapter, `NAME/lora_a` and `NAME/lora_b`, if it is to have one.

    Args:
      module: the projection, within its `nn.compact` method.
      kernel: [inputs, outputs].
      axes: the logical names of both axes.
      config: see `T5Config.lora_rank`; None has no adapters.
    """
    if config is None or (rank := config.lora_rank) is None:
        return kernel
    if adapted_name(str(module.name)) not in config.lora_targets:
        return kernel
    spread = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    down, up = (
        parameter(module, name, init, own, shape)
        for name, init, own, shape in (
            ("lora_a", spread, (axes[0], None), (kernel.shape[0], rank)),
            ("lora_b", nn.initializers.zeros, (None, axes[1]), (rank, kernel.shape[1])),
        )
    )
    return Adapted(kernel, down, up, config.lora_alpha / rank)


def project(
    x: Float[Array, "*B inputs"],
    kernel: Matrix,
    config: T5Config | LayerConfig,
    *,
    result_dtype: str | None = None,
) -> Float[Array, "*B outputs"]:
    """Multiplies `x` by `kernel` over the last axis, both cast to the products' dtype.

    The leading axes are merged first. It is then one plain matrix product whose two gradients are
    plain matrix products too; left to itself XLA:CPU transposes the operands of the kernel's
    gradient in memory, which made a whole training step of a small T5 a fifth slower.

    Args:
      x: any leading axes.
      kernel: float32, or in the products' dtype already; perhaps with an adapter.
      config: says the dtype of the operands, `product_dtype` or else `dtype`.
      result_dtype: dtype of the accumulated sums and the result; `config.dtype` by default.

    Returns:
      The product.
    """
    if isinstance(kernel, Adapted):
        product = project(x, kernel.kernel, config, result_dtype=result_dtype)
        small = project(project(x, kernel.down, config), kernel.up, config)
        return product + (small * kernel.scale).astype(product.dtype)
    dtype, result_dtype = config.product_dtype or config.dtype, result_dtype or config.dtype
    rows = x.reshape(-1, x.shape[-1])
    if config.product_dtype not in (None, config.dtype):
        narrow = _Narrow(dtype, result_dtype, str(rows.dtype), str(kernel.dtype))
        product = _narrow_product(narrow, rows, kernel)
    else:
        product = multiply("ij,jk->ik", rows.astype(dtype), kernel.astype(dtype), result_dtype)
    return product.reshape(*x.shape[:-1], kernel.shape[-1])


def multiply(subscripts: str, x: jax.Array, y: jax.Array, result_dtype: str) -> jax.Array:
    """`jnp.einsum` of two arrays whose sums may be of a wider dtype than the arrays.

    Left to itself, JAX would compute the gradients from operands of both dtypes, that is in the
    wider one: products of float32 instead of bfloat16, at a fraction of an accelerator's speed.
    Here the gradient of the result is rounded to the operands' dtype first, as a matrix unit would.

    Args:
      subscripts: see `jnp.einsum`.
      x: an array of the same dtype as `y`.
      y: an array of the same dtype as `x`.
      result_dtype: the result dtype of the accumulated sums and the result.
    """
    if x.dtype == result_dtype:
        return jnp.einsum(subscripts, x, y, preferred_element_type=result_dtype)
    return _multiply_wide(subscripts, x, y, result_dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _multiply_wide(subscripts: str, x: jax.Array, y: jax.Array, result_dtype: str) -> jax.Array:
    return jnp.einsum(subscripts, x, y, preferred_element_type=result_dtype)


def _multiply_forward(
    subscripts: str, x: jax.Array, y: jax.Array, result_dtype: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _multiply_wide(subscripts, x, y, result_dtype), (x, y)


def _multiply_backward(
    subscripts: str, result_dtype: str, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    del result_dtype
    x, y = saved
    _, pullback = jax.vjp(functools.partial(jnp.einsum, subscripts), x, y)
    return pullback(gradient.astype(x.dtype))


_multiply_wide.defvjp(_multiply_forward, _multiply_backward)


class _Narrow(NamedTuple):
    """The dtypes of a product whose operands are rounded: theirs, the result's, the gradients'."""

    operands: str
    result: str
    rows: str
    kernel: str


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _narrow_product(dtypes: _Narrow, rows: jax.Array, kernel: jax.Array) -> jax.Array:
    """Rounds [N, I] and [I, O] first, and multiplies them; both gradients are such products, too.

    Gradients keep the wide sums. XLA:CPU multiplies bfloat16 at twice the speed of float32 where
    the result is float32, and below the speed of float32 where the result is bfloat16.
    """
    return _narrow_forward(dtypes, rows, kernel)[0]


def _narrow_forward(
    dtypes: _Narrow, rows: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    rows, kernel = rows.astype(dtypes.operands), kernel.astype(dtypes.operands)
    return jnp.dot(rows, kernel, preferred_element_type=dtypes.result), (rows, kernel)


def _narrow_backward(
    dtypes: _Narrow, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    rows, kernel = saved
    gradient = gradient.astype(dtypes.operands)
    of_rows = jnp.dot(gradient, kernel.T, preferred_element_type=dtypes.result)
    of_kernel = jnp.dot(rows.T, gradient, preferred_element_type=dtypes.result)
    return of_rows.astype(dtypes.rows), of_kernel.astype(dtypes.kernel)


_narrow_product.defvjp(_narrow_forward, _narrow_backward)


class RMSNorm(nn.Module):
    """T5's layer norm: divides by the root mean square, then scales; no mean, no offset.

    Attributes:
      config: the network's.
    """

    config: T5Config

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Normalises the last axis in float32; the result has the activations' dtype."""
        dtype = self.config.dtype
        scale = parameter(self, "scale", nn.initializers.ones, ("embed",), (x.shape[-1],))
        x = x.astype(jnp.float32)
        mean_square = jnp.mean(lax.square(x), axis=-1, keepdims=True)
        normed = x * lax.rsqrt(mean_square + self.config.layer_norm_epsilon)
        return normed.astype(dtype) * jnp.expand_dims(scale.astype(dtype), range(x.ndim - 1))


class TokenEmbedder(nn.Module):
    """The embedding table that encoder and decoder share, and that may be the head as well.

    Attributes:
      config: the network's.
    """

    config: T5Config

    def setup(self) -> None:
        """Creates the table [V, D]."""
        init, axes = nn.initializers.normal(1.0), ("vocab", "embed")
        shape = (self.config.vocab_size, self.config.emb_dim)
        self.embedding = parameter(self, "embedding", init, axes, shape)

    def __call__(self, tokens: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        """Looks tokens up, in the activations' dtype. An id outside [0, V) gives NaN, not noise."""
        dtype = self.config.dtype
        if self.config.embedding_lookup == "gather":
            return jnp.take(self.embedding, tokens, axis=0).astype(dtype)
        one_hot = jax.nn.one_hot(tokens, self.config.vocab_size, dtype=dtype)
        return project(one_hot, self.embedding, self.config)

    def attend(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """The dot product with every embedding, float32: the tied output head."""
        return project(hidden, self.embedding.T, self.config, result_dtype="float32")


class Mlp(nn.Module):
    """T5's feed-forward block; gated if the config names two activations.

    Attributes:
      config: the network's.
    """

    config: T5Config

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"], seed: Seed | None) -> Float[Array, "B L D"]:
        """Applies it, without norm and residual; `seed` drops hidden units."""
        config = self.config
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        branches = []
        for index, name in enumerate(config.mlp_activations):
            scope = "wi" if len(config.mlp_activations) == 1 else f"wi_{index}"
            shape = (config.emb_dim, config.mlp_dim)
            kernel = Kernel(shape, ("embed", "mlp"), init, config, name=scope)()
            branches.append(ACTIVATION_FUNCTIONS[name](project(x, kernel, config)))
        hidden = functools.reduce(operator.mul, branches)
        hidden = dropout(hidden, seed, config)
        hidden = nn.with_logical_constraint(hidden, ("batch", "length", "mlp"))
        shape = (config.mlp_dim, config.emb_dim)
        kernel = Kernel(shape, ("mlp", "embed"), init, config, name="wo")()
        return project(hidden, kernel, config)
