"""What the admin port tells whom, for one gateway and for several workers alike."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.admin import server
from gateway.admin.together import Together
from gateway.config import Listen
from gateway.errors import LedgerUnavailable
from gateway.telemetry import Telemetry

TOKEN = "correct-horse-battery-staple"
LISTEN = Listen(admin_port=0, admin_token=TOKEN)
BEARER = {"Authorization": f"Bearer {TOKEN}"}

Ask = Callable[..., Coroutine[Any, Any, tuple[int, dict[str, str], str]]]


async def away() -> None:
    raise LedgerUnavailable("Redis at redis.internal is away.")


@pytest.fixture(params=["one", "workers"])
async def admin(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """Either kind of admin server, with a Redis that is away; it has `port` and `reload`."""
    telemetry, checks = Telemetry(), {"ledger": away}
    if request.param == "one":
        one = await server.start(LISTEN, telemetry, checks, lambda: False)
        yield one
        await one.close()
        return
    socket = tmp_path / "0.sock"
    worker = await server.start(LISTEN, telemetry, checks, lambda: False, socket=socket)
    together = Together({"0": socket}, lambda: False)
    await together.start(LISTEN)
    yield together
    await together.close()
    await worker.close()


@pytest.fixture
async def ask(admin: Any) -> AsyncIterator[Ask]:
    async with aiohttp.ClientSession() as http:

        async def ask(path: str, fields: Any = None, method: str = "GET") -> tuple[int, dict[str, str], str]:
            async with http.request(method, f"http://127.0.0.1:{admin.port}{path}", headers=fields) as answer:
                return answer.status, dict(answer.headers), await answer.text()

        yield ask


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN.upper()}"},
        {"Authorization": "Bearer " + "x" * 7000},
        {"Authorization": "Bearer \u00e9\u4e2d"},
        [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer other")],
        {"X-Admin-Token": TOKEN},
        {"Cookie": f"Authorization={TOKEN}"},
    ],
)
async def test_metrics_are_for_who_has_the_token(ask: Ask, fields: Any) -> None:
    status, headers, body = await ask("/metrics", fields)
    assert (status, headers["WWW-Authenticate"]) == (401, 'Bearer realm="admin"')
    assert headers["Content-Type"] == "application/problem+json"
    assert TOKEN not in body
    assert "attachgate_" not in body


async def test_with_the_token_all_is_told(ask: Ask) -> None:
    status, _, body = await ask("/metrics", {"Authorization": f"bearer {TOKEN}"})
    assert status == 200
    assert "attachgate_" in body
    status, _, body = await ask("/readyz", BEARER)
    assert status == 503
    assert "redis.internal" in body


@pytest.mark.parametrize(
    "path", ["/metrics?token=" + TOKEN, "//metrics", "/metrics/", "/healthz/../metrics", "/%6detrics", "/x"]
)
async def test_no_spelling_of_a_path_gets_around_it(ask: Ask, path: str) -> None:
    status, _, body = await ask(path)
    assert status == 401
    assert TOKEN not in body


async def test_probes_need_no_token_and_learn_one_word(ask: Ask) -> None:
    assert (await ask("/healthz"))[::2] == (200, '{"status":"ok"}')
    status, _, body = await ask("/readyz")
    assert (status, json.loads(body)) == (503, {"status": "unavailable"})


async def test_what_answers_does_not_say_what_it_is(ask: Ask) -> None:
    for path, fields, method in (
        ("/metrics", {}, "GET"),
        ("/metrics", BEARER, "GET"),
        ("/healthz", {}, "GET"),
        ("/healthz", {}, "POST"),
        ("/x", BEARER, "GET"),
    ):
        _, headers, body = await ask(path, fields, method)
        assert "Server" not in headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert "aiohttp" not in body or fields


async def test_a_reload_changes_the_token(admin: Any, ask: Ask) -> None:
    admin.reload(Listen(admin_port=0, admin_token="another-token-of-24-chars"))
    assert (await ask("/metrics", BEARER))[0] == 401
    assert (await ask("/metrics", {"Authorization": "Bearer another-token-of-24-chars"}))[0] == 200
