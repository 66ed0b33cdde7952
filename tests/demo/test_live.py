"""Whoever follows a session on the reference platform gets every change once, in order, as it happens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from gateway.demo.live import MAX_PENDING, Subscription
from gateway.demo.store import Entry

if TYPE_CHECKING:
    from .conftest import Caller


class Stream:
    """A minimal reader of server-sent events: a block is one event, or comments only."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer
        self.comments = 0

    async def next(self) -> dict[str, str]:
        while True:
            block = (await self.answer.content.readuntil(b"\n\n")).decode().rstrip("\n").split("\n")
            fields = dict(line.split(": ", 1) for line in block if not line.startswith(":"))
            if fields:
                return fields
            self.comments += 1


@asynccontextmanager
async def following(call: Caller, path: str, last: str | None = None) -> AsyncIterator[Stream]:
    headers = {} if last is None else {"Last-Event-ID": last}
    async with call.http.get(call.running.url + path + "/events", headers=headers) as answer:
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        yield Stream(answer)


async def test_each_change_is_an_event_as_it_happens(call: Caller) -> None:
    path = await call.live("s1")
    other = await call.live("s2")
    async with following(call, path) as stream:
        await call("POST", other + "/products", {"product_id": "ally-9"})
        await call("POST", path + "/products", {"product_ids": ["ally-1", "ally-2"]})
        seen = [await stream.next(), await stream.next()]
        await call("PUT", path + "/products/ally-1", {"product_id": "ally-3"})
        seen.append(await stream.next())
        await call("DELETE", path + "/products/ally-3")
        seen.append(await stream.next())
        await call("POST", path + "/products", {"product_id": "ally-2"})
        await call("POST", path + "/end")
        seen.append(await stream.next())
    assert [event["event"] for event in seen] == ["attach", "attach", "replace", "detach", "end"]
    journal = [entry for entry in await call.journal() if entry["session_id"] == "s1"][2:]
    assert [json.loads(event["data"]) for event in seen] == journal
    assert [event["id"] for event in seen] == [str(entry["seq"]) for entry in journal]


async def test_a_stream_resumes_without_loss_or_repeat(call: Caller) -> None:
    path = await call.live("s1", "shop-individual", "ally-1")
    async with following(call, path, last="1") as stream:
        assert [(await stream.next())["event"] for _ in range(2)] == ["attach", "start"]
        await call("POST", path + "/products", {"product_id": "ally-2"})
        assert json.loads((await stream.next())["data"])["product_id"] == "ally-2"
    async with following(call, path, last="not a number") as stream:
        await call("POST", path + "/end")
        assert (await stream.next())["event"] == "end"


async def test_a_silent_stream_has_heartbeats(call: Caller) -> None:
    path = await call.live("s1")
    async with following(call, path) as stream:
        for _ in range(3):
            assert (await stream.answer.content.readuntil(b"\n\n")).startswith(b": ")


async def test_a_follower_that_left_is_forgotten(call: Caller) -> None:
    path = await call.live("s1")
    followers = call.running.platform.hub._followers
    async with following(call, path), call.http.ws_connect(call.running.url + path + "/socket"):
        assert len(followers["s1"]) == 2
    await call.until(lambda: not followers)


async def test_the_socket_pushes_changes_and_echoes(call: Caller) -> None:
    path = await call.live("s1")
    async with call.http.ws_connect(call.running.url + path + "/socket") as socket:
        await call("POST", path + "/products", {"product_id": "ally-1"})
        assert await socket.receive_json() == (await call.journal())[-1]
        await socket.send_str("héllo")
        assert await socket.receive_json() == {"echo": "héllo"}
        await socket.send_bytes(b"\x00\xff")
        assert await socket.receive_bytes() == b"\x00\xff"
        await socket.send_str("close:99:no such code")
        assert await socket.receive_json() == {"echo": "close:99:no such code"}
        await socket.close(code=4000)
    assert socket.close_code == 4000


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1008, "policy"), (4321, "再见")])
async def test_the_socket_closes_with_the_code_asked_for(call: Caller, code: int, reason: str) -> None:
    path = await call.live("s1")
    async with call.http.ws_connect(call.running.url + path + "/socket") as socket:
        await socket.send_str(f"close:{code}:{reason}")
        message = await socket.receive()
    assert (message.type, message.data, message.extra) == (aiohttp.WSMsgType.CLOSE, code, reason)


async def test_followers_are_told_when_the_platform_closes(call: Caller) -> None:
    path = await call.live("s1")
    async with (
        following(call, path) as stream,
        call.http.ws_connect(call.running.url + path + "/socket") as socket,
    ):
        closing = asyncio.ensure_future(call.running.close())
        assert (await socket.receive()).data == aiohttp.WSCloseCode.GOING_AWAY
        await stream.answer.read()
        await closing


async def test_a_follower_that_does_not_read_is_cut_off() -> None:
    subscription = Subscription()
    entry: Any = Entry(1, "", "attach", None, "s1", "a", "p")
    for _ in range(MAX_PENDING + 1):
        subscription.push(entry)
    assert (subscription.closed, subscription.overrun) == (True, True)
    assert len(await subscription.take(None)) == MAX_PENDING
