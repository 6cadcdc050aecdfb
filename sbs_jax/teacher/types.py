"""Types shared by the parts of the teacher: examples, requests, completions, errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class AskedExample:
    """One example of the data set: `input` x, gold `label` y ('' when there is none)."""

    id: str
    input: str
    label: str = ""


@dataclass(slots=True)
class CompletionRequest:
    """One completion that is wanted.

    Attributes:
      key: 32 hex digits, the hash of the whole request (see `sampling.Sampler.request`).
      example: The example that it is about.
      kind: 'rationale', 'answer' (second call of zero-shot), 'rationalize' (gold answer shown), or
        'field:NAME' for a further field of the example.
      sample: Index of the sample, from 0.
      attempt: 0, then 1, 2, … when a completion that did not parse is asked again.
      prompt: The text of a completion request, or the messages of a chat request.
      body: The OpenAI request body as JSON, without its seed.
      max_tokens: The most tokens that the answer may have (for budgets and rate limits).
      seed: The seed of this sample and attempt, or None.
    """

    key: str
    example: AskedExample
    kind: str
    sample: int
    attempt: int
    prompt: str | list[dict[str, str]]
    body: bytes
    max_tokens: int
    seed: int | None

    @property
    def payload(self) -> bytes:
        """The body that is sent: `body` with the seed of this sample."""
        if self.seed is None:
            return self.body
        return b'%s,"seed":%d}' % (self.body[:-1], self.seed)


@dataclass(slots=True)
class Completion:
    """A backend's answer to a request.

    Attributes:
      text: The completion, exactly as received; '' when there is an `error`.
      finish_reason: 'stop', 'length', … as the server says, '' when it says nothing.
      prompt_tokens: Tokens of the prompt, from the server's usage; estimated without one.
      completion_tokens: Tokens of the completion, from the server's usage; estimated without one.
      usage_estimated: Whether the two counts are our estimate.
      logprob: Sum of the log-probabilities of the completion's tokens, or None.
      server: Further fields of the response: model name, fingerprint, cached tokens, reasoning.
      seconds: The time from sending to the last byte.
      tries: How many times it was sent.
      error: Why this row has no completion (a fault of this row alone), or None.
    """

    text: str
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usage_estimated: bool = False
    logprob: float | None = None
    server: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    tries: int = 1
    error: str | None = None


class Transient(Exception):
    """Raised when a request failed for a reason that may pass, so that it is sent again.

    Attributes:
      retry_after: Seconds that the server wants us to wait, or None.
      row: Whether the server did answer, so that the fault may lie in this row (a 500).
    """

    def __init__(
        self, message: str, *, retry_after: float | None = None, row: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.row = row


class Refused(Exception):
    """Raised when the server refused a request and would refuse it again.

    Attributes:
      row: True when it is surely this row's fault (too long a prompt); False when it may be a
        fault of every request.
      fatal: True when it is surely a fault of every request (a wrong key).
    """

    def __init__(self, message: str, *, row: bool = False, fatal: bool = False) -> None:
        super().__init__(message)
        self.row = row
        self.fatal = fatal


class SplitGroup(Exception):
    """Raised when the server does not return several samples at once."""


class Deferred(Exception):
    """Raised when a request was written to a file and is answered in a later run (`batch_file`)."""


class Backend(Protocol):
    """The interface of what answers requests; implementations live in `backends/`.

    Attributes:
      name: The name in gin: 'openai_compat', 'local', 'batch_file', 'scripted'.
      model: The name that goes into the request body and so into the key.
      samples_per_request: How many samples of one example may go into one call of `complete`.
      one_first: Whether the first request is sent alone, to see whether it succeeds.
      min_concurrency: Number of concurrent requests that it needs to form batches.
    """

    name: str
    model: str
    samples_per_request: int
    one_first: bool
    min_concurrency: int

    async def start(self) -> None:
        """Opens what it needs (sockets, weights)."""

    async def complete(self, requests: Sequence[CompletionRequest]) -> list[Completion]:
        """Answers requests that differ in their sample alone.

        Raises:
          Transient, Refused, SplitGroup, Deferred: see there.
        """

    async def close(self) -> None:
        """Releases what `start` opened."""

    def count_tokens(self, prompt: str | list[dict[str, str]]) -> tuple[int, bool]:
        """Returns how many tokens `prompt` has and whether that is exact."""

    def describe(self) -> dict[str, Any]:
        """Returns what `run.json` records of it, which never includes a key or a password."""
