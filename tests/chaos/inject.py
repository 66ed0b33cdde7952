"""Carries out the planned faults, each at its time, and counts them.

A gateway, the store and the platform are each handled by one fault at a time: what comes while one still lasts waits
for it, and is dropped where it would come too late.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Iterator
from typing import Any, Final, cast

import aiohttp

from gateway.tasks import Tasks
from tests.chaos.link import Direction, Link
from tests.chaos.plan import MAX_APPLY_DELAY_SECONDS, Fault
from tests.chaos.processes import GatewayProcess, PlatformProcess
from tests.chaos.store import Store

PATIENCE_SECONDS: Final = 3.0
DELAYED_MODES: Final = ("slow", "drop_then_apply_late")


class Injector:
    def __init__(
        self,
        gateways: list[GatewayProcess],
        platform: PlatformProcess,
        store: Store,
        links: dict[str, Link],
        http: aiohttp.ClientSession,
    ) -> None:
        self._gateways = {gateway.name: gateway for gateway in gateways}
        self._platform = platform
        self._store = store
        self._links = links
        self._http = http
        self._busy: dict[str, asyncio.Lock] = {}
        self._tasks = Tasks("faults")
        self._postings = 0
        self.done: Counter[str] = Counter()
        self.history: list[tuple[float, Fault]] = []
        self.bad_exits: list[str] = []

    async def run(self, faults: Iterator[Fault]) -> None:
        """Every fault from now on; returns when the last has ended."""
        begun = time.monotonic()
        for fault in faults:
            await asyncio.sleep(max(0.0, begun + fault.at - time.monotonic()))
            self._tasks.start(self._carry_out(fault))
        await self._tasks.drain(60.0)

    async def heal(self) -> None:
        """Everything runs, and nothing is in the way any more."""
        await self._tasks.cancel()
        self._platform.resume()
        async with self._http.delete(f"{self._platform.url}/_platform/faults"):
            pass
        await self._store.heal()
        for gateway in self._gateways.values():
            gateway.resume()
            if not gateway.running:
                await gateway.begin()

    async def _carry_out(self, fault: Fault) -> None:
        if fault.kind in ("platform fault",):
            await self._begin(fault, self._spoil(fault))
            return
        lock = self._busy.setdefault(fault.target, asyncio.Lock())
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await lock.acquire()
        except TimeoutError:
            self.done["(dropped: its target was busy)"] += 1
            return
        try:
            await self._begin(fault, self._do(fault))
        finally:
            lock.release()

    async def _begin(self, fault: Fault, work: Awaitable[None]) -> None:
        name = f"platform: {fault.detail}" if fault.kind == "platform fault" else fault.kind
        self.done[name] += 1
        self.history.append((time.time(), fault))
        await work

    async def _do(self, fault: Fault) -> None:
        kind, target = fault.kind, fault.target
        if target.startswith("gateway"):
            await self._handle_gateway(kind, self._gateways[target], fault.seconds)
        elif target == "platform":
            self._platform.pause()
            await asyncio.sleep(fault.seconds)
            self._platform.resume()
        elif target == "store":
            await self._store.handle(kind, fault.seconds)
        else:
            await self._handle_link(fault, self._links[target])

    async def _handle_gateway(self, kind: str, gateway: GatewayProcess, seconds: float) -> None:
        if kind == "clock stepped":
            gateway.step_clock()
        elif kind == "gateway killed":
            await gateway.kill()
            await asyncio.sleep(seconds)
            await gateway.begin()
        elif kind == "gateway restarted":
            code = await gateway.terminate()
            if code != 0:
                self.bad_exits.append(f"{gateway.name} ended with {code} when it was asked to stop")
            await gateway.begin()
        else:
            gateway.pause()
            await asyncio.sleep(seconds)
            gateway.resume()

    async def _handle_link(self, fault: Fault, link: Link) -> None:
        match fault.kind:
            case "link cut":
                link.cut()
            case "link refused":
                await link.refuse(fault.seconds)
            case "link stalled":
                both: tuple[Direction, ...] = ("request", "answer")
                directions = both if fault.detail == "both" else (cast(Direction, fault.detail),)
                await link.stall(fault.seconds, set(directions))
            case "link slow":
                await link.slow(fault.seconds, fault.amount)
            case _:
                direction: Direction = "request" if fault.kind == "request cut" else "answer"
                await link.cut_next(direction, int(fault.amount), float(fault.detail), fault.seconds)

    async def _spoil(self, fault: Fault) -> None:
        """One operation of the platform goes wrong for a while. A later fault for the same operation takes its place,
        and then ends it."""
        self._postings += 1
        delay_ms = 1000 * MAX_APPLY_DELAY_SECONDS * (fault.amount if fault.detail in DELAYED_MODES else 0)
        body = {"operation": fault.target, "mode": fault.detail, "delay_ms": delay_ms, "seed": self._postings}
        await self._post({**body, "rate": fault.amount})
        await asyncio.sleep(fault.seconds)
        await self._post({**body, "rate": 0})

    async def _post(self, fault: dict[str, Any]) -> None:
        async with self._http.post(f"{self._platform.url}/_platform/faults", json=fault) as answer:
            assert answer.status == 200, await answer.text()
