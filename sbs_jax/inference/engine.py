"""Batches of queries: rows of few shapes go through the network, answers come out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from sbs_jax.inference import shapes
from sbs_jax.inference.answers import (
    Group,
    Prediction,
    Query,
    Rationale,
    padded_candidates,
    probability,
    ranked,
    until_end,
)
from sbs_jax.inference.programs import Programs, Strategy
from sbs_jax.inference.prompting import LABEL, RATIONALE, Candidates, Prompting
from sbs_jax.inference.tokenizer import EOS_ID, Tokenizer
from sbs_jax.partitioning.distributed import to_global
from sbs_jax.student import Student


class Engine:
    """Runs queries on one student. All processes of a run call it together.

    Attributes:
      prompting: how the student is asked.
      tokenizer: its vocabulary.
      closed_set: the label set that all inputs share; None where there is none.
      input_length: the most encoder tokens.
      row_counts: the batch sizes that programs are compiled for, the largest last.
    """

    def __init__(
        self,
        student: Student,
        params: Any,
        tokenizer: Tokenizer,
        prompting: Prompting,
        *,
        input_length: int,
        max_decode_len: int,
        batch_size: int,
        row_counts: Sequence[int] | None,
        own_shape: tuple[int, int] | None,
        strategy: Strategy | None,
    ) -> None:
        """Compiles nothing yet; see `Predictor` for the arguments."""
        self.prompting = prompting
        self.tokenizer = tokenizer
        self.closed_set: Candidates | None = None
        self._shares_candidates = True
        self.input_length = input_length
        self.row_counts = shapes.row_counts(batch_size, student.mesh.shape["data"], row_counts)
        self._lengths = shapes.input_lengths(input_length)
        self._max_decode_len = max_decode_len
        self._own_shape = own_shape
        self._mesh = student.mesh
        self._params = params
        prompts = {
            kind: tokenizer.encode(text) if (text := prompting.decoder_text(kind)) else []
            for kind in (LABEL, RATIONALE)
        }
        self._programs = Programs(student, prompts, max_decode_len, strategy or Strategy())

    def group(self, query: Query) -> Group:
        """Which queries may stand in one batch with `query`."""
        own = (0, 0)
        if query.candidates is not None:
            longest = max(map(len, query.candidates.tokens))
            own = self._own_shape or (
                shapes.power_of(len(query.candidates.texts)),
                shapes.power_of(longest),
            )
        return Group(query.kind, shapes.fit(len(query.tokens), self._lengths), own)

    def groups(self) -> list[Group]:
        """All groups that occur with an `own_shape`, for warming up."""
        owns = [(0, 0)] if self._shares_candidates else []
        owns += [self._own_shape] if self._own_shape else []
        kinds = [(LABEL, own) for own in owns]
        if not self.prompting.is_joint:
            kinds.append((RATIONALE, (0, 0)))
        return [Group(kind, length, own) for kind, own in kinds for length in self._lengths]

    def warm_up(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Compiles the programs of all `groups` and `row_counts`, and runs each once.

        Args:
          stop: asked before each; True ends it.
        """
        for group in self.groups():
            own = None
            if group.own != (0, 0):
                own = Candidates(("a", "b"), ((3, EOS_ID), (4, EOS_ID)))
            tokens = (*[3] * (group.length - 1), EOS_ID)
            for rows in self.row_counts:
                if stop():
                    return
                self.start([Query(group.kind, tokens, own)] * rows)()

    def run(self, queries: Sequence[Query], *, num_best: int = 1) -> list[Any]:
        """Answers queries of any groups, in their order; see `start`."""
        return self.start_all(queries, num_best=num_best)()

    def start_all(self, queries: Sequence[Query], *, num_best: int = 1) -> Callable[[], list[Any]]:
        """Puts queries of any groups under way; see `start`.

        Batches are cut at `row_counts[-1]` after sorting by group, so they depend on `queries`
        alone.
        """
        order = sorted(range(len(queries)), key=lambda i: (self.group(queries[i]), i))
        started: list[tuple[list[int], Callable[[], list[Any]]]] = []
        batch: list[int] = []

        def flush() -> None:
            if batch:
                chosen = [queries[i] for i in batch]
                started.append((list(batch), self.start(chosen, num_best=num_best)))
                batch.clear()

        for i in order:
            full = len(batch) == self.row_counts[-1]
            if batch and (full or self.group(queries[batch[0]]) != self.group(queries[i])):
                flush()
            batch.append(i)
        flush()

        def finish() -> list[Any]:
            answers: list[Any] = [None] * len(queries)
            for rows, collect in started:
                for row, answer in zip(rows, collect(), strict=True):
                    answers[row] = answer
            return answers

        return finish

    def start(self, queries: Sequence[Query], *, num_best: int = 1) -> Callable[[], list[Any]]:
        """Puts a batch under way on the devices, without waiting for it.

        Args:
          queries: one to `row_counts[-1]`, all of one group.
          num_best: how many alternatives a label comes with.

        Returns:
          What waits for the answers: a `Prediction` or a `Rationale` for each query.
        """
        group = self.group(queries[0])
        rows = shapes.fit(len(queries), self.row_counts)
        tokens = to_global({"tokens": self._rows(queries, rows, group.length)}, self._mesh)
        if group.kind == RATIONALE:
            return self._start_rationales(queries, tokens, rows)
        if self.prompting.is_joint:
            return self._start_joint(queries, tokens, rows, num_best)
        closed = [query.candidates or self.closed_set for query in queries]
        if closed[0] is None:
            return self._start_open(queries, tokens, num_best)
        if group.own == (0, 0):
            scores = self._programs.rank_shared(self._params, tokens, closed[0].tokens)
        else:
            own = padded_candidates([one.tokens for one in closed], rows, group.own)
            scores = self._programs.rank_own(
                self._params, tokens | to_global({"candidates": own}, self._mesh)
            )
        return lambda: [
            ranked(query, one.texts, row, num_best)
            for query, one, row in zip(queries, closed, np.asarray(scores), strict=False)
        ]

    def _start_rationales(
        self, queries: Sequence[Query], tokens: dict[str, jax.Array], rows: int
    ) -> Callable[[], list[Rationale]]:
        samples = np.zeros(rows, np.uint32)
        samples[: len(queries)] = [query.sample for query in queries]
        written = self._programs.explain(
            self._params, tokens | to_global({"samples": samples}, self._mesh)
        )
        return lambda: [
            Rationale(self.tokenizer.decode(row).strip(), query.truncated)
            for query, row in zip(queries, np.asarray(written), strict=False)
        ]

    def _start_open(
        self, queries: Sequence[Query], tokens: dict[str, jax.Array], num_best: int
    ) -> Callable[[], list[Prediction]]:
        if num_best == 1:
            found = self._programs.greedy(self._params, tokens)
        else:
            found = self._programs.best(self._params, tokens, num_best)

        def finish() -> list[Prediction]:
            sequences, scores = map(np.asarray, found)
            predictions = []
            for query, texts, values in zip(queries, sequences, scores, strict=False):
                best: dict[str, float] = {}  # different tokens may spell one text
                for text, score in zip(map(self.tokenizer.decode, texts), values, strict=True):
                    best.setdefault(text.strip(), probability(score))
                pairs = tuple(best.items())
                predictions.append(
                    Prediction(*pairs[0], alternatives=pairs, truncated=query.truncated)
                )
            return predictions

        return finish

    def _start_joint(
        self, queries: Sequence[Query], tokens: dict[str, jax.Array], rows: int, num_best: int
    ) -> Callable[[], list[Prediction]]:
        """Rationale first; then the label behind it, as written or ranked among candidates."""
        written = self._programs.write(self._params, tokens)

        def finish() -> list[Prediction]:
            outputs = [until_end(row) for row in np.asarray(written)[: len(queries)]]
            parts = [self.prompting.take_apart(self.tokenizer.decode(ids)) for ids in outputs]
            closed = [query.candidates or self.closed_set for query in queries]
            if closed[0] is None:
                sets = [(tuple(ids), tuple(ids[: self._label_start(ids)])) for ids in outputs]
            else:
                sets = [
                    self._behind(rationale, one.texts)
                    for (rationale, _), one in zip(parts, closed, strict=True)
                ]
            own = padded_candidates(sets, rows, self._joint_shape(sets))
            scores = np.asarray(
                self._programs.rank_own(
                    self._params, tokens | to_global({"candidates": own}, self._mesh)
                )
            )
            predictions = []
            for query, (rationale, label), one, row in zip(
                queries, parts, closed, scores, strict=False
            ):
                if one is not None:
                    best = ranked(query, one.texts, row, num_best)
                    predictions.append(dataclasses.replace(best, rationale=rationale))
                    continue
                # The label's tokens given the rationale; no label, no confidence.
                confidence = probability(row[0] - row[1]) if label else 0.0
                predictions.append(
                    Prediction(
                        label, confidence, rationale, ((label, confidence),), query.truncated
                    )
                )
            return predictions

        return finish

    def _joint_shape(self, sets: Sequence[Sequence[Sequence[int]]]) -> tuple[int, int]:
        # One width nearly always: that of the longest answer and a label.
        usual = shapes.round_up(self._max_decode_len + 32, 32)
        longest = max(len(ids) for one in sets for ids in one)
        most = max(map(len, sets))
        count = self._own_shape[0] if self._own_shape and most > 2 else shapes.power_of(most, 2)
        return max(count, most), shapes.power_of(longest, usual)

    def _behind(self, rationale: str, labels: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        before = rationale + self.prompting.joint_separator
        return tuple((*self.tokenizer.encode(before + label), EOS_ID) for label in labels)

    def _label_start(self, ids: Sequence[int]) -> int:
        """How many tokens a `joint` answer has up to the end of its last separator."""
        separator = self.prompting.joint_separator.strip()
        count = self.tokenizer.decode(ids).count(separator)
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high) // 2
            if self.tokenizer.decode(ids[:middle]).count(separator) < count:
                low = middle + 1
            else:
                high = middle
        return low

    def _rows(self, queries: Sequence[Query], rows: int, length: int) -> np.ndarray:
        # Padding repeats a real input: an empty one might never end, and hold the others up.
        padded = np.zeros((rows, length), np.int32)
        for row in range(rows):
            ids = queries[min(row, len(queries) - 1)].tokens
            padded[row, : len(ids)] = ids
        return padded
