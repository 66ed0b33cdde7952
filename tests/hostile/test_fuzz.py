"""Requests that nobody has thought of: valid ones, mutated, over real sockets, before upstreams that read leniently.

The judge is the corpus's: what the ledger counts is what the upstream applied, nothing over the rules, and the gateway
stands. In `make test` a few thousand, always the same; with ATTACHGATE_FUZZ_SECONDS set (`make fuzz`) new ones for so
long, from a seed that is printed.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from gateway.config import Ledger as LedgerConfig
from gateway.ledger import embedded
from gateway.ledger.connection import connect
from gateway.ledger.steps import Ledger

from . import readers
from .conftest import SHOP, Site, sections, start_gateway, stop_gateway, view_of
from .lenient import READINGS, Lenient, Reading
from .raw import Garbled, Reply, Wire

LONG_SECONDS = int(os.environ.get("ATTACHGATE_FUZZ_SECONDS", "0"))
SHORT_EXAMPLES = 60
SHORT_READER_EXAMPLES = 2000
SILENCE_SECONDS = 0.4
"""Longer than the gateway under test waits for the rest of a head or a body."""
AT_ONCE = 48

_ATTACH = (
    b"POST /live/sessions/%s/products HTTP/1.1\r\nHost: gateway\r\nX-Account-Id: shop-individual\r\n"
    b"Content-Type: application/json\r\nContent-Length: 23\r\n\r\n" + b'{"product_id":"ally-9"}'
)
_CHUNKED = (
    b"POST /live/sessions/%s/products HTTP/1.1\r\nHost: gateway\r\nX-Account-Id: shop-individual\r\n"
    b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'b\r\n{"product_i\r\nc\r\nd":"ally-9"}\r\n0\r\n\r\n'
)
_BATCH = (
    b"POST /live/sessions/%s/products HTTP/1.1\r\nHost: gateway\r\nX-Account-Id: shop-individual\r\n"
    b"Content-Type: application/json\r\nContent-Length: 55\r\n\r\n"
    b'{"product_ids":["ally-1","own-individual-1","ally-10"]}'
)
_SHELF = _ATTACH.replace(b"/live/sessions/%s/", b"/accounts/shop-individual/showcase/")
_READ = b"GET /live/sessions/%s/products HTTP/1.1\r\nHost: gateway\r\nX-Account-Id: shop-individual\r\n\r\n"
VALID = (_ATTACH, _ATTACH, _CHUNKED, _BATCH, _SHELF, _READ)

TOKENS = (
    *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\0", b" ", b"\t", b"\x0b", b":", b";", b",", b"/", b"//", b"\\"),
    *(b"?", b"#", b"%", b"%2f", b"%5c", b"%00", b"%2e%2e", b"%252f", b"..", b"/./", b"+", b"\xc0\xaf", b"\xff"),
    *(b"\xef\xbb\xbf", b"(S(x))", b"0", b"1", b"-", b"_", b'"', b"{", b"}", b"[", b"]", b"\\u0000", b"\\u0061"),
    *(b"null", b"1e9", b"/*", b"*/", b"Content-Length: 0\r\n", b"Content-Length: 23\r\n", b"Host: other\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"X-Account-Id: shop-flagship\r\n"),
    *(b"X_Account_Id: creator-li\r\n", b"Connection: close, X-Account-Id\r\n", b"Upgrade: h2c\r\n"),
    *(b"X-HTTP-Method-Override: PUT\r\n", b"X-Original-URL: /live/sessions/x/products\r\n", b"Connection: Upgrade\r\n"),
    *(b"Content-Encoding: gzip\r\n", b"Content-Type: text/plain\r\n", b" HTTP/1.0", b" HTTP/0.9", b"CONNECT "),
    *(b"?product_id=ally-9", b"?_method=POST", b"&session_id=x", b'"product_id":"ally-8",', b"X: y\r\n\r\n"),
    *(b'"product_ids":["ally-8"],', b"0\r\n\r\n", b"17\r\n", b";a=b", b"GET ", b"PUT ", b"http://gateway", b".json"),
    *(b"@", b"*"),
)

STEP_BYTES = 5


def mutated(data: bytes, program: bytes) -> bytes:
    """`data`, changed as each five bytes of the program say: what, where, with which token, how far, and where to."""
    for start in range(0, len(program) - STEP_BYTES + 1, STEP_BYTES):
        kind, where, which, length, other = program[start : start + STEP_BYTES]
        at, to = where * (len(data) + 1) // 256, other * (len(data) + 1) // 256
        token = TOKENS[which % len(TOKENS)]
        end = at + 1 + length % 12
        piece = data[at:end]
        match kind % 9:
            case 0 | 1:
                data = data[:at] + token + data[at:]
            case 2:
                data = data[:at] + token + data[at + len(token) :]
            case 3:
                data = data[:at] + data[end:]
            case 4:
                data = data[:end] + piece + data[end:]
            case 5:
                data = data[:at] + piece.swapcase() + data[end:]
            case 6:
                data = data[:at] + b"".join(b"%%%02x" % byte for byte in piece) + data[end:]
            case 7:
                rest = data[:at] + data[end:]
                data = rest[:to] + piece + rest[to:]
            case _:
                # At the beginning of a line, where it is a field of its own.
                line = data.find(b"\r\n", at) + 2
                data = data[:line] + token + data[line:]
    return data


def with_right_length(data: bytes) -> bytes:
    """So that a mutated body gets as far as a reader."""
    head, mark, body = data.partition(b"\r\n\r\n")
    return head.replace(b"Content-Length: 23", b"Content-Length: %d" % len(body)) + mark + body


def writes(program: bytes) -> list[bytes]:
    """What one connection sends. Programs are drawn whole, since Hypothesis takes its time for each thing it draws."""
    first, flags = program[:2]
    data = mutated(VALID[first % len(VALID)], program[2:])
    if flags & 1:
        data = with_right_length(data)
    if flags & 6 == 6:
        data += VALID[flags >> 4 & 3]
    if flags & 8:
        at = first * (len(data) + 1) // 256
        return [data[:at], data[at:]]
    return [data]


programs = st.binary(min_size=2 + STEP_BYTES, max_size=2 + 3 * STEP_BYTES)


class Bench:
    """A gateway process, a lenient upstream and a Redis, on an event loop of their own: Hypothesis is not async."""

    def __init__(self, folder: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self.sent = 0
        self.site: Site
        self.upstream = Lenient()
        self._loop.run_until_complete(self._start(folder))

    async def _start(self, folder: Path) -> None:
        self._redis = await embedded.start()
        await self.upstream.start()
        quick = {"header_timeout_seconds": 0.1, "body_timeout_seconds": 0.1}
        config = sections(self.upstream.url, self._redis.tcp_url, listen=quick)
        gateway = await start_gateway(folder, config)
        self._connection = connect(self._redis.tcp_url, 2.0, time.monotonic)
        ledger = Ledger(self._connection, LedgerConfig(url=self._redis.tcp_url), 1.0)
        self.site = Site(gateway, self.upstream, ledger)

    async def _stop(self) -> None:
        await stop_gateway(self.site.gateway)
        await self.upstream.close()
        await self._connection.close()
        await self._redis.close()

    def close(self) -> None:
        self._loop.run_until_complete(self._stop())
        self._loop.close()

    def run(self, drawn: list[bytes], reading: Reading) -> None:
        """All at once; where one of them breaks a promise, it is looked for and named."""
        self.upstream.reading = reading
        connections = [writes(program) for program in drawn]
        try:
            self._loop.run_until_complete(self._run(connections))
        except (AssertionError, Garbled) as error:
            for alone in connections:
                self.upstream.as_others.clear()
                self.upstream.store.forget_entries()
                try:
                    self._loop.run_until_complete(self._run([alone]))
                except (AssertionError, Garbled) as again:
                    raise AssertionError(f"{reading}: {alone}: {again}") from again
            raise AssertionError(f"only together, {reading}: {connections}: {error}") from error

    async def _run(self, connections: list[list[bytes]]) -> None:
        site = self.site
        session_id = site.new_session(SHOP, "f")
        site.upstream.store.start(session_id, 0.0)
        reply = await site.attach(session_id, SHOP, ["ally-1", "ally-2", "ally-3"])
        assert reply.status == 200
        name = session_id.encode()
        last_words = view_of(session_id, SHOP)
        tried = [self._send([*(data.replace(b"%s", name) for data in w), last_words]) for w in connections]
        answers = await asyncio.gather(*tried)
        counted, applied = await site.agree(session_id)
        assert counted == applied == {"ally-1", "ally-2", "ally-3"}, f"counted {counted}, applied {applied}"
        assert self.upstream.as_others == [], self.upstream.as_others
        assert site.breaches() == [], site.breaches()
        assert site.gateway.runs, "the gateway has ended"
        for reply in (reply for replies in answers for reply in replies):
            assert reply.status != 500, reply
        # What was found right is not looked at again.
        site.upstream.store.forget_entries()

    async def _send(self, writes: list[bytes]) -> list[Reply]:
        """Every answer that comes; a `Garbled` one is a finding."""
        self.sent += 1
        wire = await Wire.open(self.site.gateway.port)
        replies: list[Reply] = []
        try:
            for data in writes:
                await wire.send(data)
            with suppress(TimeoutError):
                while True:
                    async with asyncio.timeout(SILENCE_SECONDS if not replies else SILENCE_SECONDS / 8):
                        reply = await wire.reply("GET")
                    if reply is None:
                        break
                    replies.append(reply)
                    if reply.closes:
                        break
        finally:
            wire.close()
        return replies


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("fuzz"))
    yield bench
    bench.close()


def rounds() -> Iterator[int | None]:
    """One round without a seed; or as many as there is time for, each with its own."""
    if not LONG_SECONDS:
        yield None
        return
    until, seed = time.monotonic() + LONG_SECONDS, random.randrange(1 << 32)
    while time.monotonic() < until:
        print(f"seed {seed}", flush=True)
        yield seed
        seed += 1


_BOUNDED = settings(
    deadline=None,
    database=None,
    derandomize=not LONG_SECONDS,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate,),
)
"""Without shrinking: a mutation is short as it is."""


@pytest.mark.timeout(LONG_SECONDS + 120)
def test_no_mutation_of_a_request_gets_a_fourth_product_in(bench: Bench) -> None:
    began = time.monotonic()
    for number in rounds():

        @settings(_BOUNDED, max_examples=SHORT_EXAMPLES)
        @given(st.lists(programs, min_size=AT_ONCE, max_size=AT_ONCE), st.sampled_from(READINGS))
        def never(drawn: list[bytes], reading: Reading) -> None:
            bench.run(drawn, reading)

        (never if number is None else seeded(number)(never))()
    seconds = time.monotonic() - began
    print(f"{bench.sent} connections in {seconds:.0f} s, {bench.sent / seconds:.0f} a second")


def test_the_readers_only_ever_refuse() -> None:
    @settings(_BOUNDED, max_examples=SHORT_READER_EXAMPLES)
    @given(st.sampled_from(readers.SEEDS), st.binary(max_size=4 * STEP_BYTES))
    def refuse(data: bytes, program: bytes) -> None:
        readers.check(mutated(data, program))

    refuse()


def test_the_readers_only_ever_refuse_anything() -> None:
    @settings(_BOUNDED, max_examples=SHORT_READER_EXAMPLES)
    @given(st.binary(max_size=120))
    def refuse(data: bytes) -> None:
        readers.check(data)

    refuse()
