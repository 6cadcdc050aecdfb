"""Flow control: concurrency, rate limits, retries, the circuit breaker, budgets."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass

from sbs_jax.errors import UserError, require_at_least


@dataclass(frozen=True)
class Flow:
    """Limits of a run.

    Attributes:
      concurrency: Requests in flight at once.
      requests_per_minute: 0 means no limit.
      tokens_per_minute: Prompt and completion tokens together; 0 means no limit.
      max_retries: How often a request is sent again after a fault that may pass.
      backoff: Seconds before the first retry; doubled each time, with jitter.
      max_backoff: The longest wait between two tries, in seconds.
      max_retry_after: The longest `Retry-After` that is honoured, in seconds.
      breaker_failures: After that many faults in a row (0: four times the concurrency, at least
        20) nothing is sent but one probe at a time.
      breaker_cooldown: Seconds before the first probe; doubled each time up to `max_backoff`.
      give_up_after: Seconds of nothing but faults after which the run stops.
      token_budget: Tokens that the folder may cost in all its runs; 0 means no limit.
      money_budget: Money that the folder may cost in all its runs, in the currency of the prices;
        0 means no limit.
      price_in: Price of a million prompt tokens.
      price_out: Price of a million completion tokens.
    """

    concurrency: int = 32
    requests_per_minute: float = 0
    tokens_per_minute: float = 0
    max_retries: int = 8
    backoff: float = 0.5
    max_backoff: float = 60.0
    max_retry_after: float = 600.0
    breaker_failures: int = 0
    breaker_cooldown: float = 5.0
    give_up_after: float = 1800.0
    token_budget: int = 0
    money_budget: float = 0.0
    price_in: float = 0.0
    price_out: float = 0.0

    def __post_init__(self) -> None:
        require_at_least(1, CONCURRENCY=self.concurrency)
        for name, value in vars(self).items():
            if value < 0:
                raise UserError(f"{name.upper()} = {value} must not be negative.")
        if self.money_budget and not (self.price_in or self.price_out):
            raise UserError("MONEY_BUDGET needs PRICE_IN and PRICE_OUT (per million tokens).")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Returns the price of that many tokens."""
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6

    def delay(self, tries: int, retry_after: float | None, rng: random.Random) -> float:
        """Returns the seconds to wait after the `tries`-th try has failed.

        Exponential with full jitter above one half, so that clients do not return in step; never
        less than what the server asked for.
        """
        step = min(self.max_backoff, self.backoff * 2 ** min(tries - 1, 30))
        wait = step * (0.5 + rng.random() / 2)
        if retry_after is not None:
            asked = min(retry_after, self.max_retry_after)
            wait = max(wait, asked + rng.random() * min(1.0, 0.1 * asked + 0.05))
        return wait


class Bucket:
    """A token bucket: `rate` units a minute, at most ten seconds' worth saved up."""

    def __init__(self, rate: float) -> None:
        self.rate = rate / 60.0
        # At least one unit may be saved, or a slow limit would never let anything through.
        self.capacity = max(1.0, self.rate * 10)
        self.level = self.capacity
        self.time = time.monotonic()

    def reserve(self, amount: float) -> float:
        """Takes `amount` and returns the seconds to wait before it may be used."""
        if not self.rate:
            return 0.0
        now = time.monotonic()
        self.level = min(self.capacity, self.level + (now - self.time) * self.rate) - amount
        self.time = now
        return max(0.0, -self.level / self.rate)

    def give_back(self, amount: float) -> None:
        """Returns what was reserved and not used (or takes more, when negative)."""
        if self.rate:
            self.level += amount


class GaveUp(Exception):
    """Raised when no request has succeeded for so long that the run stops."""


class Breaker:
    """A circuit breaker: after many faults in a row, one probe at a time until one succeeds."""

    def __init__(self, flow: Flow) -> None:
        self.threshold = flow.breaker_failures or max(20, 4 * flow.concurrency)
        self._cooldown = flow.breaker_cooldown
        self._max = max(flow.max_backoff, flow.breaker_cooldown)
        self._give_up = flow.give_up_after
        self.failures = 0
        self.opened = 0
        self._wait = self._cooldown
        self._next_probe = 0.0
        self._probing = False
        self._last_success = time.monotonic()
        self.last_error = ""

    @property
    def open(self) -> bool:
        """Whether requests are held back."""
        return self.failures >= self.threshold

    def may_send(self) -> float:
        """Returns 0 when a request may be sent now, else the seconds after which to ask again.

        Raises:
          GaveUp: there was no success for `give_up_after` seconds.
        """
        if not self.open:
            return 0.0
        now = time.monotonic()
        if now - self._last_success > self._give_up:
            raise GaveUp(self.last_error)
        if self._probing or now < self._next_probe:
            return max(0.01, min(1.0, self._next_probe - now))
        self._probing = True
        return 0.0

    def success(self) -> None:
        """Records that the server answered."""
        self.failures = 0
        self._probing = False
        self._wait = self._cooldown
        self._last_success = time.monotonic()

    def failure(self, error: str) -> None:
        """Records that a try failed for a reason that is not its own."""
        self.last_error = error
        was_open = self.open
        self.failures += 1
        if self.open:
            self.opened += not was_open
            if self._probing or not was_open:
                self._next_probe = time.monotonic() + self._wait
                self._wait = min(self._max, self._wait * 2)
            self._probing = False


async def sleep_or(stop: asyncio.Event, seconds: float) -> bool:
    """Sleeps, but not past the moment when `stop` is set; returns whether it is."""
    if seconds > 0 and not stop.is_set():
        try:
            async with asyncio.timeout(seconds):
                await stop.wait()
        except TimeoutError:
            pass
    return stop.is_set()
