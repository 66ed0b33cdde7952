"""GETs on kept connections: asked again where one had ended, and only there."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from gateway import config, fetch
from gateway.upstream.lookups import Lookups
from gateway.upstream.pool import UpstreamAnswer
from tests.upstream.conftest import Peer

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
Make = Callable[[], Lookups]


@pytest.fixture
async def make(raw: Any) -> AsyncIterator[Make]:
    made: list[Lookups] = []

    def make() -> Lookups:
        upstream = config.Upstream(url=raw.url)
        made.append(
            Lookups(upstream, raw.url, limit_bytes=1000, timeout_seconds=0.2, max_connections=4, clock=time.monotonic)
        )
        return made[-1]

    yield make
    for lookups in made:
        lookups.close()


def said(answer: UpstreamAnswer | fetch.Failure) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    assert isinstance(answer, UpstreamAnswer)
    return answer.status, answer.body, list(answer.headers)


async def test_what_is_asked(raw: Any, make: Make) -> None:
    await raw.answering(OK)
    assert said(await make().get("/a%2Fb?c=d")) == (200, b"{}", [])
    (asked,) = raw.asked
    assert asked.line == b"GET /a%2Fb?c=d HTTP/1.1"
    assert asked.values(b"accept") == [b"application/json"]
    assert asked.values(b"accept-encoding") == [b"identity"]
    assert asked.body == b""


async def test_a_kept_connection_that_ends_unanswered_is_asked_once_more(raw: Any, make: Make) -> None:
    """An upstream may close what it kept just as the next question leaves."""
    asked = 0

    async def serve(peer: Peer) -> None:
        nonlocal asked
        while await peer.ask() is not None:
            asked += 1
            if asked == 2:
                return
            await peer.send(OK)

    await raw.start(serve)
    lookups = make()
    assert isinstance(await lookups.get("/a"), UpstreamAnswer)
    assert isinstance(await lookups.get("/b"), UpstreamAnswer)
    assert (asked, raw.connections) == (3, 2)


async def test_one_that_never_answers_is_not_asked_for_ever(raw: Any, make: Make) -> None:
    await raw.answering(b"")
    failure = await make().get("/a")
    assert isinstance(failure, fetch.Failure)
    assert (failure.timed_out, len(raw.asked)) == (False, 2)


async def test_half_an_answer_is_none_and_not_asked_for_again(raw: Any, make: Make) -> None:
    await raw.answering(OK[:-1])
    assert isinstance(await make().get("/a"), fetch.Failure)
    assert len(raw.asked) == 1


async def test_silence_is_not_waited_for_twice(raw: Any, make: Make) -> None:
    asked = 0

    async def serve(peer: Peer) -> None:
        nonlocal asked
        await peer.ask()
        asked += 1
        await peer.ended()

    await raw.start(serve)
    failure = await make().get("/a")
    assert isinstance(failure, fetch.Failure)
    assert (failure.timed_out, asked) == (True, 1)


@pytest.mark.parametrize("size", [1000, 1001])
async def test_the_limit_is_exact(raw: Any, make: Make, size: int) -> None:
    await raw.answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (size, bytes(size)))
    assert isinstance(await make().get("/a"), UpstreamAnswer) == (size == 1000)


async def test_links_are_told(raw: Any, make: Make) -> None:
    await raw.answering(b"HTTP/1.1 200 OK\r\nLINK: </2>; rel=next\r\nContent-Length: 2\r\n\r\n{}")
    assert said(await make().get("/a")) == (200, b"{}", [(b"LINK", b"</2>; rel=next")])
