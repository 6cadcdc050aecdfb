"""The gate that every request passes: circuit breaker, rate limits, budget."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

from sbs_jax.errors import UserError
from sbs_jax.teacher.flow import Breaker, Bucket, Flow, GaveUp, sleep_or
from sbs_jax.teacher.journal import Totals
from sbs_jax.teacher.types import Completion, CompletionRequest

_CHARS_PER_TOKEN = 4.0  # until the server has reported usage


class Stopped(Exception):
    """Raised when the run is stopping and a request is not sent."""


class Gate:
    """Lets requests through when limits and budget allow it.

    Args:
      flow: The limits.
      totals: The cost of the folder so far, which the journal keeps up to date.
      stopping: Set when nothing more is to be sent.
      stop: Called with the reason when the budget is spent.
      fail: Called with the error when nothing has worked for too long.
    """

    def __init__(
        self,
        flow: Flow,
        totals: Totals,
        stopping: asyncio.Event,
        stop: Callable[[str], None],
        fail: Callable[[UserError], None],
    ) -> None:
        self.breaker = Breaker(flow)
        self._flow = flow
        self._totals = totals
        self._stopping = stopping
        self._stop = stop
        self._fail = fail
        self._requests = Bucket(flow.requests_per_minute)
        self._tokens = Bucket(flow.tokens_per_minute)
        self._reserved_tokens = 0
        self._reserved_money = 0.0
        self._freed = asyncio.Event()
        self._chars = self._char_tokens = 0

    async def wait(self, group: Sequence[CompletionRequest]) -> None:
        """Waits until `group` may be sent.

        Raises:
          Stopped: it may not be sent any more.
        """
        while True:
            if self._stopping.is_set():
                raise Stopped
            try:
                wait = self.breaker.may_send()
            except GaveUp as error:
                self._fail(
                    UserError(
                        f"Nothing but faults for {self._flow.give_up_after:.0f} s (the last: "
                        f"{error}); what was answered is saved, and the same command goes on."
                    )
                )
                raise Stopped from error
            if not wait:
                break
            await sleep_or(self._stopping, wait)
        if self._flow.token_budget or self._flow.money_budget:
            await self._budget(group)
        wait = self._requests.reserve(1)
        if self._tokens.rate:
            wait = max(wait, self._tokens.reserve(self._estimate(group)))
        if wait and await sleep_or(self._stopping, wait):
            raise Stopped

    @contextmanager
    def sending(
        self, group: Sequence[CompletionRequest]
    ) -> Generator[list[Completion], None, None]:
        """Reserves what `group` may cost while it is under way.

        Put the completions into the list that is yielded: their usage replaces the reservation.
        """
        new = _most_new(group)
        estimate = self._estimate(group)
        money = self._flow.cost(estimate - new, new)
        self._reserved_tokens += estimate
        self._reserved_money += money
        said: list[Completion] = []
        try:
            yield said
        finally:
            self._reserved_tokens -= estimate
            self._reserved_money -= money
            used = sum(c.prompt_tokens + c.completion_tokens for c in said)
            self._tokens.give_back(estimate - used)
            if said and not said[0].usage_estimated:
                self._chars += len(group[0].body)
                self._char_tokens += said[0].prompt_tokens
            self._freed.set()

    def release(self) -> None:
        """Wakes the requests that wait for budget, because the run stops."""
        self._freed.set()

    def prompt_tokens(self, request: CompletionRequest) -> int:
        """Estimates the tokens of a prompt from the usage that the server has reported so far."""
        rate = self._chars / self._char_tokens if self._char_tokens else _CHARS_PER_TOKEN
        return int(len(request.body) / rate) + 1

    def _estimate(self, group: Sequence[CompletionRequest]) -> int:
        return self.prompt_tokens(group[0]) + _most_new(group)

    async def _budget(self, group: Sequence[CompletionRequest]) -> None:
        new = _most_new(group)
        estimate = self._estimate(group)
        while True:
            totals = self._totals
            tokens = totals.prompt_tokens + totals.completion_tokens + estimate
            money = self._flow.cost(
                totals.prompt_tokens + estimate - new, totals.completion_tokens + new
            )
            if self._over(tokens, money):
                self._stop("budget")
                raise Stopped
            if not self._over(tokens + self._reserved_tokens, money + self._reserved_money):
                return
            # What is in flight may turn out cheaper than its worst case.
            self._freed.clear()
            await self._freed.wait()
            if self._stopping.is_set():
                raise Stopped

    def _over(self, tokens: int, money: float) -> bool:
        flow = self._flow
        return bool(flow.token_budget and tokens > flow.token_budget) or bool(
            flow.money_budget and money > flow.money_budget
        )


def _most_new(group: Sequence[CompletionRequest]) -> int:
    return sum(request.max_tokens for request in group)
