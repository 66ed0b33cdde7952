"""Envoy's ext_authz service, tuned: aiohttp's low-level server on uvloop, one batched Redis connection.

POST /live/sessions/{session}/products     reserves: 200 with x-slot, or 403
POST /settle/{session}/{product}/{status}  commits or releases
"""

from __future__ import annotations

import asyncio
import sys

import msgspec
import uvloop
from aiohttp import web

from tests.bench.peers.batched_redis import BatchedRedis, Script

RESERVE, SETTLE = Script("reserve"), Script("settle")
CAP, KEPT_SECONDS = 3, 604_800
FULL = b'{"type":"about:blank","title":"Forbidden","status":403,"reason":"foreign_cap_reached","cap":3,"used":3}'


class Body(msgspec.Struct):
    product_id: str


read_body = msgspec.json.Decoder(Body)


class Service:
    def __init__(self, redis: BatchedRedis, prefix: str) -> None:
        self._redis = redis
        self._prefix = prefix

    async def handle(self, request: web.BaseRequest) -> web.Response:
        parts = request.rel_url.raw_path.split("/")
        if parts[1] == "settle":
            applied = "1" if int(parts[4]) < 400 else "0"
            if int(parts[4]) < 500:
                await self._redis.command("EVALSHA", SETTLE.sha, 1, self._prefix + parts[2], parts[3], applied)
            return web.Response()
        session = parts[3]
        try:
            product = read_body.decode(await request.read()).product_id
        except msgspec.DecodeError:
            return web.Response(status=400)
        if product.startswith("own"):
            return web.Response()
        key = self._prefix + session
        reply = await self._redis.command("EVALSHA", RESERVE.sha, 1, key, product, CAP, KEPT_SECONDS, "0")
        if reply[0] == 0:
            return web.Response(status=403, body=FULL, content_type="application/problem+json")
        return web.Response(headers={"x-slot": f"{session}/{product}"})


async def main(port: int, redis_port: int, prefix: str) -> None:
    redis = BatchedRedis()
    await redis.connect("127.0.0.1", redis_port)
    await redis.load(RESERVE, SETTLE)
    runner = web.ServerRunner(web.Server(Service(redis, prefix).handle))  # type: ignore[arg-type]
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
