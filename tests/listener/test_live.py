"""What a live-room client sees of its own session: the count, and each step as it happens, none lost, none twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import yarl
from structlog.testing import capture_logs

from gateway.config import Ledger
from gateway.errors import LedgerUnavailable
from gateway.ledger import journal
from gateway.ledger.journal import Journal, order
from gateway.ledger.steps import bucket_of
from gateway.proxy import live
from gateway.serve import Gateway
from tests.admission.world import ACCOUNT, HOLD_SECONDS, Line, World, until


class Follower:
    """An SSE client that understands what it needs to."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer
        self.last_id = ""
        self.ids: list[str] = []
        self.comments: list[str] = []

    async def event(self) -> tuple[str, Any]:
        """The next event: its name and data. Raises EOFError where the stream has ended."""
        name, data = "message", ""
        async with asyncio.timeout(5):
            while line := await self.answer.content.readline():
                field, _, value = line.decode().rstrip("\n").partition(": ")
                if field == "id":
                    self.last_id = value
                    self.ids.append(value)
                elif field == "event":
                    name = value
                elif field == "data":
                    data = value
                elif not field and value:
                    self.comments.append(value)
                elif not line.strip():
                    if data:
                        return name, json.loads(data)
                    name = "message"
        raise EOFError

    async def begun(self) -> None:
        """Until the stream has said where it stands."""
        async with asyncio.timeout(5):
            while (await self.answer.content.readline()).strip():
                pass

    async def names(self, count: int) -> list[str]:
        return [(await self.event())[0] for _ in range(count)]


@asynccontextmanager
async def following(
    world: World,
    session: str = "s1",
    last_id: str | None = None,
    at: Gateway | None = None,
    account: str = ACCOUNT,
) -> AsyncIterator[Follower]:
    headers = {"X-Account-Id": account} | ({"Last-Event-ID": last_id} if last_id is not None else {})
    url = f"{(at or world.gateways[0]).url}/_gateway/sessions/{session}/events"
    async with world.http.get(url, headers=headers) as answer:
        assert answer.status == 200, await answer.read()
        assert answer.headers["Content-Type"] == "text/event-stream"
        yield Follower(answer)


async def test_the_view_counts_and_spends_nothing(world: World) -> None:
    for _ in range(3):
        said = await world.ask("GET", "/_gateway/sessions/s1")
        view = said.body
        assert (said.status, view["used"], view["cap"], view["remaining"], view["slots"]) == (200, 0, 3, 3, [])
    await world.attach("ally-1")
    await world.settled()
    view = (await world.ask("GET", "/_gateway/sessions/s1")).body
    assert (view["used"], view["remaining"], view["state"]) == (1, 2, "preparing")
    assert [(slot["product_id"], slot["attached"], slot["in_doubt"]) for slot in view["slots"]] == [
        ("ally-1", True, False)
    ]


async def test_two_who_follow_see_the_same(world: World) -> None:
    async with following(world) as one, following(world) as other:
        await one.begun()
        await other.begun()
        for n in (1, 2, 3, 4):
            await world.attach(f"ally-{n}")
            await world.settled()
        for follower in (one, other):
            events = [await follower.event() for _ in range(4)]
            assert [name for name, _ in events] == ["attached", "attached", "attached", "refused"]
            assert [data["used"] for _, data in events] == [1, 2, 3, 3]
            assert events[3][1]["products"] == ["ally-4"]


async def test_who_breaks_off_resumes_without_loss_or_repeat(world: World) -> None:
    async with following(world) as follower:
        await follower.begun()
        await world.attach("ally-1")
        assert await follower.names(1) == ["attached"]
        last_id = follower.last_id
    await world.attach("ally-2")
    await world.start()
    await world.settled()
    async with following(world, last_id=last_id) as follower:
        assert sorted(await follower.names(2)) == ["attached", "started"]
        await world.detach("ally-1")
        assert await follower.names(1) == ["detached"]
        assert order(follower.last_id) > order(last_id)


@pytest.mark.parametrize("beginning", ["0", "0-0"])
async def test_all_that_there_is_from_the_beginning(world: World, beginning: str) -> None:
    await world.attach("ally-1")
    await world.settled()
    async with following(world, last_id=beginning) as follower:
        assert await follower.names(1) == ["attached"]


async def test_who_resumes_is_not_told_again_what_it_has(world: World) -> None:
    await world.attach("ally-1")
    await world.settled()
    async with following(world, last_id="0-0") as follower:
        await follower.event()
        last_id = follower.last_id
    async with following(world, last_id=last_id) as follower:
        await world.attach("ally-2")
        assert await follower.names(1) == ["attached"]
    assert follower.ids == [follower.last_id]
    assert follower.last_id != last_id


async def test_who_breaks_off_before_the_first_event_misses_none(world: World) -> None:
    async with following(world) as follower:
        async with asyncio.timeout(5):
            while not (line := await follower.answer.content.readline()).startswith(b"id: "):
                pass
        last_id = line.decode().removeprefix("id: ").strip()
    await world.attach("ally-1")
    await world.settled()
    async with following(world, last_id=last_id) as follower:
        assert await follower.names(1) == ["attached"]


@pytest.mark.parametrize("other", ["same bucket", "other bucket"])
async def test_events_of_other_sessions_are_not_shown(world: World, other: str) -> None:
    names = (f"n{n}" for n in range(100_000))
    name = next(name for name in names if (bucket_of(name) == bucket_of("s1")) is (other == "same bucket"))
    await world.session(name)
    async with following(world) as follower:
        await follower.begun()
        await world.attach("ally-1", session=name)
        await world.attach("ally-2")
        name_of_event, data = await follower.event()
        assert (name_of_event, data["products"], data["session_id"]) == ("attached", ["ally-2"], "s1")


async def test_a_slow_reader_keeps_nobody_waiting_and_catches_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_QUEUE", 4)
    gateway = world.gateways[0]
    slow = gateway._journal.follow("s1", "0-0", 60.0)
    async with following(world) as follower:
        await follower.begun()
        await world.attach("ally-1")
        first = await anext(slow)
        for n in range(12):
            await world.attach(f"ally-{n + 4}") if n == 0 else await world.ledger.reserve("s1", f"r{n}", 0, ["ally-9"])
            await follower.event()
        await until(
            lambda: any(f.behind for b in gateway._journal._buckets.values() for fs in b.followers.values() for f in fs)
        )
        seen = [first] + [await anext(slow) for _ in range(12)]
    ids = [event.id for event in seen if event is not None]
    assert len(ids) == len(set(ids)) == 13
    assert ids == sorted(ids, key=order)
    await slow.aclose()


async def test_one_who_takes_nothing_is_let_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "STALL_SECONDS", 0.1)
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.0001)
    monkeypatch.setattr(live, "encode_event", lambda event: b"")
    gateway = world.gateways[0]
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(b"GET /_gateway/sessions/s1/events HTTP/1.1\r\nHost: x\r\nX-Account-Id: shop-individual\r\n\r\n")
    await until(lambda: len(gateway._dispatcher._long_lived) == 1)
    big = b": " + b"x" * 1_000_000 + b"\n\n"
    original = live._write

    async def much(response: Any, data: bytes) -> None:
        await original(response, big)

    monkeypatch.setattr(live, "_write", much)
    await until(lambda: not gateway._dispatcher._long_lived)
    assert b'attachgate_errors_total{reason="client_slow"} 1.0' in gateway.telemetry.exposition()[0]
    assert not gateway._journal._buckets
    writer.transport.abort()


async def trimmed(world: World) -> str:
    """The id of an event that the stream does not have any more."""
    await world.ledger.reserve("s1", "first", 0, ["ally-1"])
    first = (await world.ledger.event_bounds(bucket_of("s1")))[1]
    for n in range(250):
        await world.gateways[0].ledger.reserve("s1", f"more{n}", 0, ["ally-1"])
    assert (await world.ledger.event_bounds(bucket_of("s1")))[0] != first
    return first


async def test_what_was_trimmed_is_said_to_be_missing(bare: World) -> None:
    await bare.session()
    await bare.gateway(ledger=Ledger(bare.redis_url, timeout_seconds=0.5, hold_seconds=HOLD_SECONDS, stream_entries=16))
    await bare.attach("own-individual-1")
    await bare.ask("GET", "/_gateway/sessions/s1")
    first = await trimmed(bare)
    async with following(bare, last_id=first) as follower:
        name, data = await follower.event()
        assert (name, "anew" in data["detail"]) == ("gap", True)
        last_id = follower.last_id
        await bare.attach("ally-2")
        assert await follower.names(1) == ["attached"]
    async with following(bare, last_id=last_id) as follower:
        assert await follower.names(1) == ["attached"]


async def test_what_redis_lost_is_said_to_be_missing(world: World) -> None:
    async with following(world) as follower:
        await follower.begun()
        await world.attach("ally-1")
        await follower.event()
        last_id = follower.last_id
    await world.settled()
    await world.redis.flushall()
    async with following(world, last_id=last_id) as follower:
        assert await follower.names(1) == ["gap"]
        await world.attach("ally-2")
        assert await follower.names(1) == ["attached"]


@pytest.mark.parametrize("last_id", ["x", "1-2-3", "-1", "1" * 16, "*", "$", "1-"])
async def test_an_id_that_is_none_of_ours(world: World, last_id: str) -> None:
    said = await world.ask("GET", "/_gateway/sessions/s1/events", headers={"Last-Event-ID": last_id})
    assert (said.status, said.reason) == (400, "address_malformed")


async def test_heartbeats(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.01)
    async with following(world) as follower:
        await follower.begun()
        await asyncio.sleep(0.05)
        await world.attach("ally-1")
        await follower.event()
    assert "heartbeat" in follower.comments


async def test_a_drain_ends_the_streams(world: World) -> None:
    gateway = world.gateways[0]
    async with following(world) as follower:
        await follower.begun()
        gateway._dispatcher.drain()
        with pytest.raises((EOFError, aiohttp.ClientPayloadError)):
            await follower.event()
    said = await world.ask("GET", "/_gateway/sessions/s1/events")
    assert (said.status, said.reason, said.headers["Connection"]) == (503, "draining", "close")


async def test_who_has_left_is_neither_followed_nor_counted_any_more(world: World) -> None:
    """From that moment on, not from the next heartbeat: who comes and goes would take all places."""
    gateway = world.gateways[0]
    await world.ask("GET", "/_gateway/sessions/s1")
    before = len(gateway._listener.connections)
    for _ in range(3):
        async with following(world) as follower:
            await follower.begun()
            assert len(gateway._journal._buckets) == 1
    await until(lambda: not gateway._journal._buckets)
    await until(lambda: len(gateway._listener.connections) <= before)


async def test_redis_that_comes_back_goes_on(bare: World, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "AWAY_SECONDS", 0.05)
    await bare.session()
    await bare.gateway(ledger=Ledger(line.url, timeout_seconds=0.3, hold_seconds=HOLD_SECONDS))
    await bare.attach("ally-1")
    async with following(bare) as follower:
        await follower.begun()
        await asyncio.sleep(0.1)
        await line.down()
        refused = await bare.ask("GET", "/_gateway/sessions/s1/events")
        assert (refused.status, refused.reason) == (503, "ledger_unavailable")
        await line.up()
        await until(lambda: bare.gateways[0].ledger.available)
        await bare.attach("ally-2")
        assert await follower.names(1) == ["attached"]


async def test_who_follows_many_buckets_without_redis_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "LOG_SECONDS", 3600.0)
    monkeypatch.setattr(journal, "AWAY_SECONDS", 0.0)
    asked: list[int] = []

    class Away:
        async def event_bounds(self, bucket: int) -> tuple[str, str]:
            asked.append(bucket)
            raise LedgerUnavailable("Redis is away.")

        async def events(self, bucket: int, after: str, count: int) -> Any:
            return []

    journals = Journal(Away())  # type: ignore[arg-type]
    followers = [journals.follow(f"s{number}", "0-0", 0.001) for number in range(20)]
    with capture_logs() as logs:
        for follower in followers:
            assert await anext(follower) is None
        await until(lambda: len(asked) > 100)
    assert [line["buckets"] for line in logs if line["event"] == "journal_unavailable"] == [1]
    for follower in followers:
        await follower.aclose()
    await journals.close()


async def test_somebody_elses_session_is_not_shown(world: World) -> None:
    await world.session("theirs", "creator-li")
    for path in ("/_gateway/sessions/theirs", "/_gateway/sessions/theirs/events"):
        assert (await world.ask("GET", path)).reason == "not_session_owner"
        assert (await world.ask("GET", path, account="")).status == 401
    assert (await world.ask("GET", "/_gateway/sessions/nowhere")).reason == "session_unknown"


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("/_gateway/", 404, "route_unknown"),
        ("/_gateway/sessions", 404, "route_unknown"),
        ("/_gateway/sessions/", 400, "address_malformed"),
        ("/_gateway/sessions/s1/", 404, "route_unknown"),
        ("/_gateway/sessions/s1/events/", 404, "route_unknown"),
        ("/_gateway/sessions/s1/other", 404, "route_unknown"),
        ("/_gateway/session/s1", 404, "route_unknown"),
        ("/%5Fgateway/sessions/s1/x", 404, "route_unknown"),
        ("/_gateway//sessions/s1", 400, "address_malformed"),
        ("/_gateway/../_gateway/sessions/s1", 400, "address_malformed"),
        ("/_gateway/sessions/s%201", 400, "address_malformed"),
    ],
)
async def test_other_paths_below_the_prefix(world: World, path: str, status: int, reason: str) -> None:
    url = yarl.URL(world.gateways[0].url + path, encoded=True)
    async with world.http.get(url, headers={"X-Account-Id": ACCOUNT}) as answer:
        assert (answer.status, (await answer.json(content_type=None))["reason"]) == (status, reason)


@pytest.mark.parametrize("spelling", ["/_gateway/sessions/s1", "/%5Fgateway/sessions/s1", "/_gateway/sessions/%731"])
async def test_the_same_path_spelt_otherwise(world: World, spelling: str) -> None:
    url = yarl.URL(world.gateways[0].url + spelling, encoded=True)
    async with world.http.get(url, headers={"X-Account-Id": ACCOUNT}) as answer:
        assert (answer.status, (await answer.json())["session_id"]) == (200, "s1")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_a_view_is_only_read(world: World, method: str) -> None:
    said = await world.ask(method, "/_gateway/sessions/s1")
    assert (said.status, said.headers["Allow"]) == (405, "GET, HEAD")
    said = await world.ask(method, "/_gateway/sessions/s1/events")
    assert (said.status, said.headers["Allow"]) == (405, "GET")


async def test_the_head_of_a_view_is_that_of_the_view(world: World) -> None:
    """RFC 9110 section 9.3.2."""
    url, headers = world.gateways[0].url + "/_gateway/sessions/s1", {"X-Account-Id": ACCOUNT}
    async with world.http.get(url, headers=headers) as got, world.http.head(url, headers=headers) as head:
        body = await got.read()
        assert (head.status, await head.read()) == (200, b"")
        assert head.headers["Content-Length"] == str(len(body))
        assert head.headers["Content-Type"] == got.headers["Content-Type"]
