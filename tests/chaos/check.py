"""Whether the promise was kept: the platform's journal against the cap, and each session's slots against the journal.

The journal is judged by `gateway.load.judge`, which knows nothing of the gateway. Once all is healed and settled:

- no session ever had more distinct foreign products than its cap;
- of every session, the gateway's view names exactly the products that the journal says count;
- of those that have not ended, attaching until refused gives exactly the cap: no slot is lost, none can be given twice;
- nothing is pending in Redis, and no session has a record left.

In a session that has started, two kinds of slots are kept without a place in the journal's count, since nobody can
prove that they are free. Each needs a client that wanted the product out:

- one who got no clear answer: the list, asked when the session was live, and without the product, says neither that it
  was never attached (its slot would come back) nor that it was (N5: it would not);
- one whose answer came when the start was already under way: the look at the session no longer said preparing.

They are counted, and each needs such a request in the record of what clients sent; every other one is a finding.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, TypeAlias

import aiohttp
import msgspec
import redis
from msgspec import Struct

from gateway.ledger.steps import BUCKETS, bucket_of
from gateway.load.judge import Count, Entry, Judge, Judgement, View, compare
from tests.chaos.drive import Record
from tests.chaos.plan import CAP

PREFIX: Final = "ag"
AT_ONCE: Final = 24
TRIES: Final = 40
AGAIN_SECONDS: Final = 0.25
FIELDS: Final = ("h", "w", "g")


class Finding(Struct, frozen=True):
    """Something that must not be. `session_id` is empty where it concerns no session."""

    what: str
    text: str
    session_id: str = ""


class Doubts(Struct, frozen=True):
    """What became of operations in doubt, by the events of the ledger."""

    begun: int = 0
    settlements: int = 0
    longest_seconds: float = 0.0


class _Journal(Struct):
    entries: list[Entry]


_journal = msgspec.json.Decoder(_Journal)
_view = msgspec.json.Decoder(View)


class Checker:
    """`gateways` are addresses of gateways that run by the time of the checks, `client` is the store's."""

    def __init__(
        self, http: aiohttp.ClientSession, judge: Judge, platform: str, gateways: Sequence[str], offer: Sequence[str]
    ) -> None:
        self._http = http
        self._platform = platform
        self._gateways = gateways
        self._offer = offer
        self._judge = judge
        self.entries: list[Entry] = []
        self.ended: set[str] = set()
        self.sessions: dict[str, str] = {}
        self.findings: list[Finding] = []
        self.unproven = 0
        self.compared = 0
        self.filled = 0
        self._turn = itertools.count()

    async def read_journal(self) -> Judgement:
        """What the platform has applied since the last time."""
        async with self._http.get(f"{self._platform}/_platform/journal?after={self._judge.last_seq}") as answer:
            entries = _journal.decode(await answer.read()).entries
        self._judge.feed(entries)
        self.entries += entries
        for entry in entries:
            if entry.operation == "create" and entry.session_id and entry.account_id:
                self.sessions[entry.session_id] = entry.account_id
            elif entry.operation == "end" and entry.session_id:
                self.ended.add(entry.session_id)
        return self._judge.judgement()

    async def settle(self, client: redis.Redis, limit_seconds: float) -> float:
        """Wait until nothing is pending; how long it took. What still is at the end of the limit is a finding."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while left := await asyncio.to_thread(pending, client):
            if loop.time() - begun > limit_seconds:
                for member in left:
                    what = f"{member} is still pending {limit_seconds:g} s after everything was well again"
                    self.findings.append(Finding("not settled", what, member.split(" ")[0]))
                break
            await asyncio.sleep(AGAIN_SECONDS)
        return loop.time() - begun

    async def compare(self, client: redis.Redis, record: Record) -> None:
        """Every session with a cap: the gateway's view beside the journal, and then attached until refused."""
        await self.read_journal()
        capped = [
            (session_id, account_id, count)
            for session_id, account_id in self.sessions.items()
            if (count := self._judge.count(session_id)) is not None and count.cap == CAP
        ]
        kept: dict[str, int] = {}

        async def one(session_id: str, account_id: str, count: Count) -> None:
            kept[session_id] = await self._compare_view(session_id, account_id, count, record)
            if session_id not in self.ended:
                await self._fill(session_id, account_id, count)

        await _each(one(*session) for session in capped)
        await self.read_journal()
        for session_id, _, count in capped:
            # More, where the slot of a replaced product keeps nobody out who has a place.
            if session_id not in self.ended and len(count.used) + kept[session_id] < CAP:
                names = ", ".join(count.used) or "nothing"
                text = f"attached until refused, the session holds {names}: {len(count.used)} of {CAP}"
                self.findings.append(Finding("slot lost", text, session_id))

    async def _compare_view(self, session_id: str, account_id: str, count: Count, record: Record) -> int:
        """How many slots the gateway keeps because nobody can prove that they are free."""
        status, body = await self._ask("GET", f"/_gateway/sessions/{session_id}", account_id)
        self.compared += 1
        if status != 200:
            self.findings.append(Finding("no view", f"status {status}: {body[:200]!r}", session_id))
            return 0
        view = _view.decode(body)
        kept = 0
        difference = compare(session_id, count, view)
        if difference is None:
            return 0
        for product in difference.lost:
            # Where nothing can be attached any more, no slot can be missed.
            if session_id in self.ended:
                continue
            if count.live and not removal_clear(record, session_id, product):
                kept += 1
            else:
                self.findings.append(Finding("slot lost", f"{product} has a slot, and does not count", session_id))
        for product in difference.uncounted:
            self.findings.append(Finding("slot not counted", f"{product} counts, and has no slot", session_id))
        for product in difference.in_doubt:
            self.findings.append(Finding("not settled", f"{product} is in doubt", session_id))
        if difference.problem:
            self.findings.append(Finding("count wrong", difference.problem, session_id))
        self.unproven += kept
        return kept

    async def _fill(self, session_id: str, account_id: str, count: Count) -> None:
        self.filled += 1
        for product in [product for product in self._offer if product not in count.used][: 2 * CAP]:
            body = {"product_id": product}
            status, answer = await self._ask("POST", f"/live/sessions/{session_id}/products", account_id, body)
            if status == 403:
                return
            if status != 200:
                text = f"an attach was answered {status} when all was well: {answer[:300]!r}"
                self.findings.append(Finding("not served", text, session_id))
                return
        self.findings.append(Finding("over the cap", f"{2 * CAP} attaches in turn and none refused", session_id))

    async def _ask(self, method: str, path: str, account_id: str, body: Any = None) -> tuple[int, bytes]:
        status, said = 0, b""
        for _ in range(TRIES):
            url = self._gateways[next(self._turn) % len(self._gateways)] + path
            try:
                async with self._http.request(method, url, json=body, headers={"X-Account-Id": account_id}) as answer:
                    status, said = answer.status, await answer.read()
            except (aiohttp.ClientError, OSError) as error:
                status, said = 0, repr(error).encode()
            if status and status < 500 and status != 429:
                break
            await asyncio.sleep(AGAIN_SECONDS)
        return status, said

    async def left_over(self, client: redis.Redis) -> int:
        """Records and the like that a session still has; each is a finding."""
        found = 0
        for session_id, names in await asyncio.to_thread(lambda: list(records(client, self.sessions))):
            found += len(names)
            self.findings.append(Finding("left in Redis", f"fields {' '.join(names)}", session_id))
        return found


async def _each(work: Iterable[Any]) -> None:
    places = asyncio.Semaphore(AT_ONCE)

    async def one(item: Any) -> None:
        async with places:
            await item

    await asyncio.gather(*map(one, work))


def removal_clear(record: Record, session_id: str, product: str) -> bool:
    """Whether nobody wanted the product out, or the last who did got a yes before anybody asked for the start."""
    requests = record.by_session.get(session_id, [])
    starts = [request.sent for request in requests if request.step.operation in ("start", "start_past")]
    begun = min(starts, default=float("inf"))
    removals = [request for request in requests if request.step.leaving == product]
    return all(200 <= request.status < 300 and request.answered < begun for request in removals[-1:])


def _buckets(client: redis.Redis, command: str, suffix: str, *arguments: str) -> list[Any]:
    pipe = client.pipeline(transaction=False)
    for bucket in range(BUCKETS):
        pipe.execute_command(command, f"{PREFIX}:{{{bucket}}}:{suffix}", *arguments)
    return list(pipe.execute())


def pending(client: redis.Redis) -> list[str]:
    """The members of every bucket's index."""
    return [member.decode() for found in _buckets(client, "ZRANGE", "p", "0", "-1") for member in found]


def records(client: redis.Redis, sessions: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Sessions that have more than their state and their slots, and what they have."""
    names = list(sessions)
    pipe = client.pipeline(transaction=False)
    for session_id in names:
        pipe.hkeys(f"{PREFIX}:{{{bucket_of(session_id)}}}:s:{session_id}")
    for session_id, fields in zip(names, pipe.execute(), strict=True):
        left = [field.decode() for field in fields if field.decode()[0] in FIELDS]
        if left:
            yield session_id, left


Event: TypeAlias = tuple[float, dict[str, str]]
"""Seconds since the epoch, and the fields of a ledger event."""


def events(client: redis.Redis) -> list[Event]:
    """What every bucket's stream still has, in the order of time."""
    found = []
    for entries in _buckets(client, "XRANGE", "e", "-", "+"):
        for name, fields in entries:
            at = int(name.split(b"-")[0]) / 1000
            found.append((at, {key.decode(): value.decode() for key, value in _pairs(fields)}))
    return sorted(found, key=lambda event: event[0])


def _pairs(fields: Any) -> Iterator[tuple[bytes, bytes]]:
    return iter(fields.items()) if isinstance(fields, dict) else zip(fields[::2], fields[1::2], strict=True)


def doubts(found: Iterable[Event]) -> Doubts:
    """How many operations were in doubt, and the longest that one was."""
    since: dict[str, float] = {}
    begun = settlements = 0
    longest = 0.0
    for at, fields in found:
        operation = fields.get("o", "")
        if fields["e"] == "in_doubt":
            begun += operation not in since
            since.setdefault(operation, at)
        elif fields["e"] == "settled":
            settlements += 1
            longest = max(longest, at - since.get(operation, at))
    return Doubts(begun, settlements, round(longest, 1))
