"""A zone of plain HTTP under `/misc/`, for what a proxy in between must not touch.

Every route is deterministic and works in constant memory. Bodies come in as they were sent: the platform's
server does not decompress them.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from typing import Final

from aiohttp import web

from gateway.demo.core import JSON_HEADERS, json_answer
from gateway.demo.live import SSE_HEADERS

MAX_EVENTS: Final = 100_000
MAX_SLOW_MS: Final = 600_000

_BLOCK: Final = bytes(range(256)) * 256
_GZIPPED: Final = gzip.compress(b'{"compressed":"' + b"attachgate " * 1000 + b'"}', mtime=0)


def routes() -> list[web.RouteDef]:
    return [
        web.route("*", "/misc/echo", echo),
        web.get(r"/misc/bytes/{n:\d{1,12}}", send_bytes),
        web.post("/misc/upload", upload),
        web.get("/misc/redirect", redirect),
        web.get("/misc/gzip", gzipped),
        web.route("*", r"/misc/status/{code:[2-5]\d\d}", status),
        web.get("/misc/sse", events),
        web.get(r"/misc/slow/{ms:\d{1,6}}", slow),
    ]


async def _digest(request: web.Request) -> dict[str, int | str]:
    sha256 = hashlib.sha256()
    length = 0
    async for chunk in request.content.iter_any():
        sha256.update(chunk)
        length += len(chunk)
    return {"length": length, "sha256": sha256.hexdigest()}


async def echo(request: web.Request) -> web.Response:
    """What arrived: method, target and headers byte for byte (as Latin-1), in their order and with
    repetitions."""
    headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.raw_headers]
    version = f"{request.version.major}.{request.version.minor}"
    return json_answer(
        {
            "method": request.method,
            "target": request.raw_path,
            "version": version,
            "headers": headers,
            **await _digest(request),
        }
    )


async def send_bytes(request: web.Request) -> web.StreamResponse:
    """n bytes, the values 0 to 255 over and over; with `?chunked` without a Content-Length."""
    left = int(request.match_info["n"])
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    if "chunked" in request.query:
        response.enable_chunked_encoding()
    else:
        response.content_length = left
    await response.prepare(request)
    while left > 0:
        block = _BLOCK[:left]
        await response.write(block)
        left -= len(block)
    return response


async def upload(request: web.Request) -> web.Response:
    return json_answer(await _digest(request))


async def redirect(request: web.Request) -> web.Response:
    return web.Response(status=302, headers={"Location": "/misc/echo?redirected=1"})


async def gzipped(request: web.Request) -> web.Response:
    """Compressed whatever the client accepts, always the same bytes."""
    return web.Response(body=_GZIPPED, headers={**JSON_HEADERS, "Content-Encoding": "gzip"})


async def status(request: web.Request) -> web.Response:
    code = int(request.match_info["code"])
    if code in (204, 205, 304):
        return web.Response(status=code)
    return json_answer({"status": code}, code)


async def events(request: web.Request) -> web.StreamResponse:
    """`?n=` events (3), each sent by itself, `?interval_ms=` (0) apart."""
    try:
        count = min(int(request.query.get("n", "3")), MAX_EVENTS)
        interval_seconds = min(int(request.query.get("interval_ms", "0")), MAX_SLOW_MS) / 1000
    except ValueError:
        return json_answer({"error": "n and interval_ms must be whole numbers"}, 400)
    response = web.StreamResponse(headers=SSE_HEADERS)
    await response.prepare(request)
    for number in range(1, count + 1):
        await response.write(b"id: %d\ndata: event %d\n\n" % (number, number))
        await asyncio.sleep(interval_seconds)
    return response


async def slow(request: web.Request) -> web.Response:
    delay_ms = int(request.match_info["ms"])
    await asyncio.sleep(min(delay_ms, MAX_SLOW_MS) / 1000)
    return json_answer({"slow_ms": delay_ms})
