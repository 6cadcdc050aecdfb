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
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sbs_jax.decoding import shapes
from sbs_jax.decoding.slots import Draws, OnMesh, SlotPrograms, Slots, Taken
from sbs_jax.models.stacks import EncoderMemory
from sbs_jax.token_ids import EOS_ID

REFILL_SHARE = 4
"""Slots are refilled when one in so many has ended."""
ENCODED_TOKENS = 8192
"""How many tokens of inputs a device reads at a time, unless the slots to refill need more."""
ENCODED_TOKENS_ON_CPU = 1024
"""The same for a CPU, whose caches hold what so few become in a small network: twice as many took
an eighth longer for each, half as many a tenth."""
_POOLS_PER_LENGTH = 8
_PROMPT_MULTIPLE = 8


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


Feed = Callable[[int], Sequence[tuple[Any, Request]]]
"""Returns up to so many more requests, each with a key; none if there is none at present."""


class ContinuousDecoder:
    """Greedy or sampled outputs of any number of inputs. All processes of a run call it together.

    Its tokens are those of `greedy_decode` and `sample_decode`; they do not depend on which
    requests are decoded together, but for rounding.

    Attributes:
      max_decode_len: T, the maximum number of tokens of an output, EOS included.
      programs: what runs on the devices.
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
        few_queries: bool = False,
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
          few_queries: whether outputs are expected to have few tokens, as labels do, whatever their
            maximum; the tokens are the same, but for rounding.
          like: a decoder of the same network, whose programs are used as well as far as they are
            the same: those that read inputs do not depend on how outputs are chosen.
        """
        self.max_decode_len = max_decode_len
        self.programs: SlotPrograms = SlotPrograms(
            network,
            max_decode_len=max_decode_len,
            prompt=prompt,
            scored=scored,
            draws=draws,
            eos_id=eos_id,
            few_queries=few_queries,
            like=None if like is None else like.programs,
        )

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
        many = len(requests) >= shapes.MANY_BATCHES * rows
        every = shapes.finer(lengths, 8 if many else 16)
        encoder_rows = {length: self._encoder_rows(rows, length) for length in every}
        # A step that sees some columns of padding costs little, another length's programs much.
        needed = {shapes.fit(len(request.tokens), lengths) for request in requests}
        lengths = shapes.some(sorted(needed), -(-len(requests) // rows) // _POOLS_PER_LENGTH)
        for ended in self.stream(params, feed, rows, lengths, encoder_rows):
            outputs.update(ended)
        return [outputs[i] for i in range(len(requests))]

    def stream(
        self,
        params: Any,
        feed: Feed,
        rows: int,
        lengths: Sequence[int],
        encoder_rows: Mapping[int, int] | None = None,
    ) -> Iterator[list[tuple[Any, Output]]]:
        """Answers requests until `feed` has none and all slots have ended.

        Args:
          params: the student's parameters on its mesh.
          feed: is asked for requests whenever there are free slots.
          rows: R, the number of slots, a multiple of the mesh's `data` axis.
          lengths: numbers of encoded tokens that the decoder is compiled for, increasing; the last
            is at least the longest request's.
          encoder_rows: the number of rows that the encoder is compiled for at each length,
            `lengths` among them; by default at these alone, as many as are refilled at a time.

        Yields:
          Keys of requests that ended since the last time, with their outputs.
        """
        programs = self.programs
        chunk = self._chunk(rows)
        encoder_rows = encoder_rows or dict.fromkeys(lengths, chunk)
        columns = self._prompt_columns
        lengths = [length + columns for length in lengths]
        encoder_rows = {length + columns: count for length, count in encoder_rows.items()}
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
                    pool, found = self._pool(params, found, lengths, encoder_rows)
                    slots = self._fitted(slots, rows, pool.length)
                taken = [pool.waiting.popleft() for _ in range(min(chunk, len(free), pool.left))]
                places = [free.popleft() for _ in taken]
                for one, place in zip(taken, places, strict=True):
                    held[place] = (one.key,)
                slots = programs.insert(params, slots, pool.memory, _indices(taken, places, chunk))
            if slots is None or len(free) == rows:
                return
            slots, state = programs.advance(params, slots, np.int32(chunk))
            active, starts, written, scores = map(np.asarray, state)
            ended = []
            for place in range(rows):
                if held[place] is None or active[place]:
                    continue
                (key,) = held[place]
                held[place] = None
                free.append(place)
                steps = starts[place] + len(programs.fed) - 1 + np.arange(self.max_decode_len)
                tokens = written[steps % written.shape[0], place]
                ends = np.flatnonzero(tokens == programs.eos_id)
                tokens = tokens[: ends[0] + 1 if ends.size else tokens.size].tolist()
                ended.append((key, Output(tokens, float(scores[place]))))
            yield ended

    def _pool(
        self,
        params: Any,
        found: Sequence[tuple[Any, Request]],
        lengths: Sequence[int],
        encoder_rows: Mapping[int, int],
    ) -> tuple[_Pool, list[tuple[Any, Request]]]:
        """Encodes the first of some requests; also returns those that are left."""
        sequences = [self._with_prompt(request.tokens) for _, request in found]
        sizes = sorted(encoder_rows)
        columns = [
            shapes.fit(size, sizes) for size in itertools.accumulate(map(len, sequences), max)
        ]
        # As many as are read at a time at the length that they need.
        fitting = itertools.takewhile(
            lambda row: row < encoder_rows[columns[row]], range(len(sequences))
        )
        count = len(list(fitting))
        sequences, width = sequences[:count], columns[count - 1]
        tokens = shapes.padded_rows(sequences, encoder_rows[width], width)
        length = shapes.fit(max(map(len, sequences)), lengths)
        memory = self.programs.encode(params, tokens, length)
        waiting = collections.deque(
            _Encoded(key, request.sample, row) for row, (key, request) in enumerate(found[:count])
        )
        return _Pool(memory, length, waiting), list(found[count:])

    def _encoder_rows(self, rows: int, length: int) -> int:
        """How many inputs of a length are read at a time: some chunks, at most `rows`."""
        programs = self.programs
        tokens = ENCODED_TOKENS_ON_CPU if programs.on_cpu else ENCODED_TOKENS
        most = min(rows, tokens * programs.row_multiple // length)
        count = self._chunk(rows)
        while 2 * count <= most:
            count *= 2
        return count

    def compile(self, params: Any, rows: int, length: int) -> None:
        """Compiles the programs of `stream` for `rows` slots and inputs of up to `length` tokens.

        Args:
          params: the student's parameters on its mesh.
          rows: a number of slots, as `stream` takes it.
          length: the one length that `stream` is given.
        """
        self.programs.compile(params, rows, self._chunk(rows), length + self._prompt_columns)

    def arguments(self, params: Any, rows: int, length: int) -> dict[str, tuple[Any, ...]]:
        """The shapes in which a call runs its programs if all slots are in use, and inputs long.

        Args:
          params: the student's parameters on its mesh, or their shapes.
          rows: the number of slots.
          length: the largest of the possible numbers of encoded tokens.

        Returns:
          See `SlotPrograms.arguments`.
        """
        chunk, pool_rows = self._chunk(rows), self._encoder_rows(rows, length)
        columns = length + self._prompt_columns
        return self.programs.arguments(params, rows, chunk, columns, pool_rows)

    def _chunk(self, rows: int) -> int:
        """How many of so many slots are refilled at a time."""
        return min(rows, shapes.round_up(max(1, rows // REFILL_SHARE), self.programs.row_multiple))

    @property
    def _prompt_columns(self) -> int:
        """Columns that prompts need behind inputs, the same for prompts of about one length."""
        return shapes.round_up(len(self.programs.read), _PROMPT_MULTIPLE)

    def _with_prompt(self, tokens: Sequence[int]) -> Sequence[int]:
        """The tokens of an input, with the prompt in front of its EOS if that is read with it."""
        if not self.programs.read:
            return tokens
        # A text that is nothing but EOS is read; see `decoder.rows.without_end`.
        end = len(tokens) - (tokens[-1] == EOS_ID and len(tokens) > 1)
        return (*tokens[:end], *self.programs.read, *tokens[end:])

    def _fitted(self, slots: Slots | None, rows: int, length: int) -> Slots:
        """Returns slots whose memory has room for `length` tokens."""
        if slots is None:
            return self.programs.empty(rows, length)
        if length > slots.memory.bias.shape[-1]:
            return self.programs.grow(slots, length)
        return slots


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


def _indices(taken: Sequence[_Encoded], places: Sequence[int], count: int) -> Taken:
    """Repeats the last request, so that programs have one shape."""
    chosen = [*taken, *[taken[-1]] * (count - len(taken))]
    places = [*places, *[places[-1]] * (count - len(places))]
    return Taken(
        np.array([one.row for one in chosen], np.int32),
        np.array([one.sample for one in chosen], np.uint32),
        np.array(places, np.int32),
    )
