"""Clients at the ledger during a fault, and the judge of what they did.

The upstream is a set here: a product is in it from the moment its reservation is held, as if the attach had been
forwarded then and applied. The judge compares that set with the cap and with the ledger; it never asks the ledger
what the cap allows.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gateway.config import Ledger as LedgerConfig
from gateway.errors import LedgerUnavailable
from gateway.ledger.connection import connect
from gateway.ledger.steps import Ledger, Step, bucket_of
from gateway.policy.model import SessionState
from gateway.tasks import Tasks

CAP = 3
TIMEOUT_SECONDS = 0.5
SLACK_SECONDS = 0.5
"""For a machine that others use too."""


@asynccontextmanager
async def opened(
    url: str,
    *,
    durability: Any = "primary",
    replicas: int = 1,
    timeout_seconds: float = TIMEOUT_SECONDS,
    late_apply_seconds: float = 5.0,
) -> AsyncIterator[Ledger]:
    connection = connect(url, timeout_seconds, time.monotonic, replicas=replicas)
    try:
        yield Ledger(connection, LedgerConfig(durability=durability, hold_seconds=30.0), late_apply_seconds)
    finally:
        await connection.close()


def session_in(slots: Callable[[int], bool], hint: str = "s") -> str:
    """A new session whose bucket lies in a slot that suits."""
    from tests.topologies.redis_processes import slot_of

    while True:
        session_id = f"{hint}{random.getrandbits(48):x}"
        if slots(slot_of(f"ag:{{{bucket_of(session_id)}}}:p")):
            return session_id


@dataclass
class Load:
    """`calls`: how each ended and how long it took. `upstream`: what was applied, by session."""

    ledger: Ledger
    session_names: Callable[[], str]
    outcomes: list[tuple[float, str, float, str]] = field(default_factory=list)
    upstream: dict[str, set[str]] = field(default_factory=dict)
    strange: list[BaseException] = field(default_factory=list)
    _operations: int = 0
    _tasks: Tasks = field(default_factory=lambda: Tasks("load"))
    _stopping: bool = False
    _applied: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self, rooms: int = 6, clients: int = 4) -> None:
        for _ in range(rooms):
            self._tasks.start(self._room(clients))

    async def stop(self) -> None:
        self._stopping = True
        left = await self._tasks.drain(10.0)
        assert left == 0, f"{left} clients hang"

    async def served(self, more: int = 20) -> None:
        """Until so many more reservations were held. Raises `TimeoutError` where nothing goes on."""
        goal = self.held + more
        async with asyncio.timeout(30.0):
            while self.held < goal:
                self._applied.clear()
                await self._applied.wait()

    @property
    def held(self) -> int:
        return sum(len(products) for products in self.upstream.values())

    async def _room(self, clients: int) -> None:
        """One session after the other, each used up by several clients at once."""
        while not self._stopping:
            session_id = self.session_names()
            self.upstream[session_id] = set()
            await asyncio.gather(*(self._client(session_id, number) for number in range(clients)))

    async def _client(self, session_id: str, number: int) -> None:
        for turn in range(3):
            if self._stopping:
                return
            product = f"p{number}-{turn}"
            self._operations += 1
            operation = f"o{self._operations}"
            said = await self._timed("reserve", self.ledger.reserve(session_id, operation, CAP, [product]))
            if said == "missing":
                listed = sorted(self.upstream[session_id])
                opening = self.ledger.adopt(session_id, operation, "", SessionState.preparing, listed)
                if await self._timed("adopt", opening):
                    said = await self._timed("reserve", self.ledger.reserve(session_id, operation, CAP, [product]))
            if said == "held" and random.random() < 0.7:
                self.upstream[session_id].add(product)
                self._applied.set()
                await self._settled(
                    partial(self.ledger.commit, session_id, operation, "attached", [Step("t", product)])
                )
            elif said in ("held", None):
                await self._settled(partial(self.ledger.release, session_id, operation, 1))
            await asyncio.sleep(0)

    async def _settled(self, step: Callable[[], Any]) -> None:
        """As the gateway does it: again, until the hold is over."""
        for _ in range(200):
            if await self._timed("settle", step()) is not None:
                return
            await asyncio.sleep(0.05)

    async def _timed(self, name: str, step: Any) -> str | None:
        began = time.monotonic()
        try:
            said: str | None = (await step).said
            problem = ""
        except LedgerUnavailable as error:
            said, problem = None, error.detail
        except Exception as error:
            self.strange.append(error)
            said, problem = None, repr(error)
        self.outcomes.append((began, name, time.monotonic() - began, problem))
        return said

    def problems(self) -> set[str]:
        return {problem for _, _, _, problem in self.outcomes if problem}

    def slowest(self) -> float:
        return max(seconds for _, _, seconds, _ in self.outcomes)

    async def judge(self, *, lost_allowed: bool = False) -> int:
        """The promise, and that no call hung; returns how many slots the ledger lost."""
        assert not self.strange, self.strange
        over = {session: products for session, products in self.upstream.items() if len(products) > CAP}
        assert not over
        lost = 0
        for session, products in self.upstream.items():
            snapshot = await self.ledger.snapshot(session)
            slots = {slot.product_id for slot in snapshot.slots} if snapshot is not None else set()
            assert len(slots) <= CAP
            lost += len(products - slots)
        assert lost_allowed or lost == 0
        assert self.slowest() < 2 * TIMEOUT_SECONDS + SLACK_SECONDS, sorted(o[2] for o in self.outcomes)[-5:]
        return lost


def everywhere() -> str:
    return f"s{random.getrandbits(48):x}"
