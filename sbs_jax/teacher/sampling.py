"""Sampling parameters, and how a request body and its key are made from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sbs_jax.errors import UserError, require_at_least
from sbs_jax.teacher.types import AskedExample, CompletionRequest

_encode = json.JSONEncoder(separators=(",", ":")).encode
_ATTEMPT_SEED_STRIDE = 1_000_003


@dataclass(frozen=True)
class Sampling:
    """How the teacher samples.

    Attributes:
      temperature: 0 is greedy.
      top_p: Nucleus of the distribution, in (0, 1].
      max_tokens: The most tokens of one completion.
      stop: Strings that end a completion; they are not part of it. Empty: those of the prompt
        file.
      seed: Sample i is asked with seed + i; None sends no seed.
      samples: How many completions an example gets.
      logprobs: Asks for log-probabilities (the choice 'best_logprob' needs them).
      extra_body: Merged into the body (`{"top_k": 20}`); a value of None removes a field.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int | None = 0
    samples: int = 1
    logprobs: bool = False
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 10:
            raise UserError(f"TEMPERATURE = {self.temperature} must lie between 0 and 10.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"TOP_P = {self.top_p} must lie in (0, 1].")
        require_at_least(1, MAX_TOKENS=self.max_tokens, SAMPLES=self.samples)
        if self.samples > 1 and self.temperature == 0:
            raise UserError(
                f"SAMPLES = {self.samples} at TEMPERATURE = 0 would ask for the same text again "
                "and again; raise TEMPERATURE (0.7, say) or set SAMPLES = 1."
            )
        if len(self.stop) > 16 or any(not isinstance(s, str) or not s for s in self.stop):
            raise UserError("STOP must hold at most 16 non-empty strings.")


def make_request(
    example: AskedExample,
    prompt: str | list[dict[str, str]],
    *,
    model: str,
    sampling: Sampling,
    stop: tuple[str, ...],
    kind: str = "rationale",
    sample: int = 0,
    attempt: int = 0,
    temperature: float | None = None,
    max_tokens: int | None = None,
) -> CompletionRequest:
    """Builds one request.

    The key is a hash of the whole body (prompt or messages, model, every sampling parameter, the
    base seed) and of sample and attempt. How many samples travel in one HTTP request, where the
    server lives and how the answer is parsed are not part of it.
    """
    tokens = max_tokens or sampling.max_tokens
    body: dict[str, Any] = {"model": model}
    if isinstance(prompt, str):
        body["prompt"] = prompt
    else:
        body["messages"] = prompt
    body["max_tokens"] = tokens
    body["temperature"] = sampling.temperature if temperature is None else temperature
    if sampling.top_p != 1:
        body["top_p"] = sampling.top_p
    if stop:
        body["stop"] = stop
    if sampling.logprobs:
        # Completions want a number, chat wants a flag.
        body["logprobs"] = 0 if isinstance(prompt, str) else True
    for name, value in sampling.extra_body.items():
        if value is None:
            body.pop(name, None)
        else:
            body[name] = value
    encoded = _encode(body).encode("ascii")
    digest = hashlib.sha256(encoded)
    digest.update(b"\0%d\0%d\0" % (sample, attempt))
    seed = None
    if sampling.seed is not None:
        digest.update(b"%d" % sampling.seed)
        seed = (sampling.seed + sample + attempt * _ATTEMPT_SEED_STRIDE) % 2**31
    return CompletionRequest(
        key=digest.hexdigest()[:32],
        example=example,
        kind=kind,
        sample=sample,
        attempt=attempt,
        prompt=prompt,
        body=encoded,
        max_tokens=tokens,
        seed=seed,
    )
