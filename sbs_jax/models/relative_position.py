"""T5's relative position bias: one learned number per head and bucket of distances."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int

from sbs_jax.models.config import T5Config
from sbs_jax.models.drawing import parameter


class RelativePositionBias(nn.Module):
    """A bias on attention logits that depends on `key position - query position` alone.

    It is computed once per stack and shared by its layers. T5X (`t5x/examples/t5/layers.py`,
    RelativePositionBiases) multiplies by a one-hot array of [buckets, Q, K]; here the Q + K - 1
    possible distances are looked up and laid out along the diagonals, which costs 1 / buckets of
    the memory, and whose gradient is a sum along diagonals instead of a scatter.

    Attributes:
      config: the network's.
      bidirectional: whether keys after the query have buckets of their own (the encoder).
    """

    config: T5Config
    bidirectional: bool

    def setup(self) -> None:
        """Creates the table [H, buckets]."""
        shape = (self.config.num_heads, self.config.relative_attention_num_buckets)
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        axes = ("heads", "relpos_buckets")
        self.rel_embedding = parameter(self, "rel_embedding", init, axes, shape)

    def __call__(self, length: int) -> Float[Array, "1 H Q K"]:
        """The bias of all positions of a row among each other, Q = K = `length`, float32."""
        return along_diagonals(self._of_distances(length), length)[None]

    def at_step(self, position: Int[Array, ""], length: int) -> Float[Array, "1 H 1 K"]:
        """The bias of the query at `position` (traced) towards K = `length` keys, float32."""
        table = self._of_distances(length)
        row = lax.dynamic_slice_in_dim(table, length - 1 - position, length, axis=1)
        return row[None, :, None, :]

    def between(
        self,
        query_positions: Int[Array, "*B Q"],
        key_positions: Int[Array, "*B K"],
        length: int,
    ) -> Float[Array, "... H Q K"]:
        """The bias of queries towards keys at any positions in [0, `length`), float32."""
        distances = key_positions[..., None, :] - query_positions[..., :, None]
        biases = jnp.take(self._of_distances(length), distances + (length - 1), axis=1)
        return jnp.moveaxis(biases, 0, -3)

    def _of_distances(self, length: int) -> Float[Array, "H distances"]:
        """The bias at distance 1 - `length`, …, `length` - 1."""
        config = self.config
        buckets = relative_position_buckets(
            np.arange(1 - length, length),
            bidirectional=self.bidirectional,
            num_buckets=config.relative_attention_num_buckets,
            max_distance=config.relative_attention_max_distance,
        )
        one_hot = np.eye(config.relative_attention_num_buckets, dtype=np.float32)[buckets].T
        # Full precision: this must be an exact look-up on accelerators that round, too.
        return jnp.dot(self.rel_embedding, one_hot, precision=lax.Precision.HIGHEST)


def along_diagonals(values: Float[Array, "H distances"], length: int) -> Float[Array, "H Q K"]:
    """Lays `values` [H, 2 · `length` - 1] out so that result[h, q, k] = values[h, k - q + Q - 1].

    Reading rows of 2Q values from a memory whose rows are 2Q - 1 long shifts each row by one, so
    neither this nor its gradient needs an index.

    >>> along_diagonals(jnp.array([[-2., -1., 0., 1., 2.]]), 3)[0].tolist()
    [[0.0, 1.0, 2.0], [-1.0, 0.0, 1.0], [-2.0, -1.0, 0.0]]
    """
    heads, distances = values.shape
    repeated = jnp.broadcast_to(
        jnp.pad(values, ((0, 0), (0, 1)))[:, None, :], (heads, length, distances + 1)
    )
    flat = repeated.reshape(heads, length * (distances + 1))[:, : length * distances]
    return flat.reshape(heads, length, distances)[:, :, length - 1 :]


def relative_position_buckets(
    relative_position: np.ndarray | jax.Array,
    *,
    bidirectional: bool,
    num_buckets: int,
    max_distance: int,
) -> np.ndarray:
    """The bucket of each distance (Raffel et al. 2020, section 2.1).

    Half of the buckets of a direction hold one distance each, the other half logarithmically
    growing ranges up to `max_distance`; the last takes all that is farther.

    Args:
      relative_position: ints of any shape, key position - query position in tokens.
      bidirectional: whether keys after the query get the upper half of the buckets; otherwise they
        share bucket 0 with the query's own position (causal masks hide them).
      num_buckets: the number of buckets of both directions together.
      max_distance: the distance, in tokens, from which all distances share a bucket.

    Returns:
      ints of the same shape in [0, num_buckets).

    >>> distances = np.array([-500, -9, -1, 0, 1, 500])
    >>> relative_position_buckets(
    ...     distances, bidirectional=True, num_buckets=32, max_distance=128
    ... )
    array([15,  8,  1,  0, 17, 31])
    """
    distance = -np.asarray(relative_position, np.int64)
    offset = np.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        offset = np.where(distance < 0, num_buckets, 0)
        distance = np.abs(distance)
    distance = np.maximum(distance, 0)
    exact = num_buckets // 2
    # In float32 and in the order of Hugging Face's `_relative_position_bucket`: at the borders of
    # buckets, rounding decides.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    ratio /= np.float32(np.log(max_distance / exact))
    ratio *= np.float32(num_buckets - exact)
    far = exact + ratio.astype(np.int64)
    return offset + np.where(distance < exact, distance, np.minimum(far, num_buckets - 1))
