"""Continuous batching: a row that has ended is refilled with the next input while others go on.

A batch that ends when its last row does keeps the slots of its short rows idle. Here the slots are
a ring: all rows write their keys and values into the same slot of the cache at a step, slot
`step` mod L, and each sees the slots since it began. An output has at most L tokens, so a row never
needs a slot that the ring has overwritten, and the relative positions of slots are the same in
every row.

The host alternates between three compiled programs: `encode` inputs, `insert` encoded inputs into
free slots, and `advance` all slots until some have ended.

Where a text and its answer go through the same layers (`Network.reads_prompts`), the decoder's
prompt is read with the input: what follows is the same, and no program is compiled for the prompt.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt

from sbs_jax.decoding import shapes
from sbs_jax.decoding.begin import PAD_ID
from sbs_jax.decoding.greedy import most_likely
from sbs_jax.decoding.sampling import draw
from sbs_jax.models.interface import Network
from sbs_jax.models.stacks import DecoderCache, EncoderMemory
from sbs_jax.token_ids import EOS_ID

REFILL_SHARE = 4
"""Slots are refilled when one in so many has ended."""
_POOLS_PER_LENGTH = 8
_PROMPT_MULTIPLE = 8


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
class Request:
    """An input to be answered.

    Attributes:
      tokens: the encoder's input, without padding, at least one.
      sample: selects the random numbers of a sampled output.
    """

    tokens: Sequence[int]
    sample: int = 0


@dataclasses.dataclass(frozen=True)
class Output:
    """The answer to a `Request`.

    Attributes:
      tokens: ids, EOS included if the output has one.
      log_probability: the log probability of these tokens under the model; 0.0 unless scores were
        asked for.
    """

    tokens: list[int]
    log_probability: float


@dataclasses.dataclass(frozen=True)
class Draws:
    """How tokens are sampled; see `sampling.sample_decode` for the values.

    Attributes:
      seed: seed of the random numbers of all requests.
      temperature: at least 0, where 0 is greedy decoding.
      top_k: number of tokens to draw from; 0 for all.
      top_p: share of the probability to draw from.
    """

    seed: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


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


Feed = Callable[[int], Sequence[tuple[Any, Request]]]
"""Returns up to so many more requests, each with a key; none if there is none at present."""


class ContinuousDecoder:
    """Greedy or sampled outputs of any number of inputs. All processes of a run call it together.

    Its tokens are those of `greedy_decode` and `sample_decode`; they do not depend on which
    requests are decoded together, but for rounding.

    Attributes:
      max_decode_len: T, the maximum number of tokens of an output, EOS included.
    """

    def __init__(
        self,
        network: OnMesh,
        *,
        max_decode_len: int,
        prompt: Sequence[int] = (),
        scored: bool = False,
        draws: Draws | None = None,
        eos_id: int = EOS_ID,
        like: ContinuousDecoder | None = None,
    ) -> None:
        """Compiles nothing yet.

        Args:
          network: the student on its mesh.
          max_decode_len: T, at least 1.
          prompt: ids that the decoder of every row is fed after its start token; not part of the
            output.
          scored: also compute the log-probabilities of outputs.
          draws: how tokens are sampled; None decodes greedily.
          eos_id: the token that ends an output.
          like: a decoder of the same network, whose programs are used as well as far as they are
            the same: those that read inputs do not depend on how outputs are chosen.
        """
        self.max_decode_len = max_decode_len
        self._model = network.model
        self._read = tuple(prompt) if network.model.reads_prompts else ()
        self._fed = np.array([PAD_ID, *(() if self._read else prompt)], np.int32)
        self._scored = scored
        self._draws = draws
        self._eos_id = eos_id
        self._row_multiple = network.mesh.shape["data"]
        jit, replicated = network.jit, network.replicated
        # Fixed, so that a program is not compiled again for what another one has returned.
        memory, slots = _shardings(network)
        self._empty = jit(self._empty_fn, static_argnums=(0, 1), out_shardings=slots)
        self._grow = jit(self._grow_fn, static_argnums=1, out_shardings=slots)
        self._encode = jit(self._encode_fn, static_argnums=2, out_shardings=memory)
        self._insert = jit(self._insert_fn, donate_argnums=1, out_shardings=slots)
        if like is not None and like._model is self._model:
            self._encode = like._encode
            if like._reads_as(self):
                self._empty, self._grow, self._insert = like._empty, like._grow, like._insert
        self._advance = jit(self._advance_fn, donate_argnums=1, out_shardings=(slots, replicated))

    def __call__(
        self,
        params: Any,
        requests: Sequence[Request],
        row_counts: Sequence[int],
        lengths: Sequence[int],
    ) -> list[Output]:
        """Answers all requests, in their order.

        Args:
          params: the student's parameters on its mesh.
          requests: inputs, of any lengths.
          row_counts: possible numbers of slots, increasing; the smallest that holds all requests is
            taken, or else the largest.
          lengths: see `stream`.
        """
        if not requests:
            return []
        # Inputs of one length need little padding, and their outputs often have one length, too.
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].tokens))
        waiting = collections.deque((i, requests[i]) for i in order)

        def feed(count: int) -> list[tuple[int, Request]]:
            return [waiting.popleft() for _ in range(min(count, len(waiting)))]

        outputs: dict[int, Output] = {}
        rows = shapes.fit(min(len(requests), row_counts[-1]), row_counts)
        # All pools but the last are full: one number of rows is compiled.
        every = shapes.finer(lengths)
        # A step that sees some columns of padding costs little, another length's programs much.
        needed = {shapes.fit(len(request.tokens), lengths) for request in requests}
        lengths = shapes.some(sorted(needed), -(-len(requests) // rows) // _POOLS_PER_LENGTH)
        for ended in self.stream(params, feed, rows, lengths, every, pool_rows=(rows,)):
            outputs.update(ended)
        return [outputs[i] for i in range(len(requests))]

    def stream(
        self,
        params: Any,
        feed: Feed,
        rows: int,
        lengths: Sequence[int],
        encoder_lengths: Sequence[int] | None = None,
        *,
        pool_rows: Sequence[int] | None = None,
    ) -> Iterator[list[tuple[Any, Output]]]:
        """Answers requests until `feed` has none and all slots have ended.

        Args:
          params: the student's parameters on its mesh.
          feed: is asked for requests whenever there are free slots.
          rows: R, the number of slots, a multiple of the mesh's `data` axis.
          lengths: numbers of encoded tokens that the decoder is compiled for, increasing; the last
            is at least the longest request's.
          encoder_lengths: numbers of tokens that the encoder is compiled for, `lengths` among them;
            these alone by default.
          pool_rows: numbers of rows that the encoder is compiled for; as many as are refilled at
            a time by default.

        Yields:
          Keys of requests that ended since the last time, with their outputs.
        """
        chunk = self._chunk(rows)
        pool_rows = pool_rows or (chunk,)
        lengths = [length + self._prompt_columns for length in lengths]
        encoder_lengths = [length + self._prompt_columns for length in encoder_lengths or ()]
        found: list[tuple[Any, Request]] = []
        held: list[Any] = [None] * rows  # the key of each slot's request
        free = collections.deque(range(rows))
        slots: Slots | None = None
        pool: _Pool | None = None
        while True:
            while free:
                if pool is None or not pool.waiting:
                    found = found or list(feed(rows))
                    if not found:
                        break
                    chosen, found = found[: pool_rows[-1]], found[pool_rows[-1] :]
                    pool = self._pool(
                        params, chosen, pool_rows, lengths, encoder_lengths or lengths
                    )
                    slots = self._fitted(slots, rows, pool.length)
                taken = [pool.waiting.popleft() for _ in range(min(chunk, len(free), pool.left))]
                places = [free.popleft() for _ in taken]
                for one, place in zip(taken, places, strict=True):
                    held[place] = (one.key,)
                slots = self._insert(params, slots, pool.memory, _indices(taken, places, chunk))
            if slots is None or len(free) == rows:
                return
            slots, state = self._advance(params, slots, np.int32(chunk))
            active, starts, written, scores = map(np.asarray, state)
            ended = []
            for place in range(rows):
                if held[place] is None or active[place]:
                    continue
                (key,) = held[place]
                held[place] = None
                free.append(place)
                steps = starts[place] + len(self._fed) - 1 + np.arange(self.max_decode_len)
                tokens = written[steps % written.shape[0], place]
                ends = np.flatnonzero(tokens == self._eos_id)
                tokens = tokens[: ends[0] + 1 if ends.size else tokens.size].tolist()
                ended.append((key, Output(tokens, float(scores[place]))))
            yield ended

    def _pool(
        self,
        params: Any,
        found: Sequence[tuple[Any, Request]],
        row_counts: Sequence[int],
        lengths: Sequence[int],
        encoder_lengths: Sequence[int],
    ) -> _Pool:
        """Encodes requests."""
        sequences = [self._with_prompt(request.tokens) for _, request in found]
        longest = max(map(len, sequences))
        length = shapes.fit(longest, lengths)
        rows = shapes.fit(len(sequences), row_counts)
        tokens = shapes.padded_rows(sequences, rows, shapes.fit(longest, encoder_lengths))
        memory = self._encode(params, tokens, length)
        waiting = collections.deque(
            _Encoded(key, request.sample, row) for row, (key, request) in enumerate(found)
        )
        return _Pool(memory, length, waiting)

    def compile(self, params: Any, rows: int, length: int) -> None:
        """Compiles the programs of `stream` for `rows` slots and inputs of up to `length` tokens.

        Nothing runs on the devices, so that another thread may decode meanwhile.

        Args:
          params: the student's parameters on its mesh.
          rows: a number of slots, as `stream` takes it.
          length: the one length that `stream` is given.
        """
        length += self._prompt_columns
        chunk = self._chunk(rows)
        slots = _compiled(self._empty, rows, length)
        tokens = np.zeros((chunk, length), np.int32)
        memory = _compiled(self._encode, params, tokens, length)
        taken = _Taken(
            np.zeros(chunk, np.int32), np.zeros(chunk, np.uint32), np.zeros(chunk, np.int32)
        )
        _compiled(self._insert, params, slots, memory, taken)
        _compiled(self._advance, params, slots, np.int32(chunk))

    def _chunk(self, rows: int) -> int:
        """How many of so many slots are refilled at a time."""
        return min(rows, shapes.round_up(max(1, rows // REFILL_SHARE), self._row_multiple))

    @property
    def _prompt_columns(self) -> int:
        """Columns that prompts need behind inputs, the same for prompts of about one length."""
        return shapes.round_up(len(self._read), _PROMPT_MULTIPLE)

    def _with_prompt(self, tokens: Sequence[int]) -> Sequence[int]:
        """The tokens of an input, with the prompt in front of its EOS if that is read with it."""
        if not self._read:
            return tokens
        # A text that is nothing but EOS is read; see `decoder.rows.without_end`.
        end = len(tokens) - (tokens[-1] == EOS_ID and len(tokens) > 1)
        return (*tokens[:end], *self._read, *tokens[end:])

    def _reads_as(self, other: ContinuousDecoder) -> bool:
        """Whether inputs get into slots by the same programs."""
        return (
            self.max_decode_len == other.max_decode_len
            and self._fed.tolist() == other._fed.tolist()
        )

    def _fitted(self, slots: Slots | None, rows: int, length: int) -> Slots:
        """Returns slots whose memory has room for `length` tokens."""
        if slots is None:
            return self._empty(rows, length)
        if length > slots.memory.bias.shape[-1]:
            return self._grow(slots, length)
        return slots

    def _empty_fn(self, rows: int, length: int) -> Slots:
        ring = len(self._fed) - 1 + self.max_decode_len
        cache = self._model.apply({}, rows, ring, method=_empty_cache)
        zeros = jnp.zeros(rows, jnp.int32)
        return Slots(
            step=jnp.int32(0),
            tokens=zeros,
            starts=zeros,
            active=jnp.zeros(rows, bool),
            written=jnp.zeros((ring, rows), jnp.int32),
            scores=jnp.zeros(rows, jnp.float32),
            samples=jnp.zeros(rows, jnp.uint32),
            memory=self._model.apply({}, rows, length, method="empty_memory"),
            cache=cache,
        )

    def _grow_fn(self, slots: Slots, length: int) -> Slots:
        return dataclasses.replace(slots, memory=slots.memory.widened(length))

    def _encode_fn(self, params: Any, tokens: Int[Array, "B S"], length: int) -> EncoderMemory:
        memory, _ = self._model.apply({"params": params}, tokens, 1, method="start_decoding")
        return memory.widened(length)

    def _insert_fn(self, params: Any, slots: Slots, pool: EncoderMemory, taken: _Taken) -> Slots:
        """Puts encoded inputs into slots; the last one may be there several times."""
        count = taken.rows.shape[0]

        def put(array: Array, rows: Array | np.ndarray) -> Array:
            for i in range(count):
                array = lax.dynamic_update_index_in_dim(array, rows[i], taken.places[i], axis=0)
            return array

        pool = pool.widened(slots.memory.bias.shape[-1])
        own = jax.tree.map(lambda array: jnp.take(array, taken.rows, axis=0), pool)
        prompt_length = len(self._fed) - 1
        cache = slots.cache
        if prompt_length:
            cache = jax.tree.map(put, cache, self._prompted(params, own, slots))
        broadcast = functools.partial(jnp.broadcast_to, shape=(count,))
        return dataclasses.replace(
            slots,
            tokens=put(slots.tokens, broadcast(jnp.int32(self._fed[-1]))),
            starts=put(slots.starts, broadcast(slots.step - prompt_length)),
            active=put(slots.active, broadcast(jnp.bool_(True))),
            scores=put(slots.scores, broadcast(jnp.float32(0.0))),
            samples=put(slots.samples, taken.samples),
            memory=jax.tree.map(put, slots.memory, own),
            cache=cache,
        )

    def _prompted(self, params: Any, memory: EncoderMemory, slots: Slots) -> DecoderCache:
        """A cache [Q, H, L, K] that holds the prompt in the slots before the present step's."""
        fed = self._fed[:-1]
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
        position = slots.step - slots.starts - (len(self._fed) - 1)
        tokens = jnp.where(slots.active, self._choose(logits, position, slots.samples), PAD_ID)
        scores = slots.scores
        if self._scored:
            chosen = jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
            log_probs = chosen - jax.nn.logsumexp(logits, axis=-1)
            scores += jnp.where(slots.active, log_probs, 0.0)
        ended = (tokens == self._eos_id) | (position + 1 >= self.max_decode_len)
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


@dataclasses.dataclass(frozen=True)
class _Encoded:
    """A request that is encoded in a row of a pool."""

    key: Any
    sample: int
    row: int


@dataclasses.dataclass
class _Pool:
    """Encoded requests that wait for slots; `length` is the slots' memory that they need."""

    memory: EncoderMemory
    length: int
    waiting: collections.deque[_Encoded]

    @property
    def left(self) -> int:
        """How many requests wait."""
        return len(self.waiting)


class _Taken(NamedTuple):
    """Requests of a pool on their way into slots; all int32 [Q], samples uint32."""

    rows: Array | np.ndarray
    samples: Array | np.ndarray
    places: Array | np.ndarray


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


def _indices(taken: Sequence[_Encoded], places: Sequence[int], count: int) -> _Taken:
    """Repeats the last request, so that programs have one shape."""
    chosen = [*taken, *[taken[-1]] * (count - len(taken))]
    places = [*places, *[places[-1]] * (count - len(places))]
    return _Taken(
        np.array([one.row for one in chosen], np.int32),
        np.array([one.sample for one in chosen], np.uint32),
        np.array(places, np.int32),
    )


def _compiled(program: Any, *args: Any) -> Any:
    """Compiles a program for arguments; returns the shapes of its results, on their devices."""
    lowered = program.lower(*args)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        lowered.out_info,
        lowered.compile().output_shardings,
    )


def _empty_cache(model: Any, rows: int, slots: int) -> DecoderCache:
    return model.decoder.empty_cache(rows, slots)
