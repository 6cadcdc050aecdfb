"""Asks a student for labels with confidences, for rationales, and for what mattered to a label.

    predictor = load_predictor("runs/svamp")
    predictor.labels(["Ann has 2 apples and buys 3. How many are there?"])
    predictor.rationales([...])
    predictor.saliency("Ann has …", label="(2 + 3)")

Files and servers do the same in two steps: `ask_*` turns texts into queries, and `start_all` or
`stream` answers them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from sbs_jax.decoding import shapes
from sbs_jax.errors import UserError, require_at_least
from sbs_jax.inference.answerer import Answerer, ProgramsFn
from sbs_jax.inference.answers import (
    Prediction,
    Query,
    Rationale,
    Saliency,
    check_fits,
    make_saliency,
)
from sbs_jax.inference.programs import Strategy
from sbs_jax.inference.prompting import (
    LABEL_KIND,
    RATIONALE_KIND,
    Candidates,
    Kind,
    Prompting,
    check_candidates,
    choices_in,
)
from sbs_jax.inference.tokenizer import EOS_ID, SentencePieceTokenizer
from sbs_jax.partitioning.distributed import to_global
from sbs_jax.student import Student
from sbs_jax.text_tokenizer import TextTokenizer

CHOICES = "choices"
"""A value of `candidates`: each input lists its own, ``(a) … (b) …``."""


class Predictor(Answerer):
    """A student on its mesh, and how it is asked. All processes of a run call it together.

    Attributes:
      name: the name of the checkpoint.
      fingerprint: a digest of the parameters' and the vocabulary's bits; '' if it was not computed.
    """

    fingerprint: str = ""

    def __init__(
        self,
        student: Student,
        params: Any,
        tokenizer: SentencePieceTokenizer | TextTokenizer,
        *,
        name: str = "student",
        prompting: Prompting | None = None,
        candidates: Sequence[str] | str | None = None,
        input_length: int,
        max_decode_len: int,
        batch_size: int,
        engine: str,
        row_counts: Sequence[int] | None = None,
        own_shape: tuple[int, int] | None = None,
        strategy: Strategy | None = None,
        inference_dtype: str | None = None,
        make_programs: ProgramsFn | None = None,
    ) -> None:
        """Compiles nothing yet.

        Args:
          student: the network on its mesh.
          params: the parameters of the student, on the mesh.
          tokenizer: the vocabulary.
          name: the name of the checkpoint.
          prompting: how the student was trained to be asked.
          candidates: a closed label set, `CHOICES`, or None.
          input_length: maximum number of encoder tokens; longer inputs are cut, and EOS is kept.
          max_decode_len: maximum number of tokens of a label or a rationale.
          batch_size: rows of a batch, rounded up to a multiple of the mesh's `data` axis.
          engine: the name of what runs the network, one of `loader.ENGINES`.
          row_counts: smaller batch sizes that have programs of their own.
          own_shape: the numbers of candidates and of their tokens that queries' own candidates are
            padded to; None pads to powers of two.
          strategy: how rationales (and the best labels) are decoded.
          inference_dtype: dtype of its products; None is the student's own.
          make_programs: makes the programs of another engine than JAX.

        Raises:
          UserError: the tokenizer does not fit the network, or a value is out of its range.
        """
        require_at_least(1, BATCH_SIZE=batch_size, MAX_DECODE_LENGTH=max_decode_len)
        if input_length < 2:
            raise UserError(f"TASK_FEATURE_LENGTHS['inputs'] = {input_length} must be at least 2.")
        if tokenizer.size > student.config.vocab_size:
            raise UserError(
                f"{tokenizer.path}: has {tokenizer.size} pieces, but the embedding of {name} has "
                f"{student.config.vocab_size} rows; name the vocabulary that the student was "
                "trained with by --gin.VOCABULARY_PATH=PATH."
            )
        super().__init__(
            student,
            params,
            tokenizer,
            prompting or Prompting(),
            input_length=input_length,
            max_decode_len=max_decode_len,
            batch_size=batch_size,
            row_counts=row_counts,
            own_shape=own_shape,
            strategy=strategy,
            make_programs=make_programs,
        )
        self.name = name
        self._engine = engine
        self._strategy = strategy or Strategy()
        self._product_dtype = inference_dtype or student.config.product_dtype
        if candidates == CHOICES:
            self._shares_candidates = False
        elif candidates is not None:
            self.closed_set = self._closed_set(candidates)

    def answers_depend_on(self) -> dict[str, Any]:
        """Returns the settings that answers depend on, as JSON values, mostly by macros' names."""
        asked = self.prompting
        closed = self.closed_set
        # Left out where it changes nothing: files that older versions began lack it.
        rounded = self._product_dtype not in (None, "float32")
        return {
            **({"ENGINE": self._engine} if self._engine != "jax" else {}),
            **({"INFERENCE_DTYPE": self._product_dtype} if rounded else {}),
            "parameters": self.fingerprint,
            "METHOD": asked.method,
            "LABEL_PREFIX": asked.label_prefix,
            "RATIONALE_PREFIX": asked.rationale_prefix,
            "PREFIX_SIDE": asked.prefix_side,
            **({"PARTS": [part.record() for part in asked.parts]} if asked.parts else {}),
            # Left out where there is none: files that older versions began lack it.
            **({"INPUT_FRAME": list(asked.input_frame)} if any(asked.input_frame) else {}),
            "CANDIDATES": list(closed.texts)
            if closed
            else None
            if self._shares_candidates
            else CHOICES,
            "TASK_FEATURE_LENGTHS['inputs']": self.input_length,
            "MAX_DECODE_LENGTH": self._max_decode_len,
            "strategy": dataclasses.asdict(self._strategy),
        }

    def labels(
        self,
        texts: Sequence[str],
        candidates: Sequence[str] | None = None,
        *,
        num_best: int = 1,
    ) -> list[Prediction]:
        """Returns the labels of inputs, in their order.

        A student whose label reads its own rationale (METHOD = 'cascaded') writes that first.

        Args:
          texts: inputs, without prefix.
          candidates: a closed label set; the predictor's own by default.
          num_best: the number of alternatives of each label.

        Raises:
          UserError: the candidates are no label set.
        """
        if not self.prompting.is_cascaded:
            queries = [self.ask_label(text, candidates) for text in texts]
            return self.run(queries, num_best=num_best)
        written = [rationale.text for rationale in self.rationales(texts)]
        queries = [
            self.ask_label(text, candidates, rationale=rationale)
            for text, rationale in zip(texts, written, strict=True)
        ]
        return [
            dataclasses.replace(answer, rationale=rationale)
            for answer, rationale in zip(self.run(queries, num_best=num_best), written, strict=True)
        ]

    def rationales(self, texts: Sequence[str]) -> list[Rationale]:
        """Returns the student's rationales for inputs, in their order."""
        return self.run(
            [self.ask_rationale(text, sample=number) for number, text in enumerate(texts)]
        )

    def saliency(self, text: str, label: str | None = None, *, rationale: str = "") -> Saliency:
        """Returns how much each piece of an input speaks for a label.

        Args:
          text: the input, without prefix.
          label: the student's own label by default; for a `joint` student, the whole answer.
          rationale: the rationale of the input, for a `rationale_input` student.

        Raises:
          UserError: the label set is closed, and `label` not in it.
        """
        query = self.ask_label(text, rationale=rationale)
        closed = query.candidates or self.closed_set
        if label is None:
            answer = self.run([query])[0]
            label = written = answer.label
            if answer.rationale is not None and self.prompting.is_joint:
                written = f"{answer.rationale}{self.prompting.separator}{label}"
        else:
            label = written = closed.find(label) if closed else label
        target = [
            *self.tokenizer.encode(written)[: self._max_decode_len],
            *self._label_tokens.ending,
        ]
        width = shapes.power_of(len(target))
        targets = np.zeros((self.row_counts[0], width), np.int32)
        targets[:, : len(target)] = target
        tokens = self._rows([query], self.row_counts[0], self.group(query).length)
        batch = tokens | to_global({"targets": targets}, self._mesh)
        scores = np.asarray(self._programs.saliency(self._params, batch))[0]
        prefix = self.prompting.input_frame[0]
        if self.prompting.prefix_side == "encoder":
            prefix += self.prompting.prefix(LABEL_KIND)
        return make_saliency(label, self.tokenizer.pieces(query.tokens), scores, prefix)

    def ask_label(
        self, text: str, candidates: Sequence[str] | None = None, *, rationale: str = ""
    ) -> Query:
        """Returns a query for the label of `text`; see `labels` for the arguments.

        Args:
          text: the input, without prefix.
          candidates: the closed label set of this input.
          rationale: the rationale of the input, for a `rationale_input` student.

        Raises:
          UserError: the candidates are no label set, do not fit, or `text` lists none.
        """
        if candidates is not None:
            own = self._closed_set(candidates)
        elif not self._shares_candidates:
            own = self._closed_set(choices_in(text), merge=True)
        else:
            own = None
        if own is not None and self._own_shape is not None:
            check_fits(own, self._own_shape)
        return self._query(
            LABEL_KIND, self.prompting.encoder_text(LABEL_KIND, text, rationale), own
        )

    def ask_explained(self, text: str, rationale: str) -> Query:
        """Returns a query for the label of `text` that shows the student a rationale.

        A student whose label does not read rationales is given the input of METHOD =
        'rationale_input'. Without a rationale that is the input alone.
        """
        prompting = self.prompting
        if not prompting.reads_rationales:
            prompting = dataclasses.replace(prompting, method="rationale_input")
        return self._query(LABEL_KIND, prompting.encoder_text(LABEL_KIND, text, rationale), None)

    def ask_rationale(self, text: str, *, sample: int = 0) -> Query:
        """Returns a query for the rationale of `text`; `sample` selects its random numbers, if any.

        Raises:
          UserError: the student writes its rationale with its label, as those of the methods
            ``joint`` and ``answer_first`` do.
        """
        if self.prompting.explains_itself:
            raise UserError(
                f"A student of METHOD = '{self.prompting.method}' explains itself with its label."
            )
        query = self._query(RATIONALE_KIND, self.prompting.encoder_text(RATIONALE_KIND, text), None)
        return dataclasses.replace(query, sample=sample)

    def _closed_set(self, texts: Sequence[str], *, merge: bool = False) -> Candidates:
        """Tokenizes a label set; of labels with the same tokens `merge` keeps the first."""
        if isinstance(texts, str):
            raise UserError(
                f"CANDIDATES = {texts!r} is no list of labels; write ['yes', 'no'], or 'choices' "
                "where each input lists its own."
            )
        labels = check_candidates(texts)
        end = self._label_tokens.ending
        tokens = tuple((*self.tokenizer.encode(label), *end) for label in labels)
        if merge:
            first = dict(zip(reversed(tokens), reversed(labels), strict=True))
            kept = [pair for pair in zip(labels, tokens, strict=True) if first[pair[1]] == pair[0]]
            labels, tokens = map(tuple, zip(*kept, strict=True))
        for place, ids in enumerate(tokens):
            if (other := tokens.index(ids)) < place:
                raise UserError(
                    f"The candidate labels {labels[other]!r} and {labels[place]!r} are the same "
                    "to the vocabulary."
                )
        return Candidates(labels, tokens)

    def _query(self, kind: Kind, text: str, candidates: Candidates | None) -> Query:
        ids = self.tokenizer.encode(text)
        fits = len(ids) < self.input_length
        return Query(kind, (*ids[: self.input_length - 1], EOS_ID), candidates, not fits)
