"""An answer that is not small, piece by piece: as it comes, no faster than it is taken, never for the next one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.errors import GatewayError, UpstreamTimeout, UpstreamUnreachable
from gateway.upstream.pool import SMALL_BYTES, Pool, UpstreamAnswer
from gateway.upstream.rest import MAX_WAITING_BYTES, Rest

BODY = bytes(range(256)) * 4096
FRAMINGS = {
    "length": (b"HTTP/1.1 200 OK\r\nX-One: 1\r\nContent-Length: %d\r\n\r\n" % len(BODY), BODY, len(BODY)),
    "chunked": (
        b"HTTP/1.1 200 OK\r\nX-One: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"".join(b"10000\r\n%b\r\n" % BODY[at : at + 65536] for at in range(0, len(BODY), 65536)) + b"0\r\n\r\n",
        None,
    ),
    "until the end": (b"HTTP/1.1 200 OK\r\nX-One: 1\r\n\r\n", BODY, None),
}
HEAD = FRAMINGS["length"][0]


async def ask(pool: Pool) -> UpstreamAnswer:
    async with asyncio.timeout(5):
        return await pool.request("POST", "/x", [], b"", streams=True)


async def begun(pool: Pool) -> tuple[bytes, Rest]:
    """The first part, and the rest."""
    answer = await ask(pool)
    assert answer.rest is not None
    return answer.body, answer.rest


async def all_of(rest: Rest) -> bytes:
    async with asyncio.timeout(5):
        return b"".join([piece async for piece in rest])


async def breaks_off(rest: Rest, error: type[GatewayError]) -> bytes:
    """What came before."""
    found = []

    async def take() -> None:
        async for piece in rest:
            found.append(piece)

    with pytest.raises(error):
        await asyncio.wait_for(take(), 5)
    return b"".join(found)


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_it_arrives_as_it_was_sent(raw: Any, framing: str) -> None:
    head, sent, length = FRAMINGS[framing]
    await raw.answering(head + sent)
    first, rest = await begun(raw.pool())
    assert rest.length == length
    assert first + await all_of(rest) == BODY


async def test_a_small_one_is_whole(raw: Any) -> None:
    body = b"x" * SMALL_BYTES
    await raw.answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    answer = await ask(raw.pool())
    assert (answer.body, answer.rest) == (body, None)


async def test_what_has_come_is_there_before_the_end(raw: Any) -> None:
    go_on = asyncio.Event()

    async def serve(peer: Any) -> None:
        await peer.ask()
        await peer.send(HEAD + BODY[:400_000])
        await go_on.wait()
        await peer.send(BODY[400_000:])

    await raw.start(serve)
    found, rest = await begun(raw.pool())
    async with asyncio.timeout(5):
        while len(found) < 400_000:
            found += await anext(rest)
    assert found == BODY[:400_000]
    go_on.set()
    assert found + await all_of(rest) == BODY


async def test_its_place_and_its_connection_are_free_again_behind_it(raw: Any) -> None:
    await raw.answering(HEAD + BODY, HEAD + BODY)
    pool = raw.pool(max_connections=1)
    for _ in range(2):
        first, rest = await begun(pool)
        assert first + await all_of(rest) == BODY
    assert (raw.connections, pool.connections, pool._places.busy) == (1, 1, 0)


async def test_its_place_is_held_until_then(raw: Any) -> None:
    async def serve(peer: Any) -> None:
        await peer.ask()
        await peer.send(HEAD + BODY[:400_000])
        await peer.ended()

    await raw.start(serve)
    pool = raw.pool()
    _, rest = await begun(pool)
    assert pool._places.busy == 1
    rest.close()
    assert (pool._places.busy, pool.connections) == (0, 0)
    await raw.quiet(pool)


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_one_that_breaks_off_says_so_behind_what_came(raw: Any, framing: str) -> None:
    head, sent, _ = FRAMINGS[framing]

    async def serve(peer: Any) -> None:
        await peer.ask()
        await peer.send(head + sent[:-1])

    await raw.start(serve)
    pool = raw.pool()
    first, rest = await begun(pool)
    found = first + await breaks_off(rest, UpstreamUnreachable)
    assert found == BODY[: len(found)]
    assert len(found) > len(BODY) - 70_000
    assert pool.connections == 0


async def test_it_is_read_no_faster_than_it_is_taken(raw: Any) -> None:
    sent = 0

    async def serve(peer: Any) -> None:
        nonlocal sent
        await peer.ask()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 * len(BODY)))
        for _ in range(64):
            await peer.send(BODY)
            sent += len(BODY)

    await raw.start(serve)
    first, rest = await begun(raw.pool())
    await raw.until(lambda: rest.full)
    before = -1
    while sent != before:
        before = sent
        await asyncio.sleep(0.02)
    assert rest._waiting_bytes <= MAX_WAITING_BYTES + 262_144
    assert sent < 32 * len(BODY), "the rest waits at the upstream, and in the sockets' buffers"
    assert first + await all_of(rest) == BODY * 64


async def test_who_takes_the_end_late_does_not_hold_up_the_next_one(raw: Any) -> None:
    """The end has come, and the connection serves another request."""
    await raw.answering(HEAD + BODY, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    pool = raw.pool()
    found, rest = await begun(pool)
    while pool._places.busy:
        found += await anext(rest)
        await asyncio.sleep(0)
    assert not rest.full
    answer = asyncio.ensure_future(ask(pool))
    assert found + await all_of(rest) == BODY
    assert ((await answer).body, raw.connections) == (b"ok", 1)


class Pausable(asyncio.Transport):
    """Which has a say in how it is read until its answer ends, and not later."""

    reading = True

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


async def test_nor_who_has_most_of_it_still_to_take() -> None:
    transport = Pausable()
    rest = Rest(transport, None, lambda: None)
    for _ in range(4):
        rest.put(b"x" * MAX_WAITING_BYTES)
    assert not transport.reading
    rest.end()
    assert transport.reading
    while len(await anext(rest, b"")):
        assert transport.reading


async def test_something_behind_it_is_not_the_next_answer(raw: Any) -> None:
    await raw.answering(HEAD + BODY + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", HEAD + BODY)
    pool = raw.pool()
    for _ in range(2):
        first, rest = await begun(pool)
        assert first + await all_of(rest) == BODY
    assert raw.connections == 2


async def test_an_upstream_that_stands_still(raw: Any) -> None:
    async def serve(peer: Any) -> None:
        await peer.ask()
        await peer.send(HEAD + BODY[:-1])
        await peer.ended()

    await raw.start(serve)
    pool = raw.pool(stall_seconds=0.05)
    first, rest = await begun(pool)
    assert first + await breaks_off(rest, UpstreamTimeout) == BODY[:-1]
    assert pool._places.busy == 0


async def test_a_taker_that_stands_still(raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that was forgotten: its place comes free. It has more patience than the upstream gets."""
    monkeypatch.setattr("gateway.upstream.pool.TAKER_SECONDS", 0.3)

    async def serve(peer: Any) -> None:
        await peer.ask()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 * len(BODY)))
        while True:
            await peer.send(BODY)

    await raw.start(serve)
    pool = raw.pool(stall_seconds=0.05)
    _, rest = await begun(pool)
    await raw.until(lambda: rest.full)
    moved_at = rest.moved_at
    await raw.until(lambda: pool._places.busy == 0)
    assert asyncio.get_running_loop().time() >= moved_at + 0.3
    await breaks_off(rest, UpstreamTimeout)
    await raw.quiet(pool)


async def test_one_that_moves_has_more_time_than_an_answer_has(raw: Any) -> None:
    async def serve(peer: Any) -> None:
        await peer.ask()
        await peer.send(HEAD)
        for at in range(0, len(BODY), 65536):
            await peer.send(BODY[at : at + 65536])
            await asyncio.sleep(0.02)

    await raw.start(serve)
    first, rest = await begun(raw.pool(stall_seconds=5.0, response_timeout_seconds=0.15))
    assert first + await all_of(rest) == BODY


async def test_an_asker_that_is_cancelled_leaves_nothing_behind(raw: Any) -> None:
    asked = asyncio.Event()

    async def serve(peer: Any) -> None:
        await peer.ask()
        asked.set()
        while True:
            await peer.send(HEAD + BODY * 8)

    await raw.start(serve)
    pool = raw.pool()
    task = asyncio.ensure_future(ask(pool))
    await asked.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (pool._places.busy, pool.connections) == (0, 0)
    await raw.quiet(pool)
