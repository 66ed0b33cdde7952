"""Chunks that are not plain, in pieces: nothing is served by them, and nothing of them makes the gateway fail."""

from __future__ import annotations

import asyncio

import pytest

from .conftest import SHOP, Site
from .raw import Wire

pytestmark = pytest.mark.asyncio(loop_scope="module")

FIELDS = b" HTTP/1.1\r\nHost: g\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
BODY = b'17\r\n{"product_id":"ally-9"}\r\n'
PIECES = {
    "at once": (BODY.replace(b"17\r", b"17;a\r") + b"0\r\n\r\n",),
    "behind the head": (b"", BODY.replace(b"17\r", b"17;a\r") + b"0\r\n\r\n"),
    "in the last chunk": (BODY, b"0;a\r\n\r\n"),
    "byte by byte": (BODY + b"0", b";", b"a", b"\r\n\r\n"),
    "behind trailers": (BODY + b"0;a\r\nX: 1", b"\r\n\r\n"),
}


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
@pytest.mark.parametrize("waits", [False, True], ids=["in one breath", "one by one"])
async def test_an_extension_attaches_nothing(strict: Site, pieces: tuple[bytes, ...], waits: bool) -> None:
    session_id = strict.new_session(SHOP, "extension")
    path = b"POST /live/sessions/%b/products" % session_id.encode()
    for head, allowed in (
        (path + FIELDS + b"X-Account-Id: shop-individual\r\n\r\n", {400}),
        (path + FIELDS + b"\r\n", {401}),
        (b"GET /products/ally-1" + FIELDS + b"\r\n", {200, 400}),
    ):
        wire = await Wire.open(strict.gateway.port)
        for piece in (head + pieces[0], *pieces[1:]):
            await wire.send(piece)
            if waits:
                await asyncio.sleep(0.01)  # So that each mostly arrives by itself; the outcome is the same if not.
        reply = await wire.reply()
        # Who goes on sending behind the refusal may find the connection reset before he has read it.
        assert reply is not None or len(pieces) > 2
        assert reply is None or reply.status in allowed
        assert await wire.ends()
        wire.close()
    assert strict.applied(session_id) == set()
    assert [line for line in strict.gateway.lines() if line.get("level") in ("error", "critical")] == []
