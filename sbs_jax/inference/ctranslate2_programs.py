"""CTranslate2 in the place of the compiled programs of `programs`: fast int8 products on CPUs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sbs_jax.checkpoints import ctranslate2_weights
from sbs_jax.decoding.continuous import Feed, Output, Request
from sbs_jax.errors import UserError
from sbs_jax.inference.programs import Strategy
from sbs_jax.inference.prompting import LABEL_KIND, RATIONALE_KIND
from sbs_jax.inference.tokenizer import EOS_ID
from sbs_jax.models.config import T5Config


class CTranslate2Programs:
    """The interface of `programs.Programs`, run by CTranslate2 on all cores of this process.

    Attributes:
      labels: writes labels of an open label set, greedily, with their log-probabilities.
      outputs: writes, greedily, the answer of a student that explains itself with its label.
      rationales: writes rationales, greedily.
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        config: T5Config,
        quantization: str,
        prompts: Mapping[str, Sequence[int]],
        max_decode_len: int,
        strategy: Strategy,
    ) -> None:
        """Converts the parameters; that takes seconds.

        Args:
          params: T5X's tree of float32 arrays.
          config: the network's dimensions.
          quantization: see `ctranslate2_weights`.
          prompts: tokens that the decoder is fed first, for `label` and `rationale`.
          max_decode_len: maximum number of tokens of an answer.
          strategy: how rationales are decoded; greedily here.

        Raises:
          UserError: ctranslate2 is not installed, or cannot do what is asked for.
        """
        if strategy.decoding != "greedy":
            raise UserError(
                f"ENGINE = 'ctranslate2' decodes rationales greedily, not by RATIONALE_DECODING = "
                f"{strategy.decoding!r}; leave one of both out."
            )
        with tempfile.TemporaryDirectory(prefix="sbs_jax_ctranslate2_") as folder:
            ctranslate2_weights.save(folder, params, config, quantization)
            import ctranslate2

            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
            self._translator = ctranslate2.Translator(
                folder, device="cpu", compute_type=quantization, intra_threads=cores
            )
        self._prompt = list(prompts[LABEL_KIND])
        self._length = max_decode_len
        self._num_beams = strategy.num_beams
        self.labels = _Writer(self, self._prompt)
        self.outputs = self.labels
        self.rationales = _Writer(self, list(prompts[RATIONALE_KIND]))

    def write(
        self, inputs: Sequence[Sequence[int]], prompt: Sequence[int], batch_size: int
    ) -> list[Output]:
        """Decodes inputs greedily."""
        results = self._translate(inputs, prompt, max_batch_size=batch_size)
        return [
            Output(self._tokens(result.hypotheses[0], prompt), result.scores[0])
            for result in results
        ]

    def best(
        self, params: Any, batch: Mapping[str, Any], count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the `count` most probable labels; see `Programs.best`."""
        results = self._translate(
            _rows(batch["tokens"]),
            self._prompt,
            beam_size=max(count, self._num_beams),
            num_hypotheses=count,
        )
        found = np.zeros((len(results), count, self._length), np.int32)
        for row, result in enumerate(results):
            for place, hypothesis in enumerate(result.hypotheses):
                ids = self._tokens(hypothesis, self._prompt)
                found[row, place, : len(ids)] = ids
        return found, self._score(batch["tokens"], list(found))

    def rank_shared(
        self, params: Any, batch: Mapping[str, Any], candidates: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """Returns log-probabilities [B, C] of candidates that all rows share."""
        return self._score(batch["tokens"], [candidates] * len(batch["tokens"]))

    def rank_own(self, params: Any, batch: Mapping[str, Any]) -> np.ndarray:
        """Returns log-probabilities [B, C] of `batch['candidates']`, int32 [B, C, T]."""
        return self._score(batch["tokens"], list(np.asarray(batch["candidates"])))

    def compile_rank(self, params: Any, batch: Mapping[str, Any], shared: Any) -> None:
        """Does nothing: this engine compiles nothing."""

    def search(self, params: Any, batch: Mapping[str, Any]) -> np.ndarray:
        """Raises: rationales are never searched for by this engine; see `__init__`."""
        raise NotImplementedError

    def saliency(self, params: Any, batch: Mapping[str, Any]) -> np.ndarray:
        """Raises a `UserError`: this engine computes no gradients."""
        raise UserError(
            "ENGINE = 'ctranslate2' computes no gradients, which tell what an answer depended on; "
            "leave ENGINE out."
        )

    def _translate(
        self, inputs: Sequence[Sequence[int]], prompt: Sequence[int], **options: Any
    ) -> list[Any]:
        return self._translator.translate_batch(
            [_names(ids) for ids in inputs],
            target_prefix=[_names(prompt)] * len(inputs) if prompt else None,
            max_input_length=0,
            max_decoding_length=self._length + len(prompt),
            return_scores=True,
            return_end_token=True,
            length_penalty=0.0,  # scores are then sums of log-probabilities
            **{"beam_size": 1} | options,
        )

    def _score(self, tokens: Any, candidates: Sequence[Any]) -> np.ndarray:
        """Returns the log-probability of each candidate of each row, -inf for padding."""
        scores = np.full((len(candidates), max(map(len, candidates))), -np.inf, np.float32)
        places, sources, targets, ends = [], [], [], []
        for row, (ids, own) in enumerate(zip(_rows(tokens), candidates, strict=True)):
            for place, candidate in enumerate(own):
                candidate = [int(token) for token in candidate if token]
                if not candidate:
                    continue
                # The engine adds EOS itself, also to a candidate that does not end.
                ends.append(candidate[-1] == EOS_ID)
                target = candidate[:-1] if ends[-1] else candidate
                places.append((row, place))
                sources.append(_names(ids))
                targets.append(_names([*self._prompt, *target]))
        results = self._translator.score_batch(sources, targets, max_input_length=0)
        for where, ends_itself, result in zip(places, ends, results, strict=True):
            values = result.log_probs[len(self._prompt) :]
            scores[where] = sum(values if ends_itself else values[:-1])
        return scores

    def _tokens(self, hypothesis: Sequence[str], prompt: Sequence[int]) -> list[int]:
        return [int(name) for name in hypothesis[len(prompt) :]][: self._length]


class _Writer:
    """The interface of `ContinuousDecoder`."""

    def __init__(self, programs: CTranslate2Programs, prompt: Sequence[int]) -> None:
        self._programs = programs
        self._prompt = prompt

    def __call__(
        self,
        params: Any,
        requests: Sequence[Request],
        row_counts: Sequence[int],
        lengths: Sequence[int],
    ) -> list[Output]:
        """Answers all requests, in their order."""
        # The engine sorts by length itself.
        inputs = [request.tokens for request in requests]
        return self._programs.write(inputs, self._prompt, row_counts[-1]) if inputs else []

    def compile(self, params: Any, rows: int, length: int) -> None:
        """Does nothing: this engine compiles nothing."""

    def stream(
        self, params: Any, feed: Feed, rows: int, lengths: Sequence[int]
    ) -> Iterator[list[tuple[Any, Output]]]:
        """Answers requests batch by batch until `feed` has none."""
        while found := feed(rows):
            keys, requests = zip(*found, strict=True)
            inputs = [request.tokens for request in requests]
            outputs = self._programs.write(inputs, self._prompt, rows)
            yield list(zip(keys, outputs, strict=True))


def _names(ids: Sequence[int]) -> list[str]:
    return [str(token) for token in ids]


def _rows(tokens: Any) -> list[list[int]]:
    return [row[row != 0].tolist() for row in np.asarray(tokens)]
