"""The admin port of several workers: what each says, told apart, whichever of them is there."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from gateway.admin import server
from gateway.admin.together import Together
from gateway.config import Listen
from gateway.errors import LedgerUnavailable
from gateway.telemetry import Telemetry

LISTEN = Listen(admin_port=0)


class Workers:
    """Three are expected, `0` and `1` are there; `away` is the name of one whose Redis is."""

    def __init__(self, together: Together, telemetry: dict[str, Telemetry]) -> None:
        self.together = together
        self.telemetry = telemetry
        self.away: set[str] = set()
        self.draining = False

    def check(self, name: str) -> Any:
        async def ping() -> None:
            if name in self.away:
                raise LedgerUnavailable("away")

        return {"ledger": ping}

    async def get(self, path: str, accept: str = "*/*") -> tuple[int, str, str]:
        url = f"http://127.0.0.1:{self.together.port}{path}"
        async with aiohttp.ClientSession() as http, http.get(url, headers={"Accept": accept}) as answer:
            return answer.status, answer.headers["Content-Type"], await answer.text()


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[Workers]:
    sockets = {name: tmp_path / f"{name}.sock" for name in ("0", "1", "2")}
    telemetry = {name: Telemetry() for name in ("0", "1")}
    workers = Workers(Together(sockets, lambda: workers.draining), telemetry)
    running = [
        await server.start(LISTEN, telemetry[name], workers.check(name), lambda: False, socket=sockets[name])
        for name in telemetry
    ]
    await workers.together.start(LISTEN)
    yield workers
    await workers.together.close()
    for one in running:
        await one.close()


@pytest.mark.parametrize(
    ("accept", "parse"), [("*/*", plain), ("application/openmetrics-text; version=1.0.0", openmetrics)]
)
async def test_metrics_of_each_worker_are_told_apart(workers: Workers, accept: str, parse: Any) -> None:
    workers.telemetry["0"].error("x")
    for _ in range(2):
        workers.telemetry["1"].error("x")
    status, content_type, text = await workers.get("/metrics", accept)
    assert (status, content_type.partition(";")[0]) == (
        200,
        "text/plain" if parse is plain else accept.partition(";")[0],
    )
    families = {family.name: family for family in parse(text)}
    counts = {
        sample.labels["worker"]: sample.value
        for sample in families["attachgate_errors"].samples
        if sample.name == "attachgate_errors_total"
    }
    assert counts == {"0": 1.0, "1": 2.0}
    up = {sample.labels["worker"]: sample.value for sample in families["attachgate_worker_up"].samples}
    assert up == {"0": 1.0, "1": 1.0, "2": 0.0}
    assert families["attachgate_request_seconds"].type == "histogram"


async def test_ready_is_where_one_is(workers: Workers) -> None:
    for away, ready in (({"0"}, True), ({"0", "1"}, False), (set(), True)):
        workers.away = away
        status, _, text = await workers.get("/readyz")
        said = json.loads(text)
        assert (status, said["status"]) == ((200, "ok") if ready else (503, "unavailable"))
        assert said["workers"]["2"] == {"status": "no answer"}
        assert said["workers"]["0"]["checks"]["ledger"] == ("away" if "0" in away else "ok")


async def test_a_supervisor_that_stops_is_alive_and_not_ready(workers: Workers) -> None:
    workers.draining = True
    assert (await workers.get("/readyz"))[0] == 503
    assert (await workers.get("/healthz"))[0] == 200
