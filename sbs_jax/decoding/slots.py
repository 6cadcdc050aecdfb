"""Slots of a continuous batch: rows that are being decoded on the devices, and their programs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt

from sbs_jax.decoding.begin import FEW_QUERIES
from sbs_jax.decoding.greedy import most_likely
from sbs_jax.decoding.sampling import draw
from sbs_jax.models.interface import Network
from sbs_jax.models.stacks import DecoderCache, EncoderMemory
from sbs_jax.token_ids import PAD_ID


class OnMesh(Protocol):
    """What is needed of a `student.Student`: the module, its mesh, and how to compile on it."""

    model: Network
    mesh: Mesh

    @property
    def rules(self) -> Sequence[tuple[str, str | None]]:
        """The mesh axis of each logical axis."""

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of a value that every device holds whole."""

    def jit(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """Compiles a function within the mesh."""


@dataclasses.dataclass(frozen=True)
class Draws:
    """How tokens are sampled; see `sampling.sample_decode` for the values.

    Attributes:
      seed: seed of the random numbers of all requests.
      temperature: at least 0, where 0 is greedy decoding.
      top_k: number of tokens to draw from; 0 for all.
      top_p: share of the probability to draw from.
    """

    seed: int
    temperature: float
    top_k: int
    top_p: float


@struct.dataclass
class Slots:
    """The rows that are being decoded, on the devices. L is the length of prompt and output.

    Attributes:
      step: int32 [], steps so far.
      tokens: int32 [R], the next input of each row's decoder.
      starts: int32 [R], the step that corresponds to position 0 of each row.
      active: bool [R], rows that have begun and not ended.
      written: int32 [L, R], the tokens of each row, a ring over steps.
      scores: float32 [R], log-probabilities of the tokens so far.
      samples: uint32 [R], `Request.sample`.
      memory: the encoder's, of S tokens.
      cache: the cache of L slots, a ring over steps.
    """

    step: Int[Array, ""]
    tokens: Int[Array, " R"]
    starts: Int[Array, " R"]
    active: Bool[Array, " R"]
    written: Int[Array, "L R"]
    scores: Float[Array, " R"]
    samples: UInt[Array, " R"]
    memory: EncoderMemory
    cache: DecoderCache


class Taken(NamedTuple):
    """Requests of a pool on their way into slots; all int32 [Q], samples uint32."""

    rows: Array | np.ndarray
    samples: Array | np.ndarray
    places: Array | np.ndarray


class SlotPrograms:
    """The compiled programs of a continuous batch; see `continuous.ContinuousDecoder`.

    Attributes:
      read: the prompt, where it is read with the input; otherwise ().
      fed: int32, the decoder's start token and, where it is not read, the prompt.
      max_decode_len: T, the maximum number of tokens of an output, EOS included.
      eos_id: the token that ends an output.
      row_multiple: the number of slots is a multiple of it.
      on_cpu: whether the devices are CPUs.
      empty: `(rows, length)`, slots of which none is active.
      grow: `(slots, length)`, slots whose memory has room for that many tokens.
      encode: `(params, tokens, length)`, the memory of inputs.
      insert: `(params, slots, memory, taken)`, slots with encoded inputs in them.
      advance: `(params, slots, min_ended)`, slots after so many more have ended, or all, and what
        the host reads of them.
    """

    def __init__(
        self,
        network: OnMesh,
        *,
        max_decode_len: int,
        prompt: Sequence[int],
        scored: bool,
        draws: Draws | None,
        eos_id: int,
        few_queries: bool,
        like: SlotPrograms | None,
    ) -> None:
        """Compiles nothing yet; see `continuous.ContinuousDecoder` for the arguments."""
        self.read = tuple(prompt) if network.model.reads_prompts else ()
        self.fed = np.array([PAD_ID, *(() if self.read else prompt)], np.int32)
        self.max_decode_len = max_decode_len
        self.eos_id = eos_id
        self.row_multiple = network.mesh.shape["data"]
        self.on_cpu = network.mesh.devices.flat[0].platform == "cpu"
        self._model = network.model
        self._scored = scored
        self._draws = draws
        self._few_queries = few_queries or self._ring <= FEW_QUERIES
        jit, replicated = network.jit, network.replicated
        # Fixed, so that a program is not compiled again for what another one has returned.
        memory, slots = self._shardings = _shardings(network)
        self.empty = jit(self._empty_fn, static_argnums=(0, 1), out_shardings=slots)
        self.grow = jit(self._grow_fn, static_argnums=1, out_shardings=slots)
        self.encode = jit(self._encode_fn, static_argnums=2, out_shardings=memory)
        self.insert = jit(self._insert_fn, donate_argnums=1, out_shardings=slots)
        if like is not None and like._model is self._model and like._remembers_as(self):
            self.encode = like.encode
            if like._reads_as(self):
                self.empty, self.grow, self.insert = like.empty, like.grow, like.insert
        self.advance = jit(self._advance_fn, donate_argnums=1, out_shardings=(slots, replicated))

    def compile(self, params: Any, rows: int, chunk: int, length: int) -> None:
        """Compiles the programs for `rows` slots, of which `chunk` are refilled at a time.

        Nothing runs on the devices, so that another thread may decode meanwhile.

        Args:
          params: the student's parameters on its mesh.
          rows: the number of slots.
          chunk: how many inputs are encoded and inserted at a time.
          length: the number of encoded tokens.
        """
        arguments = self.arguments(params, rows, chunk, length, chunk)
        for name, given in {"empty": (rows, length), **arguments}.items():
            getattr(self, name).lower(*given).compile()

    def arguments(
        self, params: Any, rows: int, chunk: int, length: int, pool_rows: int
    ) -> dict[str, tuple[Any, ...]]:
        """The shapes in which programs are called; nothing is compiled.

        Args:
          params: the student's parameters on its mesh, or their shapes.
          rows: the number of slots.
          chunk: how many inputs are inserted at a time.
          length: the number of encoded tokens.
          pool_rows: how many inputs are encoded at a time.

        Returns:
          The arguments of `encode`, `insert` and `advance`, by their names.
        """
        tokens = jax.ShapeDtypeStruct((pool_rows, length), jnp.int32)
        # The encoder need not be traced: what it gives is of the shapes of an empty memory.
        shapes = (
            jax.eval_shape(lambda: self._empty_memory(pool_rows, length)),
            jax.eval_shape(lambda: self._empty_fn(rows, length)),
        )
        memory, slots = (
            jax.tree.map(_placed, *pair) for pair in zip(self._shardings, shapes, strict=True)
        )
        numbers, samples = np.zeros(chunk, np.int32), np.zeros(chunk, np.uint32)
        return {
            "encode": (params, tokens, length),
            "insert": (params, slots, memory, Taken(numbers, samples, numbers)),
            "advance": (params, slots, np.int32(chunk)),
        }

    def _remembers_as(self, other: SlotPrograms) -> bool:
        """Whether inputs leave the same memory; of many networks they do, few queries or not."""
        if self._few_queries == other._few_queries:
            return True
        structures: list[Any] = [
            jax.tree.structure(jax.eval_shape(functools.partial(one._empty_memory, 1, 1)))
            for one in (self, other)
        ]
        return bool(structures[0] == structures[1])

    def _reads_as(self, other: SlotPrograms) -> bool:
        """Whether inputs get into slots by the same programs."""
        return (
            self.max_decode_len == other.max_decode_len and self.fed.tolist() == other.fed.tolist()
        )

    @property
    def _ring(self) -> int:
        """L, the length of prompt and output."""
        return len(self.fed) - 1 + self.max_decode_len

    def _empty_memory(self, rows: int, length: int) -> EncoderMemory:
        memory: EncoderMemory = self._model.apply(
            {}, rows, length, few_queries=self._few_queries, method="empty_memory"
        )
        return memory

    def _empty_fn(self, rows: int, length: int) -> Slots:
        cache = self._model.apply({}, rows, self._ring, method=_empty_cache)
        zeros = jnp.zeros(rows, jnp.int32)
        return Slots(
            step=jnp.int32(0),
            tokens=zeros,
            starts=zeros,
            active=jnp.zeros(rows, bool),
            written=jnp.zeros((self._ring, rows), jnp.int32),
            scores=jnp.zeros(rows, jnp.float32),
            samples=jnp.zeros(rows, jnp.uint32),
            memory=self._empty_memory(rows, length),
            cache=cache,
        )

    def _grow_fn(self, slots: Slots, length: int) -> Slots:
        return dataclasses.replace(slots, memory=slots.memory.widened(length))

    def _encode_fn(self, params: Any, tokens: Int[Array, "B S"], length: int) -> EncoderMemory:
        memory, _ = self._model.apply(
            {"params": params}, tokens, 1, few_queries=self._few_queries, method="start_decoding"
        )
        return memory.widened(length)

    def _insert_fn(self, params: Any, slots: Slots, pool: EncoderMemory, taken: Taken) -> Slots:
        """Puts encoded inputs into slots; the last one may be there several times."""
        count = taken.rows.shape[0]
        place = _copy_rows if self.on_cpu else _scatter_rows

        def put(array: Array, values: Array | np.ndarray) -> Array:
            return place(array, values, np.arange(count), taken.places)

        pool = pool.widened(slots.memory.bias.shape[-1])
        prompt_length = len(self.fed) - 1
        cache = slots.cache
        if prompt_length:
            own = jax.tree.map(lambda array: jnp.take(array, taken.rows, axis=0), pool)
            cache = jax.tree.map(put, cache, self._prompted(params, own, slots))
        broadcast = functools.partial(jnp.broadcast_to, shape=(count,))
        return dataclasses.replace(
            slots,
            tokens=put(slots.tokens, broadcast(jnp.int32(self.fed[-1]))),
            starts=put(slots.starts, broadcast(slots.step - prompt_length)),
            active=put(slots.active, broadcast(jnp.bool_(True))),
            scores=put(slots.scores, broadcast(jnp.float32(0.0))),
            samples=put(slots.samples, taken.samples),
            memory=jax.tree.map(
                lambda array, rows: place(array, rows, taken.rows, taken.places),
                slots.memory,
                pool,
            ),
            cache=cache,
        )

    def _prompted(self, params: Any, memory: EncoderMemory, slots: Slots) -> DecoderCache:
        """A cache [Q, H, L, K] that holds the prompt in the slots before the present step's."""
        fed = self.fed[:-1]
        ring, rows = slots.written.shape[0], memory.bias.shape[0]
        positions = np.arange(fed.size)
        empty = self._model.apply({}, rows, fed.size, method=_empty_cache)
        _, cache = self._model.apply(
            {"params": params},
            jnp.broadcast_to(fed, (rows, fed.size)),
            0,
            positions[None],
            positions[None],
            positions[None, None] <= positions[None, :, None],
            memory,
            empty,
            method="extend",
        )
        padding = ((0, 0), (0, 0), (0, ring - fed.size), (0, 0))
        shift = (slots.step - fed.size) % ring
        return jax.tree.map(lambda array: jnp.roll(jnp.pad(array, padding), shift, axis=2), cache)

    def _advance_fn(
        self, params: Any, slots: Slots, min_ended: Int[Array, ""]
    ) -> tuple[Slots, tuple[Array, ...]]:
        """Decodes until `min_ended` more rows have ended, or all have."""
        goal = jnp.maximum(jnp.sum(slots.active) - min_ended, 0)
        slots = lax.while_loop(
            lambda slots: jnp.sum(slots.active) > goal,
            functools.partial(self._step, params),
            slots,
        )
        return slots, (slots.active, slots.starts, slots.written, slots.scores)

    def _step(self, params: Any, slots: Slots) -> Slots:
        variables = {"params": params}
        ring = slots.written.shape[0]
        slot = slots.step % ring
        ages = (slots.step - jnp.arange(ring)) % ring
        # Where only differences of positions count, they are the same in all rows.
        own = jnp.full((1, 1), ring - 1)
        if self._model.absolute_positions:
            own = (slots.step - slots.starts)[:, None]
        hidden, cache = self._model.apply(
            variables,
            slots.tokens[:, None],
            slot,
            own,
            own - ages[None],
            (ages[None] <= (slots.step - slots.starts)[:, None])[:, None],
            slots.memory,
            slots.cache,
            method="extend",
        )
        logits = self._model.apply(variables, hidden[:, 0], method="logits")
        position = slots.step - slots.starts - (len(self.fed) - 1)
        tokens = jnp.where(slots.active, self._choose(logits, position, slots.samples), PAD_ID)
        scores = slots.scores
        if self._scored:
            chosen = jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
            log_probs = chosen - jax.nn.logsumexp(logits, axis=-1)
            scores += jnp.where(slots.active, log_probs, 0.0)
        ended = (tokens == self.eos_id) | (position + 1 >= self.max_decode_len)
        # What a row has written stays until the host has read it.
        kept = jnp.where(slots.active, tokens, slots.written[slot])
        return dataclasses.replace(
            slots,
            step=slots.step + 1,
            tokens=tokens,
            active=slots.active & ~ended,
            written=lax.dynamic_update_index_in_dim(slots.written, kept, slot, axis=0),
            scores=scores,
            cache=cache,
        )

    def _choose(
        self, logits: Float[Array, "R V"], position: Int[Array, " R"], samples: UInt[Array, " R"]
    ) -> Int[Array, " R"]:
        draws = self._draws
        if draws is None:
            return most_likely(logits)

        def noise(sample: Array, position: Array) -> Array:
            key = jax.random.fold_in(jax.random.key(draws.seed), sample)
            return jax.random.gumbel(jax.random.fold_in(key, position), logits.shape[-1:])

        return draw(
            logits,
            jax.vmap(noise)(samples, position),
            jnp.float32(draws.temperature),
            top_k=draws.top_k,
            top_p=draws.top_p,
        )


Rows = Array | np.ndarray
"""Numbers of rows, int32 [Q]."""


def _copy_rows(array: Array, source: Rows, rows: Rows, places: Rows) -> Array:
    """Puts rows of `source` at places of `array`, one by one.

    That is how a CPU copies each row once, in place; gathered first, everything is copied twice.
    """
    for number in range(places.shape[0]):
        chosen = lax.dynamic_index_in_dim(source, rows[number], axis=0, keepdims=False)
        array = lax.dynamic_update_index_in_dim(array, chosen, places[number], axis=0)
    return array


def _scatter_rows(array: Array, source: Rows, rows: Rows, places: Rows) -> Array:
    """Puts rows of `source` at places of `array`, all at once; equal places get equal rows.

    An accelerator runs one kernel for it. One by one it is a kernel a row: 32 rows of a network of
    24 layers were over 1,500 of them.
    """
    chosen = jnp.asarray(source).at[rows].get(mode="promise_in_bounds")
    return array.at[places].set(chosen, mode="promise_in_bounds")


def _shardings(network: OnMesh) -> tuple[Any, Slots]:
    """Returns the shardings of an `EncoderMemory` and of `Slots`: rows along `data`."""

    def on(*axes: str | None) -> NamedSharding:
        return NamedSharding(network.mesh, PartitionSpec(*axes))

    row = on("data")
    heads = on("data", dict(network.rules)["heads"])
    memory = network.model.memory_type.spread(heads, row)
    rows = dict.fromkeys(("tokens", "starts", "active", "scores", "samples"), row)
    cache = network.model.cache_type.spread(heads)
    # Of shardings, in the places of the arrays.
    fields: dict[str, Any] = {"step": on(), "written": on(None, "data"), **rows}
    return memory, Slots(memory=memory, cache=cache, **fields)


def _placed(sharding: NamedSharding, shapes: Any) -> Any:
    """Shapes with the sharding that all of their arrays have."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )


def _empty_cache(model: Any, rows: int, slots: int) -> DecoderCache:
    return model.decoder.empty_cache(rows, slots)
