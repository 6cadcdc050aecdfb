"""Answers batches of queries: texts' tokens go through a student's programs, answers come out."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sbs_jax.decoding import shapes
from sbs_jax.decoding.continuous import ContinuousDecoder, Output, Request
from sbs_jax.inference.answers import (
    Prediction,
    Query,
    QueryGroup,
    Rationale,
    padded_candidates,
    probability,
    ranked,
)
from sbs_jax.inference.label_tokens import LabelTokens
from sbs_jax.inference.programs import Programs, Strategy
from sbs_jax.inference.prompting import LABEL_KIND, RATIONALE_KIND, Candidates, Prompting
from sbs_jax.inference.tokenizer import EOS_ID, SentencePieceTokenizer
from sbs_jax.inference.warming import CompiledShapes, Use, WarmUp
from sbs_jax.partitioning.distributed import to_global
from sbs_jax.student import Student
from sbs_jax.text_tokenizer import TextTokenizer

More = Callable[[int], Sequence[Query]]
"""Returns up to so many further queries of a group; none if none is waiting."""


ProgramsFn = Callable[[Mapping[str, Sequence[int]], int, Strategy], Any]
"""Makes `Programs`, or an engine with their interface, of prompts, length and strategy."""


class Answerer:
    """Runs queries on one student. All processes of a run call it together.

    What is written token by token (open labels, rationales, answers that hold both) is decoded
    by continuous batching; candidates are ranked, and beams searched, in batches of few shapes.

    Attributes:
      prompting: how the student is asked.
      tokenizer: the student's vocabulary.
      closed_set: the label set that all inputs share; None if there is none.
      input_length: maximum number of encoder tokens.
      row_counts: the batch sizes that programs are compiled for, the largest last.
    """

    def __init__(
        self,
        student: Student,
        params: Any,
        tokenizer: SentencePieceTokenizer | TextTokenizer,
        prompting: Prompting,
        *,
        input_length: int,
        max_decode_len: int,
        batch_size: int,
        row_counts: Sequence[int] | None,
        own_shape: tuple[int, int] | None,
        strategy: Strategy | None,
        make_programs: ProgramsFn | None = None,
    ) -> None:
        """Compiles nothing yet; see `Predictor` for the arguments."""
        self.prompting = prompting
        self.tokenizer = tokenizer
        self.closed_set: Candidates | None = None
        self._shares_candidates = True
        self.input_length = input_length
        self.row_counts = shapes.row_counts(batch_size, student.mesh.shape["data"], row_counts)
        self._lengths = shapes.input_lengths(input_length)
        self._shapes = CompiledShapes(self.row_counts, self._lengths)
        self._max_decode_len = max_decode_len
        self._own_shape = own_shape
        self._mesh = student.mesh
        self._params = params
        prompts: dict[str, list[int]] = {
            kind: tokenizer.encode(text) if (text := prompting.decoder_text(kind)) else []
            for kind in (LABEL_KIND, RATIONALE_KIND)
        }
        make_programs = make_programs or functools.partial(Programs, student)
        self._programs = make_programs(prompts, max_decode_len, strategy or Strategy())

    def group(self, query: Query) -> QueryGroup:
        """Returns what the queries of one batch must have in common with `query`."""
        own = (0, 0)
        if query.candidates is not None:
            longest = max(map(len, query.candidates.tokens))
            own = self._own_shape or (
                shapes.power_of(len(query.candidates.texts)),
                shapes.power_of(longest),
            )
        return QueryGroup(query.kind, shapes.fit(len(query.tokens), self._lengths), own)

    def groups(self) -> list[QueryGroup]:
        """Returns all groups that occur with an `own_shape`, for warming up."""
        owns = [(0, 0)] if self._shares_candidates else []
        owns += [self._own_shape] if self._own_shape else []
        kinds = [(LABEL_KIND, own) for own in owns]
        if not self.prompting.explains_itself:
            kinds.append((RATIONALE_KIND, (0, 0)))
        return [QueryGroup(kind, length, own) for kind, own in kinds for length in self._lengths]

    def warm_up(self) -> Iterator[WarmUp]:
        """Compiles the programs of all `groups` and `row_counts`; runs nothing on the devices.

        Another thread may answer queries meanwhile, once the progress says so: those that come are
        put into shapes that are compiled. A warm-up that is given up leaves it at these.

        Yields:
          How far it is, after each shape.
        """
        uses = list(dict.fromkeys((group.kind, group.own) for group in self.groups()))
        steps = [(shape, use) for shape in self._shapes.in_order() for use in uses]
        for done, (shape, use) in enumerate(steps, 1):
            self._compile(use, *shape)
            self._shapes.add(use, shape)
            yield WarmUp(done, len(steps), answers=done >= len(uses))

    def _compile(self, use: Use, rows: int, length: int) -> None:
        kind, own = use
        candidates = Candidates(("a", "b"), ((3, EOS_ID), (4, EOS_ID)))
        query = Query(kind, (*[3] * (length - 1), EOS_ID), candidates if any(own) else None)
        decoder = self._decoder(query, 1)
        if decoder is not None:
            decoder.compile(self._params, rows, length)
            if kind == RATIONALE_KIND or not self.prompting.explains_itself:
                return
        batch = self._rows([query], rows, length)
        if kind == RATIONALE_KIND:
            self._programs.compile_search(self._params, batch)
            return
        closed = self.closed_set
        if decoder is None and closed is not None and not any(own):
            self._programs.compile_rank(self._params, batch, closed.tokens)
            return
        if decoder is None:
            own_shapes = {own}
        else:
            most = own[0] or (len(closed.texts) if closed else 2)
            own_shapes = {self._answer_shape([[()] * count]) for count in {2, most}}
        for own_shape in own_shapes:
            empty = np.zeros((rows, *own_shape), np.int32)
            own_batch = batch | to_global({"candidates": empty}, self._mesh)
            self._programs.compile_rank(self._params, own_batch, None)

    def run(self, queries: Sequence[Query], *, num_best: int = 1) -> list[Any]:
        """Answers queries of any groups, in their order; see `start_all`."""
        return self.start_all(queries, num_best=num_best)()

    def start_all(self, queries: Sequence[Query], *, num_best: int = 1) -> Callable[[], list[Any]]:
        """Starts queries of any groups on the devices, as far as that needs no waiting.

        Batches are cut at `row_counts[-1]` after sorting by group and length, so they depend on
        `queries` alone.

        Args:
          queries: the queries, in any order.
          num_best: the number of alternatives of a label.

        Returns:
          A function that waits for the answers: a `Prediction` or a `Rationale` for each query.
        """
        written: dict[tuple[int, bool], list[int]] = collections.defaultdict(list)
        batches: dict[QueryGroup, list[int]] = collections.defaultdict(list)
        for i in sorted(range(len(queries)), key=lambda i: len(queries[i].tokens)):
            query = queries[i]
            decoder = self._decoder(query, num_best)
            if decoder is not None:
                written[id(decoder), query.candidates is None].append(i)
            else:
                batches[self.group(query)].append(i)
        started: list[tuple[list[int], Callable[[], Sequence[Any]]]] = []
        for _, rows in sorted(batches.items()):
            size = self.row_counts[-1]
            many = len(rows) >= shapes.MANY_BATCHES * size
            lengths = shapes.finer(self._lengths) if many else self._lengths
            for begin in range(0, len(rows), size):
                batch = rows[begin : begin + size]
                length = shapes.fit(len(queries[batch[-1]].tokens), lengths)
                found = self._start([queries[i] for i in batch], num_best, length)
                started.append((batch, found))
        for rows in written.values():
            chosen = [queries[i] for i in rows]
            started.append((rows, functools.partial(self._write, chosen, num_best)))

        def finish() -> list[Any]:
            answers: list[Any] = [None] * len(queries)
            for rows, collect in started:
                for row, answer in zip(rows, collect(), strict=True):
                    answers[row] = answer
            return answers

        return finish

    def log_probabilities(self, queries: Sequence[Query], labels: Sequence[str]) -> list[float]:
        """Returns the exact log-probability of each label as the whole answer to its query.

        Args:
          queries: queries for labels, in any order; their own candidates do not count.
          labels: a text for each query.

        Returns:
          Natural logarithms, each summed over the tokens of the label and its EOS, in the order of
          `queries`.
        """
        asked = []
        endings: list[tuple[int, ...]] = []
        for query, label in zip(queries, labels, strict=True):
            ids = (*self.tokenizer.encode(label), EOS_ID)
            endings.append(ids)
            asked.append(dataclasses.replace(query, candidates=Candidates((label,), (ids,))))
        batches: dict[tuple[int, int], list[int]] = collections.defaultdict(list)
        for place in sorted(range(len(asked)), key=lambda place: len(asked[place].tokens)):
            query = asked[place]
            width = shapes.power_of(len(endings[place]))
            batches[shapes.fit(len(query.tokens), self._lengths), width].append(place)
        started = []
        for (length, width), places in sorted(batches.items()):
            for begin in range(0, len(places), self.row_counts[-1]):
                chosen = places[begin : begin + self.row_counts[-1]]
                rows = shapes.fit(len(chosen), self.row_counts)
                tokens = self._rows([asked[place] for place in chosen], rows, length)
                own = [(endings[place],) for place in chosen]
                started.append((chosen, self._rank_own(tokens, own, rows, (1, width))))
        found = [0.0] * len(asked)
        for chosen, scores in started:
            for place, row in zip(chosen, np.asarray(scores), strict=False):
                found[place] = float(row[0])
        return found

    def stream(
        self, queries: Sequence[Query], more: More, *, num_best: int = 1
    ) -> Iterator[list[tuple[int, Any]]]:
        """Answers queries of one group, and further ones that arrive meanwhile.

        Args:
          queries: one to `row_counts[-1]`, all of one group.
          more: is asked for queries of the same group when slots are free. It is not asked if all
            queries are answered at once (ranking, beam search), or if fewer slots are in use than
            there could be.
          num_best: the number of alternatives of a label.

        Yields:
          Answers that are ready at the same time, each with the number of its query in the order in
          which queries were given.
        """
        decoder = self._decoder(queries[0], num_best)
        group = self.group(queries[0])
        use = (group.kind, group.own)
        rows, length = self._shapes.fit(use, len(queries), group.length)
        if decoder is None:
            for begin in range(0, len(queries), rows):
                answers = self._start(queries[begin : begin + rows], num_best, group.length)()
                yield list(enumerate(answers, begin))
            return
        most = self._shapes.most_rows(use, group.length)
        given = list(queries)
        waiting = collections.deque(enumerate(queries))

        def feed(count: int) -> list[tuple[int, Request]]:
            if not waiting and rows >= most:
                for query in more(count):
                    waiting.append((len(given), query))
                    given.append(query)
            taken = [waiting.popleft() for _ in range(min(count, len(waiting)))]
            return [(number, Request(query.tokens, query.sample)) for number, query in taken]

        for ended in decoder.stream(self._params, feed, rows, (length,)):
            numbers, outputs = zip(*ended, strict=True)
            answers = self._answers([given[number] for number in numbers], outputs, num_best)
            yield list(zip(numbers, answers, strict=True))

    def _decoder(self, query: Query, num_best: int) -> ContinuousDecoder | None:
        """Returns what writes the answer to `query`; None if it is ranked or searched for."""
        if query.kind == RATIONALE_KIND:
            return self._programs.rationales
        if self.prompting.explains_itself:
            return self._programs.outputs
        if query.candidates is None and self.closed_set is None and num_best == 1:
            return self._programs.labels
        return None

    def _write(self, queries: Sequence[Query], num_best: int) -> list[Any]:
        decoder = self._decoder(queries[0], num_best)
        assert decoder is not None  # `start_all` asks first.
        requests = [Request(query.tokens, query.sample) for query in queries]
        outputs = decoder(self._params, requests, self.row_counts, self._lengths)
        return self._answers(queries, outputs, num_best)

    def _answers(
        self, queries: Sequence[Query], outputs: Sequence[Output], num_best: int
    ) -> list[Any]:
        """Makes answers of what the student has written."""
        if queries[0].kind == LABEL_KIND and self.prompting.explains_itself:
            size = self.row_counts[-1]
            batches = [slice(begin, begin + size) for begin in range(0, len(queries), size)]
            return [
                answer
                for batch in batches
                for answer in self._explained_answers(queries[batch], outputs[batch], num_best)
            ]
        answers: list[Any] = []
        for query, output in zip(queries, outputs, strict=True):
            text = self.tokenizer.decode(output.tokens).strip()
            if query.kind == RATIONALE_KIND:
                answers.append(Rationale(text, query.truncated))
                continue
            best = ((text, probability(output.log_probability)),)
            answers.append(Prediction(*best[0], alternatives=best, truncated=query.truncated))
        return answers

    def _start(
        self, queries: Sequence[Query], num_best: int, length: int
    ) -> Callable[[], Sequence[Any]]:
        """Starts a batch of one group that is ranked or searched for; see `start_all`.

        Args:
          queries: one to `row_counts[-1]` queries.
          num_best: the number of alternatives of a label.
          length: at least the number of tokens of any of the queries.
        """
        group = self.group(queries[0])
        rows, length = self._shapes.fit((group.kind, group.own), len(queries), length)
        tokens = self._rows(queries, rows, length)
        if group.kind == RATIONALE_KIND:
            written = self._programs.search(self._params, tokens)
            return lambda: [
                Rationale(self.tokenizer.decode(row).strip(), query.truncated)
                for query, row in zip(queries, np.asarray(written), strict=False)
            ]
        closed = self._closed(queries)
        if not closed:
            return self._start_best(queries, tokens, num_best)
        if group.own == (0, 0):
            scores = self._programs.rank_shared(self._params, tokens, closed[0].tokens)
        else:
            own = [one.tokens for one in closed]
            scores = self._rank_own(tokens, own, rows, group.own)
        return lambda: [
            ranked(query, one.texts, row, num_best)
            for query, one, row in zip(queries, closed, np.asarray(scores), strict=False)
        ]

    def _start_best(
        self, queries: Sequence[Query], tokens: dict[str, jax.Array], num_best: int
    ) -> Callable[[], list[Prediction]]:
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

    def _explained_answers(
        self, queries: Sequence[Query], written: Sequence[Output], num_best: int
    ) -> list[Prediction]:
        """Takes label and rationale out of one answer; the label as written, or ranked.

        Candidates are ranked behind the rationale that the student has written. Where the label
        comes first, they are ranked by themselves, and a rationale behind another label than the
        best one is left out.
        """
        outputs = [shapes.until_end(output.tokens, keep_eos=True) for output in written]
        parts = [self.prompting.take_apart(self.tokenizer.decode(ids)) for ids in outputs]
        closed = self._closed(queries)
        spans = self._label_tokens
        starts = [spans.start(ids) if self.prompting.is_joint else 0 for ids in outputs]
        sets: list[tuple[tuple[int, ...], ...]]
        if not closed:
            sets = [
                (tuple(ids[: spans.end(ids, start)]), tuple(ids[:start]))
                for ids, start in zip(outputs, starts, strict=True)
            ]
        elif self.prompting.is_joint:
            sets = [
                tuple(spans.behind(rationale, text) for text in one.texts)
                for (rationale, _), one in zip(parts, closed, strict=True)
            ]
        else:
            sets = [one.tokens for one in closed]
        groups = [self.group(query) for query in queries]
        use = (groups[0].kind, groups[0].own)
        rows, length = self._shapes.fit(use, len(queries), max(one.length for one in groups))
        tokens = self._rows(queries, rows, length)
        scores = np.asarray(self._rank_own(tokens, sets, rows, self._answer_shape(sets)))
        predictions = []
        for place, (query, (rationale, label), row) in enumerate(
            zip(queries, parts, scores, strict=False)
        ):
            if closed:
                best = ranked(query, closed[place].texts, row, num_best)
                if not self.prompting.is_joint and label != best.label:
                    rationale = ""
                predictions.append(dataclasses.replace(best, rationale=rationale))
                continue
            # The label's tokens given what stands in front of them; no label, no confidence.
            in_front = row[1] if starts[place] else 0.0
            confidence = probability(row[0] - in_front) if label else 0.0
            predictions.append(
                Prediction(label, confidence, rationale, ((label, confidence),), query.truncated)
            )
        return predictions

    @property
    def _label_tokens(self) -> LabelTokens:
        return LabelTokens(self.tokenizer, self.prompting)

    def _closed(self, queries: Sequence[Query]) -> list[Candidates]:
        """The label set of each query; empty where they are open."""
        sets = [query.candidates or self.closed_set for query in queries]
        return [one for one in sets if one is not None]

    def _answer_shape(self, sets: Sequence[Sequence[Sequence[int]]]) -> tuple[int, int]:
        # One width nearly always: that of the longest answer and a label.
        usual = shapes.round_up(self._max_decode_len + 32, 32)
        longest = max(len(ids) for one in sets for ids in one)
        most = max(map(len, sets))
        count = self._own_shape[0] if self._own_shape and most > 2 else shapes.power_of(most, 2)
        return max(count, most), shapes.power_of(longest, usual)

    def _rank_own(
        self,
        tokens: dict[str, jax.Array],
        sets: Sequence[Sequence[Sequence[int]]],
        rows: int,
        shape: tuple[int, int],
    ) -> jax.Array:
        """Log-probabilities [rows, candidates] of a label set for each row; see `Programs`."""
        own = to_global({"candidates": padded_candidates(sets, rows, shape)}, self._mesh)
        return self._programs.rank_own(self._params, tokens | own)

    def _rows(self, queries: Sequence[Query], rows: int, length: int) -> dict[str, jax.Array]:
        sequences = [query.tokens for query in queries]
        return to_global({"tokens": shapes.padded_rows(sequences, rows, length)}, self._mesh)
