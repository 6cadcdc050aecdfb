"""Turns an example into requests, and their completions into candidates.

A plan is a generator per example: it yields rounds of requests and is sent their completions. The
runner drives it by asking the teacher, `derive` drives the same generator from the journal alone;
so what is derived is always what would have been asked with today's prompts and parameters, and
completions of other prompts or parameters never get mixed in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from sbs_jax import metrics
from sbs_jax.errors import UserError
from sbs_jax.parsers import find_parser
from sbs_jax.teacher import fields as fields_lib
from sbs_jax.teacher.equations import wrong_equations
from sbs_jax.teacher.prompts import (
    ANSWER_CONDITIONED,
    FEW_SHOT,
    STYLES,
    ZERO_SHOT_TWO_CALLS,
    Prompt,
    PromptFile,
    Style,
)
from sbs_jax.teacher.sampling import Sampling, make_request
from sbs_jax.teacher.text import clean
from sbs_jax.teacher.types import AskedExample, Completion, CompletionRequest

Round = list[CompletionRequest]
Answers = list[Completion | None]

ON_LENGTH = ("keep", "retry", "drop")


@dataclass(slots=True)
class Candidate:
    """One (rationale, label) that the teacher gave for an example.

    Attributes:
      sample: Index of the sample.
      attempt: The number of the attempt.
      kind: 'rationale', or 'rationalize' when the teacher saw the gold answer.
      text: The completion as received (of the first call).
      rationale: Parsed rationale, '' when unparsed.
      label: Parsed label, '' when unparsed.
      truncated: Whether the completion ended because it had reached its maximum of tokens.
      logprob: Mean log-probability of a token, or None.
      error: Why there is no completion, or None.
      missing: Whether the journal does not have it (yet).
      judge: Whether a label agrees with gold; None without gold.
    """

    sample: int
    attempt: int
    kind: str
    text: str = ""
    rationale: str = ""
    label: str = ""
    truncated: bool = False
    logprob: float | None = None
    error: str | None = None
    missing: bool = False

    judge: Callable[[str], bool] | None = None
    _right: bool | None = None
    _wrong_equations: tuple[str, ...] | None = None

    @property
    def parsed(self) -> bool:
        """Whether there is a label."""
        return bool(self.label)

    @property
    def right(self) -> bool | None:
        """Whether the label agrees with gold; None without gold or label (computed once)."""
        if self._right is None and self.judge is not None and self.label:
            self._right = self.judge(self.label)
        return self._right

    @property
    def wrong_equations(self) -> tuple[str, ...]:
        """Equations of the rationale that do not hold (computed on first use)."""
        if self._wrong_equations is None:
            self._wrong_equations = tuple(wrong_equations(self.rationale))
        return self._wrong_equations


@dataclass(frozen=True)
class Asking:
    """How examples are asked.

    Attributes:
      style: One of `prompts.STYLES`.
      chat: Whether the model is asked as a chat.
      rationalize_wrong: STaR: an example whose answer is wrong is asked again with the gold
        answer in the prompt.
      retry_unparsed: How often a completion that does not parse is asked again.
      retry_temperature: The lowest temperature of a request for an example that is asked again.
      on_length: What happens to a completion that ran out of tokens: 'keep' takes what parses,
        'retry' asks once more with twice the tokens, 'drop' never uses it.
    """

    style: str = FEW_SHOT
    chat: bool = False
    rationalize_wrong: bool = False
    retry_unparsed: int = 0
    retry_temperature: float = 0.8
    on_length: str = "keep"

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise UserError(f"STYLE = {self.style!r} must be one of {', '.join(STYLES)}.")
        if self.on_length not in ON_LENGTH:
            raise UserError(
                f"ON_LENGTH = {self.on_length!r} must be one of {', '.join(ON_LENGTH)}."
            )
        if self.retry_unparsed < 0:
            raise UserError(f"RETRY_UNPARSED = {self.retry_unparsed} must not be negative.")
        if self.retry_unparsed and self.retry_temperature <= 0:
            raise UserError("RETRY_TEMPERATURE must be above 0, or a retry says the same again.")


class RequestPlan:
    """Turns examples into requests, and completions into candidates."""

    def __init__(
        self,
        prompts: PromptFile,
        sampling: Sampling,
        asking: Asking,
        *,
        model: str,
        field_files: Sequence[fields_lib.FieldFile] = (),
    ) -> None:
        self.field_files = tuple(field_files)
        self._fields = [field for file in field_files for field in file.fields]
        self.prompts = prompts
        self.sampling = sampling
        self.asking = asking
        self.model = model
        self.style = prompts.style(asking.style)
        self.conditioned = prompts.style(ANSWER_CONDITIONED) if asking.rationalize_wrong else None
        self.two_calls = asking.style == ZERO_SHOT_TWO_CALLS
        self._parse = find_parser(self.style.parser or prompts.parser)
        self._parse_answer = find_parser(prompts.answer_parser or prompts.parser)
        self.by_value = prompts.metric == "value"
        self._agrees = metrics.SCORERS[prompts.metric]

    def prompt(self, example: AskedExample) -> Prompt:
        """Returns the prompt of the first call."""
        return self.style.prompt(example, chat=self.asking.chat)

    def stop(self, style_stop: tuple[str, ...] | None) -> tuple[str, ...]:
        """Returns the stop strings in force: gin's, else the style's, else the file's."""
        if self.sampling.stop:
            return self.sampling.stop
        return self.prompts.stop if style_stop is None else style_stop

    def whole(
        self, example: AskedExample
    ) -> Generator[Round, Answers, tuple[list[Candidate], fields_lib.Written]]:
        """Yields all rounds about `example`; returns its candidates and its further fields."""
        candidates = yield from self.outcome(example)
        voted = majority(candidates, by_value=self.by_value)
        # A right explanation, if there is one, is what further fields are asked about.
        voted = next((c for c in candidates if c.right), voted)
        if voted is None or not self._fields:
            # Nothing can be asked about an answer that there is not (yet).
            missing = bool(self._fields) and any(c.missing for c in candidates)
            empty = {field.name: "" for field in self._fields if field.accept is None}
            return candidates, fields_lib.Written(empty, missing)

        def request(field: fields_lib.Field, values: dict[str, str]) -> CompletionRequest:
            return make_request(
                example,
                field.prompt(values, chat=self.asking.chat),
                model=self.model,
                sampling=self.sampling,
                stop=self.stop(field.stop),
                kind=f"field:{field.name}",
            )

        label = example.label or voted.label
        return candidates, (
            yield from fields_lib.ask(self._fields, example, voted.rationale, label, request)
        )

    def outcome(self, example: AskedExample) -> Generator[Round, Answers, list[Candidate]]:
        """Yields rounds of requests about `example`; returns its candidates, by sample."""
        found: dict[int, Candidate] = {}
        wanted = list(range(self.sampling.samples))
        kind = "rationalize" if self.asking.style == ANSWER_CONDITIONED else "rationale"
        for attempt in range(1 + self.asking.retry_unparsed):
            for candidate in (yield from self._ask(example, self.style, kind, wanted, attempt)):
                found[candidate.sample] = candidate
            wanted = [
                s for s in wanted if not (found[s].parsed or found[s].error or found[s].missing)
            ]
            if not wanted:
                break
        candidates = [found[s] for s in sorted(found)]
        if self.conditioned and example.label and not any(c.missing for c in candidates):
            voted = majority(candidates, by_value=self.by_value)
            if voted is None or not voted.right:
                candidates += yield from self._ask(example, self.conditioned, "rationalize", [0], 0)
        return candidates

    def _ask(
        self, example: AskedExample, style: Style, kind: str, samples: list[int], attempt: int
    ) -> Generator[Round, Answers, list[Candidate]]:
        prompt = style.prompt(example, chat=self.asking.chat)
        temperature = self.sampling.temperature
        if attempt:
            temperature = max(temperature, self.asking.retry_temperature)
        request = functools.partial(
            make_request,
            example,
            model=self.model,
            sampling=self.sampling,
            stop=self.stop(style.stop),
            attempt=attempt,
            temperature=temperature,
        )

        def requests(chosen: list[int], max_tokens: int | None = None) -> Round:
            return [request(prompt, kind=kind, sample=s, max_tokens=max_tokens) for s in chosen]

        said: dict[int, Completion | None] = dict(
            zip(samples, (yield requests(samples)), strict=True)
        )
        if self.asking.on_length == "retry":
            short = [s for s, c in said.items() if c is not None and c.finish_reason == "length"]
            if short:
                longer = yield requests(short, 2 * self.sampling.max_tokens)
                said.update(zip(short, longer, strict=True))
        answers: dict[int, Completion | None] = {}
        if self.two_calls and kind == "rationale":
            ready = [(s, c) for s, c in said.items() if c is not None and c.error is None]
            if ready:
                second = [
                    request(style.answer_prompt(example, prompt, c.text), kind="answer", sample=s)
                    for s, c in ready
                ]
                answers = dict(zip((s for s, _ in ready), (yield second), strict=True))
        return [
            self._candidate(example, kind, s, attempt, said[s], answers.get(s), s in answers)
            for s in samples
        ]

    def _candidate(
        self,
        example: AskedExample,
        kind: str,
        sample: int,
        attempt: int,
        said: Completion | None,
        answer: Completion | None,
        has_answer: bool,
    ) -> Candidate:
        candidate = Candidate(sample=sample, attempt=attempt, kind=kind)
        if said is None or (has_answer and answer is None):
            candidate.missing = True
            return candidate
        candidate.text = said.text
        candidate.error = said.error or (answer.error if answer else None)
        if candidate.error is not None:
            return candidate
        candidate.truncated = said.finish_reason == "length"
        if said.logprob is not None:
            candidate.logprob = said.logprob / max(1, said.completion_tokens)
        if candidate.truncated and self.asking.on_length == "drop":
            return candidate
        if answer is not None:
            rationale, label = said.text, self._parse_answer(clean(answer.text)).label
        else:
            parsed = self._parse(clean(said.text))
            rationale, label = parsed.rationale, parsed.label
            if kind == "rationalize" and not label and example.label:
                # The answer was given in the prompt: a completion that only explains is whole.
                rationale, label = said.text, example.label
        if label:
            candidate.rationale = clean(rationale).strip()
            candidate.label = clean(label).strip()
            if example.label:
                candidate.judge = lambda label: bool(self._agrees(label, example.label))
        return candidate


def vote_key(label: str, *, by_value: bool) -> str:
    """Returns the value of an arithmetic label, or its normalised text."""
    if by_value:
        value = metrics.evaluate_expression(label)
        if value is not None:
            return str(value)
    return metrics.normalize_answer(label)


def voted(candidates: list[Candidate], *, by_value: bool) -> Candidate | None:
    """Returns the teacher's answer: the majority vote over the samples that did not see gold."""
    own = [c for c in candidates if c.kind == "rationale"]
    return majority(own or candidates, by_value=by_value)


def majority(candidates: list[Candidate], *, by_value: bool) -> Candidate | None:
    """Returns the first candidate with the majority label (self-consistency), or None.

    Ties go to the label that was said first, so that the vote never depends on timing.
    """
    if sum(candidate.parsed for candidate in candidates) <= 1:
        return next((candidate for candidate in candidates if candidate.parsed), None)
    votes: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        if candidate.parsed:
            votes.setdefault(vote_key(candidate.label, by_value=by_value), []).append(candidate)
    return max(votes.values(), key=len)[0]
