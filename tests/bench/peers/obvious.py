"""The proxy that one would write first: an aiohttp Application, a middleware, a ClientSession, redis.asyncio.

On uvloop, which costs one line. No WebSocket: that would be another page of code.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import redis.asyncio
import uvloop
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

HERE = Path(__file__).parent
CAP, KEPT_SECONDS = 3, 604_800
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "host", "content-length"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build(upstream: str, redis_port: int, prefix: str) -> web.Application:
    app = web.Application(middlewares=[slots], client_max_size=1 << 30)
    app["upstream"], app["prefix"] = upstream, prefix

    async def resources(app: web.Application) -> AsyncIterator[None]:
        store = redis.asyncio.Redis(port=redis_port, max_connections=512)
        app["reserve"] = store.register_script((HERE / "reserve.lua").read_text())
        app["settle"] = store.register_script((HERE / "settle.lua").read_text())
        timeout = ClientTimeout(total=None, sock_connect=2)
        async with ClientSession(connector=TCPConnector(limit=0), timeout=timeout, auto_decompress=False) as session:
            app["session"] = session
            yield
        await store.aclose()

    app.cleanup_ctx.append(resources)
    app.router.add_post("/live/sessions/{session}/products", forward, name="attach")
    app.router.add_route("*", "/{path:.*}", forward)
    return app


@web.middleware
async def slots(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.match_info.route.name != "attach":
        return await handler(request)
    try:
        product = str((await request.json())["product_id"])
    except (ValueError, KeyError, TypeError):
        return web.json_response({"status": 400, "reason": "body_malformed"}, status=400)
    if product.startswith("own"):
        return await handler(request)
    app = request.app
    key = app["prefix"] + request.match_info["session"]
    reply = await app["reserve"](keys=[key], args=[product, CAP, KEPT_SECONDS, "0"])
    if reply[0] == 0:
        problem = {"status": 403, "reason": "foreign_cap_reached", "cap": CAP, "used": reply[1]}
        return web.Response(status=403, text=json.dumps(problem), content_type="application/problem+json")
    response = await handler(request)
    if response.status < 500:
        await app["settle"](keys=[key], args=[product, "1" if response.status < 400 else "0"])
    return response


async def forward(request: web.Request) -> web.StreamResponse:
    app = request.app
    headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
    data = request.content if request.body_exists and not request._read_bytes else request._read_bytes
    url = app["upstream"] + request.raw_path
    async with app["session"].request(request.method, url, headers=headers, data=data) as answer:
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
        length = answer.headers.get("Content-Length")
        if length is not None and int(length) < 65_536:
            return web.Response(status=answer.status, headers=kept, body=await answer.read())
        response = web.StreamResponse(status=answer.status, headers=kept)
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response


if __name__ == "__main__":
    web.run_app(
        build(sys.argv[2], int(sys.argv[3]), sys.argv[4]),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        access_log=None,
        loop=uvloop.new_event_loop(),
        print=None,
    )
