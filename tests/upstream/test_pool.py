"""One request, one whole answer, and certainty about what was sent: the pool against raw upstreams."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gateway.config import Upstream
from gateway.errors import GatewayError, Overloaded, UpstreamTimeout, UpstreamUnreachable
from gateway.upstream.answer import MAX_OVERHEAD_BYTES, Heads
from gateway.upstream.pool import NotSent, Pool, UpstreamAnswer, _Connection

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def ask(pool: Pool, path: str = "/x", method: str = "POST", body: bytes | None = b"{}") -> UpstreamAnswer:
    async with asyncio.timeout(5):
        return await pool.request(method, path, [(b"X-One", b"1")], body)


async def failure(pool: Pool, **how: Any) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        await ask(pool, **how)
    return caught.value


def may_have_been_seen(error: GatewayError) -> bool:
    return not isinstance(error, (NotSent, Overloaded))


# What is sent


async def test_a_request_arrives_as_it_was_given(raw: Any) -> None:
    await raw.answering(OK)
    await ask(raw.pool(url=raw.url + "/api/"), "/a%20b?c=d")
    (asked,) = raw.asked
    assert asked.line == b"POST /api/a%20b?c=d HTTP/1.1"
    assert asked.values(b"host") == [b"127.0.0.1:%d" % raw.port]
    assert asked.values(b"x-one") == [b"1"]
    assert (asked.values(b"content-length"), asked.body) == ([b"2"], b"{}")


@pytest.mark.parametrize(("method", "lengths"), [("POST", [b"0"]), ("PUT", [b"0"]), ("GET", []), ("DELETE", [])])
async def test_a_method_that_means_a_body_says_that_there_is_none(raw: Any, method: str, lengths: list[bytes]) -> None:
    await raw.answering(OK)
    await ask(raw.pool(), method=method, body=None)
    assert raw.asked[0].values(b"content-length") == lengths


async def test_a_request_that_can_not_be_written_takes_no_place(raw: Any) -> None:
    await raw.answering(OK)
    pool = raw.pool(max_connections=1)
    with pytest.raises(UnicodeEncodeError):
        await ask(pool, "/ü")
    assert (pool.connections, (await ask(pool)).body) == (0, b"ok")


async def test_a_request_that_waited_too_long_is_not_sent(raw: Any) -> None:
    """A gateway that was stopped between reserve and forward: its slot may be somebody else's when it wakes."""
    await raw.answering(OK, OK)
    pool = raw.pool()
    with pytest.raises(Overloaded):
        await pool.request("POST", "/x", [], b"", send_by=time.monotonic() - 0.001)
    assert raw.asked == []
    assert (await pool.request("POST", "/x", [], b"", send_by=time.monotonic() + 5)).status == 200
    assert pool.connections == len(pool._idle) == 1


# How answers are read

ANSWERS = [
    (OK, (200, b"OK", b"ok")),
    (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", (404, b"Not Found", b"")),
    (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"No Content", b"")),
    (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", (200, b"", b"")),
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nX-Late: 1\r\n\r\n",
        (200, b"OK", b"abcde"),
    ),
    (b"HTTP/1.1 100 Continue\r\nX-Early: 1\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + OK, (200, b"OK", b"ok")),
]
CLOSED = [
    (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", (200, b"OK", b"until the end")),
    (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", (200, b"OK", b"until the end")),
    (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", (200, b"OK", b"ok")),
]


@pytest.mark.parametrize(("answer", "meaning"), ANSWERS + CLOSED)
@pytest.mark.parametrize("apart", [False, True], ids=["in one piece", "byte by byte"])
async def test_an_answer_reads_the_same_however_it_is_cut(raw: Any, answer: bytes, meaning: Any, apart: bool) -> None:
    async def serve(peer: Any) -> None:
        peer.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while await peer.ask() is not None:
            for start in range(0, len(answer), 1 if apart else len(answer)):
                await peer.send(answer[start : start + 1] if apart else answer)
                await asyncio.sleep(0)
            if (answer, meaning) in CLOSED:
                return

    await raw.start(serve)
    pool = raw.pool()
    for _ in range(2):
        found = await ask(pool)
        assert (found.status, found.phrase, found.body) == meaning
        assert not {name for name, _ in found.headers} & {b"X-Late", b"X-Early"}
    assert raw.connections == (2 if (answer, meaning) in CLOSED else 1)
    assert pool.connections == len(pool._idle)


class Transport(asyncio.Transport):
    """Takes everything, and leads nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Any] = []

    def write(self, data: Any) -> None:
        self.written.append(data)

    def abort(self) -> None: ...
    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0


def to_nowhere() -> _Connection:
    connection = _Connection(Upstream("http://127.0.0.1:9"), Heads())
    connection.connection_made(Transport())
    return connection


def test_pieces_of_a_reason_phrase_belong_together() -> None:
    """What the network hardly ever shows: the parser hands a phrase over in pieces."""

    async def read() -> UpstreamAnswer:
        connection = to_nowhere()
        waiter = connection.send(b"")
        for byte in OK:
            connection.data_received(bytes([byte]))
        return await waiter

    assert asyncio.run(read()).phrase == b"OK"


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + OK,
    ],
)
async def test_what_is_not_one_clear_answer_is_an_error(
    raw: Any, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    await raw.answering(answer)
    pool = raw.pool(response_timeout_seconds=5.0)
    error = await failure(pool)
    assert isinstance(error, UpstreamUnreachable)
    assert may_have_been_seen(error)
    assert pool.connections == 0
    assert not caplog.records, "nothing went to the loop's exception handler"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Len",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Le",
    ],
)
async def test_an_answer_that_breaks_off_is_none(raw: Any, answer: bytes) -> None:
    await raw.answering(answer)
    pool = raw.pool()
    error = await failure(pool)
    assert isinstance(error, UpstreamUnreachable)
    assert may_have_been_seen(error)
    assert pool.connections == 0


async def test_a_body_until_the_end_that_is_reset_is_none(raw: Any) -> None:
    async def serve(peer: Any) -> None:
        await peer.ask()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        sock = peer.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await read.wait()
        peer.writer.transport.abort()

    read = asyncio.Event()
    await raw.start(serve)
    asking = asyncio.ensure_future(failure(raw.pool()))
    await asyncio.sleep(0.02)
    read.set()
    assert may_have_been_seen(await asking)


async def test_a_phrase_with_control_characters_goes_no_further(raw: Any) -> None:
    await raw.answering(b"HTTP/1.1 200 a\x01b\r\nContent-Length: 0\r\n\r\n")
    answer = await ask(raw.pool())
    assert (answer.status, answer.phrase) == (200, b"")


# What must never be taken for the next answer


@pytest.mark.parametrize("extra", [b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nfoisted", b"H", b"x", b"\r\nHTTP"])
@pytest.mark.parametrize("together", [True, False], ids=["with the answer", "a moment later"])
async def test_what_comes_behind_an_answer_is_not_the_next_one(raw: Any, extra: bytes, together: bool) -> None:
    sent = asyncio.Event()

    async def serve(peer: Any) -> None:
        while await peer.ask() is not None:
            if together:
                await peer.send(OK + extra)
            else:
                await peer.send(OK)
                await asyncio.sleep(0)
                await peer.send(extra)
            sent.set()

    await raw.start(serve)
    pool = raw.pool(max_connections=1)
    assert (await ask(pool)).body == b"ok"
    await sent.wait()
    await asyncio.sleep(0.01)
    assert (await ask(pool)).body == b"ok"
    assert raw.connections == 2


@pytest.mark.parametrize("extra", [OK, b"H", b"x"])
async def test_nor_behind_one_that_is_known_by_heart(raw: Any, extra: bytes) -> None:
    await raw.answering(OK, OK, OK, OK + extra)
    pool = raw.pool()
    for _ in range(4):
        assert (await ask(pool)).body == b"ok"
    assert (raw.connections, pool.connections) == (1, 0)


async def test_what_comes_before_the_request_is_not_its_answer(raw: Any) -> None:
    async def serve(peer: Any) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nfoisted")
        assert await peer.ask() is None
        await peer.ended()

    await raw.start(serve)
    pool = raw.pool()
    share = pool._places.share("")
    connection = await pool._acquire(share)
    await raw.until(lambda: not connection.usable)
    with pytest.raises(NotSent):
        connection.send(b"POST / HTTP/1.1\r\n\r\n")
    pool._release(connection, share)
    assert pool.connections == 0


async def test_an_answer_to_half_a_request_ends_the_connection(raw: Any) -> None:
    """Its other half would be taken for the next request."""

    async def serve(peer: Any) -> None:
        await peer.reader.readexactly(4)
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await done.wait()

    done = asyncio.Event()
    await raw.start(serve)
    pool = raw.pool()
    assert (await ask(pool, body=b"x" * 30_000_000)).status == 413
    assert pool.connections == 0
    done.set()


@pytest.mark.parametrize("ends", [False, True], ids=["says something", "closes"])
async def test_what_happens_before_a_request_is_out_has_nothing_to_do_with_it(ends: bool) -> None:
    """It leaves at the end of the loop's turn."""
    connection = to_nowhere()
    answered = connection.send(b"POST / HTTP/1.1\r\n\r\n")
    if ends:
        connection.eof_received()
        connection.connection_lost(None)
    else:
        connection.data_received(OK)
    with pytest.raises(NotSent):
        await answered
    await asyncio.sleep(0)
    transport = connection._transport
    assert isinstance(transport, Transport)
    assert (transport.written, connection.usable, connection.reusable) == ([], False, False)


# Connections


async def test_a_connection_is_used_again(raw: Any) -> None:
    await raw.answering(OK, OK, OK)
    pool = raw.pool()
    for _ in range(3):
        await ask(pool)
    assert (raw.connections, pool.connections) == (1, 1)


async def test_one_that_the_upstream_closed_meanwhile_is_not(raw: Any) -> None:
    await raw.answering(OK)
    pool = raw.pool()
    for _ in range(3):
        await ask(pool)
        (kept,) = pool._idle
        await raw.until(lambda kept=kept: not kept.usable)
    assert raw.connections == 3


async def test_one_that_is_closed_as_the_request_leaves_is_in_doubt_and_not_sent_again(raw: Any) -> None:
    seen = []

    async def serve(peer: Any) -> None:
        await peer.ask()
        await peer.send(OK)
        seen.append(await peer.ask())

    await raw.start(serve)
    pool = raw.pool()
    await ask(pool)
    assert may_have_been_seen(await failure(pool))
    assert (len(seen), raw.connections, pool.connections) == (1, 1, 0)


async def test_one_that_was_idle_too_long_is_not(raw: Any) -> None:
    await raw.answering(OK, OK)
    now = 100.0
    pool = Pool(Upstream(raw.url, keepalive_seconds=5.0), lambda: now)
    raw.pools.append(pool)
    await ask(pool)
    now = 104.9
    await pool.probe()
    now = 105.1
    await ask(pool)
    assert raw.connections == 3, "one for the probe, which must not make a kept one seem fresh"


async def test_what_a_burst_leaves_is_let_go_by_itself(raw: Any) -> None:
    """Beside one that is used over and over, and where nothing is asked any more."""
    all_asked = asyncio.Event()

    async def serve(peer: Any) -> None:
        while await peer.ask() is not None:
            if raw.connections == 5:
                all_asked.set()
            await all_asked.wait()
            await peer.send(OK)

    await raw.start(serve)
    pool = raw.pool(keepalive_seconds=0.2)
    await asyncio.gather(*(ask(pool) for _ in range(5)))
    assert pool.connections == 5
    while pool.connections > 1:
        await ask(pool)
        await asyncio.sleep(0.01)
    assert raw.connections == 5
    await raw.until(lambda: pool.connections == 0)
    await raw.quiet(pool)
    assert pool._tidies is None


async def test_a_probe_asks_for_a_connection_and_keeps_none(raw: Any) -> None:
    await raw.answering(OK, OK)
    pool = raw.pool()
    await ask(pool)
    await pool.probe()
    assert (raw.connections, pool.connections) == (2, 1)
    for server in raw._servers:
        server.close()
    with pytest.raises(NotSent):
        await pool.probe()


async def test_tls(raw: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = certificate(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)

    async def serve(peer: Any) -> None:
        while await peer.ask() is not None:
            await peer.send(OK)

    await raw.start(serve, server)
    error = await failure(raw.pool())
    assert isinstance(error, NotSent), "nobody vouches for the certificate"
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    pool = raw.pool()
    assert [(await ask(pool)).body for _ in range(2)] == [b"ok", b"ok"]
    assert pool.connections == 1


async def test_an_ipv6_address(raw: Any) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")

    async def serve(peer: Any) -> None:
        raw.asked.append(await peer.ask())
        await peer.send(OK)

    try:
        await raw.start(serve, host="::1")
    except OSError:
        pytest.skip("no IPv6 loopback here")
    await ask(raw.pool())
    assert raw.asked[0].values(b"host") == [b"[::1]:%d" % raw.port]


@pytest.mark.parametrize("problem", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long")])
async def test_a_name_that_is_none_was_not_asked(raw: Any, monkeypatch: pytest.MonkeyPatch, problem: Exception) -> None:
    async def refuse(*arguments: Any, **more: Any) -> Any:
        raise problem

    pool = raw.pool(url="http://attach.internal")
    loop = asyncio.get_running_loop()
    if isinstance(loop, uvloop.Loop):
        monkeypatch.setattr(pool, "_host", "x" * 64 + ".internal")
    else:
        monkeypatch.setattr(loop, "getaddrinfo", refuse)
    assert isinstance(await failure(pool), NotSent)
    assert pool.connections == 0


async def test_nobody_who_listens_was_not_asked(raw: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        pool = raw.pool(url=f"http://127.0.0.1:{taken.getsockname()[1]}")
        error = await failure(pool)
    assert isinstance(error, NotSent)
    assert "upstream.url" in error.detail
    assert pool.connections == 0


# Limits


@pytest.mark.parametrize(
    "flood",
    [
        b"HTTP/1.1 200 OK\r\n" + b"X-Much: y\r\n" * 20_000,
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"y" * 200_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X-Late: y\r\n" * 20_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"y" * 200_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000,
    ],
    ids=["fields", "one field", "trailers", "a chunk extension", "interim answers"],
)
async def test_a_head_without_end_is_cut(raw: Any, flood: bytes) -> None:
    async def serve(peer: Any) -> None:
        await peer.ask()
        await peer.send(flood)
        await peer.ended()

    await raw.start(serve)
    assert len(flood) > MAX_OVERHEAD_BYTES * 2
    pool = raw.pool(response_timeout_seconds=5.0)
    error = await failure(pool)
    assert isinstance(error, UpstreamUnreachable)
    assert str(MAX_OVERHEAD_BYTES) in error.detail
    assert pool.connections == 0


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 5000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n1388\r\n", b"\r\n"]
)
async def test_a_body_over_the_limit_is_cut(raw: Any, framing: bytes) -> None:
    async def serve(peer: Any) -> None:
        await peer.ask()
        await peer.send(b"HTTP/1.1 200 OK\r\n" + framing + b"x" * 5000)
        await peer.ended()

    await raw.start(serve)
    pool = raw.pool(max_answer_bytes=4999, response_timeout_seconds=5.0)
    error = await failure(pool)
    assert "over 4999 bytes" in error.detail
    assert pool.connections == 0


async def test_a_body_in_tiny_chunks_is_read(raw: Any) -> None:
    await raw.answering(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 10_000 + b"0\r\n\r\n"
    )
    assert len((await ask(raw.pool())).body) == 10_000


# Time


async def test_a_timer_that_was_armed_for_an_earlier_request_lets_the_next_one_be(raw: Any) -> None:
    connection = to_nowhere()
    answered = connection.send(b"")
    first = connection._look_at
    connection.data_received(OK)
    assert (await answered).body == b"ok"
    await raw.until(lambda: asyncio.get_running_loop().time() > first - connection._first_look_seconds)
    waiter = connection.send(b"")
    assert (connection._timer is not None, connection._look_at > first) == (True, True)
    connection._look()
    assert (connection._timer is not None, waiter.done()) == (True, False), "due for the first, and armed again"
    connection._look_at = 0.0
    connection._look()
    assert (connection._timer is not None, waiter.done()) == (True, False), "due, and nothing stands still"
    connection._look_at = connection._deadline = 0.0
    connection._look()
    with pytest.raises(UpstreamTimeout):
        await waiter
    assert connection._timer is None


async def test_a_connection_that_nothing_is_asked_of_has_no_timer_in_the_end() -> None:
    connection = to_nowhere()
    answered = connection.send(b"")
    connection.data_received(OK)
    await answered
    connection._look()
    assert (connection._timer, connection.usable) == (None, True)


async def test_no_connection_in_time_was_not_sent(raw: Any) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(3)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(address)
        pool = raw.pool(url=f"http://127.0.0.1:{address[1]}", connect_timeout_seconds=0.05)
        error = await failure(pool)
        for sock in waiting:
            sock.close()
    assert isinstance(error, NotSent)
    assert pool.connections == 0


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nha"])
async def test_no_whole_answer_in_time_may_have_been_applied(raw: Any, begun: bytes) -> None:
    async def serve(peer: Any) -> None:
        await peer.ask()
        await peer.send(begun)
        await peer.ended()

    await raw.start(serve)
    pool = raw.pool(response_timeout_seconds=0.05)
    error = await failure(pool)
    assert isinstance(error, UpstreamTimeout)
    assert pool.connections == 0
    await raw.quiet(pool)


def certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "attachgate test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / "both.pem"
    file.write_bytes(
        made.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return file
