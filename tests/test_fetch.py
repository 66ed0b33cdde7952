"""What the fetched documents have in common and no other test shows."""

from __future__ import annotations

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from gateway import fetch


async def test_the_limit_holds_after_decompression_too() -> None:
    """A few kilobytes that unpack to megabytes are not held beyond the limit."""

    async def bomb(request: web.BaseRequest) -> web.StreamResponse:
        response = web.Response(body=b" " * 4_000_000)
        response.enable_compression(web.ContentCoding.gzip)
        return response

    server = RawTestServer(bomb)
    await server.start_server()
    async with aiohttp.ClientSession() as http:
        answer = await fetch.get(http, server.make_url("/"), limit_bytes=1000, timeout_seconds=5)
    await server.close()
    assert answer == fetch.Failure("the answer is longer than 1000 bytes")


@pytest.mark.parametrize("size", [1000, 1001])
async def test_the_limit_is_exact(size: int) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x" * size)
        return response

    server = RawTestServer(answer)
    await server.start_server()
    async with aiohttp.ClientSession() as http:
        got = await fetch.get(http, server.make_url("/"), limit_bytes=1000, timeout_seconds=5)
    await server.close()
    assert isinstance(got, fetch.Answer) == (size == 1000)


def test_an_address_keeps_every_byte_of_an_id() -> None:
    template = fetch.Template("/x/{id}/y", "{id}")
    assert template.path("a:/?#%2e ") == "/x/a%3A%2F%3F%23%252e%20/y"
    assert [template.path(name) for name in ("", ".", "..")] == [None, None, None]
    assert template.path("...") == "/x/.../y"
