"""A request that is given up at any await loses nothing: no slot too few, none too many, no record that stays."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import pytest

from gateway.admission import session
from gateway.admission.attach import attach
from gateway.admission.decision import Decision, Reply
from gateway.config import Ledger, Operation
from gateway.policy.model import Surface
from gateway.proxy.fast import Head, PlainIncoming
from gateway.reading.address import read_target
from gateway.serve import Gateway
from tests.admission.world import ACCOUNT, World

Step = Callable[[Any, Any, Decision], Awaitable[Reply]]


class CancelledAt:
    """Runs a coroutine and cancels its task at the n-th await that waits, or in the turn after it."""

    def __init__(self, work: Coroutine[Any, Any, Any], number: int, *, later: bool) -> None:
        self._work = work
        self._number = number
        self._later = later
        self.awaits = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        assert task is not None
        error: BaseException | None = None
        while True:
            try:
                waited = self._work.send(None) if error is None else self._work.throw(error)
            except StopIteration as end:
                return end.value
            self.awaits += 1
            if self.awaits == self._number:
                if self._later:
                    asyncio.get_running_loop().call_soon(task.cancel)
                else:
                    task.cancel()
            error = None
            try:
                yield waited
            except BaseException as thrown:
                error = thrown


def incoming(gateway: Gateway, method: str, path: str, body: bytes = b"") -> PlainIncoming:
    rules = gateway._dispatcher.rules
    fields = [(b"Host", b"x"), (b"X-Account-Id", ACCOUNT.encode())]
    if body:
        fields += [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(body))]
    match = rules.matcher.match(method, read_target(path, method=method))
    assert match is not None
    head = Head(rules.headers.read(fields, (1, 1)), len(body), "en")
    found = PlainIncoming(match, head, body, "127.0.0.1", "http")
    found.method = method
    return found


async def cancelled_at(
    gateway: Gateway, step: Step, operation: Operation, request: PlainIncoming, number: int, later: bool
) -> bool:
    """False where the step had ended before."""
    decision = Decision(
        operation, Surface.live_room if operation == "attach" else None, "en", gateway._gate.wall_clock()
    )
    work = step(gateway._gate, request, decision)
    assert isinstance(work, Coroutine)
    counted = CancelledAt(work, number, later=later)

    async def run() -> None:
        await counted

    task = asyncio.ensure_future(run())
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    return counted.awaits >= number


async def prepare(world: World, name: str, products: list[str], opened: bool) -> None:
    await world.session(name)
    if products:
        world.platform.platform.store.attach(name, products, 0.0)
    if opened:
        gateway = world.gateways[0]
        await gateway._opening.open(name, await gateway._directory.account(ACCOUNT), "prepared")


THREE = ["ally-1", "ally-2", "ally-3"]
STEPS: list[tuple[str, Step, Operation, str, str, bytes, list[str]]] = [
    ("attach", attach, "attach", "POST", "/products", b'{"product_id":"ally-1"}', []),
    ("batch", attach, "attach", "POST", "/products", b'{"product_ids":["ally-1","ally-2"]}', ["ally-2"]),
    ("own", attach, "attach", "POST", "/products", b'{"product_id":"own-individual-1"}', []),
    ("detach", session.detach, "detach", "DELETE", "/products/ally-1", b"", ["ally-1", "ally-2"]),
    ("replace", session.replace, "replace", "PUT", "/products/ally-1", b'{"product_id":"ally-9"}', ["ally-1"]),
    ("full", session.replace, "replace", "PUT", "/products/ally-1", b'{"product_id":"ally-9"}', THREE),
    ("start", session.start, "start", "POST", "/start", b"", ["ally-1"]),
    ("end", session.end, "end", "POST", "/end", b"", ["ally-1"]),
]


@pytest.mark.parametrize("opened", [True, False], ids=["known to the ledger", "new to the ledger"])
async def test_given_up_at_every_await(bare: World, opened: bool) -> None:
    # Nothing may be left to a hold that runs out: the gateway is still there, and knows what it did.
    gateway = await bare.gateway(ledger=Ledger(bare.redis_url, timeout_seconds=0.5, hold_seconds=60.0))
    sessions: list[str] = []
    for name, step, operation, method, path, body, products in STEPS:
        before = len(sessions)
        for number, later in itertools.product(range(1, 60), (False, True)):
            session_id = f"{name}-{number}-{later}"
            await prepare(bare, session_id, products, opened)
            request = incoming(gateway, method, f"/live/sessions/{session_id}{path}", body)
            sessions.append(session_id)
            if not await cancelled_at(gateway, step, operation, request, number, later) and not later:
                break
        assert len(sessions) > before + 2, "there is something to give up"
    for session_id in sessions:
        await bare.settled(session_id)
        snapshot = await bare.snapshot(session_id)
        if snapshot is None:
            continue
        foreign = {product for product in bare.listed(session_id) if product.startswith("ally")}
        assert (await bare.used(session_id), session_id) == (foreign, session_id)
        assert {slot.product_id for slot in snapshot.slots if slot.held} == set()
    assert gateway._pool.connections == len(gateway._pool._idle)


async def test_create_given_up_at_every_await(world: World) -> None:
    gateway = world.gateways[0]
    for number, later in itertools.product(range(1, 60), (False, True)):
        body = b'{"session_id":"c%d%d","account_id":"%s"}' % (number, later, ACCOUNT.encode())
        request = incoming(gateway, "POST", "/live/sessions", body)
        if not await cancelled_at(gateway, session.create, "create", request, number, later) and not later:
            break
    await world.settled()
    assert gateway._pool.connections == len(gateway._pool._idle)
