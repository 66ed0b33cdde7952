from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest

from gateway.demo import platform
from gateway.demo.platform import Platform, Running


class Caller:
    """A client of a running platform. Each request has a connection of its own: aiohttp repeats an idempotent
    request by itself where a kept connection is dropped, which would hide the drop."""

    def __init__(self, running: Running, http: aiohttp.ClientSession) -> None:
        self.running = running
        self.http = http

    async def __call__(self, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
        """Status and decoded JSON (None where the answer has no body)."""
        async with self.http.request(method, self.running.url + path, json=body, **options) as answer:
            return answer.status, (await answer.json() if await answer.read() else None)

    async def live(self, session_id: str = "s1", account_id: str = "shop-individual", *products: str) -> str:
        """A session that is live; returns its path."""
        await self("POST", "/live/sessions", {"session_id": session_id, "account_id": account_id})
        path = f"/live/sessions/{session_id}"
        if products:
            await self("POST", path + "/products", {"product_ids": products})
        await self("POST", path + "/start")
        return path

    async def attached(self, path: str) -> list[str]:
        status, answer = await self("GET", path + "/products")
        assert status == 200
        return [product["product_id"] for product in answer["products"]]

    async def journal(self) -> list[dict[str, Any]]:
        status, answer = await self("GET", "/_platform/journal")
        assert status == 200
        entries: list[dict[str, Any]] = answer["entries"]
        return entries

    async def raw(self, request: bytes) -> bytes:
        """Everything that comes back on a connection of its own, until the platform closes it."""
        host, _, port = self.running.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request)
        try:
            return await reader.read()
        finally:
            writer.close()

    @staticmethod
    async def until(condition: Callable[[], bool]) -> None:
        """What the platform does in this same event loop; the test's own time limit bounds it."""
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    async def fault(self, mode: str, operation: str = "attach", **options: Any) -> None:
        body = {"operation": operation, "mode": mode, **options}
        status, _ = await self("POST", "/_platform/faults", body)
        assert status == 200


@pytest.fixture
async def call() -> AsyncIterator[Caller]:
    running = await platform.start(platform=Platform(heartbeat_seconds=0.05))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
        yield Caller(running, http)
    await running.close()
