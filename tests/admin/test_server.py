"""The admin port tells a probe what is so, and an operator what to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from gateway.admin import server
from gateway.config import Listen
from gateway.errors import LedgerUnavailable
from gateway.telemetry import Telemetry


async def well() -> None:
    """All is well."""


class Admin:
    """An admin server whose checks and state a test sets."""

    def __init__(self) -> None:
        self.telemetry = Telemetry()
        self.checks: dict[str, Callable[[], Awaitable[None]]] = {"ledger": well, "upstream": well}
        self.draining = False
        self.running: server.Running | None = None
        self.http = aiohttp.ClientSession()

    async def start(self, check_seconds: float = server.CHECK_SECONDS) -> None:
        listen = Listen(admin_port=0)
        self.running = await server.start(
            listen, self.telemetry, self.checks, lambda: self.draining, check_seconds=check_seconds
        )

    async def ask(self, path: str) -> tuple[int, Any]:
        assert self.running is not None
        async with self.http.get(f"http://127.0.0.1:{self.running.port}{path}") as answer:
            assert answer.headers["Cache-Control"] == "no-store"
            return answer.status, await answer.json()


@pytest.fixture
async def admin() -> AsyncIterator[Admin]:
    admin = Admin()
    yield admin
    await admin.http.close()
    if admin.running is not None:
        await admin.running.close()


async def test_it_is_healthy_while_it_runs(admin: Admin) -> None:
    async def broken() -> None:
        raise LedgerUnavailable("Away.")

    admin.checks["ledger"] = broken
    admin.draining = True
    await admin.start()
    assert await admin.ask("/healthz") == (200, {"status": "ok"})


async def test_it_is_ready_when_every_check_passes(admin: Admin) -> None:
    admin.telemetry.watch_policy(lambda: "2026-07")
    await admin.start()
    assert await admin.ask("/readyz") == (
        200,
        {
            "status": "ok",
            "policy_version": "2026-07",
            "checks": {"ledger": "ok", "upstream": "ok", "draining": "ok"},
        },
    )


async def test_what_fails_is_said_with_what_to_do(admin: Admin) -> None:
    async def away() -> None:
        raise LedgerUnavailable("Redis at ledger.url refuses connections: start it.")

    async def odd() -> None:
        raise RuntimeError("redis://user:secret@host " + "x" * 10_000)

    admin.checks |= {"ledger": away, "directory": odd}
    await admin.start()
    status, body = await admin.ask("/readyz")
    assert status == 503
    assert body["status"] == "unavailable"
    assert body["checks"]["ledger"] == "Redis at ledger.url refuses connections: start it."
    assert body["checks"]["directory"].startswith("RuntimeError: redis://[hidden]@host xxx")
    assert len(body["checks"]["directory"]) == server.MAX_MESSAGE_CHARS
    assert body["checks"]["upstream"] == "ok"


async def test_a_check_that_hangs_is_not_waited_for(admin: Admin) -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    admin.checks |= {"ledger": hang, "upstream": hang}
    await admin.start(check_seconds=0.05)
    status, body = await asyncio.wait_for(admin.ask("/readyz"), 5)
    assert status == 503
    assert body["checks"]["ledger"].startswith("No answer within 0.05 s")


async def test_checks_run_at_once_and_once_for_all_who_ask(admin: Admin) -> None:
    met = asyncio.Barrier(3)
    runs = 0

    async def meet() -> None:
        nonlocal runs
        runs += 1
        await met.wait()

    admin.checks |= {"ledger": meet, "upstream": meet}
    await admin.start()
    asking = [asyncio.ensure_future(admin.ask("/readyz")) for _ in range(5)]
    await asyncio.wait_for(met.wait(), 5)
    assert [status for status, _ in await asyncio.gather(*asking)] == [200] * 5
    assert 2 <= runs <= 4


async def test_each_run_looks_anew(admin: Admin) -> None:
    states = iter(["away", "back"])

    async def recover() -> None:
        if next(states) == "away":
            raise LedgerUnavailable("Away.")

    admin.checks["ledger"] = recover
    await admin.start()
    assert (await admin.ask("/readyz"))[0] == 503
    assert (await admin.ask("/readyz"))[0] == 200


async def test_a_gateway_that_is_being_stopped_is_not_ready(admin: Admin) -> None:
    await admin.start()
    admin.draining = True
    status, body = await admin.ask("/readyz")
    assert (status, body["status"]) == (503, "draining")
    assert "another one" in body["checks"]["draining"]


async def test_metrics_in_the_form_that_is_asked_for(admin: Admin) -> None:
    await admin.start()
    admin.telemetry.settled("committed")
    assert admin.running is not None
    url = f"http://127.0.0.1:{admin.running.port}/metrics"
    async with admin.http.get(url) as answer:
        assert answer.content_type == "text/plain"
        assert 'attachgate_settled_total{outcome="committed"} 1.0' in await answer.text()
    async with admin.http.get(url, headers={"Accept": "application/openmetrics-text; version=1.0.0"}) as answer:
        assert answer.content_type == "application/openmetrics-text"
        assert (await answer.text()).endswith("# EOF\n")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("POST", "/healthz", 405), ("HEAD", "/healthz", 200), ("GET", "/metrics/x", 404)],
)
async def test_nothing_else_is_there(admin: Admin, method: str, path: str, status: int) -> None:
    await admin.start()
    assert admin.running is not None
    async with admin.http.request(method, f"http://127.0.0.1:{admin.running.port}{path}") as answer:
        assert answer.status == status


async def test_a_port_that_is_taken_is_an_error(admin: Admin) -> None:
    await admin.start()
    assert admin.running is not None
    with pytest.raises(OSError, match="address already in use"):
        await server.start(Listen(admin_port=admin.running.port), admin.telemetry, {}, lambda: False)


async def test_closing_does_not_wait_for_a_check(admin: Admin) -> None:
    asked = asyncio.Event()

    async def hang() -> None:
        asked.set()
        await asyncio.Event().wait()

    admin.checks["ledger"] = hang
    await admin.start(check_seconds=60)
    asking = asyncio.ensure_future(admin.ask("/readyz"))
    await asked.wait()
    assert admin.running is not None
    await asyncio.wait_for(admin.running.close(), 5)
    with pytest.raises(aiohttp.ClientError):
        await asking
