"""A platform, gateways in front of it and their Redis: all real, in this process, with time limits that suit a test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
import redis.asyncio as redis

from gateway import settings
from gateway.config import Config, Directory, Identity, Ledger, Listen, Upstream
from gateway.demo import platform as demo
from gateway.demo.faults import Fault, Mode, Operation
from gateway.ledger import steps
from gateway.ledger.steps import Snapshot, bucket_of
from gateway.policy.model import Session
from gateway.serve import Gateway

ACCOUNT = "shop-individual"
LATE_SECONDS = 0.2
HOLD_SECONDS = 0.7
RESPONSE_SECONDS = 0.4


async def until(true: Callable[[], Awaitable[bool] | bool], seconds: float = 10.0) -> None:
    """Wait for something that happens by itself. Raises AssertionError where it does not."""
    for _ in range(round(seconds / 0.01)):
        said = true()
        if said if isinstance(said, bool) else await said:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen in time")


@dataclass
class Said:
    """An answer. `body` is its JSON, or its bytes."""

    status: int
    headers: Any
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    @property
    def reason(self) -> str:
        return str(self.body["reason"])


@dataclass
class World:
    """`redis` and `ledger` look at Redis past the gateways, none of which sweeps by itself."""

    redis_url: str
    platform: demo.Running
    http: aiohttp.ClientSession
    redis: redis.Redis
    ledger: steps.Ledger
    gateways: list[Gateway] = field(default_factory=list)

    async def gateway(self, upstream: str | Upstream = "", **sections: Any) -> Gateway:
        """One more gateway; `sections` replace those of the configuration."""
        found = {
            "upstream": upstream
            if isinstance(upstream, Upstream)
            else Upstream(
                upstream or self.platform.url,
                connect_timeout_seconds=0.2,
                response_timeout_seconds=RESPONSE_SECONDS,
                late_apply_seconds=LATE_SECONDS,
            ),
            "listen": Listen(port=0, admin_port=0, drain_seconds=1.0),
            "ledger": Ledger(self.redis_url, timeout_seconds=0.5, hold_seconds=HOLD_SECONDS),
            "directory": Directory(ttl_seconds=0.5, timeout_seconds=0.5),
            "identity": Identity(),
        } | sections
        found["ledger"] = msgspec.structs.replace(found["ledger"], sweep_sessions_per_second=0.0)
        gateway = await Gateway.start(Config(**found), settings.load_policy())
        self.gateways.append(gateway)
        return gateway

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        account: str = ACCOUNT,
        at: Gateway | None = None,
        headers: dict[str, str] | None = None,
    ) -> Said:
        url = (at or self.gateways[0]).url + path
        fields = {"X-Account-Id": account} | (headers or {})
        async with self.http.request(method, url, json=body, headers=fields, allow_redirects=False) as answer:
            return Said(answer.status, answer.headers, await answer.read())

    async def session(self, session_id: str = "s1", account: str = ACCOUNT) -> str:
        """A session at the upstream, made past the gateway."""
        self.platform.platform.store.create(session_id, account, self.platform.platform.clock())
        return session_id

    async def attach(self, *products: str, session: str = "s1", **how: Any) -> Said:
        body = {"product_id": products[0]} if len(products) == 1 else {"product_ids": list(products)}
        return await self.ask("POST", f"/live/sessions/{session}/products", body, **how)

    async def detach(self, product: str, session: str = "s1", **how: Any) -> Said:
        return await self.ask("DELETE", f"/live/sessions/{session}/products/{product}", **how)

    async def replace(self, old: str, new: str, session: str = "s1", **how: Any) -> Said:
        return await self.ask("PUT", f"/live/sessions/{session}/products/{old}", {"product_id": new}, **how)

    async def start(self, session: str = "s1", **how: Any) -> Said:
        return await self.ask("POST", f"/live/sessions/{session}/start", **how)

    def fault(self, mode: str, operation: Operation = "attach", **more: Any) -> None:
        self.platform.platform.faults.post(Fault(Mode(mode), operation, **more))

    def no_faults(self) -> None:
        self.platform.platform.end_faults()

    def listed(self, session: str = "s1") -> set[str]:
        """What the upstream has in a session now."""
        return {product.product_id for product in self.platform.platform.store.listed(session)}

    def upstream_session(self, session: str = "s1") -> Session:
        return self.platform.platform.store.session(session)

    def journal(self, operation: str = "attach") -> list[str]:
        entries = self.platform.platform.store.entries(0)
        return [entry.product_id or "" for entry in entries if entry.operation == operation]

    async def snapshot(self, session: str = "s1") -> Snapshot | None:
        return await self.ledger.snapshot(session)

    async def used(self, session: str = "s1") -> set[str]:
        """The products whose slots count; that the ledger's count says the same is checked on the way."""
        snapshot = await self.snapshot(session)
        assert snapshot is not None
        assert snapshot.used == len(snapshot.slots)
        return {slot.product_id for slot in snapshot.slots}

    async def pending(self, session: str = "s1") -> list[str]:
        key = self.ledger.pending_key(bucket_of(session))
        return [name.decode() for name in await self.redis.zrange(key, 0, -1)]

    async def settled(self, session: str = "s1") -> None:
        """Until nothing of a session is on its way or in doubt any more, here or in Redis."""

        async def nothing() -> bool:
            snapshot = await self.snapshot(session)
            on_their_way = sum(len(gateway._opening.on_their_way) for gateway in self.gateways)
            tasks = sum(len(gateway._settlements.tasks) for gateway in self.gateways)
            records = snapshot.records if snapshot is not None else {}
            return not records and not on_their_way and not tasks and not await self.pending(session)

        await until(nothing)

    async def close(self) -> None:
        await self.http.close()
        await asyncio.gather(*(gateway.close() for gateway in self.gateways))
        await self.platform.close()
        await self.redis.aclose()


class Line:
    """The way to Redis, which can be cut: `down` refuses and breaks, `lose` delivers steps and not their answers."""

    def __init__(self, folder: str) -> None:
        self._path = folder
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.lose = False
        self.asked = asyncio.Event()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def up(self) -> None:
        self.lose = False
        for _ in range(100):
            try:
                self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
                break
            except OSError:
                # A connection of somebody else's has got the port for a moment.
                await asyncio.sleep(0.05)
        assert self._server is not None
        self.port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        if self._server is not None:
            self._server.close()
        self._server = None
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)

    async def close(self) -> None:
        await self.down()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there, back = await asyncio.open_unix_connection(self._path)
        self._writers |= {writer, back}

        async def answers() -> None:
            while data := await there.read(65536):
                if self.lose:
                    writer.transport.abort()
                    return
                writer.write(data)

        answering = asyncio.ensure_future(answers())
        try:
            while data := await reader.read(65536):
                self.asked.set()
                back.write(data)
        except ConnectionError:
            pass
        finally:
            await asyncio.wait([answering], timeout=0.2)
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
            writer.transport.abort()
            back.transport.abort()
            self._writers -= {writer, back}
            self._tasks.discard(task)
