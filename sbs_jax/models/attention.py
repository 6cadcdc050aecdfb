"""T5's multi-head attention, and the biases that mask it."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from sbs_jax.errors import UserError
from sbs_jax.models.attention_rows import AttentionRows
from sbs_jax.models.config import T5Config
from sbs_jax.models.dropout import Seed, dropout, seed_of_kind
from sbs_jax.models.layers import Kernel, Matrix, multiply, project

MASKED = -1e10
"""Added to the logits of masked keys. Finite, so that a query without any key gives no NaN."""


class Attention(nn.Module):
    """Multi-head attention without biases in its projections, as T5 has it.

    Logits are not divided by sqrt(K): T5 folds that into the initialisation of the query's kernel.

    Attributes:
      config: the network's.
    """

    config: T5Config

    def setup(self) -> None:
        """Creates the four kernels."""
        config = self.config
        joined = config.num_heads * config.head_dim
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")

        def query_init(*args: Any) -> jax.Array:
            return init(*args) / jnp.sqrt(config.head_dim)

        inward = (config.emb_dim, joined), ("embed", "joined_kv")
        self.query = Kernel(*inward, query_init, config)
        self.key = Kernel(*inward, init, config)
        self.value = Kernel(*inward, init, config)
        self.out = Kernel((joined, config.emb_dim), ("joined_kv", "embed"), init, config)

    def __call__(
        self,
        inputs: Float[Array, "B Q D"],
        memory: Float[Array, "B L D"],
        biases: Sequence[Float[Array, "#B #H #Q L"]],
        seed: Seed | None,
    ) -> Float[Array, "B Q D"]:
        """Attends from `inputs` to `memory`; see `attend`."""
        return self.attend(inputs, self.keys_values(memory), biases, seed)

    def in_rows(
        self,
        inputs: Float[Array, "G N D"],
        memory: Float[Array, "G M D"],
        biases: Sequence[Sequence[Float[Array, "#B #H #Q L"]]],
        seed: Seed | None,
        rows: AttentionRows,
        memory_rows: AttentionRows,
    ) -> Float[Array, "G N D"]:
        """Attends within the rows of a padding-free batch.

        Args:
          inputs: see `attend`.
          memory: what the keys and values are made of.
          biases: those of `attend`, for each kind of row.
          seed: see `attend`.
          rows: the rows of `inputs`.
          memory_rows: the rows of `memory`.

        Returns:
          The output projection, in the activations' dtype.
        """
        config = self.config
        projected = (
            of.spread(project(x, kernel(), config))
            for x, kernel, of in (
                (inputs, self.query, rows),
                (memory, self.key, memory_rows),
                (memory, self.value, memory_rows),
            )
        )
        mixed = []
        for kind, (own, *heads) in enumerate(zip(biases, *projected, strict=True)):
            queries, keys, values = map(self._split, heads)
            mixed.append(self._mix(queries, (keys, values), own, seed_of_kind(seed, kind)))
        return project(rows.gather(mixed), self.out(), config).reshape(inputs.shape)

    def keys_values(
        self, memory: Float[Array, "B L D"]
    ) -> tuple[Float[Array, "B H L K"], Float[Array, "B H L K"]]:
        """The keys and values of `memory`; a decoder computes those of the encoder once."""
        return self._heads(memory, self.key()), self._heads(memory, self.value())

    def attend(
        self,
        inputs: Float[Array, "B Q D"],
        keys_values: tuple[Float[Array, "B H L K"], Float[Array, "B H L K"]],
        biases: Sequence[Float[Array, "#B #H #Q L"]],
        seed: Seed | None,
    ) -> Float[Array, "B Q D"]:
        """Attends from `inputs` to keys and values at hand.

        Args:
          inputs: queries before their projection, normed.
          keys_values: the keys values of `keys_values`.
          biases: float32, each broadcastable to [B, H, Q, L] and added to the logits. They are
            given one by one because XLA then adds them in one pass while the small ones (masks of
            [B, 1, Q, L], position biases of [1, H, Q, L]) stay small in memory.
          seed: drops attention weights.

        Returns:
          The output projection, in the activations' dtype.
        """
        queries = self._heads(inputs, self.query())
        mixed = self._mix(queries, keys_values, biases, seed)
        return project(mixed.reshape(*inputs.shape[:-1], -1), self.out(), self.config)

    def attend_encoded(
        self,
        inputs: Float[Array, "B Q D"],
        encoded: Float[Array, "B L D"],
        biases: Sequence[Float[Array, "#B #H #Q L"]],
    ) -> Float[Array, "B Q D"]:
        """Attends to a memory whose keys and values are not at hand, and makes none.

        A logit is q · (x W_key) = (q W_key^T) · x, and a mixture of values is that of the memory,
        times W_value. The kernels of keys and values are then applied once a query, not once a
        token of the memory: less work for few queries, more for many. The memory is rounded as it
        is where keys are made of it; so are queries, which are not there.

        Args:
          inputs: see `attend`.
          encoded: the memory.
          biases: see `attend`.

        Returns:
          The output projection, in the activations' dtype.
        """
        config = self.config
        operands = config.product_dtype or config.dtype
        logits_dtype = "float32" if config.float32_attention_logits else config.dtype
        by_head = (config.emb_dim, config.num_heads, config.head_dim)
        # `EncoderMemory` has keys and values where projections have adapters.
        keys, values = (
            cast("jax.Array", kernel()).reshape(by_head) for kernel in (self.key, self.value)
        )

        def product(subscripts: str, x: Array, y: Array, dtype: str = config.dtype) -> Array:
            return multiply(subscripts, x.astype(operands), y.astype(operands), dtype)

        queries = product("bhqk,dhk->bhqd", self._heads(inputs, self.query()), keys)
        logits = product("bhqd,bld->bhql", queries, encoded, logits_dtype)
        for bias in biases:
            logits += bias.astype(logits_dtype)
        mixed = product("bhql,bld->bhqd", jax.nn.softmax(logits, axis=-1), encoded)
        mixed = product("bhqd,dhk->bqhk", mixed, values)
        return project(mixed.reshape(*inputs.shape[:-1], -1), self.out(), config)

    def _mix(
        self,
        queries: Float[Array, "B H Q K"],
        keys_values: tuple[Float[Array, "B H L K"], Float[Array, "B H L K"]],
        biases: Sequence[Float[Array, "#B #H #Q L"]],
        seed: Seed | None,
    ) -> Float[Array, "B Q HK"]:
        """The values, mixed as the config says; heads side by side."""
        config = self.config
        keys, values = keys_values
        if not config.dropout_attention_weights:
            seed = None
        dropped = seed is not None and config.dropout_rate > 0
        if config.attention == "cudnn" and not dropped and cudnn_takes(queries, keys):
            mixed = attend_with_cudnn(queries, keys, values, biases)
        else:
            mixed = self.attend_plainly(queries, keys, values, biases, seed)
        mixed = mixed.swapaxes(1, 2)
        return mixed.reshape(*mixed.shape[:2], -1)

    def attend_plainly(
        self,
        queries: Float[Array, "B H Q K"],
        keys: Float[Array, "B H L K"],
        values: Float[Array, "B H L K"],
        biases: Sequence[Float[Array, "#B #H #Q L"]],
        seed: Seed | None,
    ) -> Float[Array, "B H Q K"]:
        """Attends by products and a softmax, which XLA compiles; `seed` drops weights."""
        config = self.config
        logits_dtype = "float32" if config.float32_attention_logits else config.dtype
        logits = multiply("bhqk,bhlk->bhql", queries, keys, logits_dtype)
        for bias in biases:
            logits += bias.astype(logits_dtype)
        weights = jax.nn.softmax(logits, axis=-1).astype(config.dtype)
        weights = dropout(weights, seed, config)
        return jnp.einsum("bhql,bhlk->bhqk", weights, values)

    def _heads(self, x: Float[Array, "B L D"], kernel: Matrix) -> Float[Array, "B H L K"]:
        """Projects, and splits into heads."""
        return self._split(project(x, kernel, self.config))

    def _split(self, x: Float[Array, "B L HK"]) -> Float[Array, "B H L K"]:
        """Brings the heads forward: the products to come are then batched over rows.

        Left as [B, L, H, K], XLA:CPU makes the same copy, and less well (3 % of a training step).
        """
        config = self.config
        heads = x.reshape(*x.shape[:-1], config.num_heads, config.head_dim).swapaxes(1, 2)
        return nn.with_logical_constraint(heads, ("batch", "heads", "length", "kv"))


def choose_attention(config: T5Config, platform: str) -> str:
    """The implementation of attention on a platform: `xla`, or cuDNN's where `auto` can have it.

    Args:
      config: the network's.
      platform: the platform of the devices, `gpu`, `tpu` or `cpu`.

    Raises:
      UserError: `cudnn` is asked for by name where it cannot be had.
    """
    if config.attention == "xla":
        return "xla"
    drops = config.dropout_attention_weights and config.dropout_rate > 0
    if config.attention == "cudnn" and drops:
        raise UserError(
            "T5Config.attention = 'cudnn' cannot drop attention weights; set "
            "dropout_attention_weights = False (--gin.ATTENTION_DROPOUT=False) or dropout_rate = "
            "0, or choose 'auto', which then computes training by XLA."
        )
    reason = None
    if platform not in ("gpu", "cuda"):
        reason = f"a {platform.upper()} has no cuDNN"
    elif config.dtype != "bfloat16":
        reason = "it computes in bfloat16 alone"
    else:
        one = jax.ShapeDtypeStruct((1, 2, 1, config.head_dim), jnp.bfloat16)
        try:
            jax.eval_shape(_cudnn, one, one, one)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            reason = str(error)  # Not installed, or the heads are too wide.
    if reason is None:
        return "cudnn"
    if config.attention == "cudnn":
        raise UserError(f"T5Config.attention = 'cudnn' cannot be had here: {reason}")
    return "xla"


def cudnn_takes(queries: Float[Array, "B H Q K"], keys: Float[Array, "B H L K"]) -> bool:
    """Whether the lengths are among those whose gradient cuDNN has; decoding is left to XLA."""
    return queries.shape[2] % 2 == 0 and keys.shape[2] % 2 == 0


def attend_with_cudnn(
    queries: Float[Array, "B H Q K"],
    keys: Float[Array, "B H L K"],
    values: Float[Array, "B H L K"],
    biases: Sequence[Float[Array, "#B #H #Q L"]],
) -> Float[Array, "B H Q K"]:
    """Attends by cuDNN's kernel, which never writes the logits into memory; bfloat16 only."""
    bias = None
    if biases:
        # In the dtype of the logits that the kernel adds it to.
        bias = functools.reduce(operator.add, (bias.astype(queries.dtype) for bias in biases))
        bias = jnp.broadcast_to(bias, (*bias.shape[:2], queries.shape[2], keys.shape[2]))
    # The kernel wants [B, L, H, K]. XLA cancels these transpositions with those of `_heads`.
    queries, keys, values = (heads.swapaxes(1, 2) for heads in (queries, keys, values))
    return _cudnn(queries, keys, values, bias).swapaxes(1, 2)


def _cudnn(
    queries: Float[Array, "B Q H K"],
    keys: Float[Array, "B L H K"],
    values: Float[Array, "B L H K"],
    bias: Float[Array, "#B #H Q L"] | None = None,
) -> Float[Array, "B Q H K"]:
    return jax.nn.dot_product_attention(
        queries, keys, values, bias=bias, scale=1.0, implementation="cudnn"
    )


def segment_bias(
    query_segments: Int[Array, "B Q"], key_segments: Int[Array, "B L"], *, causal: bool = False
) -> Float[Array, "B 1 Q L"]:
    """Masks keys outside the query's segment, and with `causal` those after the query.

    Padding is segment 0, which sees only padding: no real position depends on it.
    """
    visible = query_segments[:, :, None] == key_segments[:, None, :]
    if causal:
        visible &= _causal(query_segments.shape[1])[None]
    return mask_bias(visible[:, None])


def padding_bias(key_segments: Int[Array, "B L"]) -> Float[Array, "B 1 1 L"]:
    """Masks padding."""
    return mask_bias(key_segments > 0)[:, None, None, :]


def causal_bias(length: int) -> Float[Array, "1 1 Q L"]:
    """Masks keys after the query, Q = L = `length`."""
    return mask_bias(_causal(length)[None, None])


def mask_bias(visible: Bool[Array, "*B"]) -> Float[Array, "*B"]:
    """0 where True, else so negative that softmax gives 0; float32."""
    return jnp.where(visible, 0.0, MASKED).astype(jnp.float32)


def _causal(length: int) -> Bool[Array, "Q L"]:
    positions = jnp.arange(length)
    return positions[:, None] >= positions[None, :]
