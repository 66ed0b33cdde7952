"""Several workers on one port, and their supervisor."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
from asyncio.subprocess import Process

import aiohttp
import pytest

from tests.admission.world import until
from tests.serve.conftest import Serving, children


async def workers(serving: Serving, count: int = 2) -> tuple[Process, list[int]]:
    """A supervisor whose workers listen, and their process ids."""
    process = await serving.start("--workers", str(count))
    for _ in range(count):
        await serving.line(process, "listening")
    assert process.pid is not None
    return process, children(process.pid)


async def starting(serving: Serving) -> tuple[Process, list[int]]:
    """A supervisor whose workers have just been made, and can take no signal yet."""
    process = await serving.start("--workers", "2")
    await serving.line(process, "supervising")
    pid = process.pid
    assert pid is not None
    await until(lambda: len(children(pid)) == 2)
    return process, children(pid)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_the_life_of_two_workers(serving: Serving) -> None:
    process, pids = await workers(serving)
    assert len(pids) == 2
    statuses = [(await serving.attach(f"ally-{n % 5 + 1}"))[0] for n in range(20)]
    assert statuses.count(200) == 12
    assert statuses.count(403) == 8
    await admin_port_is_for_both(serving, 20)

    process.send_signal(signal.SIGHUP)
    for _ in range(2):
        await serving.line(process, "reloaded")

    os.kill(pids[0], signal.SIGKILL)
    await serving.line(process, "worker_ended")
    assert (await serving.attach("ally-1"))[0] == 200, "the other goes on"
    assert (await serving.admin("/readyz"))[0] == 200
    await serving.line(process, "listening")
    assert process.pid is not None
    again = children(process.pid)
    assert len(again) == 2
    assert pids[0] not in again
    _, body = await serving.admin("/readyz")
    assert [worker["status"] for worker in json.loads(body)["workers"].values()] == ["ok", "ok"]

    await serving.world.session("s2")
    serving.world.fault("slow", delay_ms=400)
    running = [asyncio.ensure_future(serving.attach(f"ally-{n}", "s2")) for n in (1, 2, 3)]
    await until(lambda: len(serving.world.listed("s2")) == 3)
    process.send_signal(signal.SIGTERM)
    assert [(await task)[0] for task in running] == [200, 200, 200]
    assert await serving.ended(process) == 0
    assert await serving.world.used("s2") == {"ally-1", "ally-2", "ally-3"}
    assert not any(map(alive, again))


async def admin_port_is_for_both(serving: Serving, decided: int) -> None:
    assert await serving.admin("/healthz") == (200, b'{"status":"ok"}')
    status, body = await serving.admin("/readyz")
    ready = json.loads(body)
    assert (status, ready["status"], sorted(ready["workers"])) == (200, "ok", ["0", "1"])
    assert {worker["checks"]["ledger"] for worker in ready["workers"].values()} == {"ok"}

    _, body = await serving.admin("/metrics")
    text = body.decode()
    assert text.count("# TYPE attachgate_decisions_total counter") == 1
    counts = re.findall(r'attachgate_decisions_total{[^}]*worker="\d"} ([\d.]+)', text)
    assert sum(map(float, counts)) == decided
    assert re.findall(r'attachgate_worker_up{worker="(\d)"} 1.0', text) == ["0", "1"]
    assert len(re.findall(r"process_start_time_seconds{[^}]*} \S+", text)) == 2


async def test_a_reload_while_workers_start_is_theirs_when_they_can_take_it(serving: Serving) -> None:
    process, pids = await starting(serving)
    process.send_signal(signal.SIGHUP)
    for _ in range(2):
        await serving.line(process, "reloaded")
    assert process.pid is not None
    assert children(process.pid) == pids, "none of them was ended by it"


async def test_a_stop_while_workers_start_ends_them_well(serving: Serving) -> None:
    process, pids = await starting(serving)
    process.send_signal(signal.SIGTERM)
    assert await serving.ended(process) == 0
    assert not any(map(alive, pids))


async def test_a_package_in_the_working_directory_is_not_taken_for_the_gateway(serving: Serving) -> None:
    package = serving.folder / "gateway"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit(3)")
    process = await serving.start("--workers", "2", folder=serving.folder)
    for _ in range(2):
        await serving.line(process, "listening")


async def test_no_worker_outlives_its_supervisor(serving: Serving) -> None:
    process, pids = await workers(serving)
    process.kill()
    await until(lambda: not any(map(alive, pids)))
    with pytest.raises(aiohttp.ClientConnectorError):
        await serving.attach("ally-1")


async def test_where_none_can_start_the_supervisor_ends(serving: Serving) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", serving.port))
        taken.listen()
        process = await serving.start("--workers", "2")
        await serving.line(process, "worker_cannot_start")
        assert await serving.ended(process) == 1


async def test_an_admin_port_that_is_taken_is_said(serving: Serving) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", serving.admin_port))
        taken.listen()
        process = await serving.start("--workers", "2")
        assert (await serving.line(process, "cannot_listen"))["admin_port"] == serving.admin_port
        assert await serving.ended(process) == 1
