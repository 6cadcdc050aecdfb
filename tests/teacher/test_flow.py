"""Limits: the arithmetic of buckets, backoff and the breaker, on a clock of our own."""

import random

import pytest

from sbs_jax.errors import UserError
from sbs_jax.teacher import flow as flow_lib
from sbs_jax.teacher.backends.openai_compat import OpenAICompatBackend, retry_after_of
from sbs_jax.teacher.flow import Breaker, Bucket, Flow, GaveUp


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(flow_lib.time, "monotonic", lambda: now[0])
    return now


def test_a_bucket_lets_its_rate_through(clock):
    bucket = Bucket(120)  # two a second, twenty saved up
    waits = [bucket.reserve(1) for _ in range(40)]
    assert waits[:20] == [0.0] * 20
    assert waits[20:] == pytest.approx([0.5 * i for i in range(1, 21)])
    clock[0] += 10.0
    assert bucket.reserve(1) == pytest.approx(0.5)
    bucket.give_back(21)
    assert bucket.reserve(1) == 0.0
    assert Bucket(0).reserve(1e9) == 0.0
    slow = Bucket(1)  # one a minute: one is always let through
    assert slow.reserve(1) == 0.0
    assert slow.reserve(1) == pytest.approx(60.0)


def test_backoff_doubles_with_jitter_and_honours_retry_after():
    flow, rng = Flow(backoff=1.0, max_backoff=10.0, max_retry_after=100.0), random.Random(0)
    for tries, low, high in ((1, 0.5, 1.0), (2, 1.0, 2.0), (3, 2.0, 4.0), (50, 5.0, 10.0)):
        waits = [flow.delay(tries, None, rng) for _ in range(200)]
        assert low <= min(waits) < max(waits) <= high
        assert max(waits) - min(waits) > 0.4 * (high - low)
    assert 20.0 <= flow.delay(1, 20.0, rng) <= 22.0
    assert 100.0 <= flow.delay(1, 1e6, rng) <= 101.0


def test_the_breaker_probes_one_at_a_time_and_gives_up(clock):
    flow = Flow(breaker_failures=3, breaker_cooldown=2.0, max_backoff=8.0, give_up_after=100.0)
    breaker = Breaker(flow)
    for _ in range(3):
        assert breaker.may_send() == 0.0
        breaker.failure("down")
    assert breaker.open and breaker.may_send() > 0
    for cooldown in (2.0, 4.0, 8.0, 8.0):
        clock[0] += cooldown - 0.1
        assert breaker.may_send() > 0
        clock[0] += 0.2
        assert breaker.may_send() == 0.0  # the probe
        assert breaker.may_send() > 0  # nobody else
        breaker.failure("still down")
    clock[0] += 9.0
    assert breaker.may_send() == 0.0
    breaker.success()
    assert not breaker.open and breaker.may_send() == breaker.may_send() == 0.0
    for _ in range(3):
        breaker.failure("down")
    clock[0] += 101.0
    with pytest.raises(GaveUp, match="down"):
        breaker.may_send()


def test_cost():
    assert Flow(price_in=1.0, price_out=4.0).cost(1_000_000, 500_000) == 3.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"retry-after-ms": "250"}, 0.25),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "soon"}, None),
    ],
)
def test_retry_after(headers, seconds):
    assert retry_after_of(headers) == seconds


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Flow(concurrency=0), "CONCURRENCY"),
        (lambda: Flow(max_retries=-1), "MAX_RETRIES"),
        (lambda: Flow(money_budget=1.0), "PRICE_IN"),
        (lambda: OpenAICompatBackend("m", "localhost:8000"), "BASE_URL"),
        (lambda: OpenAICompatBackend("m", "http://x/v1", timeout=0), "TIMEOUT"),
        (lambda: OpenAICompatBackend("m", header_env={"a": "NOT_SET_AT_ALL"}), "NOT_SET_AT_ALL"),
    ],
)
def test_bad_settings(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()


@pytest.mark.parametrize("url", ["https://ann:hidden@host/v1", "https://host/v1?key=hidden"])
def test_credentials_in_an_address_are_refused_without_being_told(url):
    with pytest.raises(UserError, match="environment") as caught:
        OpenAICompatBackend("m", url)
    assert "hidden" not in str(caught.value)
