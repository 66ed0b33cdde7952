from __future__ import annotations

import argparse
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from gateway.demo import platform
from gateway.demo.platform import Platform, Running
from gateway.load.options import Options, add_arguments, parse


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def options(*words: str) -> Options:
    return parse(arguments(*words))


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    running = await platform.start()
    yield running
    await running.close()


class Keeper:
    """The reference platform with a doorkeeper of the simplest kind in front: three foreign products a session, counted
    for good. It has the gateway's session view; `leaked` are slots that it shows without reason."""

    def __init__(self) -> None:
        self.platform = Platform()
        self.leaked: set[str] = set()
        self._used: dict[str, set[str]] = {}

    def app(self) -> web.Application:
        app = platform.build(self.platform)
        app.middlewares.append(self._keep)
        app.router.add_get("/_gateway/sessions/{session_id}", self._view)
        return app

    @web.middleware
    async def _keep(self, request: web.Request, handler: object) -> web.StreamResponse:
        session_id = request.match_info.get("session_id", "")
        if request.method == "POST" and request.path.endswith("/products"):
            body = await request.json()
            asked = set(body.get("product_ids") or [body["product_id"]])
            foreign = {product_id for product_id in asked if "-ally" in product_id}
            used = self._used.setdefault(session_id, set())
            if len(used | foreign) > 3:
                problem = {"reason": "foreign_cap_reached"}
                return web.json_response(problem, status=403, content_type="application/problem+json")
            used |= foreign
        return await handler(request)  # type: ignore[operator,no-any-return]

    async def _view(self, request: web.Request) -> web.Response:
        session_id = request.match_info["session_id"]
        slots = self._used.get(session_id, set()) | self.leaked
        rows = [{"product_id": product_id, "attached": True} for product_id in sorted(slots)]
        return web.json_response({"session_id": session_id, "used": len(slots), "cap": 3, "slots": rows})


@pytest.fixture
async def keeper() -> AsyncIterator[tuple[Keeper, str]]:
    keeper = Keeper()
    runner = web.AppRunner(keeper.app(), access_log=None, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield keeper, site.name.rstrip("/")
    await runner.cleanup()
