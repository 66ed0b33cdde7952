"""A request as aiohttp received it, in the form that admission reads (`Incoming`)."""

from __future__ import annotations

import asyncio
import socket

from aiohttp import web

from gateway.admission.forwarding import forwarded_lines
from gateway.config import Listen
from gateway.errors import BodyIncomplete, BodyTooLarge, LengthRequired
from gateway.reading.address import Address
from gateway.reading.headers import Headers, forwarding
from gateway.reading.routes import Match

UNKNOWN_PEER = "?"
"""Trusted by no network: whoever has reset its connection is not believed."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""What a client waits for that has sent `Expect: 100-continue` (RFC 9110 section 10.1.1)."""

_WITH_BODY = frozenset(("create", "attach", "replace"))


class ChunksRefused(web.RequestPayloadError):
    """The chunks of a body are not plain (`reading.framing`)."""

    def __init__(self) -> None:
        super().__init__(
            "A chunk has an extension, or its size is malformed: send plain chunks (RFC 9112 section 7.1)."
        )


class AiohttpIncoming:
    def __init__(
        self, request: web.BaseRequest, address: Address, headers: Headers, match: Match, listen: Listen
    ) -> None:
        self._request = request
        self._listen = listen
        self.headers = headers
        self.match = match
        self.method = match.route.method
        self.target = match.path + address.query_raw
        self.peer_ip = peer_ip(request)

    async def body(self) -> bytes:
        """The whole body, at most `listen.max_body_bytes`, and no slower than `listen.body_timeout_seconds`."""
        headers, limit = self.headers, self._listen.max_body_bytes
        if not headers.has_body:
            if headers.length is None and self.match.route.operation in _WITH_BODY:
                raise LengthRequired("The request has no body: send one with Content-Length.")
            return b""
        if headers.length is not None and headers.length > limit:
            raise BodyTooLarge(f"The body has {headers.length} bytes; the limit is {limit}.")
        content = self._request.content
        if headers.length is not None and content.is_eof():
            return content.read_nowait(-1)
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._listen.body_timeout_seconds):
                if headers.expects_continue and not content.total_bytes:
                    await ask_for_body(self._request)
                while chunk := await content.readany():
                    size += len(chunk)
                    if size > limit:
                        raise BodyTooLarge(f"The body has more than {limit} bytes.")
                    chunks.append(chunk)
        except TimeoutError:
            raise BodyIncomplete(
                f"The body did not arrive whole within {self._listen.body_timeout_seconds} s."
            ) from None
        except ChunksRefused as error:
            raise BodyIncomplete(str(error)) from None
        except (web.RequestPayloadError, ConnectionError) as error:
            raise BodyIncomplete(f"The body broke off: {type(error).__name__}.") from None
        return b"".join(chunks)

    def forwarded_lines(self) -> bytes:
        return forwarded_lines(self.headers.forward + forwarding(self.peer_ip, self._request.scheme, self.headers))


async def ask_for_body(request: web.BaseRequest) -> None:
    """Tell a client that waits for it to send its body."""
    await request.writer.write(CONTINUE)
    # aiohttp takes a writer that has written for an answer that has begun.
    request.writer.output_size = 0


def peer_ip(request: web.BaseRequest) -> str:
    """The address of the request's connection, as `address_of` says it."""
    return address_of(request.transport) if request.transport is not None else UNKNOWN_PEER


def address_of(transport: asyncio.BaseTransport) -> str:
    """The address of a connection's other end; empty for a unix socket, `?` where it has gone already."""
    name = transport.get_extra_info("peername")
    if isinstance(name, tuple) and name:
        return str(name[0])
    connection = transport.get_extra_info("socket")
    return "" if connection is not None and connection.family == socket.AF_UNIX else UNKNOWN_PEER
