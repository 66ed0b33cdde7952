"""TLS in front of the gateway and behind it, with certificates made for the run."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import ssl
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme

from gateway import commands, settings
from gateway.proxy.fast import FastLane
from gateway.serve import Gateway
from tests.acceptance.conftest import Worlds, redis_url, worlds
from tests.serve.conftest import Serving, children

__all__ = ["redis_url", "worlds"]

_FIELDS = b" HTTP/1.1\r\nHost: g\r\nX-Account-Id: shop-individual\r\nContent-Type: application/json\r\nContent-Length: "
PLAIN = b"POST /live/sessions/s1/products" + _FIELDS + b'23\r\n\r\n{"product_id":"ally-%d"}'
CREATE = b"POST /live/sessions" + _FIELDS + b'50\r\n\r\n{"account_id":"shop-individual","session_id":"s1"}'


def signed(authority: trustme.CA, folder: Path, name: str) -> Path:
    """A certificate for 127.0.0.1 with its key, in one file; `name` tells it from others."""
    leaf = authority.issue_cert("127.0.0.1", common_name=name)
    return written(leaf, folder / "own.pem")


def written(leaf: trustme.LeafCert, file: Path) -> Path:
    fresh = file.with_suffix(".new")
    leaf.private_key_and_cert_chain_pem.write_to_path(str(fresh))
    return fresh.replace(file)


def trusting(authority: trustme.CA, own: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if own is not None:
        own.configure_cert(context)
    return context


def name_of(writer: asyncio.StreamWriter) -> str:
    """The common name that the gateway's certificate shows on this connection."""
    subject: Any = writer.get_extra_info("peercert")["subject"]
    return str(dict(pair for group in subject for pair in group)["commonName"])


class Client:
    """One connection by TLS."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int, context: ssl.SSLContext) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=context))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        found = re.search(rb"(?i)\r\nContent-Length: (\d+)\r\n", head)
        return int(head[9:12]), await self.reader.readexactly(int(found[1])) if found else b""

    async def attach(self, number: int) -> int:
        return (await self.ask(PLAIN % number))[0]

    def close(self) -> None:
        self.writer.transport.abort()


async def refused(port: int, context: ssl.SSLContext) -> bool:
    """With TLS 1.3 a client learns only behind its own handshake that it was not let in."""
    try:
        client = await Client.open(port, context)
        try:
            await client.attach(1)
        finally:
            client.close()
    except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
        return True
    return False


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def configure(serving: Serving, tables: str, **listen: Any) -> None:
    serving.configure(**listen)
    serving.file.write_text(serving.file.read_text() + tables)


TLS = '[listen.tls]\ncertificate = "own.pem"\n'
MUTUAL = TLS + 'client_ca = "ca.pem"\n'


async def test_the_fast_lane_serves_over_tls(
    worlds: Worlds, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain: list[bool] = []
    recognise = FastLane.recognise

    def watched(self: FastLane, *about: Any) -> Any:
        found = recognise(self, *about)
        plain.append(found is not None and found.scheme == "https")
        return found

    monkeypatch.setattr(FastLane, "recognise", watched)
    signed(authority, tmp_path, "one")
    world = await worlds(more=TLS)
    client = await Client.open(world.gateways[0].port, trusting(authority))
    assert (await client.ask(CREATE))[0] == 201
    assert plain == [False]
    assert [await client.attach(n) for n in (1, 2, 3, 4)] == [200, 200, 200, 403]
    assert plain == [False, True, True, True, True]
    assert world.gateways[0].url.startswith("https://")
    client.close()


async def started(serving: Serving, workers: int) -> Process:
    process = await serving.start(*(("--workers", str(workers)) if workers > 1 else ()))
    for _ in range(workers):
        assert (await serving.line(process, "listening"))["url"].startswith("https://")
    return process


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_new_certificate_is_shown_to_whoever_comes_then(
    serving: Serving, authority: trustme.CA, workers: int
) -> None:
    signed(authority, serving.folder, "old")
    configure(serving, TLS)
    process = await started(serving, workers)
    trust = trusting(authority)
    early = await Client.open(serving.port, trust)
    assert (await early.attach(1), name_of(early.writer)) == (200, "old")

    async def reloaded(event: str) -> None:
        process.send_signal(signal.SIGHUP)
        for _ in range(workers):
            line = await serving.line(process, event)
            assert event == "reloaded" or "listen.tls.certificate" in line["mistakes"][0]

    async def shown() -> set[str]:
        names = set()
        for _ in range(8):
            late = await Client.open(serving.port, trust)
            names.add(name_of(late.writer))
            assert await late.attach(1) == 200
            late.close()
        return names

    signed(authority, serving.folder, "new")
    await reloaded("reloaded")
    assert await shown() == {"new"}
    assert await early.attach(2) == 200

    (serving.folder / "own.pem").write_text("-----BEGIN CERTIFICATE-----\nbroken\n")
    await reloaded("reload_refused")
    assert await shown() == {"new"}
    assert await early.attach(3) == 200
    early.close()
    if workers > 1:
        assert process.pid is not None
        assert len(children(process.pid)) == workers


async def test_with_client_ca_only_its_clients_get_in(serving: Serving, authority: trustme.CA) -> None:
    signed(authority, serving.folder, "gateway")
    clients, others = trustme.CA(), trustme.CA()
    clients.cert_pem.write_to_path(str(serving.folder / "ca.pem"))
    configure(serving, MUTUAL)
    process = await started(serving, 1)
    known, stranger = (trusting(authority, ca.issue_cert("client")) for ca in (clients, others))
    assert await refused(serving.port, trusting(authority))
    assert await refused(serving.port, stranger)
    client = await Client.open(serving.port, known)
    assert await client.attach(1) == 200
    client.close()

    others.cert_pem.write_to_path(str(serving.folder / "ca.pem"))
    process.send_signal(signal.SIGHUP)
    await serving.line(process, "reloaded")
    assert await refused(serving.port, known)
    assert await refused(serving.port, trusting(authority))
    assert not await refused(serving.port, stranger)

    configure(serving, TLS)
    process.send_signal(signal.SIGHUP)
    assert (await serving.line(process, "reload_needs_restart"))["keys"] == ["listen.tls"]
    assert await refused(serving.port, trusting(authority))
    assert not await refused(serving.port, stranger)


async def test_old_versions_and_plain_http_are_refused(serving: Serving, authority: trustme.CA) -> None:
    signed(authority, serving.folder, "gateway")
    configure(serving, TLS)
    await started(serving, 1)
    old = trusting(authority)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="deprecated"):
        old.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="deprecated"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    assert await refused(serving.port, old)
    both = trusting(authority)
    both.set_alpn_protocols(["h2", "http/1.1"])
    client = await Client.open(serving.port, both)
    assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
    client.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", serving.port)
    writer.write(PLAIN % 1)
    with suppress(ConnectionError):
        assert b"HTTP" not in await reader.read()
    writer.close()
    assert serving.world.listed() == set()


async def test_a_handshake_that_does_not_end_loses_its_place(serving: Serving, authority: trustme.CA) -> None:
    signed(authority, serving.folder, "gateway")
    configure(serving, TLS, header_timeout_seconds=0.3)
    await started(serving, 1)
    async with asyncio.timeout(5):
        for begin in (b"", b"\x16\x03\x01"):
            reader, writer = await asyncio.open_connection("127.0.0.1", serving.port)
            writer.write(begin)
            with suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()


async def test_the_admin_port_opens_for_client_certificates(serving: Serving, authority: trustme.CA) -> None:
    signed(authority, serving.folder, "gateway")
    authority.cert_pem.write_to_path(str(serving.folder / "ca.pem"))
    mutual = MUTUAL.replace("listen.tls", "listen.admin_tls")
    configure(serving, mutual, admin_host="0.0.0.0")
    process = await serving.start()
    await serving.line(process, "listening")
    metrics = b"GET /metrics HTTP/1.1\r\nHost: g\r\n\r\n"
    client = await Client.open(serving.admin_port, trusting(authority, authority.issue_cert("prometheus")))
    status, body = await client.ask(metrics)
    assert (status, b"attachgate_" in body) == (200, True)
    assert await refused(serving.admin_port, trusting(authority))

    # Off again with a token instead takes a restart; until then both are asked for.
    configure(serving, mutual.replace('client_ca = "ca.pem"\n', ""), admin_host="0.0.0.0", admin_token="x" * 16)
    process.send_signal(signal.SIGHUP)
    assert (await serving.line(process, "reload_needs_restart"))["keys"] == ["listen.admin_tls"]
    assert (await client.ask(metrics))[0] == 401
    assert await refused(serving.admin_port, trusting(authority))
    client.close()

    # A token that another address would make needless stays, as the address does.
    configure(serving, mutual, admin_host="127.0.0.1")
    process.send_signal(signal.SIGHUP)
    await serving.line(process, "reloaded")
    client = await Client.open(serving.admin_port, trusting(authority, authority.issue_cert("prometheus")))
    assert (await client.ask(metrics))[0] == 401
    client.close()


# Towards the upstream


@asynccontextmanager
async def behind_tls(port: int, context: ssl.SSLContext, posted: list[int] | None = None) -> AsyncIterator[int]:
    """The port of a TLS server that hands all on to a plain one. `posted`: how many POSTs each connection brought."""
    posted = [] if posted is None else posted

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        place = len(posted)
        posted.append(0)
        inner_reader, inner = await asyncio.open_connection("127.0.0.1", port)

        async def copy(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while data := await source.read(65536):
                    posted[place] += data.startswith(b"POST ")
                    to.write(data)
                    await to.drain()
            to.close()

        await asyncio.gather(copy(reader, inner), copy(inner_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_connections_to_an_upstream_are_kept(serving: Serving, authority: trustme.CA, loop: str) -> None:
    """Here, on asyncio's own loop, and in a process, on uvloop's."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.cert_pem.write_to_path(str(serving.folder / "ca.pem"))
    posted: list[int] = []
    plain = serving.world.platform.url
    async with behind_tls(int(plain.rpartition(":")[2]), server, posted) as port:
        text = serving.file.read_text().replace(plain, f"https://127.0.0.1:{port}")
        serving.file.write_text(text + '[upstream.tls]\nca = "ca.pem"\n')
        gateway = None
        if loop == "uvloop":
            await serving.line(await serving.start(), "listening")
        else:
            gateway = await Gateway.start(*settings.load_all(serving.file, {}))
        assert [(await serving.attach(f"ally-{n}"))[0] for n in (1, 2, 3, 4)] == [200, 200, 200, 403]
        assert sorted(posted)[-1] == 3
        if gateway is not None:
            await gateway.close()


@pytest.mark.parametrize(
    ("tables", "works"),
    [
        ('ca = "ca.pem"\ncertificate = "own.pem"\nkey = "own.key"\n', True),
        ('ca = "ca.pem"\n', False),
        ('certificate = "own.pem"\nkey = "own.key"\n', False),
        ('ca = "other.pem"\ncertificate = "own.pem"\nkey = "own.key"\n', False),
    ],
    ids=["right", "no certificate of its own", "the system's trust", "another's trust"],
)
async def test_an_upstream_that_asks_for_a_certificate(
    serving: Serving, authority: trustme.CA, tables: str, works: bool
) -> None:
    """By both ways, the matched routes' and the streams', and for the directory."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    server.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(server)
    authority.cert_pem.write_to_path(str(serving.folder / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(serving.folder / "other.pem"))
    own = authority.issue_cert("gateway")
    own.cert_chain_pems[0].write_to_path(str(serving.folder / "own.pem"))
    own.private_key_pem.write_to_path(str(serving.folder / "own.key"))
    plain = serving.world.platform.url
    async with behind_tls(int(plain.rpartition(":")[2]), server) as port:
        text = serving.file.read_text().replace(plain, f"https://127.0.0.1:{port}")
        serving.file.write_text(text + "[upstream.tls]\n" + tables)
        process = await serving.start()
        await serving.line(process, "listening")
        status, body = await serving.attach("ally-1")
        url = f"http://127.0.0.1:{serving.port}/products/ally-1"
        async with serving.world.http.get(url, headers={"Connection": "close"}) as answer:
            passed = answer.status, await answer.read()
        ready = (await serving.admin("/readyz"))[0]
        process.send_signal(signal.SIGTERM)
        assert await serving.ended(process) == 0
    if works:
        assert (status, passed[0], ready) == (200, 200, 200)
        assert serving.world.listed() == {"ally-1"}
    else:
        assert (status, passed[0]) == (503, 502)
        assert json.loads(body)["reason"] == "directory_unavailable"
        assert json.loads(passed[1])["reason"] == "upstream_unreachable"
        assert serving.world.listed() == set()


@pytest.mark.parametrize(
    ("tables", "key", "fragment"),
    [
        ('[listen.tls]\ncertificate = "none.pem"\n', "listen.tls.certificate", "can't be read"),
        ('[listen.tls]\ncertificate = "ca.pem"\n', "listen.tls.certificate", "expected to hold the certificate"),
        ('[listen.tls]\ncertificate = "own.pem"\nkey = "other.pem"\n', "listen.tls.key", "not that of the certificate"),
        ('[listen.tls]\ncertificate = "own.pem"\nkey = "locked.key"\n', "listen.tls.key", "is encrypted"),
        ('[listen.tls]\ncertificate = "own.pem"\nkey = "none.key"\n', "listen.tls.key", "can't be read"),
        ('[listen.tls]\ncertificate = "own.pem"\nclient_ca = "junk"\n', "listen.tls.client_ca", "no certificates"),
        ('[listen.tls]\nclient_ca = "ca.pem"\n', "listen.tls.certificate", "missing"),
        ('[listen.admin_tls]\ncertificate = "junk"\n', "listen.admin_tls.certificate", "expected to hold"),
        ('[upstream]\nurl = "https://u"\n[upstream.tls]\nca = "junk"\n', "upstream.tls.ca", "no certificates"),
        ('[upstream]\nurl = "https://u"\n[upstream.tls]\nkey = "own.pem"\n', "upstream.tls.certificate", "missing"),
        ('[upstream]\nurl = "http://u"\n[upstream.tls]\nca = "ca.pem"\n', "upstream.tls", "no https:// address"),
    ],
)
def test_check_names_a_file_that_can_not_be_used(
    tmp_path: Path, authority: trustme.CA, capfd: pytest.CaptureFixture[str], tables: str, key: str, fragment: str
) -> None:
    signed(authority, tmp_path, "gateway")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("other").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "other.pem"))
    (tmp_path / "junk").write_text("junk")
    (tmp_path / "locked.key").write_bytes(locked_key())
    file = tmp_path / "gateway.toml"
    file.write_text(tables if "[upstream]" in tables else '[upstream]\nurl = "http://u"\n' + tables)
    assert commands.check(file, {}) == 2
    said = capfd.readouterr().err
    assert f"{key}: " in said
    assert fragment in said


def locked_key() -> bytes:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


def test_files_may_be_named_by_the_environment(tmp_path: Path, authority: trustme.CA) -> None:
    signed(authority, tmp_path, "gateway")
    file = tmp_path / "gateway.toml"
    file.write_text('[upstream]\nurl = "http://u"\n')
    assert commands.check(file, {"ATTACHGATE_LISTEN__TLS__CERTIFICATE": "own.pem"}) == 0
    assert commands.check(file, {"ATTACHGATE_LISTEN__TLS__CERTIFICATE": "none.pem"}) == 2
    assert commands.check(file, {"ATTACHGATE_LISTEN__TLS__CERT": "own.pem"}) == 2
