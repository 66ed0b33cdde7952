"""The load's client over real sockets: one answer for each request, whatever the server does."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from gateway.load.client import IDLE_SECONDS, MAX_ANSWER_BYTES, Answer, Client, Connection

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Speaks as scripted: `handler` gets each connection."""

    def __init__(self) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self.handler: Handler = self.answering(OK)
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        try:
            await self.handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def read(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        request = head + (await reader.readexactly(int(length[1])) if length else b"")
        self.requests.append(request)
        return request

    def answering(self, *answers: bytes) -> Handler:
        """Of each connection: these answers, then its end; one answer alone is given for ever."""

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for answer in answers:
                await self.read(reader)
                writer.write(answer)
                await writer.drain()
            while len(answers) == 1:
                await self.read(reader)
                writer.write(answers[0])

        return handler


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    await server.start()
    yield server
    await server.close()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def client(server: Server, clock: Clock) -> AsyncIterator[Client]:
    client = Client(server.url, "X-Account-Id", 2, 5.0, clock)
    yield client
    await client.close()


def ask(client: Client, method: str = "POST", path: str = "/p", body: bytes = b"{}") -> asyncio.Future[Answer]:
    answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    client.send(method, path, "a1", body, answered.set_result)
    return answered


async def test_requests_are_plain_and_share_a_connection(server: Server, client: Client) -> None:
    assert await ask(client) == Answer(200, b"ok")
    assert await ask(client, "GET", "/q", b"") == Answer(200, b"ok")
    await ask(client, "POST", "/start", b"")
    await ask(client, "DELETE", "/d", b"")
    assert server.connections == 1
    host = server.url.removeprefix("http://").encode()
    head = b" HTTP/1.1\r\nHost: " + host + b"\r\nUser-Agent: attachgate-load\r\nX-Account-Id: a1\r\n"
    assert server.requests == [
        b"POST /p" + head + b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
        b"GET /q" + head + b"\r\n",
        b"POST /start" + head + b"Content-Length: 0\r\n\r\n",
        b"DELETE /d" + head + b"\r\n",
    ]


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", Answer(204)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", Answer(200, b"abc")),
        (b"HTTP/1.1 503 Busy\r\nretry-after: 2\r\nContent-Length: 0\r\n\r\n", Answer(503, b"", "", 2.0)),
        (b"HTTP/1.1 503 Busy\r\nRetry-After: soon\r\nContent-Length: 0\r\n\r\n", Answer(503)),
        (
            b"HTTP/1.1 403 No\r\nattachgate-decision: d7\r\nContent-Length: 0\r\n\r\n",
            Answer(403, decision="d7"),
        ),
        (b"SSH-2.0-OpenSSH\r\n\r\n", Answer(0, b"", "malformed_answer")),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_ANSWER_BYTES + 1) + b"x" * (MAX_ANSWER_BYTES + 1),
            Answer(0, b"", "malformed_answer"),
        ),
    ],
)
async def test_answers(server: Server, client: Client, raw: bytes, answer: Answer) -> None:
    server.handler = server.answering(raw)
    assert await ask(client) == answer
    assert await ask(client) == answer, "the next one is read afresh"


async def test_a_connection_that_ends_without_an_answer(server: Server, client: Client) -> None:
    server.handler = server.answering(OK, b"", b"")
    assert (await ask(client)).status == 200
    server.handler = server.answering()
    first = ask(client)
    server._writers[0].close()
    assert await first == Answer(0, reason="connection_lost")


async def test_a_connection_that_the_server_closes_is_not_used_again(server: Server, client: Client) -> None:
    server.handler = server.answering(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
    for _ in range(3):
        assert (await ask(client)).status == 200
    assert server.connections == 3


async def test_more_requests_than_connections_wait_their_turn(server: Server, client: Client) -> None:
    answers = await asyncio.gather(*(ask(client) for _ in range(20)))
    assert answers == [Answer(200, b"ok")] * 20
    assert server.connections == 2
    assert client.queued == 20


async def test_a_time_out_counts_from_sending_and_costs_the_connection(
    server: Server, client: Client, clock: Clock
) -> None:
    reached = asyncio.Event()

    async def notice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read(reader)
        reached.set()
        await reader.read()

    server.handler = notice
    sent = [ask(client) for _ in range(4)]
    await reached.wait()
    clock.now = 4.9
    client.expire()
    assert not any(answered.done() for answered in sent)
    clock.now = 5.0
    client.expire()
    assert [await answered for answered in sent] == [Answer(0, reason="timeout")] * 4, "those that waited as well"
    server.handler = server.answering(OK)
    assert (await ask(client)).status == 200


async def test_connections_that_rested_for_long_are_not_used_again(
    server: Server, client: Client, clock: Clock
) -> None:
    await asyncio.gather(ask(client), ask(client))
    clock.now = IDLE_SECONDS
    assert (await ask(client)).status == 200
    assert server.connections == 3


async def test_what_nobody_asked_for_ends_the_connection(server: Server, client: Client) -> None:
    server.handler = server.answering(OK + OK)
    assert (await ask(client)).status == 200
    assert (await ask(client)).status in (0, 200)


async def test_nobody_listens(server: Server, client: Client) -> None:
    await server.close()
    assert [await ask(client) for _ in range(3)] == [Answer(0, reason="connect_failed")] * 3


async def test_closing_with_requests_under_way(server: Server, clock: Clock) -> None:
    reached = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if server.connections == 2:
            reached.set()
        await reader.read()

    server.handler = silent
    client = Client(server.url, "X-Account-Id", 2, 5.0, clock)
    for _ in range(5):
        ask(client)
    await reached.wait()
    await client.close()


def test_a_connection_made_just_as_its_time_is_up_is_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def scenario() -> None:
        server = Server()
        await server.start()
        client = Client(server.url, "X-Account-Id", 2, 5.0, Clock())
        made = client.made

        def made_too_late(connection: Connection) -> None:
            made(connection)
            for task in asyncio.all_tasks():
                if task.get_name() == "opening":
                    task.cancel()

        monkeypatch.setattr(client, "made", made_too_late)
        opening = asyncio.get_running_loop().create_task(client._open(), name="opening")
        await asyncio.wait((opening,))
        async with asyncio.timeout(5):
            await client.close()
        await server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())
