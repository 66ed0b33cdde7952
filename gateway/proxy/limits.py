"""How often one account, and one client address, may ask: token buckets in this process, with a bound on their number.

A flood is refused with 429 before anything is looked up, read or reserved; failed requests cost their sender like any
other. Off as shipped: how busy a room may be is the operator's to say, and behind a proxy all clients have one address
until `listen.forwarded_hops` says where theirs stands.

Each gateway process counts for itself: with n of them, up to n times as much passes. Rejected: counting in Redis, a
round trip for each request to save the work of few; and a library, where one comparison and one addition do (measured a
call: limits 5.8 3.3 to 4.4 µs, pyrate-limiter 4.5 7.8, aiolimiter 1.3 1.2 and it waits instead of refusing, this 0.4).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

import structlog

from gateway import config
from gateway.errors import TooManyRequests
from gateway.identity import Identity
from gateway.identity.header import Claims
from gateway.reading.client import network_of
from gateway.telemetry import Seldom

MAX_KEYS = 65_536
"""Buckets of one kind. Beyond it, the one that was not asked for longest is forgotten, and is full again."""

LOG_SECONDS = 1.0
"""At most one line about refused floods in so long."""

log = structlog.get_logger(__name__)


class Buckets:
    """One bucket a key, refilled at `rate` a second up to `burst`. Kept as the time at which a bucket will be full
    again (GCRA), so that a key costs one float."""

    def __init__(self, rate: float, burst: int, max_keys: int = MAX_KEYS) -> None:
        self._interval = 1.0 / rate
        self._allowance = (burst - 1) * self._interval
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._max_keys = max_keys

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, key: str, now: float) -> float:
        """0.0 and one token less; or the seconds until there is one, and nothing is taken. `now`: monotonic seconds."""
        full_at = self._full_at.get(key, now)
        wait = full_at - now - self._allowance
        if wait > 0.0:
            self._full_at.move_to_end(key)
            return wait
        self._full_at[key] = max(full_at, now) + self._interval
        self._full_at.move_to_end(key)
        if len(self._full_at) > self._max_keys:
            self._full_at.popitem(last=False)
        return 0.0


def _buckets(rate: float, burst: int) -> Buckets | None:
    return Buckets(rate, burst) if rate else None


class Limiter:
    """The limits of `[limits]`. Raises `TooManyRequests`. `clock`: monotonic seconds."""

    def __init__(self, limits: config.Limits, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._refused = 0
        self._say = Seldom(LOG_SECONDS, clock)
        self.configure(limits)

    def configure(self, limits: config.Limits) -> None:
        """Take over limits that a reload brought: all buckets are full again."""
        self._accounts = _buckets(limits.account_requests_per_second, limits.account_burst)
        self._peers = _buckets(limits.peer_requests_per_second, limits.peer_burst)

    def account(self, account_id: str) -> None:
        if self._accounts is not None and (wait := self._accounts.take(account_id, self._clock())):
            raise self._refusal("account", account_id, wait, account_id)

    def peer(self, address: str) -> None:
        if self._peers is not None and (wait := self._peers.take(network_of(address), self._clock())):
            raise self._refusal("peer", address, wait)

    def _refusal(self, kind: str, key: str, wait: float, account_id: str | None = None) -> TooManyRequests:
        """Counted one by one in the metrics; here a line tells of all since the last one."""
        self._refused += 1
        if self._say.now():
            log.warning("limited", kind=kind, key=key, refused=self._refused)
            self._refused = 0
        seconds = max(1, math.ceil(wait))
        return TooManyRequests(f"This {kind} asks too often: wait {seconds} s, then more slowly.", seconds, account_id)


class LimitedIdentity:
    """An `Identity` that lets an account through only as often as it may ask. Every request that speaks for an account
    asks here, once, before anything else of it is looked at."""

    def __init__(self, inner: Identity, limiter: Limiter) -> None:
        self._inner = inner
        self._limit = limiter.account
        self.own_header = inner.own_header
        self.challenge = inner.challenge
        self.forwarded_header = inner.forwarded_header
        self.start = inner.start
        self.reload = inner.reload
        self.close = inner.close

    def peek(self, peer_ip: str, claims: Claims) -> str | None:
        account_id = self._inner.peek(peer_ip, claims)
        if account_id is not None:
            self._limit(account_id)
        return account_id

    async def resolve(self, peer_ip: str, claims: Claims) -> str:
        account_id = await self._inner.resolve(peer_ip, claims)
        self._limit(account_id)
        return account_id
