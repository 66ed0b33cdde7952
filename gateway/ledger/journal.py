"""A session's events, read from its bucket's stream: from now on or after an id, none lost, none twice. What is in
the stream for the decision journal alone is passed over.

One poller a bucket serves all who follow a session in it; polling, because a blocking read would keep a connection a
bucket in Cluster, and because after a failover it simply goes on. Whoever reads too slowly falls behind: its queue is
dropped and it reads the stream itself from where it stood, so that nobody waits for it and it misses nothing that the
stream still has.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator

import structlog
from msgspec import Struct

from gateway.errors import LedgerUnavailable
from gateway.ledger.lines import JOURNAL_ONLY
from gateway.ledger.steps import Ledger, bucket_of
from gateway.tasks import Tasks
from gateway.telemetry import Seldom

POLL_SECONDS = 0.05
AWAY_SECONDS = 1.0
PAGE = 500
MAX_QUEUE = 256
LOG_SECONDS = 1.0
"""At most one line in so long that Redis is away, however many buckets are followed."""
_BEGINNING = (0, 0)
"""Asks for all that there is: it names no event that could have been lost since."""

log = structlog.get_logger(__name__)


class Event(Struct, frozen=True):
    """One ledger step. `id` orders the events of a bucket and resumes; its first half is the time in ms."""

    id: str
    session_id: str
    kind: str
    operation: str
    fields: dict[str, str]

    @property
    def at_ms(self) -> int:
        return int(self.id.partition("-")[0])

    def products(self, field: str = "p") -> list[str]:
        return self.fields.get(field, "").split()


class Gap(Exception):
    """The stream no longer has what came right after the id asked for; `newest` is where to go on."""

    def __init__(self, newest: str) -> None:
        super().__init__(newest)
        self.newest = newest


class _Follower:
    def __init__(self) -> None:
        self.queue: deque[Event] = deque()
        self.behind = True
        self.news = asyncio.Event()


class _Bucket:
    def __init__(self) -> None:
        self.followers: dict[str, set[_Follower]] = {}
        self.cursor = "0-0"

    def deliver(self, event: Event) -> None:
        for follower in self.followers.get(event.session_id, ()):
            if len(follower.queue) >= MAX_QUEUE:
                follower.behind = True
            if not follower.behind:
                follower.queue.append(event)
            follower.news.set()


class Journal:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._buckets: dict[int, _Bucket] = {}
        self._tasks = Tasks("journal")
        self._say = Seldom(LOG_SECONDS)

    async def check(self, session_id: str, after: str) -> None:
        """Raises `Gap` where events right after an id may be gone: trimmed, or lost with the whole stream."""
        oldest, newest = await self._ledger.event_bounds(bucket_of(session_id))
        trimmed = _BEGINNING < order(after) < order(oldest)
        if trimmed or order(after) > order(newest):
            raise Gap(newest)

    async def newest(self, session_id: str) -> str:
        return (await self._ledger.event_bounds(bucket_of(session_id)))[1]

    async def follow(self, session_id: str, after: str, heartbeat_seconds: float) -> AsyncGenerator[Event | None, None]:
        """Events of a session after an id, for ever; None when nothing came for so long."""
        number = bucket_of(session_id)
        follower = _Follower()
        self._join(number, session_id, follower)
        try:
            cursor = after
            while True:
                follower.news.clear()
                if follower.behind:
                    follower.behind = False
                    follower.queue.clear()
                    async for event in self._catch_up(number, cursor):
                        cursor = event.id
                        if event.session_id == session_id:
                            yield event
                while follower.queue:
                    event = follower.queue.popleft()
                    if order(event.id) > order(cursor):
                        cursor = event.id
                        yield event
                try:
                    async with asyncio.timeout(heartbeat_seconds):
                        await follower.news.wait()
                except TimeoutError:
                    yield None
        finally:
            self._leave(number, session_id, follower)

    async def _catch_up(self, bucket: int, cursor: str) -> AsyncIterator[Event]:
        while True:
            page = await self._ledger.events(bucket, cursor, PAGE)
            for identifier, fields in page:
                if fields["e"] not in JOURNAL_ONLY:
                    yield _event(identifier, fields)
            if len(page) < PAGE:
                return
            cursor = page[-1][0]

    def _join(self, number: int, session_id: str, follower: _Follower) -> None:
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = _Bucket()
            self._tasks.start(self._poll(number, bucket))
        bucket.followers.setdefault(session_id, set()).add(follower)

    def _leave(self, number: int, session_id: str, follower: _Follower) -> None:
        bucket = self._buckets.get(number)
        if bucket is None or follower not in bucket.followers.get(session_id, ()):
            return  # Closed meanwhile.
        bucket.followers[session_id].discard(follower)
        if not bucket.followers[session_id]:
            del bucket.followers[session_id]
        if not bucket.followers:
            del self._buckets[number]

    async def _poll(self, number: int, bucket: _Bucket) -> None:
        """Read a bucket's news until nobody follows it. What was there before the first follower came, that one
        reads itself: everybody begins behind."""
        started = False
        while self._buckets.get(number) is bucket:
            try:
                if not started:
                    bucket.cursor = (await self._ledger.event_bounds(number))[1]
                    started = True
                    for followers in bucket.followers.values():
                        for follower in followers:
                            follower.behind = True
                            follower.news.set()
                page = await self._ledger.events(number, bucket.cursor, PAGE)
                for identifier, fields in page:
                    if fields["e"] not in JOURNAL_ONLY:
                        bucket.deliver(_event(identifier, fields))
                    bucket.cursor = identifier
                if len(page) == PAGE:
                    continue
            except LedgerUnavailable as error:
                if self._say.now():
                    log.warning("journal_unavailable", buckets=len(self._buckets), error=error.detail)
                await asyncio.sleep(AWAY_SECONDS)
            except Exception:
                log.exception("journal_failed", bucket=number)
                await asyncio.sleep(AWAY_SECONDS)
            await asyncio.sleep(POLL_SECONDS)

    async def close(self) -> None:
        self._buckets.clear()
        await self._tasks.cancel()


def order(identifier: str) -> tuple[int, int]:
    """A stream id as Redis orders it. Raises `ValueError` where it is none."""
    time, _, sequence = identifier.partition("-")
    return int(time), int(sequence or 0)


def _event(identifier: str, fields: dict[str, str]) -> Event:
    rest = {name: value for name, value in fields.items() if name not in ("s", "e", "o", "d")}
    return Event(identifier, fields["s"], fields["e"], fields.get("o", ""), rest)
