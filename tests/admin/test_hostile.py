"""Whatever comes to the admin port is answered in our words, and nobody who connects writes into the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from gateway.admin import guard, server
from gateway.admin.together import Together
from gateway.config import Listen
from gateway.errors import LedgerUnavailable
from gateway.telemetry import Seldom, Telemetry

LISTEN = Listen(admin_port=0, header_timeout_seconds=5.0)
HOST = b" HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n"
PATIENCE_SECONDS = 10.0


async def away() -> None:
    raise LedgerUnavailable("Away.")


@pytest.fixture(params=["one", "workers"])
async def admin(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    socket = tmp_path / "0.sock" if request.param == "workers" else None
    monkeypatch.setattr(guard, "_LINGERING_SECONDS", 0.1)
    one = await server.start(LISTEN, Telemetry(), {"ledger": away}, lambda: False, socket=socket)
    if socket is None:
        yield one
    else:
        together = Together({"0": socket}, lambda: False)
        await together.start(LISTEN)
        yield together
        await together.close()
    await one.close()


async def told(port: int, *writes: bytes) -> bytes:
    """All that comes back until the connection ends. Each write waits for the answer to the one before."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    async with asyncio.timeout(PATIENCE_SECONDS):
        for number, data in enumerate(writes):
            if number:
                answer += await reader.readuntil(b"\r\n\r\n")
            writer.write(data)
        answer += await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("writes", "status"),
    [
        ([b"GET / HTTP/9\r\n\r\n"], 400),
        ([b'{"level":"error"}\r\n\r\n'], 400),
        ([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"], 400),
        ([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], 400),
        ([b"GET *" + HOST + b"\r\n"], 400),
        ([b"GET http://[::1/" + HOST + b"\r\n"], 400),
        ([b"GET http://u:p@h:99999/" + HOST + b"\r\n"], 400),
        ([b"GET /healthz" + HOST + b"Content-Length: 5, 5\r\n\r\n"], 400),
        ([b"GET /healthz" + HOST + b"X: a\x1b[31m\nb\r\n\r\n"], 400),
        ([b"GET /healthz" + HOST + b"X: " + b"a" * 9_000 + b"\r\n\r\n"], 431),
        ([b"GET /" + b"a" * 9_000 + HOST + b"\r\n"], 431),
        ([b"GET /healthz" + HOST + b"X: a\r\n" * 500 + b"\r\n"], 400),
        ([b"POST /x" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"], 400),
        ([b"POST /x" + HOST + b"Transfer-Encoding: chunked\r\n\r\n", b"zz\r\n"], 404),
        ([b"GET /healthz" + HOST + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello"], 200),
        ([b"GET /healthz" + HOST + b"Expect: a\xff\r\n\r\n"], 417),
        ([b"GET /metrics" + HOST + b"Accept: application/openmetrics-text; version=\xff\r\n\r\n"], 200),
        ([b"GET /metrics" + HOST + b"Accept: application/openmetrics-text; version=\r\n\r\n"], 200),
        ([b"GET /%00%0a" + HOST + b"\r\n"], 404),
        ([b"CONNECT admin" + HOST + b"\r\n"], 404),
    ],
)
async def test_what_is_malformed_is_answered_plainly_and_not_logged(
    admin: Any, caplog: pytest.LogCaptureFixture, writes: list[bytes], status: int
) -> None:
    with structlog.testing.capture_logs() as logged:
        answer = await told(admin.port, *writes)
    assert answer.split(b" ")[1] == b"%d" % status
    head, _, body = answer.partition(b"\r\n\r\n")
    if status != 200:
        assert b"\r\nContent-Type: application/problem+json\r\n" in head
        assert b"\r\nX-Content-Type-Options: nosniff" in head
        assert b'"status":%d,"detail":"' % status in body
    assert b"\r\nServer:" not in head
    assert b"aiohttp" not in head
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG] == []
    assert logged == []


async def test_a_fault_of_ours_is_logged_once_however_often_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*about: Any) -> bytes:
        raise RuntimeError("broken")

    monkeypatch.setattr(Telemetry, "exposition", broken)
    one = await server.start(LISTEN, Telemetry(), {}, lambda: False)
    with structlog.testing.capture_logs() as logged:
        answers = [await told(one.port, b"GET /metrics" + HOST + b"\r\n") for _ in range(5)]
    await one.close()
    assert [answer.split(b" ")[1] for answer in answers] == [b"500"] * 5
    assert b"broken" not in b"".join(answers)
    assert [line["event"] for line in logged] == ["admin_request_failed"]


async def test_who_asks_again_and_again_whether_it_is_ready_does_not_fill_the_log(admin: Any) -> None:
    with structlog.testing.capture_logs() as logged:
        answers = [await told(admin.port, b"GET /readyz" + HOST + b"\r\n") for _ in range(20)]
    assert {answer.split(b" ")[1] for answer in answers} == {b"503"}
    assert [line["event"] for line in logged] == ["not_ready"]


def test_what_is_said_seldom_is_said_again() -> None:
    times = iter((100.0, 159.9, 160.0, 161.0))
    seldom = Seldom(60.0, lambda: next(times))
    assert [seldom.now() for _ in range(4)] == [True, False, True, False]
