"""What must stay secret does, and what a client sends can't write a log line of its own."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
from pathlib import Path

import pytest

from gateway import commands
from tests.serve.conftest import Serving

TOKEN = "s3cret-admin-token-of-the-operators"
PASSWORD = "s3cret-redis-password"
JWT = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJzM2NyZXQifQ.s3cretsignature"
HIDDEN = re.compile(r"s3cret|czNjcmV0|eyJzdWIi")


def configure(serving: Serving) -> None:
    """Signed tokens, a Redis that knows no such user, and a token for the admin port in a file."""
    serving.configure(admin_token_file="token")
    (serving.folder / "token").write_text(TOKEN + "\n")
    (serving.folder / "keys.json").write_text('{"keys": []}')
    text = serving.file.read_text()
    url = serving.world.redis_url
    scheme, _, rest = url.partition("://")
    assert f'url = "{url}"' in text
    mode = 'mode = "jwt"\nissuer = "i"\naudience = "a"\nalgorithms = ["ES256"]\njwks = "keys.json"\n'
    text = text.replace(url, f"{scheme}://gateway:{PASSWORD}@{rest}") + f"[identity]\n{mode}"
    serving.file.write_text(text)


async def exchange(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


async def test_no_secret_is_logged_answered_or_measured(serving: Serving) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        serving.world.redis_url = f"redis://127.0.0.1:{nobody.getsockname()[1]}/0"
        configure(serving)
        process = await serving.start()
        said = [json.dumps(await serving.line(process, "listening"))]
        told = []
        for authorization in (f"Bearer {JWT}", f"Basic {JWT}", f"Bearer {JWT} {TOKEN}", JWT):
            request = (
                "POST /live/sessions/s1/products HTTP/1.1\r\nHost: g\r\nConnection: close\r\n"
                f"Authorization: {authorization}\r\nContent-Type: application/json\r\nContent-Length: 23\r\n\r\n"
                '{"product_id":"ally-9"}'
            )
            told.append(await exchange(serving.port, request.encode()))
            assert told[-1].startswith(b"HTTP/1.1 401")
        for path in ("/readyz", "/metrics"):
            for token in (TOKEN, TOKEN[:-1]):
                request = (
                    f"GET {path} HTTP/1.1\r\nHost: g\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
                )
                told.append(await exchange(serving.admin_port, request.encode()))
        assert b"attachgate_errors_total" in told[-2]
        assert b"ledger" in told[4]
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        said.append((await process.stderr.read()).decode())
        assert '"failed"' in said[1]
        assert not HIDDEN.search("\n".join(said))
        assert not HIDDEN.search(b"\n".join(told).decode())


def test_check_shows_no_secret(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gateway.toml"
    for port, token in ((70000, TOKEN), (8081, TOKEN), (8081, "s3cret"), (8081, f"{TOKEN} ")):
        for how in ("admin_token", "admin_token_file"):
            (tmp_path / "token").write_text(token)
            value = token if how == "admin_token" else "token"
            file.write_text(
                f'[upstream]\nurl = "http://user:s3cret@upstream"\n[listen]\n{how} = "{value}"\nport = {port}\n'
                f'[ledger]\nurl = "redis://:{PASSWORD}@host:x"\n[identity]\njwks = "https://a:s3cret@b/c#d"\n'
            )
            environ = {"ATTACHGATE_DIRECTORY__URL": "ftp://a:s3cret@b"}
            assert commands.check(file, environ) == 2
            said = "".join(capfd.readouterr())
            assert "ledger.url" in said
            assert not HIDDEN.search(said)


def test_a_token_file_is_read_or_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(
        '[upstream]\nurl = "http://upstream"\n[listen]\nadmin_host = "0.0.0.0"\nadmin_token_file = "token"\n'
    )
    assert commands.check(file, {}) == 2
    assert "listen.admin_token_file" in capfd.readouterr().err
    (tmp_path / "token").write_text(TOKEN + "\r\n")
    assert commands.check(file, {}) == 0


EVIL = b'\x1b[2J{"event":"listening","url":"http://evil:1"}'


async def test_what_a_client_sends_writes_no_log_line(serving: Serving) -> None:
    """Line ends, escapes and other control characters, raw and encoded, wherever a client can put them."""
    process = await serving.start()
    await serving.line(process, "listening")
    spellings = [EVIL, b"%0d%0a" + EVIL, b"\\n\\r" + EVIL, "\u2028\u0085\u202e".encode() + EVIL, b"\x7f\x9b\x00" + EVIL]
    plain = b"Connection: close\r\nX-Account-Id: shop-individual\r\nContent-Type: application/json\r\n"
    for evil in spellings:
        body = json.dumps({"product_id": evil.decode("latin-1")}).encode()
        for request in (
            b"POST /live/sessions/%b/products HTTP/1.1\r\nHost: g\r\n" % evil + plain + b"\r\n",
            b"%b /x HTTP/1.1\r\nHost: g\r\n\r\n" % evil,
            b"GET /x HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % evil,
            b"GET /x HTTP/1.1\r\nHost: g\r\n%b: x\r\nConnection: close\r\n\r\n" % evil,
            b"GET /x HTTP/1.1\r\nHost: g\r\nConnection: close\r\nX: %b\r\n\r\n" % evil,
            b"GET /live/sessions/s1 HTTP/1.1\r\nHost: g\r\nConnection: close\r\nX-Account-Id: %b\r\n\r\n" % evil,
            b"POST /live/sessions/s1/products HTTP/1.1\r\nHost: g\r\nContent-Length: %d\r\n" % len(body)
            + plain
            + b"\r\n"
            + body,
            evil,
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", serving.port)
            writer.write(request)
            writer.write_eof()
            answer = await reader.read()
            assert not re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", answer)
            writer.close()
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    lines = (await process.stderr.read()).split(b"\n")
    assert len(lines) > 5
    for line in lines[:-1]:
        assert re.fullmatch(rb"[ -~]+", line)
        assert json.loads(line)["event"] != "listening"
