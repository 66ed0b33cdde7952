"""One request of the reference platform, carried out under the fault plan.

The state of a platform (store, faults, who listens to changes) and `perform`, which every API request goes
through. Promises: what a fault's mode says is applied is applied whether or not the client is still there,
and a dropped connection ends on the wire without a byte of an answer. Knows no route and no body.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
from aiohttp import web

from gateway.demo.faults import EFFECTS, Fault, FaultPlan, Operation
from gateway.demo.live import Hub
from gateway.demo.records import DEMO_RECORDS, Record
from gateway.demo.store import Refused, Store
from gateway.tasks import Tasks

Work = Callable[[bool], web.Response]
"""Applies a request and builds its true answer; True: only the first half of its batch. May raise Refused."""

JSON_HEADERS: Final = {"Content-Type": "application/json"}

_encoder = msgspec.json.Encoder()


def json_answer(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=_encoder.encode(value), status=status, headers=JSON_HEADERS)


def error_answer(status: int, message: str) -> web.Response:
    return json_answer({"error": message}, status)


def attempt(work: Work, half: bool = False) -> web.Response:
    try:
        return work(half)
    except Refused as refused:
        return error_answer(refused.status, refused.message)


class Platform:
    """A reference platform without its sockets.

    `records` are its first accounts and products, the demo's where absent; `latency_ms` is added to each
    answer of the API; `heartbeat_seconds` is the longest silence on an event stream; `clock` gives seconds
    since the epoch.
    """

    def __init__(
        self,
        *,
        records: Iterable[Record] | None = None,
        latency_ms: float = 0.0,
        heartbeat_seconds: float = 15.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.hub = Hub()
        self.store = Store(DEMO_RECORDS if records is None else records, self.hub.publish)
        self.faults = FaultPlan()
        self.latency_ms = latency_ms
        self.heartbeat_seconds = heartbeat_seconds
        self.clock = clock
        self._late = Tasks("platform_late")
        self._silent: set[asyncio.Future[None]] = set()

    async def perform(self, request: web.Request, operation: Operation, work: Work) -> web.Response:
        fault = self.faults.draw(operation)
        answer = attempt(work) if fault is None else await self._spoil(fault, request, work)
        if self.latency_ms:
            await asyncio.sleep(self.latency_ms / 1000)
        return answer

    def end_faults(self) -> None:
        """No request fails from now on; those that a fault keeps without an answer lose their connection.
        What was promised to be applied late still is."""
        self.faults.clear()
        for waiting in self._silent:
            if not waiting.done():
                waiting.set_result(None)

    async def close(self) -> None:
        self.end_faults()
        self.hub.close()
        await self._late.cancel()

    async def _spoil(self, fault: Fault, request: web.Request, work: Work) -> web.Response:
        effect = EFFECTS[fault.mode]
        if effect.applies == "late":
            self._late.start(_apply_late(work, fault.delay_ms))
        if effect.applies in ("now", "half"):
            truth = attempt(work, effect.applies == "half")
            if effect.answers == "late_truth":
                await asyncio.sleep(fault.delay_ms / 1000)
            if effect.answers in ("truth", "late_truth"):
                return truth
        if effect.answers == "error":
            return error_answer(500, f"fault {fault.mode}")
        if effect.answers == "refusal":
            return error_answer(422, f"fault {fault.mode}")
        if effect.answers == "silence":
            await self._keep_silent()
        if request.transport is not None:
            request.transport.abort()
        # Never sent: aiohttp finds the connection closed. A handler has to return something.
        return web.Response()

    async def _keep_silent(self) -> None:
        """Until the client leaves, which cancels the handler, or the faults end."""
        waiting = asyncio.get_running_loop().create_future()
        self._silent.add(waiting)
        try:
            await waiting
        finally:
            self._silent.discard(waiting)


async def _apply_late(work: Work, delay_ms: float) -> None:
    await asyncio.sleep(delay_ms / 1000)
    attempt(work)
