"""A session's products from a real HTTP server: the whole list, or an error."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from gateway import config
from gateway.errors import GatewayError, SessionUnknown, UpstreamTimeout, UpstreamUnreachable
from gateway.policy.model import Product
from gateway.upstream import listing
from gateway.upstream.lookups import Lookups

Ask = Callable[..., Awaitable[tuple[Product, ...]]]
TWO = [{"product_id": "p1", "shop_id": "s1"}, {"product_id": "p2", "shop_id": "s2", "price": 9}]


class Upstream:
    """Answers every request with `body`, or as `instead` does."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.body: object = {"products": TWO}
        self.status = 200
        self.headers: dict[str, str] = {}
        self.instead: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]] | None = None
        self.url = ""

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request.raw_path)
        if self.instead:
            return await self.instead(request)
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        return web.Response(body=body, status=self.status, headers=self.headers)


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    upstream = Upstream()
    server = RawTestServer(upstream.answer)
    await server.start_server()
    upstream.url = str(server.make_url("/"))
    yield upstream
    await server.close()


@pytest.fixture
async def ask(upstream: Upstream) -> AsyncIterator[Ask]:
    made: list[Lookups] = []

    async def ask(session_id: str = "s:1", **settings: object) -> tuple[Product, ...]:
        section = config.Upstream(**{"url": upstream.url, **settings})  # type: ignore[arg-type]
        made.append(listing.lists(section, time.monotonic))
        return await listing.list_products(made[-1], config.Config(upstream=section), session_id)

    yield ask
    for lookups in made:
        lookups.close()


async def test_the_whole_list_with_each_products_shop(ask: Ask, upstream: Upstream) -> None:
    assert await ask() == (Product("p1", "s1"), Product("p2", "s2"))
    assert upstream.asked == ["/live/sessions/s%3A1/products"]


async def test_an_empty_list_is_a_list(ask: Ask, upstream: Upstream) -> None:
    upstream.body = {"session_id": "s:1", "products": []}
    assert await ask() == ()


async def test_the_list_comes_from_the_upstream_wherever_the_directory_is(upstream: Upstream) -> None:
    settings = config.Config(
        upstream=config.Upstream(url=upstream.url),
        directory=config.Directory(url="http://127.0.0.1:1", list_path="/all/{session_id}?limit=0"),
    )
    lookups = listing.lists(settings.upstream, time.monotonic)
    assert len(await listing.list_products(lookups, settings, "s1")) == 2
    lookups.close()
    assert upstream.asked == ["/all/s1?limit=0"]


@pytest.mark.parametrize("session_id", ["..", ""])
async def test_a_session_that_cannot_be_is_unknown(ask: Ask, upstream: Upstream, session_id: str) -> None:
    with pytest.raises(SessionUnknown):
        await ask(session_id)
    assert upstream.asked == []


async def test_a_session_that_the_upstream_does_not_know(ask: Ask, upstream: Upstream) -> None:
    upstream.status = 404
    with pytest.raises(SessionUnknown, match="s:1"):
        await ask()


@pytest.mark.parametrize("status", [201, 204, 206, 301, 400, 401, 403, 429, 500, 502, 503])
async def test_any_other_status_is_no_list(ask: Ask, upstream: Upstream, status: int) -> None:
    upstream.status = status
    upstream.headers = {"Location": "/live/sessions/s2/products"}
    with pytest.raises(UpstreamUnreachable, match=f"answered {status}"):
        await ask()
    assert len(upstream.asked) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"products":null}',
        b'{"products":["p1"]}',
        b'{"products":[{"product_id":"p1"}]}',
        b'{"products":[{"product_id":"p1","shop_id":"s1"},{"shop_id":"s1"}]}',
        b'{"products":[{"product_id":1,"shop_id":"s1"}]}',
        b'{"products":[{"product_id":"p1","shop_id":"s1"}',
        b'{"products":[]} {"products":[]}',
        b'{"products":[],"x":' + b"[" * 20_000,
        {"products": TWO, "session_id": "s:2"},
    ],
)
async def test_what_is_not_a_list_is_never_read_as_one(ask: Ask, upstream: Upstream, body: object) -> None:
    upstream.body = body
    with pytest.raises(UpstreamUnreachable, match="s:1"):
        await ask()


@pytest.mark.parametrize(
    "more",
    [
        {"next": "/page/2"},
        {"next_cursor": "abc"},
        {"next_page": 2},
        {"next_page_token": "t"},
        {"has_more": True},
        {"truncated": True},
        {"total": 3},
        {"total_count": 100},
    ],
)
async def test_a_page_of_several_is_not_a_list(ask: Ask, upstream: Upstream, more: dict[str, object]) -> None:
    upstream.body = {"products": TWO, **more}
    with pytest.raises(UpstreamUnreachable, match=next(iter(more))):
        await ask()


async def test_hints_that_nothing_follows_are_fine(ask: Ask, upstream: Upstream) -> None:
    upstream.body = {"products": TWO, "next": None, "next_cursor": "", "has_more": False, "total": 2}
    upstream.headers = {"Link": '</self>; rel="self", </a>; rel=prev'}
    assert len(await ask()) == 2


@pytest.mark.parametrize(
    "link", ['</2>; rel="next"', '</1>; rel="prev", </2>; title="x"; REL="last next"', "</2>;rel=next"]
)
async def test_a_link_to_a_next_page_is_a_hint_too(ask: Ask, upstream: Upstream, link: str) -> None:
    upstream.headers = {"Link": link}
    with pytest.raises(UpstreamUnreachable, match="Link"):
        await ask()


async def test_a_list_over_the_limit_is_refused(ask: Ask, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    assert listing.LIMIT_BYTES == 8 * 1024 * 1024
    monkeypatch.setattr(listing, "LIMIT_BYTES", 1000)
    upstream.body = msgspec.json.encode({"products": [{"product_id": "p" * 1000, "shop_id": "s"}]})
    with pytest.raises(UpstreamUnreachable, match="could be had"):
        await ask()


async def test_a_list_that_breaks_off_is_refused(ask: Ask, upstream: Upstream) -> None:
    async def broken(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "500"})
        await response.prepare(request)
        await response.write(b'{"products":[]}')
        assert request.transport is not None
        request.transport.close()
        return response

    upstream.instead = broken
    with pytest.raises(UpstreamUnreachable):
        await ask()


async def test_a_compressed_list_in_spite_of_the_request_is_refused(ask: Ask, upstream: Upstream) -> None:
    async def compressed(request: web.BaseRequest) -> web.StreamResponse:
        response = web.json_response({"products": TWO})
        response.enable_compression(web.ContentCoding.gzip)
        return response

    upstream.instead = compressed
    with pytest.raises(UpstreamUnreachable, match="malformed"):
        await ask()


async def test_no_answer_in_time(ask: Ask, upstream: Upstream) -> None:
    ended = asyncio.Event()

    async def silent(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"products":[')
        await ended.wait()
        return response

    upstream.instead = silent
    with pytest.raises(UpstreamTimeout, match=r"0\.05 s"):
        await ask(response_timeout_seconds=0.05)
    ended.set()


async def test_nobody_there(ask: Ask) -> None:
    with pytest.raises(UpstreamUnreachable) as refused:
        await ask(url="http://127.0.0.1:1")
    assert "127.0.0.1" not in refused.value.detail
    assert isinstance(refused.value, GatewayError)
