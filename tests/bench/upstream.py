"""The benchmark's upstream: the contract's answers, without a memory, as fast as Python gives them.

What a session has is in its name: `f…` has p0, p1 and p2, `o…` has p0 and p1, `e…` nothing. Products `own…` belong to
every account's shop, others to another; an attach of `x…` is refused with 422. Not the reference platform, whose
bookkeeping would be measured instead of the proxies.

    GET  /bytes/{n}                       n bytes
    POST /upload                          how many bytes came
    GET  /live/sessions/{id}/events       server-sent events, of which none ever come
    GET  /live/sessions/{id}/socket       a WebSocket that stays silent
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import sys
from typing import Any, cast

import httptools
import msgspec
import uvloop

CHUNK = bytes(262_144)
LISTS = {"f": ("p0", "p1", "p2"), "o": ("p0", "p1")}
SOCKET_KEY = re.compile(rb"sec-websocket-key: *([^\r]+)\r", re.IGNORECASE)
SOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
REFUSED = b'{"status":422,"reason":"not_for_sale"}'
SMALL = b'{"title":"A page that nobody judges","items":[1,2,3,4,5,6,7,8],"next":null,"text":"' + b"x" * 100 + b'"}'
EVENTS = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n8\r\n: open\n\n\r\n"
)


class Attach(msgspec.Struct):
    product_id: str = ""
    product_ids: list[str] = []


read_attach = msgspec.json.Decoder(Attach)


def respond(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


def attach(body: bytes) -> bytes:
    asked = read_attach.decode(body)
    products = asked.product_ids or [asked.product_id]
    if any(product.startswith("x") for product in products):
        return respond(REFUSED, b"422 Unprocessable Entity")
    return respond(msgspec.json.encode({"attached": products}))


def look_up(path: str) -> bytes:
    parts = path.split("/")
    kind, identifier = parts[1], parts[-1]
    record: dict[str, Any]
    if kind == "accounts" and len(parts) == 3:
        shop = {"shop_id": "own", "shop_type": "individual", "cross_border": False, "status": "open"}
        record = {"account_id": identifier, "kind": "official", "pure_creator": False, "shop": shop}
    elif kind == "products" and len(parts) == 3:
        record = {"product_id": identifier, "shop_id": "own" if identifier.startswith("own") else "other"}
    elif kind == "live" and len(parts) == 4:
        record = {"session_id": identifier, "account_id": f"a-{identifier}", "state": "live"}
    elif kind == "live" and identifier == "products":
        listed = LISTS.get(parts[3][0], ())
        record = {"products": [{"product_id": product, "shop_id": "other"} for product in listed]}
    else:
        return respond(SMALL)
    return respond(msgspec.json.encode(record))


class Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._url, self._body, self._received = b"", b"", 0
        self._left = 0
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._upgrade(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def on_message_begin(self) -> None:
        self._url, self._body, self._received = b"", b"", 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._received += len(body)
        if self._received < 65_536:
            self._body += body

    def on_message_complete(self) -> None:
        path = self._url.decode("ascii")
        if self._parser.should_upgrade():
            return
        if self._parser.get_method() == b"POST" and path.endswith("/products"):
            self._transport.write(attach(self._body))
        elif path == "/upload":
            self._transport.write(respond(b'{"received":%d}' % self._received))
        elif path.startswith("/bytes/"):
            self._left = int(path[7:])
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n"
            self._transport.write(head % self._left)
            self._pour()
        elif path.endswith("/events"):
            self._transport.write(EVENTS)
        else:
            self._transport.write(look_up(path))

    def _upgrade(self, data: bytes) -> None:
        key = SOCKET_KEY.search(data)
        accept = base64.b64encode(hashlib.sha1((key[1] if key else b"") + SOCKET_GUID).digest())
        head = (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        )
        self._transport.write(head + accept + b"\r\n\r\n")

    def _pour(self) -> None:
        while self._left and not self._paused and not self._transport.is_closing():
            chunk = CHUNK[: self._left]
            self._left -= len(chunk)
            self._transport.write(chunk)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._pour()


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
