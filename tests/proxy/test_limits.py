"""Token buckets: a burst, then a rate; a refusal takes nothing; memory has a bound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Limits
from gateway.errors import TooManyRequests
from gateway.proxy.limits import Buckets, Limiter


def test_a_burst_passes_and_then_the_rate_holds() -> None:
    buckets = Buckets(rate=2.0, burst=3)
    assert [buckets.take("a", 10.0) for _ in range(4)] == [0.0, 0.0, 0.0, pytest.approx(0.5)]
    assert buckets.take("a", 10.4) == pytest.approx(0.1)
    assert buckets.take("a", 10.5) == 0.0
    assert buckets.take("a", 10.5) > 0.0


def test_each_key_has_its_own() -> None:
    buckets = Buckets(rate=1.0, burst=1)
    assert (buckets.take("a", 0.0), buckets.take("b", 0.0)) == (0.0, 0.0)
    assert buckets.take("a", 0.0) > 0.0


def test_an_idle_bucket_is_full_and_no_fuller() -> None:
    buckets = Buckets(rate=1.0, burst=2)
    for _ in range(2):
        assert buckets.take("a", 0.0) == 0.0
    assert [buckets.take("a", 1000.0) == 0.0 for _ in range(3)] == [True, True, False]


def test_a_flood_of_keys_takes_no_more_memory_and_spares_the_busy() -> None:
    buckets = Buckets(rate=0.001, burst=1, max_keys=100)
    assert buckets.take("busy", 0.0) == 0.0
    for number in range(1000):
        buckets.take(f"{number}", 0.0)
        assert buckets.take("busy", 0.0) > 0.0
    assert len(buckets) == 100


@given(
    rate=st.floats(0.1, 1000.0),
    burst=st.integers(1, 50),
    pauses=st.lists(st.floats(0.0, 1.0), max_size=200),
)
def test_never_more_than_burst_and_rate_allow(rate: float, burst: int, pauses: list[float]) -> None:
    buckets, now, passed = Buckets(rate, burst), 0.0, 0
    for pause in pauses:
        now += pause
        passed += buckets.take("a", now) == 0.0
        assert passed <= burst + rate * now + 1e-6


def test_a_limit_says_when_to_come_back() -> None:
    now = [0.0]
    limiter = Limiter(Limits(account_requests_per_second=0.25, account_burst=1), lambda: now[0])
    limiter.account("a")
    limiter.account("b")
    with pytest.raises(TooManyRequests) as raised:
        limiter.account("a")
    assert raised.value.retry_after_seconds == 4
    now[0] = 4.0
    limiter.account("a")


def test_without_limits_all_pass() -> None:
    limiter = Limiter(Limits(), lambda: 0.0)
    for _ in range(1000):
        limiter.account("a")
        limiter.peer("192.0.2.7")
