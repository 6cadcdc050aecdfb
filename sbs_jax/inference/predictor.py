"""Asks a student for labels with confidences, for explanations, and what it looked at.

    predictor = load_predictor("runs/svamp")
    predictor.labels(["Ann has 2 apples and buys 3. How many are there?"])
    predictor.rationales([...])
    predictor.saliency("Ann has …", label="(2 + 3)")

Files and servers take the same in two steps: `ask_*` turns texts into queries, `start` runs those
of one group as one batch.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sbs_jax.checkpoints import loading, trees
from sbs_jax.errors import UserError
from sbs_jax.inference import shapes
from sbs_jax.inference.answers import (
    Group,
    Prediction,
    Query,
    Rationale,
    Saliency,
    check_fits,
    make_saliency,
    padded_candidates,
    probability,
    ranked,
    until_end,
)
from sbs_jax.inference.programs import Programs, Strategy
from sbs_jax.inference.prompting import (
    LABEL,
    RATIONALE,
    Candidates,
    Kind,
    Prompting,
    check_candidates,
    choices_in,
    prompting_from,
)
from sbs_jax.inference.tokenizer import EOS_ID, Tokenizer
from sbs_jax.models.config import T5Config
from sbs_jax.partitioning.distributed import to_global
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.training.student import Student

CHOICES = "choices"
"""In place of candidates: each input lists its own, ``(a) … (b) …``."""
TASK = "task"
"""In place of candidates: those that the task declares that the student was trained on."""


class Predictor:
    """A student on its mesh, and how to talk to it. All processes of a run call it together.

    Attributes:
      name: which checkpoint this is.
      prompting: how it is asked.
      tokenizer: its vocabulary.
      candidates: its closed label set, `CHOICES`, or None where labels are open.
      input_length: the most encoder tokens.
      row_counts: the batch sizes that programs are compiled for, the largest last.
      fingerprint: of the parameters' bits; '' if it was not taken.
    """

    fingerprint: str = ""

    def __init__(
        self,
        student: Student,
        params: Any,
        tokenizer: Tokenizer,
        *,
        name: str = "student",
        prompting: Prompting | None = None,
        candidates: Sequence[str] | str | None = None,
        input_length: int = 512,
        max_decode_len: int = 128,
        batch_size: int = 32,
        row_counts: Sequence[int] | None = None,
        own_shape: tuple[int, int] | None = None,
        strategy: Strategy | None = None,
    ) -> None:
        """Compiles nothing yet.

        Args:
          student: the network on its mesh.
          params: its parameters, on the mesh.
          tokenizer: the vocabulary.
          name: what the checkpoint is called.
          prompting: how the student was taught to be asked.
          candidates: a closed label set, `CHOICES`, or None.
          input_length: encoder tokens of the longest row; longer inputs are cut, EOS stays.
          max_decode_len: the most tokens of a label or a rationale.
          batch_size: rows at a time, rounded up to a multiple of the mesh's `data` axis.
          row_counts: smaller batch sizes that are worth programs of their own.
          own_shape: to how many candidates and tokens those of queries are padded; None: to powers
            of two.
          strategy: how rationales (and the best labels) are searched for.

        Raises:
          UserError: the tokenizer does not fit the network, or a value is out of its range.
        """
        for macro, value in (("BATCH_SIZE", batch_size), ("MAX_DECODE_LENGTH", max_decode_len)):
            if value < 1:
                raise UserError(f"{macro} = {value} must be at least 1.")
        if input_length < 2:
            raise UserError(f"TASK_FEATURE_LENGTHS['inputs'] = {input_length} must be at least 2.")
        if tokenizer.size > student.config.vocab_size:
            raise UserError(
                f"{tokenizer.path}: has {tokenizer.size} pieces, but the embedding of {name} has "
                f"{student.config.vocab_size} rows; name the vocabulary that the student was "
                "trained with by --gin.VOCABULARY_PATH=PATH."
            )
        self.name = name
        self.tokenizer = tokenizer
        self.prompting = prompting or Prompting()
        self.input_length = input_length
        self.row_counts = shapes.row_counts(batch_size, student.mesh.shape["data"], row_counts)
        self._lengths = shapes.input_lengths(input_length)
        self._max_decode_len = max_decode_len
        self._own_shape = own_shape
        self._mesh = student.mesh
        self._params = params
        self._strategy = strategy or Strategy()
        prompts = {
            kind: tokenizer.encode(text) if (text := self.prompting.decoder_text(kind)) else []
            for kind in (LABEL, RATIONALE)
        }
        self._programs = Programs(student, prompts, max_decode_len, self._strategy)
        self.candidates = (
            candidates
            if candidates is None or candidates == CHOICES
            else self._closed_set(candidates)
        )

    @property
    def closed_set(self) -> Candidates | None:
        """The label set that all inputs share; None where there is none."""
        return self.candidates if isinstance(self.candidates, Candidates) else None

    # Texts in, answers out.

    def labels(
        self,
        texts: Sequence[str],
        candidates: Sequence[str] | None = None,
        *,
        num_best: int = 1,
    ) -> list[Prediction]:
        """Labels of inputs, in their order.

        Args:
          texts: inputs, without prefix.
          candidates: a closed label set; the predictor's own by default.
          num_best: how many alternatives are told.

        Raises:
          UserError: the candidates are no label set.
        """
        queries = [self.ask_label(text, candidates) for text in texts]
        return self.run(queries, num_best=num_best)

    def rationales(self, texts: Sequence[str]) -> list[Rationale]:
        """The student's explanations of inputs, in their order."""
        return self.run(
            [self.ask_rationale(text, sample=number) for number, text in enumerate(texts)]
        )

    def saliency(self, text: str, label: str | None = None, *, rationale: str = "") -> Saliency:
        """Which pieces of an input speak for a label.

        Args:
          text: the input, without prefix.
          label: by default what the student says. A `joint` student's answer counts whole.
          rationale: of the input, for a `rationale_input` student.

        Raises:
          UserError: the label set is closed, and `label` not in it.
        """
        query = self.ask_label(text, rationale=rationale)
        closed = query.candidates or self.closed_set
        if label is None:
            answer = self.run([query])[0]
            label = written = answer.label
            if answer.rationale is not None:
                written = answer.rationale + self.prompting.joint_separator + label
        else:
            label = written = closed.find(label) if closed else label
        target = [*self.tokenizer.encode(written)[: self._max_decode_len], EOS_ID]
        width = shapes.power_of(len(target))
        targets = np.zeros((self.row_counts[0], width), np.int32)
        targets[:, : len(target)] = target
        tokens = self._rows([query], self.row_counts[0], self.group(query).length)
        batch = to_global({"tokens": tokens, "targets": targets}, self._mesh)
        scores = np.asarray(self._programs.saliency(self._params, batch))[0]
        return make_saliency(
            label, self.tokenizer.pieces(query.tokens), scores, self._prefix_pieces(LABEL)
        )

    # The same in two steps.

    def ask_label(
        self, text: str, candidates: Sequence[str] | None = None, *, rationale: str = ""
    ) -> Query:
        """A query for the label of `text`; arguments as `labels`.

        Args:
          text: the input, without prefix.
          candidates: its own closed label set.
          rationale: of the input, for a `rationale_input` student.

        Raises:
          UserError: the candidates are no label set, do not fit, or `text` lists none.
        """
        if candidates is not None:
            own = self._closed_set(candidates)
        elif self.candidates == CHOICES:
            own = self._closed_set(choices_in(text))
        else:
            own = None
        if own is not None and self._own_shape is not None:
            check_fits(own, self._own_shape)
        return self._query(LABEL, self.prompting.encoder_text(LABEL, text, rationale), own)

    def ask_rationale(self, text: str, *, sample: int = 0) -> Query:
        """A query for the explanation of `text`; `sample` chooses its random numbers, if any.

        Raises:
          UserError: a `joint` student explains itself with its label, and was never asked so.
        """
        if self.prompting.is_joint:
            raise UserError("A student of METHOD = 'joint' explains itself with its label.")
        query = self._query(RATIONALE, self.prompting.encoder_text(RATIONALE, text), None)
        return dataclasses.replace(query, sample=sample)

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
        owns = [(0, 0)] if self.candidates != CHOICES else []
        owns += [self._own_shape] if self._own_shape else []
        kinds = [(LABEL, own) for own in owns]
        if not self.prompting.is_joint:
            kinds.append((RATIONALE, (0, 0)))
        return [Group(kind, length, own) for kind, own in kinds for length in self._lengths]

    def warm_up(self) -> None:
        """Compiles the programs of all `groups` and `row_counts`, and runs each once."""
        for group in self.groups():
            own = None
            if group.own != (0, 0):
                own = Candidates(("a", "b"), ((3, EOS_ID), (4, EOS_ID)))
            tokens = (*[3] * (group.length - 1), EOS_ID)
            for rows in self.row_counts:
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

    def _closed_set(self, texts: Sequence[str]) -> Candidates:
        if isinstance(texts, str):
            raise UserError(
                f"CANDIDATES = {texts!r} is no list of labels; write ['yes', 'no'], or 'choices' "
                "where each input lists its own."
            )
        labels = check_candidates(texts)
        tokens = tuple((*self.tokenizer.encode(label), EOS_ID) for label in labels)
        for place, ids in enumerate(tokens):
            if (first := tokens.index(ids)) < place:
                raise UserError(
                    f"The candidate labels {labels[first]!r} and {labels[place]!r} are the same "
                    "to the vocabulary."
                )
        return Candidates(labels, tokens)

    def _query(self, kind: Kind, text: str, candidates: Candidates | None) -> Query:
        ids = self.tokenizer.encode(text)
        fits = len(ids) < self.input_length
        return Query(kind, (*ids[: self.input_length - 1], EOS_ID), candidates, not fits)

    def _rows(self, queries: Sequence[Query], rows: int, length: int) -> np.ndarray:
        # Padding repeats a real input: an empty one might never end, and hold the others up.
        padded = np.zeros((rows, length), np.int32)
        for row in range(rows):
            ids = queries[min(row, len(queries) - 1)].tokens
            padded[row, : len(ids)] = ids
        return padded

    def _prefix_pieces(self, kind: Kind) -> str:
        return self.prompting.prefix(kind) if self.prompting.prefix_side == "encoder" else ""


def load_predictor(
    checkpoint_path: str,
    *,
    mesh: Mesh | None = None,
    batch_size: int = 32,
    model_config: T5Config | None = None,
    vocabulary_path: str | None = None,
    feature_lengths: Mapping[str, int] | None = None,
    max_decode_len: int | None = None,
    candidates: Sequence[str] | str | None = None,
    prompting: Mapping[str, Any] | None = None,
    fsdp: bool = False,
    **options: Any,
) -> Predictor:
    """Loads a student from anywhere, and asks it as it was trained.

    Args:
      checkpoint_path: see `checkpoints.loading.identify`.
      mesh: all devices along `data` by default.
      batch_size: rows at a time.
      model_config: the network's dimensions, where the checkpoint does not say them.
      vocabulary_path: a SentencePiece model; by default the one beside the weights.
      feature_lengths: `inputs` and `targets` in tokens; by default as trained, or 512 and 128.
      max_decode_len: the most tokens of an answer; by default the length of targets.
      candidates: a closed label set; `CHOICES`; `TASK`; or None: labels are open.
      prompting: attributes of `Prompting` that win over what the checkpoint says.
      fsdp: also cut parameters along `data`.
      **options: of `Predictor`.

    Raises:
      UserError: the checkpoint cannot be read, or does not fit something else that was given.
    """
    source = loading.identify(checkpoint_path)
    if model_config is not None:
        loading.require_same_network(source, model_config)
    config = model_config or source.config
    if config is None:
        raise UserError(
            f"{source.folder}: does not say the dimensions of its network; name a file of "
            "gin/models besides, such as --gin_file=models/t5_1_1_small.gin."
        )
    settings = source.settings
    tokenizer = Tokenizer(vocabulary_path or source.require_vocabulary())
    lengths = {"inputs": 512, "targets": 128} | dict(
        feature_lengths or settings.get("feature_lengths") or {}
    )
    student = Student(config, mesh or make_mesh(), fsdp=fsdp)
    params = loading.load_params(source, student.placed_params)
    found = trees.inspect(params)
    for name, leaf in found.items():
        if leaf.has_nan or leaf.has_infinity:
            raise UserError(f"{source.folder}: the parameter {name} holds NaN or infinity.")
    trained = {**(settings.get("data_settings") or {}), "method": settings.get("method")}
    step = "" if source.step is None else f" (step {source.step})"
    predictor = Predictor(
        student,
        params,
        tokenizer,
        name=f"{source.folder}{step}",
        prompting=prompting_from(trained, **(prompting or {})),
        candidates=_task_labels(source) if candidates == TASK else candidates,
        input_length=lengths["inputs"],
        max_decode_len=max_decode_len or lengths["targets"],
        batch_size=batch_size,
        **options,
    )
    digests = ",".join(f"{name}={leaf.digest}" for name, leaf in sorted(found.items()))
    predictor.fingerprint = hashlib.sha256(digests.encode()).hexdigest()[:16]
    return predictor


def _task_labels(source: loading.Source) -> tuple[str, ...]:
    # The only thing here that needs TensorFlow.
    from sbs_jax.data import registration

    task = source.settings.get("mixture_or_task_name")
    registration.import_tasks("sbs_jax.tasks")
    registration.import_tasks(source.settings.get("mixture_or_task_module"))
    info = registration.task_info(task) if task else None
    if info is None or not info.dataset.labels:
        raise UserError(
            f"{source.folder}: CANDIDATES = 'task', but the task it was trained on "
            f"({task or 'unknown'}) declares no labels; list them, as in CANDIDATES = ['yes', "
            "'no']."
        )
    return info.dataset.labels
