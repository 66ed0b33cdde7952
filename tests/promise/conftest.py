"""Real processes: one platform, two gateways, one Redis."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.ledger import embedded
from tests.ports import free_port

CONFIG = """
[listen]
port = {port}
admin_port = {admin_port}
drain_seconds = 3

[upstream]
url = "{upstream}"
connect_timeout_seconds = 1
response_timeout_seconds = 0.5
late_apply_seconds = 1.0

[ledger]
url = "{redis}"
hold_seconds = 2.5
timeout_seconds = 2

[directory]
ttl_seconds = 0.5
"""


@dataclass
class World:
    """Where to reach what runs."""

    http: aiohttp.ClientSession
    platform: str
    gateways: list[str]
    processes: list[asyncio.subprocess.Process]

    async def ask(self, method: str, url: str, body: Any = None, account: str = "shop-individual") -> tuple[int, Any]:
        headers = {"X-Account-Id": account}
        async with self.http.request(method, url, json=body, headers=headers) as response:
            is_json = "json" in response.headers.get("Content-Type", "")
            return response.status, await response.json(content_type=None) if is_json else None

    async def foreign_in(self, session_id: str) -> list[str]:
        """The distinct foreign products that the upstream accepted over a session, by its own journal."""
        _, journal = await self.ask("GET", f"{self.platform}/_platform/journal")
        accepted = {
            entry["product_id"]
            for entry in journal["entries"]
            if entry["session_id"] == session_id and entry["operation"] == "attach"
        }
        return sorted(product for product in accepted if product.startswith("race-"))

    async def view(self, session_id: str) -> Any:
        status, view = await self.ask("GET", f"{self.gateways[0]}/_gateway/sessions/{session_id}")
        assert status == 200, view
        return view


async def start(*arguments: str) -> asyncio.subprocess.Process:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ATTACHGATE_")}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.cli", *arguments, stdout=asyncio.subprocess.DEVNULL, env=environ
    )


async def until_answers(http: aiohttp.ClientSession, url: str) -> None:
    for _ in range(200):
        try:
            async with http.get(url):
                return
        except aiohttp.ClientError:
            await asyncio.sleep(0.05)
    raise AssertionError(f"{url} does not answer")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    redis = await embedded.start()
    platform_port = free_port()
    upstream = f"http://127.0.0.1:{platform_port}"
    processes = [await start("platform", "--port", str(platform_port))]
    gateways = []
    for number in range(2):
        port = free_port()
        file = tmp_path / f"gateway-{number}.toml"
        file.write_text(CONFIG.format(port=port, admin_port=free_port(), upstream=upstream, redis=redis.url))
        processes.append(await start("serve", "--config", str(file)))
        gateways.append(f"http://127.0.0.1:{port}")
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as http:
            for url in (upstream, *gateways):
                await until_answers(http, f"{url}/accounts/creator-li")
            yield World(http, upstream, gateways, processes)
    finally:
        for process in reversed(processes):
            process.terminate()
        codes = [await asyncio.wait_for(process.wait(), 15) for process in reversed(processes)]
        await redis.close()
    assert codes == [0, 0, 0]
