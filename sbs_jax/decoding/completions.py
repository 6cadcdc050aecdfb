"""Generates completions in batches: one shared prefix, left-padded rows, a key-value cache.

The prompts of a data set are mostly the same exemplars: their common beginning goes through the
network once, and every row of every batch attends to that one copy. Rows are grouped by length;
the batch shrinks when most of its rows have ended, and its cache grows when it must.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sbs_jax.decoding import completion_programs as programs
from sbs_jax.decoding.shapes import round_up
from sbs_jax.models.decoder.config import DecoderConfig
from sbs_jax.models.decoder.network import DecoderOnly
from sbs_jax.models.decoder.stack import Memory, as_prefix
from sbs_jax.models.stacks import DecoderCache
from sbs_jax.partitioning.mesh import DATA_AXIS, MODEL_AXIS

_MIN_PREFIX = 16
_PREFILL_TOKENS = 4096  # rows × columns that go through the network at once
_PREFILL_COLUMNS = 512


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """One completion to generate.

    Attributes:
      tokens: The prompt.
      max_new: The most tokens to generate.
      temperature, top_p, seed: How to sample; temperature 0 is greedy.
      stop: Strings that end the completion and are no part of it.
    """

    tokens: tuple[int, ...]
    max_new: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclasses.dataclass(slots=True)
class Said:
    """A completion: its text, why it ended ('stop' or 'length'), tokens, their log-probability."""

    text: str = ""
    finish_reason: str = "length"
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprob: float = 0.0


@dataclasses.dataclass
class Work:
    """What the engine has computed, in tokens."""

    prefix: int = 0
    prompts: int = 0
    shared: int = 0
    generated: int = 0
    batches: int = 0


class Tokenizer(Protocol):
    """What generating needs of a tokenizer; see `checkpoints.decoder_tokenizer`.

    Attributes:
      end_ids: Tokens that end a completion.
    """

    end_ids: tuple[int, ...]

    def decode(self, tokens: list[int]) -> str:
        """Returns the text of a completion, without control tokens."""


class CompletionEngine:
    """A decoder on a mesh, ready to generate.

    Args:
      config: The network's dimensions.
      params: The parameters of the decoder, on `mesh`.
      tokenizer: Decodes completions, and knows which tokens end one.
      mesh: Parameters lie along its `model` axis, rows along `data`.
      dtype: The type of weights and activations, `float32` or `bfloat16`.
      batch_size: The most rows at once.
      share_prefix: Whether the prompts' common beginning is computed once (else every row computes
        its own: for comparison).
    """

    def __init__(
        self,
        config: DecoderConfig,
        params: Any,
        tokenizer: Tokenizer,
        mesh: Mesh,
        *,
        dtype: str = "float32",
        batch_size: int = 32,
        share_prefix: bool = True,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.work = Work()
        self._mesh = mesh
        self._share = share_prefix
        self._params = params
        # The dtype of activations is that of the weights.
        self._network = DecoderOnly(dataclasses.replace(config, dtype=dtype))
        self._prefix_tokens: tuple[int, ...] = ()
        self._prefix: DecoderCache | None = None
        even = self.config.num_kv_heads % mesh.shape[MODEL_AXIS] == 0
        self._heads = MODEL_AXIS if even else None
        self._ends = jnp.asarray(tokenizer.end_ids or (-1,), jnp.int32)

    def generate(self, jobs: Sequence[Job], common: Sequence[int] | None = None) -> list[Said]:
        """Generates a completion for each of at most `batch_size` jobs.

        Args:
          jobs: What to generate; the nearer their lengths, the less is padded.
          common: The common beginning of these and of later jobs, where the caller knows more than
            this batch; that of `jobs` by default.
        """
        beginning = shared_beginning([job.tokens for job in jobs])
        if common is not None:
            beginning = beginning[: len(shared_beginning([beginning, common]))]
        prefix, shared = self._prefix_for(tuple(beginning), len(jobs)) if self._share else (None, 0)
        self.work.batches += 1
        self.work.shared += shared * len(jobs)
        self.work.prompts += sum(len(job.tokens) for job in jobs)
        return _Batch(self, jobs, prefix, shared).run()

    def _prefix_for(self, beginning: tuple[int, ...], rows: int) -> tuple[Memory | None, int]:
        """Returns what rows need not compute, and its tokens: a stored prefix or a new one.

        Of the stored prefix any beginning serves, so that prompts that come one at a time share
        what each has in common with an earlier one. It is used where a new one would not have been
        quicker for these rows.
        """
        known = self._prefix_tokens
        same = _same(known, beginning)
        extra = (len(beginning) - same) * rows
        whole = same == len(known) or extra <= len(beginning)
        if same >= _MIN_PREFIX and whole and 2 * same >= len(beginning):
            assert self._prefix is not None
            return as_prefix(self._prefix, jnp.int32(same)), same
        if len(beginning) < _MIN_PREFIX:
            return None, 0
        length = len(beginning)
        padded = round_up(length, 128)
        tokens = np.zeros((1, padded), np.int32)
        tokens[0, :length] = beginning
        cache = programs.empty_cache(self._network, 1, padded)
        _, cache = self._prefill(tokens, np.zeros(1, np.int32), cache, None)
        everywhere = NamedSharding(self._mesh, PartitionSpec(None, self._heads))
        cache = jax.tree.map(lambda array: jax.device_put(array, everywhere), cache)
        self._prefix = cache
        self._prefix_tokens = beginning
        self.work.prefix += length
        return as_prefix(cache, jnp.int32(length)), length

    def _prefill(
        self,
        tokens: np.ndarray,
        padding: np.ndarray,
        cache: DecoderCache,
        prefix: Memory | None,
    ) -> tuple[jax.Array, DecoderCache]:
        """Sends prompts [B, N] through the network in pieces; returns the last logits [B, V]."""
        logits: Any = None
        for start in range(0, tokens.shape[1], _PREFILL_COLUMNS):
            piece = tokens[:, start : start + _PREFILL_COLUMNS]
            logits, cache = programs.prefill(
                self._params,
                self._network,
                jnp.asarray(piece),
                jnp.int32(start),
                jnp.asarray(padding),
                cache,
                prefix,
            )
        return logits, cache

    def rows_sharding(self, rows: int) -> NamedSharding:
        """Rows lie along `data` when they divide."""
        even = rows % self._mesh.shape[DATA_AXIS] == 0
        return NamedSharding(self._mesh, PartitionSpec(DATA_AXIS if even else None))

    def cache(self, rows: int, columns: int) -> DecoderCache:
        """Returns an empty cache on the mesh."""
        data = self.rows_sharding(rows).spec
        sharding = NamedSharding(self._mesh, PartitionSpec(*data, self._heads))
        empty = programs.empty_cache(self._network, rows, columns)
        return jax.tree.map(lambda array: jax.device_put(array, sharding), empty)


class _Batch:
    """The state of one batch, on its way."""

    def __init__(
        self,
        engine: CompletionEngine,
        jobs: Sequence[Job],
        prefix: Memory | None,
        shared: int,
    ) -> None:
        self.engine = engine
        self.jobs = jobs
        self.prefix = prefix
        self.said = [Said() for _ in jobs]
        self.open = set(range(len(jobs)))
        self.rest = [job.tokens[shared:] for job in jobs]
        # row → job; rows beyond the jobs only fill the batch up to a round number.
        self.rows = [*range(len(jobs))]
        self.size = _power_of_two(len(jobs))

    def run(self) -> list[Said]:
        self._prefill()
        while self.open:
            self._make_room()
            self._decode()
            self._shrink()
        self.engine.work.generated += sum(len(said.tokens) for said in self.said)
        return self.said

    def _prefill(self) -> None:
        engine = self.engine
        length = round_up(max(map(len, self.rest)), 16 if self.prefix is not None else 64)
        columns = round_up(length + 48, 64)
        tokens = np.zeros((self.size, length), np.int32)
        padding = np.full(self.size, length - 1, np.int32)
        for row, rest in enumerate(self.rest):
            tokens[row, length - len(rest) :] = rest
            padding[row] = length - len(rest)
        at_once = max(1, _PREFILL_TOKENS // min(length, _PREFILL_COLUMNS))
        at_once = min(self.size, 2 ** (at_once.bit_length() - 1))
        parts: list[tuple[jax.Array, DecoderCache]] = []
        for start in range(0, self.size, at_once):
            part = slice(start, start + at_once)
            cache = engine.cache(at_once, columns)
            parts.append(engine._prefill(tokens[part], padding[part], cache, self.prefix))
        joined: tuple[jax.Array, DecoderCache] = (
            parts[0]
            if len(parts) == 1
            else jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)
        )
        self.logits, self.store = joined
        self.padding = padding
        self.column, self.columns = length, columns

    def _decode(self) -> None:
        """Decodes a few tokens of every row, then looks at what came out."""
        jobs = [self.jobs[number] for number in self.rows]
        jobs += [Job((), 0)] * (self.size - len(jobs))
        made = [len(self.said[number].tokens) for number in self.rows]
        made += [0] * (self.size - len(made))
        ended = [number not in self.open for number in self.rows]
        ended += [True] * (self.size - len(ended))
        settings = {
            "temperature": np.asarray([job.temperature for job in jobs], np.float32),
            "top_p": np.asarray([job.top_p for job in jobs], np.float32),
            "seed": np.asarray([job.seed & 0x7FFFFFFF for job in jobs], np.int32),
            "limit": np.asarray([job.max_new for job in jobs], np.int32),
        }
        out = programs.decode(
            self.engine._params,
            self.engine._network,
            self.logits,
            jnp.int32(self.column),
            jnp.asarray(self.padding),
            self.store,
            self.prefix,
            jnp.asarray(ended),
            jnp.asarray(made, jnp.int32),
            settings,
            self.engine._ends,
            any(job.temperature > 0 for job in jobs),
            any(job.temperature > 0 and job.top_p < 1 for job in jobs),
        )
        self.logits, self.store = out["logits"], out["store"]
        tokens, valid, logprobs, eos = jax.device_get(
            (out["tokens"], out["valid"], out["logprobs"], out["eos"])
        )
        self.column += programs.STEPS
        for row, number in enumerate(self.rows):
            if number in self.open:
                self._take(number, tokens[row], valid[row], logprobs[row], bool(eos[row]))

    def _take(self, number: int, tokens: Any, valid: Any, logprobs: Any, eos: bool) -> None:
        said, job = self.said[number], self.jobs[number]
        said.tokens += [int(token) for token in tokens[valid]]
        said.logprob += float(logprobs[valid].sum())
        said.text = self.engine.tokenizer.decode(said.tokens)
        places = [place for stop in job.stop if (place := said.text.find(stop)) >= 0]
        if places:
            said.text, said.finish_reason = said.text[: min(places)], "stop"
        elif eos:
            said.finish_reason = "stop"
        elif len(said.tokens) < job.max_new:
            return
        self.open.discard(number)

    def _make_room(self) -> None:
        """Grows the cache when the next steps would not fit: doubled, so that few shapes occur."""
        if self.column + programs.STEPS <= self.columns:
            return
        more = self.columns
        self.store = jax.tree.map(
            lambda array: jnp.pad(array, ((0, 0), (0, 0), (0, more), (0, 0))), self.store
        )
        self.columns += more

    def _shrink(self) -> None:
        """Drops rows that have ended, once a quarter or less are left."""
        size = _power_of_two(len(self.open))
        if not self.open or 4 * size > self.size:
            return
        kept = [row for row, number in enumerate(self.rows) if number in self.open]
        self.rows = [self.rows[row] for row in kept]
        take = np.asarray(kept + [kept[0]] * (size - len(kept)))
        self.padding = self.padding[take]
        self.logits, self.store = jax.tree.map(
            lambda array: jnp.take(array, take, axis=0), (self.logits, self.store)
        )
        self.size = size


def shared_beginning(prompts: Sequence[Sequence[int]]) -> Sequence[int]:
    """Returns the longest common beginning that leaves at least one token of every prompt."""
    tuples = [tuple(prompt) for prompt in prompts]
    low, high = min(tuples), max(tuples)
    end = min(len(low), len(high), *(len(prompt) - 1 for prompt in prompts))
    for place in range(end):
        if low[place] != high[place]:
            return low[:place]
    return low[: max(end, 0)]


def _same(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of tokens with which both begin."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
