"""One gateway as a process: how it starts, reloads and ends."""

from __future__ import annotations

import asyncio
import json
import signal
import socket

from tests.admission.world import until
from tests.serve.conftest import Serving


async def test_sigterm_answers_what_runs_and_settles_it(serving: Serving) -> None:
    process = await serving.start()
    await serving.line(process, "listening")
    assert (await serving.attach("ally-1"))[0] == 200
    serving.world.fault("slow", delay_ms=300)
    running = asyncio.ensure_future(serving.attach("ally-2"))
    await until(lambda: "ally-2" in serving.world.listed())
    process.send_signal(signal.SIGTERM)
    await serving.line(process, "draining")
    assert (await running)[0] == 200
    assert await serving.ended(process) == 0
    assert await serving.world.used() == {"ally-1", "ally-2"}
    assert await serving.world.pending() == []


async def test_sigterm_leaves_nothing_held_that_does_not_end(serving: Serving) -> None:
    serving.configure(drain_seconds=0.2)
    process = await serving.start()
    await serving.line(process, "listening")
    serving.world.fault("timeout")
    running = asyncio.ensure_future(serving.attach("ally-1"))

    async def held() -> bool:
        return len(await serving.world.pending()) == 1

    await until(held)
    process.send_signal(signal.SIGTERM)
    assert await serving.ended(process) == 0
    snapshot = await serving.world.snapshot()
    assert snapshot is not None
    assert [record.in_doubt for records in snapshot.records.values() for record in records] == [True]
    await asyncio.gather(running, return_exceptions=True)


async def test_sighup_takes_over_what_is_right_and_refuses_what_is_not(serving: Serving) -> None:
    process = await serving.start()
    await serving.line(process, "listening")
    serving.configure(deny_unmatched=True, max_connections=5)
    process.send_signal(signal.SIGHUP)
    assert (await serving.line(process, "reload_needs_restart"))["keys"] == ["listen.max_connections"]
    await serving.line(process, "reloaded")
    url = f"http://127.0.0.1:{serving.port}/live/sessions/s1"
    async with serving.world.http.get(url) as answer:
        assert answer.status == 404
    serving.file.write_text("[listen]\nport = 'x'\n")
    process.send_signal(signal.SIGHUP)
    refused = await serving.line(process, "reload_refused")
    assert len(refused["mistakes"]) == 2
    assert (await serving.attach("ally-1"))[0] == 200
    process.send_signal(signal.SIGTERM)
    assert await serving.ended(process) == 0


async def test_a_port_that_is_taken_is_said(serving: Serving) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", serving.port))
        taken.listen()
        process = await serving.start()
        assert (await serving.line(process, "cannot_listen"))["port"] == serving.port
        assert await serving.ended(process) == 1


async def test_a_wrong_file_is_said_before_anything_starts(serving: Serving) -> None:
    serving.file.write_text("[listen]\nport = 1\n")
    for arguments in ((), ("--workers", "2")):
        process = await serving.start(*arguments)
        assert process.stderr is not None
        said = await process.stderr.read()
        assert b"upstream" in said
        assert await serving.ended(process) == 2


async def test_a_decision_that_is_logged_is_the_one_that_was_answered(serving: Serving) -> None:
    process = await serving.start()
    await serving.line(process, "listening")
    status, body = await serving.attach("nobody-sells-this")
    assert status == 404
    assert (await serving.line(process, "failed"))["decision_id"] == json.loads(body)["decision_id"]
    process.send_signal(signal.SIGTERM)
    assert await serving.ended(process) == 0
