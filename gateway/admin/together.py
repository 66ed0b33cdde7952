"""The admin port of several workers: one for all of them, held by their supervisor.

Each worker serves its own admin routes on a unix socket; here they are asked and put together. `/healthz` answers as
long as the supervisor runs. `/readyz` says ready where at least one worker is: the port is shared by those that listen,
and one that is being started again must not take the others out of traffic. `/metrics` has each worker's metrics with a
label `worker`: added up here, a counter would fall whenever a worker is started again.

Rejected: a port for each worker, which a scraper can't find; and prometheus-client's files for several processes, which
know neither gauges that are read when asked nor our own collectors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import aiohttp
import msgspec
import structlog
from aiohttp import web
from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from gateway import config
from gateway.admin.guard import AdminPort, answer, application, document, metrics_form

log = structlog.get_logger(__name__)

ASK_SECONDS = 3.0
"""More than one check of a worker may take."""
_SHUTDOWN_SECONDS = 1.0
_OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}
"""The form that says which samples belong to one metric; the other has when a counter began as a metric of its own."""


class Together:
    """The admin server of a supervisor. `sockets`: where each worker answers. `port` is the one that was bound."""

    def __init__(self, sockets: Mapping[str, Path], draining: Callable[[], bool]) -> None:
        self._draining = draining
        self._workers = {
            name: aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(socket)), timeout=aiohttp.ClientTimeout(total=ASK_SECONDS)
            )
            for name, socket in sockets.items()
        }
        self._admin = AdminPort()
        self.reload = self._admin.reload
        self.port = 0

    async def start(self, listen: config.Listen) -> None:
        """Raises OSError where the address can't be had."""
        app = application(self._admin.guard, self._healthz, self._readyz, self._metrics)
        self._runner = await self._admin.open(app, listen, _SHUTDOWN_SECONDS)
        self.port = int(self._runner.addresses[0][1])

    async def close(self) -> None:
        if hasattr(self, "_runner"):
            await self._runner.cleanup()
        await asyncio.gather(*(session.close() for session in self._workers.values()))

    async def _ask(self, path: str) -> dict[str, tuple[int, bytes]]:
        """What each worker answers, status and body; 0 where it does not."""

        async def one(session: aiohttp.ClientSession) -> tuple[int, bytes]:
            try:
                async with session.get("http://worker" + path, headers=_OPENMETRICS) as answer:
                    return answer.status, await answer.read()
            except (aiohttp.ClientError, OSError):
                return 0, b""

        answers = await asyncio.gather(*map(one, self._workers.values()))
        return dict(zip(self._workers, answers, strict=True))

    async def _healthz(self, request: web.Request) -> web.Response:
        return document(200, {"status": "ok"})

    async def _readyz(self, request: web.Request) -> web.Response:
        answers = await self._ask("/readyz")
        ready = not self._draining() and any(status == 200 for status, _ in answers.values())
        status = "draining" if self._draining() else "ok" if ready else "unavailable"
        workers = {name: _document(body) for name, (_, body) in answers.items()}
        whole = {"status": status} | ({"workers": workers} if self._admin.guard.knows(request) else {})
        return document(200 if ready else 503, whole)

    async def _metrics(self, request: web.Request) -> web.Response:
        answers = await self._ask("/metrics")
        encode, content_type = choose_encoder(metrics_form(request))
        together = _Merged({name: body.decode() for name, (status, body) in answers.items() if status == 200}, answers)
        return answer(200, encode(together), content_type)


class _Merged(Collector):
    """Each worker's metrics, told apart by `worker`; and which workers there are."""

    def __init__(self, texts: Mapping[str, str], workers: Iterable[str]) -> None:
        self._texts = texts
        self._workers = workers

    def collect(self) -> list[Metric]:
        up = Metric("attachgate_worker_up", "Whether the worker answers", "gauge")
        families = {up.name: up}
        for worker in self._workers:
            up.add_sample(up.name, {"worker": worker}, float(worker in self._texts))
        for worker, text in self._texts.items():
            for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    merged.samples.append(sample._replace(labels=sample.labels | {"worker": worker}))
        return list(families.values())


def _document(body: bytes) -> object:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        return {"status": "no answer"}
