"""One connection to Redis: pipelines out, answers in, with no task and no coroutine between the socket and who waits.

redis-py makes the connection (addresses, TLS, log-in); connected, its transport is taken over here, and hiredis reads
the answers of a pipeline as they arrive, all that have in one go. What redis-py would do with each answer costs more
than the rest of a ledger step: three coroutines, and a lookup of each push handler.

Promises: an answer goes to the pipeline that awaits it or to nobody. Where something comes that nobody asked for, or
after an answer's last byte, the connection is not used again; and once it is closed, nothing of it is heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection, DefaultParser
from redis.exceptions import InvalidResponse

_NOTHING = object()


class Wire(asyncio.Protocol):
    """`connection` is connected and has nothing to be read. `heard` gets answers, some at a time and in order; what the
    server says as an error is one of redis-py's exceptions among them. `ended` is told why the rest won't come.
    `usable`: whether a pipeline may be sent."""

    def __init__(
        self, connection: AbstractConnection, heard: Callable[[list[Any]], None], ended: Callable[[Exception], None]
    ) -> None:
        self._connection = connection
        self._heard = heard
        self._ended = ended
        self._awaited = 0
        self.usable = True
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse, replyError=DefaultParser.parse_error, notEnoughData=_NOTHING
        )
        # redis-py has no public way to its transport. Its own protocol hears no more, so only its plain `_close` works.
        writer = connection._writer
        assert writer is not None
        self._transport = writer.transport
        self._transport.set_protocol(self)

    def ask(self, pipeline: bytes, answers: int) -> None:
        """Send it, once what was asked before is answered."""
        self._awaited = answers
        self._transport.write(pipeline)

    def data_received(self, data: bytes) -> None:
        awaited = self._awaited
        if awaited == 0:
            self.usable = False
            return
        reader = self._reader
        answers: list[Any] = []
        problem: Exception | None = None
        reader.feed(data)
        try:
            while len(answers) < awaited and (answer := reader.gets()) is not _NOTHING:
                if not isinstance(answer, hiredis.PushNotification):
                    answers.append(answer)
        except InvalidResponse as error:
            problem = error
        self._awaited = awaited - len(answers)
        if self._awaited == 0 and reader.has_data():
            self.usable = False
        if answers:
            self._heard(answers)
        if problem is not None:
            self._end(problem)

    def eof_received(self) -> None:
        self._end(ConnectionError("Redis closed the connection."))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or ConnectionError("The connection to Redis was closed."))

    def _end(self, error: Exception) -> None:
        self.usable = False
        if self._awaited > 0:
            self._awaited = 0
            self._ended(error)

    def close(self) -> None:
        self.usable = False
        self._awaited = 0
        self._connection._close()  # type: ignore[no-untyped-call]
