"""The compiled programs behind a `Predictor`: the decoding room's functions on one student."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sbs_jax.decoding.beam import beam_decode
from sbs_jax.decoding.candidates import CandidateTree, candidate_tree
from sbs_jax.decoding.greedy import greedy_decode, greedy_decode_scored
from sbs_jax.decoding.ranking import rank_candidates
from sbs_jax.decoding.saliency import input_saliency
from sbs_jax.decoding.sampling import sample_decode
from sbs_jax.errors import UserError
from sbs_jax.inference.prompting import LABEL, RATIONALE
from sbs_jax.student import Student

Batch = dict[str, jax.Array]
STRATEGIES = ("greedy", "sample", "beam")


@dataclasses.dataclass(frozen=True)
class Strategy:
    """How rationales are written.

    Attributes:
      decoding: `greedy`, `sample` or `beam`.
      temperature: of sampling.
      top_k: sample among so many tokens; 0 is all.
      top_p: sample among the fewest tokens that have this share of the probability.
      num_beams: of beam search, also of the best labels where the label set is open.
      length_penalty: T5X's α of beam search.
      seed: of sampling.

    Raises:
      UserError: a value is out of its range.
    """

    decoding: str = "greedy"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    num_beams: int = 4
    length_penalty: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        if self.decoding not in STRATEGIES:
            raise UserError(
                f"RATIONALE_DECODING = {self.decoding!r} is unknown; there are "
                f"{', '.join(STRATEGIES)}."
            )
        for macro, value, ok in (
            ("TEMPERATURE", self.temperature, self.temperature >= 0),
            ("TOP_K", self.top_k, self.top_k >= 0),
            ("TOP_P", self.top_p, 0 < self.top_p <= 1),
            ("NUM_BEAMS", self.num_beams, self.num_beams >= 1),
        ):
            if not ok:
                raise UserError(f"{macro} = {value} is out of its range.")


class Programs:
    """One student's programs, compiled for each shape when it first comes."""

    def __init__(
        self,
        student: Student,
        prompts: Mapping[str, Sequence[int]],
        max_decode_len: int,
        strategy: Strategy,
    ) -> None:
        """Compiles nothing yet.

        Args:
          student: the network on its mesh.
          prompts: for `label` and `rationale`, tokens that the decoder is fed first.
          max_decode_len: the most tokens of an answer.
          strategy: how rationales are written.
        """
        self._student = student
        self._length = max_decode_len
        self._strategy = strategy
        self._model = student.model
        self._prompts = {
            kind: jnp.asarray(tokens, jnp.int32) if len(tokens) else None
            for kind, tokens in prompts.items()
        }
        jit = functools.partial(student.jit, out_shardings=student.replicated)
        self._greedy = jit(self._greedy_fn)
        self._write = jit(self._write_fn)
        self._rank = jit(self._rank_fn)
        self._explain = jit(self._explain_fn)
        self._saliency = jit(self._saliency_fn)
        self._best = functools.cache(lambda count: jit(functools.partial(self._best_fn, count)))
        self._shared = functools.cache(self._tree)

    def greedy(self, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Labels int32 [B, 1, T], and their log-probabilities float32 [B, 1]."""
        return self._greedy(params, batch)

    def best(self, params: Any, batch: Batch, count: int) -> tuple[jax.Array, jax.Array]:
        """The `count` most probable labels that a beam search finds, as `greedy`: [B, count, T]."""
        return self._best(count)(params, batch)

    def write(self, params: Any, batch: Batch) -> jax.Array:
        """What the label prefix makes the student write, greedily: int32 [B, T]."""
        return self._write(params, batch)

    def rank_shared(
        self, params: Any, batch: Batch, candidates: tuple[tuple[int, ...], ...]
    ) -> jax.Array:
        """Log-probabilities float32 [B, C] of candidates that all rows share."""
        return self._rank(params, batch, self._shared(candidates))

    def rank_own(self, params: Any, batch: Batch) -> jax.Array:
        """Log-probabilities float32 [B, C] of `batch['candidates']`, int32 [B, C, T]."""
        return self._rank(params, batch, None)

    def explain(self, params: Any, batch: Batch) -> jax.Array:
        """Rationales int32 [B, T]; `batch['samples']` [B] chooses the random numbers, if any."""
        return self._explain(params, batch)

    def saliency(self, params: Any, batch: Batch) -> jax.Array:
        """Gradient × input float32 [B, S] of `batch['targets']`, int32 [B, T]."""
        return self._saliency(params, batch)

    def _greedy_fn(self, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        sequences, scores = greedy_decode_scored(
            self._model,
            params,
            batch["tokens"],
            max_decode_len=self._length,
            decoder_prompt=self._prompts[LABEL],
        )
        return sequences[:, None], scores[:, None]

    def _best_fn(self, count: int, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        sequences, _ = beam_decode(
            self._model,
            params,
            batch["tokens"],
            max_decode_len=self._length,
            num_beams=max(count, self._strategy.num_beams),
            alpha=0.0,  # no length penalty: the score is the log-probability
            num_return=count,
            decoder_prompt=self._prompts[LABEL],
        )
        return sequences, self._log_probabilities(params, batch, sequences)

    def _write_fn(self, params: Any, batch: Batch) -> jax.Array:
        return greedy_decode(
            self._model,
            params,
            batch["tokens"],
            max_decode_len=self._length,
            decoder_prompt=self._prompts[LABEL],
        )

    def _rank_fn(self, params: Any, batch: Batch, shared: CandidateTree | None) -> jax.Array:
        if shared is None:
            return self._log_probabilities(params, batch, batch["candidates"])
        return rank_candidates(self._model, params, batch["tokens"], shared)

    def _log_probabilities(self, params: Any, batch: Batch, candidates: jax.Array) -> jax.Array:
        return rank_candidates(
            self._model,
            params,
            batch["tokens"],
            candidates,
            decoder_prompt=self._prompts[LABEL],
        )

    def _explain_fn(self, params: Any, batch: Batch) -> jax.Array:
        chosen = self._strategy
        common = {"max_decode_len": self._length, "decoder_prompt": self._prompts[RATIONALE]}
        if chosen.decoding == "greedy":
            return greedy_decode(self._model, params, batch["tokens"], **common)
        if chosen.decoding == "beam":
            sequences, _ = beam_decode(
                self._model,
                params,
                batch["tokens"],
                num_beams=chosen.num_beams,
                alpha=chosen.length_penalty,
                **common,
            )
        else:
            sequences, _ = sample_decode(
                self._model,
                params,
                batch["tokens"],
                rng=jax.vmap(jax.random.fold_in, (None, 0))(
                    jax.random.key(chosen.seed), batch["samples"]
                ),
                temperature=chosen.temperature,
                top_k=chosen.top_k,
                top_p=chosen.top_p,
                **common,
            )
        return sequences[:, 0]

    def _saliency_fn(self, params: Any, batch: Batch) -> jax.Array:
        return input_saliency(
            self._model,
            params,
            batch["tokens"],
            batch["targets"],
            decoder_prompt=self._prompts[LABEL],
        )

    def _tree(self, candidates: tuple[tuple[int, ...], ...]) -> CandidateTree:
        padded = np.zeros((len(candidates), max(map(len, candidates))), np.int32)
        for row, ids in enumerate(candidates):
            padded[row, : len(ids)] = ids
        prompt = self._prompts[LABEL]
        return candidate_tree(padded, None if prompt is None else np.asarray(prompt))
