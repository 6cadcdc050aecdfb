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
from sbs_jax.decoding.continuous import ContinuousDecoder
from sbs_jax.decoding.ranking import rank_candidates
from sbs_jax.decoding.saliency import input_saliency
from sbs_jax.decoding.slots import Draws
from sbs_jax.errors import UserError
from sbs_jax.inference.prompting import LABEL_KIND, RATIONALE_KIND
from sbs_jax.student import Student

Arrays = dict[str, jax.Array]
"""The rows of a batch: `tokens` int32 [B, S], and what else a program reads."""
STRATEGIES = ("greedy", "sample", "beam")


@dataclasses.dataclass(frozen=True)
class Strategy:
    """How rationales are decoded.

    Attributes:
      decoding: `greedy`, `sample` or `beam`.
      temperature: the temperature of sampling.
      top_k: sampling draws from this number of most likely tokens; 0 draws from all.
      top_p: sampling draws from the fewest tokens whose probabilities sum to at least this.
      num_beams: beams of beam search, which also finds the best labels of an open label set.
      length_penalty: the exponent α of T5X's length penalty in beam search.
      seed: the seed of sampling.

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
    """The compiled programs of one student; each is compiled for a shape when it first occurs.

    Attributes:
      labels: writes labels of an open label set, greedily, with their log-probabilities.
      outputs: writes, greedily, the answer of a student that explains itself with its label.
      rationales: writes rationales; None if these are searched for by `beam`.
      tree: `(candidates)`, what `ranking` wants of labels' tokens that all rows share.
      ranking: `(params, batch, tree)`; see `rank_shared` and, with None for a tree, `rank_own`.
      searching: `(params, batch)`; see `search`.
    """

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
          prompts: tokens that the decoder is fed first, for `label` and `rationale`.
          max_decode_len: maximum number of tokens of an answer.
          strategy: how rationales are decoded.
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
        self.ranking = jit(self._rank_fn)
        self.searching = jit(self._search_fn)
        self._saliency = jit(self._saliency_fn)
        self._best = functools.cache(lambda count: jit(functools.partial(self._best_fn, count)))
        self.tree = functools.cache(self._tree)
        decoder = functools.partial(ContinuousDecoder, student, max_decode_len=max_decode_len)
        self.labels = decoder(prompt=prompts[LABEL_KIND], scored=True, few_queries=True)
        self.outputs = decoder(prompt=prompts[LABEL_KIND], like=self.labels)
        self.rationales: ContinuousDecoder | None = None
        if strategy.decoding != "beam":
            draws = Draws(strategy.seed, strategy.temperature, strategy.top_k, strategy.top_p)
            self.rationales = decoder(
                prompt=prompts[RATIONALE_KIND],
                draws=draws if strategy.decoding == "sample" else None,
                like=self.outputs,
            )

    def best(self, params: Any, batch: Arrays, count: int) -> tuple[jax.Array, jax.Array]:
        """Returns the `count` most probable labels that a beam search finds.

        Returns:
          int32 [B, count, T] and their log-probabilities float32 [B, count].
        """
        return self._best(count)(params, batch)

    def rank_shared(
        self, params: Any, batch: Arrays, candidates: tuple[tuple[int, ...], ...]
    ) -> jax.Array:
        """Log-probabilities float32 [B, C] of candidates that all rows share."""
        return self.ranking(params, batch, self.tree(candidates))

    def rank_own(self, params: Any, batch: Arrays) -> jax.Array:
        """Log-probabilities float32 [B, C] of `batch['candidates']`, int32 [B, C, T]."""
        return self.ranking(params, batch, None)

    def compile_rank(
        self, params: Any, batch: Arrays, shared: tuple[tuple[int, ...], ...] | None
    ) -> None:
        """Compiles `rank_shared`, or without shared candidates `rank_own`; runs nothing."""
        self.ranking.lower(params, batch, None if shared is None else self.tree(shared)).compile()

    def compile_search(self, params: Any, batch: Arrays) -> None:
        """Compiles `search`; runs nothing."""
        self.searching.lower(params, batch).compile()

    def search(self, params: Any, batch: Arrays) -> jax.Array:
        """Returns the rationales int32 [B, T] that a beam search finds."""
        return self.searching(params, batch)

    def saliency(self, params: Any, batch: Arrays) -> jax.Array:
        """Gradient × input float32 [B, S] of `batch['targets']`, int32 [B, T]."""
        return self._saliency(params, batch)

    def _best_fn(self, count: int, params: Any, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        sequences, _ = beam_decode(
            self._model,
            params,
            batch["tokens"],
            max_decode_len=self._length,
            num_beams=max(count, self._strategy.num_beams),
            alpha=0.0,  # no length penalty: the score is the log-probability
            num_return=count,
            decoder_prompt=self._prompts[LABEL_KIND],
        )
        return sequences, self._log_probabilities(params, batch, sequences)

    def _rank_fn(self, params: Any, batch: Arrays, shared: CandidateTree | None) -> jax.Array:
        if shared is None:
            return self._log_probabilities(params, batch, batch["candidates"])
        return rank_candidates(self._model, params, batch["tokens"], shared)

    def _log_probabilities(self, params: Any, batch: Arrays, candidates: jax.Array) -> jax.Array:
        return rank_candidates(
            self._model,
            params,
            batch["tokens"],
            candidates,
            decoder_prompt=self._prompts[LABEL_KIND],
        )

    def _search_fn(self, params: Any, batch: Arrays) -> jax.Array:
        sequences, _ = beam_decode(
            self._model,
            params,
            batch["tokens"],
            max_decode_len=self._length,
            num_beams=self._strategy.num_beams,
            alpha=self._strategy.length_penalty,
            decoder_prompt=self._prompts[RATIONALE_KIND],
        )
        return sequences[:, 0]

    def _saliency_fn(self, params: Any, batch: Arrays) -> jax.Array:
        return input_saliency(
            self._model,
            params,
            batch["tokens"],
            batch["targets"],
            decoder_prompt=self._prompts[LABEL_KIND],
        )

    def _tree(self, candidates: tuple[tuple[int, ...], ...]) -> CandidateTree:
        padded = np.zeros((len(candidates), max(map(len, candidates))), np.int32)
        for row, ids in enumerate(candidates):
            padded[row, : len(ids)] = ids
        prompt = self._prompts[LABEL_KIND]
        return candidate_tree(padded, None if prompt is None else np.asarray(prompt))
