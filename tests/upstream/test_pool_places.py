"""Places in the pool: bounded, handed on in turn, and none is lost, however requests end."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import Upstream
from gateway.errors import GatewayError, Overloaded, UpstreamTimeout
from gateway.upstream.places import Share
from gateway.upstream.pool import NotSent, Pool, UpstreamAnswer

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def asking(pool: Pool, path: str = "/x") -> asyncio.Task[UpstreamAnswer]:
    return asyncio.ensure_future(pool.request("POST", path, [], b""))  # type: ignore[arg-type]


class Gate:
    """An upstream that answers when it is told to."""

    def __init__(self) -> None:
        self.let = asyncio.Semaphore(0)
        self.came: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(self, peer: Any) -> None:
        while (asked := await peer.ask()) is not None:
            self.came.put_nowait(asked.line.split()[1])
            await self.let.acquire()
            await peer.send(OK)

    async def next(self) -> bytes:
        async with asyncio.timeout(5):
            return await self.came.get()


async def turns(number: int = 20) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def as_given_up(pool: Pool, then: Callable[[Any], object]) -> None:
    """Do something in the very moment in which the next place was handed on."""
    release = pool._release

    def once(connection: Any, share: Share) -> None:
        pool._release = release  # type: ignore[method-assign]
        release(connection, share)
        then(connection)

    pool._release = once  # type: ignore[method-assign]


def in_queue(pool: Pool) -> int:
    return sum(len(share.queue) for share in pool._places._shares.values())


def exact(pool: Pool) -> None:
    """Nobody is being served: every place is free, and nobody waits."""
    places = pool._places
    assert pool.connections == len(pool._idle) <= places._most
    assert (places.busy, places._common_busy, places._waiting, in_queue(pool)) == (0, 0, 0, 0)
    assert all(share.busy == 0 for share in places._shares.values())


@pytest.fixture
async def gate(raw: Any) -> Gate:
    gate = Gate()
    await raw.start(gate.serve)
    return gate


async def test_no_more_connections_than_places(raw: Any, gate: Gate) -> None:
    pool = raw.pool(max_connections=3)
    tasks = [asking(pool) for _ in range(10)]
    for _ in range(3):
        await gate.next()
    await turns()
    assert (raw.connections, pool.connections, gate.came.qsize()) == (3, 3, 0)
    for _ in range(10):
        gate.let.release()
    await asyncio.gather(*tasks)
    assert raw.connections == 3
    exact(pool)


async def test_a_full_queue_is_said_at_once(raw: Any, gate: Gate) -> None:
    pool = raw.pool(max_connections=1, max_queue=2)
    tasks = [asking(pool) for _ in range(3)]
    await gate.next()
    with pytest.raises(Overloaded, match="queue is full"):
        await asking(pool)
    for _ in range(3):
        gate.let.release()
    await asyncio.gather(*tasks)
    exact(pool)


async def test_no_queue_at_all(raw: Any, gate: Gate) -> None:
    pool = raw.pool(max_connections=1, max_queue=0)
    first = asking(pool)
    await gate.next()
    with pytest.raises(Overloaded):
        await asking(pool)
    gate.let.release()
    await first
    exact(pool)


async def test_who_waits_too_long_is_told_so_and_frees_the_queue(raw: Any, gate: Gate) -> None:
    """Those who have given up must not fill it: the upstream hangs, and each wave of requests is told the same."""
    pool = raw.pool(max_connections=1, max_queue=2, connect_timeout_seconds=0.03)
    first = asking(pool)
    await gate.next()
    for _ in range(2):
        results = await asyncio.gather(asking(pool), asking(pool), return_exceptions=True)
        assert [str(result) for result in results] == ["No upstream connection came free within 0.03 s."] * 2
    gate.let.release()
    await first
    exact(pool)


async def test_who_waits_is_served_in_turn(raw: Any, gate: Gate) -> None:
    """Nobody who comes later can take a place from who waits, or under load the first would wait for ever."""
    pool = raw.pool(max_connections=1)
    waiting = [asking(pool, f"/{number}") for number in range(3)]
    assert await gate.next() == b"/0"
    late = []

    def come(_: object) -> None:
        late.append(asking(pool, "/late"))

    waiting[0].add_done_callback(come)
    for _ in range(4):
        gate.let.release()
    await asyncio.gather(*waiting)
    assert [await gate.next() for _ in range(3)] == [b"/1", b"/2", b"/late"]
    await late[0]
    exact(pool)


async def test_a_place_that_comes_free_as_its_waiter_leaves_goes_on(raw: Any, gate: Gate) -> None:
    pool = raw.pool(max_connections=1)
    tasks = [asking(pool, f"/{number}") for number in range(3)]
    await gate.next()
    await turns()
    as_given_up(pool, lambda _: tasks[1].cancel())
    gate.let.release()
    gate.let.release()
    assert await gate.next() == b"/2"
    await asyncio.gather(tasks[0], tasks[2])
    assert tasks[1].cancelled()
    exact(pool)


async def test_a_place_that_comes_free_as_its_waiter_runs_out_of_time_goes_on(raw: Any, gate: Gate) -> None:
    pool = raw.pool(max_connections=1, connect_timeout_seconds=0.05)
    share = pool._places.share("")
    connection = await pool._acquire(share)
    second = asyncio.ensure_future(pool._acquire(share))
    await turns()
    # Both are due in the loop's next turn, the place first.
    asyncio.get_running_loop().call_soon(pool._release, connection, share)
    time.sleep(0.06)  # noqa: ASYNC251
    (result,) = await asyncio.gather(second, return_exceptions=True)
    if not isinstance(result, Overloaded):
        assert result is connection
        pool._release(connection, share)
    exact(pool)
    assert list(pool._idle) == [connection]


async def test_a_connection_that_is_lost_on_its_way_to_who_waits_leaves_a_place(raw: Any, gate: Gate) -> None:
    pool = raw.pool(max_connections=1)
    tasks = [asking(pool, f"/{number}") for number in range(2)]
    await gate.next()
    await turns()
    as_given_up(pool, lambda connection: connection.abort())
    gate.let.release()
    await tasks[0]
    assert await gate.next() == b"/1"
    gate.let.release()
    await tasks[1]
    assert raw.connections == 2
    exact(pool)


@pytest.mark.parametrize("steps", range(12))
async def test_a_request_that_is_given_up_anywhere_leaves_nothing_behind(raw: Any, gate: Gate, steps: int) -> None:
    """Given up after so many turns of the loop: while connecting, sending, or waiting for the answer."""
    pool = raw.pool(max_connections=1)
    task = asking(pool)
    await turns(steps)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    exact(pool)
    gate.let.release()
    gate.let.release()
    assert (await asyncio.wait_for(asking(pool), 5)).body == b"ok"
    exact(pool)
    await raw.quiet(pool)


async def test_who_is_given_up_in_the_queue_leaves_it(raw: Any, gate: Gate) -> None:
    pool = raw.pool(max_connections=1, max_queue=1)
    first = asking(pool)
    await gate.next()
    for _ in range(3):
        waiting = asking(pool)
        await turns()
        waiting.cancel()
        await asyncio.wait([waiting])
    assert in_queue(pool) == 0
    gate.let.release()
    await first
    exact(pool)


async def test_a_failed_connection_gives_its_place_to_who_waits(raw: Any) -> None:
    pool = raw.pool(url="http://127.0.0.1:1", max_connections=1)
    results = await asyncio.gather(*(asking(pool) for _ in range(5)), return_exceptions=True)
    assert {type(result) for result in results} == {NotSent}
    exact(pool)


async def test_what_is_in_use_when_the_pool_closes_ends_with_its_request(raw: Any, gate: Gate) -> None:
    pool = raw.pool()
    idle, used = asking(pool), asking(pool)
    for _ in range(2):
        await gate.next()
    gate.let.release()
    await asyncio.wait([idle, used], return_when=asyncio.FIRST_COMPLETED)
    pool.close()
    gate.let.release()
    await asyncio.gather(idle, used)
    assert pool.connections == 0
    await raw.quiet(pool)


# Any order of events

SERVED = {
    "ok": OK,
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%d\r\n%s\r\n0\r\n\r\n",
    "close": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s",
    "until the end": b"HTTP/1.1 200 OK\r\n\r\n%s",
    "extra": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%sHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad",
    "half": b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n",
    "garbage": b"\x00\x01garbage\r\n\r\n",
    "drop": b"",
    "silence": b"",
}
ENDS = ("close", "until the end", "half", "drop")

events = st.lists(
    st.tuples(
        st.sampled_from(sorted(SERVED)),
        st.integers(0, 6),  # turns of the loop before the next one
        st.none() | st.integers(0, 12),  # given up after so many turns
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=60, deadline=None)
@given(events=events, places=st.integers(1, 3), queue=st.integers(0, 4), loop=st.sampled_from(["asyncio", "uvloop"]))
def test_whatever_happens_no_place_is_lost_and_no_answer_is_another_ones(
    events: list[tuple[str, int, int | None]], places: int, queue: int, loop: str
) -> None:
    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(play(events, places, queue))


async def play(events: list[tuple[str, int, int | None]], places: int, queue: int) -> None:
    seen: list[int] = []
    connected: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.add(writer)
        assert len(connected) <= places + 1, "one more may still be closing"
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                number = int(re.search(rb"/(\d+) ", head)[1])  # type: ignore[index]
                seen.append(number)
                how = events[number][0]
                if how == "silence":
                    await reader.read()
                    return
                body = b"n%04d" % number
                answer = SERVED[how] if how != "ok" else b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s"
                wanted = answer.count(b"%")
                writer.write(answer % ((len(body), body) if wanted == 2 else (body,) if wanted else ()))
                if how in ENDS:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            connected.discard(writer)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    config = Upstream(
        url, max_connections=places, max_queue=queue, connect_timeout_seconds=1.0, response_timeout_seconds=0.05
    )
    pool = Pool(config, time.monotonic)
    tasks = []
    for number, (_, pause, given_up) in enumerate(events):
        tasks.append(asking(pool, f"/{number}"))
        await turns(pause)
        if given_up is not None:
            await turns(given_up)
            tasks[-1].cancel()
    await asyncio.wait(tasks)
    for number, (task, (_, _, given_up)) in enumerate(zip(tasks, events, strict=True)):
        if task.cancelled():
            assert given_up is not None
        elif (error := task.exception()) is None:
            assert task.result().body == b"n%04d" % number
        else:
            assert isinstance(error, GatewayError)
            if isinstance(error, (NotSent, Overloaded)):
                assert number not in seen
            elif isinstance(error, UpstreamTimeout):
                pass  # Silence; and where the machine stands still for a moment, any answer is late.
    assert len(seen) == len(set(seen)), "sent once, never again"
    exact(pool)
    pool.close()
    server.close()
    for _ in range(5000):
        if connected:
            await asyncio.sleep(0.001)
    assert not connected
    assert pool.connections == 0
