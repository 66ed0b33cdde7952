"""Each phase of an exchange has its limit, and says which one it was."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.errors import UpstreamTimeout

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
STALL_SECONDS = 0.05


async def refused(raw: Any, body: bytes = b"", **limits: Any) -> str:
    pool = raw.pool(**{"stall_seconds": STALL_SECONDS, "response_timeout_seconds": 30.0} | limits)
    with pytest.raises(UpstreamTimeout) as raised:
        async with asyncio.timeout(5):
            await pool.request("POST", "/x", [], body)
    assert pool.connections == 0
    return raised.value.detail


async def test_a_request_that_is_not_taken(raw: Any) -> None:
    async def serve(peer: Any) -> None:
        peer.reader._transport.pause_reading()
        await asyncio.sleep(30)

    await raw.start(serve)
    assert await refused(raw, b"x" * 16_000_000) == "The upstream took nothing of the request for 0.05 s."


async def test_a_request_that_is_taken_slowly_is_let_be(raw: Any) -> None:
    async def serve(peer: Any) -> None:
        left = 24_000_000
        while left > 0:
            left -= len(await peer.reader.read(1_000_000))
            await asyncio.sleep(0.005)
        await peer.send(HEAD + b"done")
        await peer.ended()

    await raw.start(serve)
    pool = raw.pool(stall_seconds=STALL_SECONDS * 10)
    assert (await pool.request("POST", "/x", [], b"x" * 24_000_000)).body == b"done"


@pytest.mark.parametrize("begun", [HEAD, HEAD + b"do"])
async def test_an_answer_that_stops(raw: Any, begun: bytes) -> None:
    async def serve(peer: Any) -> None:
        await peer.ask()
        await peer.send(begun)
        await peer.ended()

    await raw.start(serve)
    assert await refused(raw) == "The upstream's answer stopped for 0.05 s."


async def test_an_answer_that_comes_slowly_is_let_be_until_its_time_is_up(raw: Any) -> None:
    asked = 0

    async def serve(peer: Any) -> None:
        nonlocal asked
        await peer.ask()
        asked += 1
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n")
        for _ in range(8 if asked == 1 else 1000):
            await asyncio.sleep(STALL_SECONDS / 2)
            await peer.send(b"x" if asked == 1 else b"")
        await peer.ended()

    await raw.start(serve)
    pool = raw.pool(stall_seconds=STALL_SECONDS * 3)
    assert (await pool.request("POST", "/x", [], b"")).body == b"x" * 8
    pool.close()


async def test_the_head_may_take_longer_than_a_stall_but_not_than_the_answer_may(raw: Any) -> None:
    async def serve(peer: Any) -> None:
        await peer.ask()
        await asyncio.sleep(3 * STALL_SECONDS)
        await peer.send(HEAD + b"done")
        await peer.ask()
        await peer.ended()

    await raw.start(serve)
    pool = raw.pool(stall_seconds=STALL_SECONDS, response_timeout_seconds=10 * STALL_SECONDS)
    assert (await pool.request("POST", "/x", [], b"")).body == b"done"
    with pytest.raises(UpstreamTimeout, match=r"did not answer within 0\.5 s"):
        await pool.request("POST", "/x", [], b"")


async def test_drops_do_not_outlast_the_whole_answers_limit(raw: Any) -> None:
    """One byte now and then is no stall, and no answer either."""

    async def serve(peer: Any) -> None:
        await peer.ask()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
        while True:
            await asyncio.sleep(STALL_SECONDS / 5)
            await peer.send(b"x")

    await raw.start(serve)
    assert "did not answer within 0.3 s" in await refused(
        raw, stall_seconds=STALL_SECONDS * 2, response_timeout_seconds=0.3
    )
