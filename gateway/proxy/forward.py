"""Requests that the gateway has nothing to say about: streamed to the upstream and back, byte for byte, never
stored.

Bodies and answers of any size need constant memory, since no side is read faster than the other takes it. The
target, the fields and the body arrive as the client sent them; only what belongs to a hop is made anew:
framing, Connection, Expect. A streamed body is sent once and never again, whatever becomes of the connection.

Knows nothing about routes, identity and the notice: the fields that it is given are the ones it sends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp
import structlog
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_middlewares import ClientHandlerType, ClientMiddlewareType
from aiohttp.client_reqrep import ClientRequest, ClientResponse
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from multidict import CIMultiDict
from yarl import URL

from gateway import config, tls
from gateway.errors import (
    BodyIncomplete,
    GatewayError,
    HeadersMalformed,
    Overloaded,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.proxy.answer import PATIENT, Answer, Closing, Patience, never
from gateway.proxy.incoming import ChunksRefused, ask_for_body
from gateway.proxy.watch import Cut, Interrupted, Watch

log = structlog.get_logger(__name__)

_PIECE_BYTES = 64 * 1024
_ANSWER_FIELD_BYTES = 32 * 1024
_ANSWER_FIELDS = 256
_SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
_SILENT_TRIES = 3
"""Connections that have spoken unasked, until the upstream is taken for one that always does."""

Fields = Sequence[tuple[bytes, bytes]]


def client_session(upstream: config.Upstream, *, max_connections: int | None = None) -> aiohttp.ClientSession:
    """A session that adds nothing of its own: no fields, cookies, proxies, decompression or total time-out.

    `max_connections` instead of the configuration's, for instance for streams that last as long as their
    clients.
    """
    return aiohttp.ClientSession(
        connector=_Connector(upstream, max_connections or upstream.max_connections),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(
            total=None,
            connect=upstream.connect_timeout_seconds,
            sock_connect=upstream.connect_timeout_seconds,
            sock_read=upstream.response_timeout_seconds,
        ),
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
        trust_env=False,
        read_bufsize=_PIECE_BYTES,
        max_field_size=_ANSWER_FIELD_BYTES,
        max_headers=_ANSWER_FIELDS,
    )


class _Connector(aiohttp.TCPConnector):
    """Connections to one upstream, bounded, with a bounded queue for them. Raises Overloaded."""

    def __init__(self, upstream: config.Upstream, max_connections: int) -> None:
        super().__init__(
            limit=max_connections, keepalive_timeout=upstream.keepalive_seconds, ssl=tls.client(upstream.tls)
        )
        self._max_queue = upstream.max_queue
        self._wanted = 0

    async def connect(self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout) -> Connection:
        if self._wanted >= self.limit + self._max_queue:
            raise Overloaded(f"All {self.limit} upstream connections are busy, and the queue is full.")
        self._wanted += 1
        try:
            connection = await self._silent(req, traces, timeout)
        except BaseException as error:
            self._wanted -= 1
            if isinstance(error, TimeoutError) and self._wanted >= self.limit:
                raise Overloaded(f"No upstream connection came free within {timeout.connect} s.") from None
            raise
        connection.add_callback(self._given_back)
        return connection

    async def _silent(self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout) -> Connection:
        """A connection on which nothing came that nobody had asked for: aiohttp would take it for the answer to this
        request, and so hand one client what was meant for another."""
        for _ in range(_SILENT_TRIES):
            connection = await super().connect(req, traces, timeout)
            if connection.protocol is None or not connection.protocol.should_close:
                return connection
            connection.close()
        raise UpstreamUnreachable("The upstream says something before it is asked.")

    def _given_back(self) -> None:
        self._wanted -= 1


async def forward(
    request: web.BaseRequest,
    http: aiohttp.ClientSession,
    upstream_url: str,
    *,
    target: str,
    headers: Fields,
    patience: Patience = PATIENT,
    closing: Closing = never,
) -> Answer:
    """Pass one request on and its answer back.

    `target` is path and query as they shall reach the upstream; `headers` are the end-to-end fields, in their
    order (`reading.headers`), Host included where the upstream shall see it. `closing` is asked, when the answer
    begins, whether the connection ends with it.

    Raises `UpstreamUnreachable`, `UpstreamTimeout`, `Overloaded` or a `ClientError` as long as nothing was
    sent to the client. What goes wrong later cuts the client's connection, and the answer's `failure` says
    why.
    """
    answer = Answer(request, closing=closing)
    try:
        async with Watch(request.transport) as watch:
            upload = Upload(request, watch, patience) if request.body_exists else None
            upstream = await ask(http, request, upstream_url + target, outgoing(request, headers), upload)
            try:
                if upstream.status == 101:
                    raise UpstreamUnreachable("The upstream changed the protocol without having been asked to.")
                await answer.relay(upstream, watch, patience)
            finally:
                upstream.close()
    except Interrupted as interrupted:
        if answer.started or interrupted.cut is Cut.client_gone:
            return answer.cut(interrupted.cut)
        raise _explained(interrupted.cut, patience) from None
    return answer


def _explained(cut: Cut, patience: Patience) -> GatewayError:
    if cut is Cut.client_slow:
        return BodyIncomplete(f"Nothing of the body came for {patience.body_seconds:g} s: send it without pauses.")
    return UpstreamTimeout(f"The upstream took nothing of the body for {patience.stall_seconds:g} s.")


async def ask(
    http: aiohttp.ClientSession,
    request: web.BaseRequest,
    url: str,
    headers: CIMultiDict[str],
    upload: Upload | None = None,
) -> ClientResponse:
    """Send the request, and wait for the head of its answer; from then on nothing limits how long it
    takes."""
    resend = upload is None and request.method in _SAFE_METHODS
    middlewares: tuple[ClientMiddlewareType, ...] = () if resend else (_once,)
    try:
        upstream = await http.request(
            request.method,
            exact_url(url),
            headers=headers,
            data=None if upload is None else _Streamed(upload),
            allow_redirects=False,
            middlewares=middlewares,
        )
    except (GatewayError, aiohttp.ClientError, OSError, RuntimeError, ValueError) as error:
        if upload is not None and upload.failure is not None:
            raise _client_failed(upload.failure) from None
        raise _upstream_failed(error) from None
    if upload is not None:
        upload.answered = True
    connection = upstream.connection
    if connection is not None and connection.protocol is not None:
        connection.protocol.read_timeout = None
        connection.protocol.start_timeout()
    return upstream


async def _once(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    """Keeps aiohttp from sending a request again on another connection: it does so by the type of the
    error."""
    try:
        return await handler(request)
    except aiohttp.ClientError as error:
        raise _upstream_failed(error) from None


def _client_failed(error: Exception) -> Exception:
    if isinstance(error, ConnectionError):
        return Interrupted(Cut.client_gone)
    if isinstance(error, ChunksRefused):
        return BodyIncomplete(str(error))
    return BodyIncomplete("The body is not framed as its header fields say: see RFC 9112 section 7.")


def _upstream_failed(error: Exception) -> GatewayError:
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, ValueError) and not isinstance(error, aiohttp.ClientError):
        return HeadersMalformed("A header field can't be sent on as it is.")
    log.warning("upstream_failed", error=f"{type(error).__name__}: {error}")
    if isinstance(error, aiohttp.SocketTimeoutError):
        return UpstreamTimeout("The upstream did not answer in time: see upstream.response_timeout_seconds.")
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return UpstreamUnreachable("No connection to the upstream in time: see upstream.connect_timeout_seconds.")
    if isinstance(error, aiohttp.ClientConnectorError):
        return UpstreamUnreachable("The upstream at upstream.url can't be reached.")
    if isinstance(error, aiohttp.ClientResponseError):
        return UpstreamUnreachable("The upstream's answer is not HTTP.")
    return UpstreamUnreachable("The upstream closed the connection before it had answered.")


def exact_url(url: str) -> URL:
    """A URL whose target aiohttp sends as it is written here.

    yarl drops a `?` with nothing behind it. It remembers the target that it has worked out, so the right one
    is put there.
    """
    exact = URL(url, encoded=True)
    origin = f"{exact.scheme}://{exact.raw_authority}"
    written = url[len(origin) :]
    if exact.raw_path_qs != written:
        exact._cache["raw_path_qs"] = written
    return exact


def outgoing(request: web.BaseRequest, headers: Fields) -> CIMultiDict[str]:
    """The fields for aiohttp's client, with the client's own framing.

    Of fields whose name comes in two spellings, aiohttp would keep the last; so all get the first spelling.
    It can't send field values that are not UTF-8: they are refused rather than changed.
    """
    spellings: dict[bytes, str] = {}
    fields: CIMultiDict[str] = CIMultiDict()
    try:
        for name, value in headers:
            key = name.lower()
            if key in (b"content-length", b"transfer-encoding", b"expect"):
                continue
            fields.add(spellings.setdefault(key, name.decode("ascii")), value.decode("utf-8"))
    except UnicodeDecodeError:
        shown = name.decode("ascii", "backslashreplace")
        raise HeadersMalformed(f"The header field {shown} is not UTF-8.") from None
    coding = request.headers.get("Transfer-Encoding")
    if coding is not None and coding.strip().lower() != "chunked":
        raise HeadersMalformed("Transfer-Encoding must be exactly `chunked`.")
    length = request.headers.get("Content-Length")
    if coding is None and length is not None:
        fields["Content-Length"] = length
    return fields


class Upload:
    """The client's body as an iterator of pieces, read no faster than the upstream takes them.

    It asks the client for the body (`Expect: 100-continue`) only when the upstream is connected, and answers
    for the upstream then: not every upstream does, and a client would wait in vain. `failure` is the client's
    fault. `taker`: the upstream's transport.
    """

    def __init__(self, request: web.BaseRequest, watch: Watch, patience: Patience) -> None:
        self._request = request
        self._watch = watch
        self._patience = patience
        self._awaited = request.headers.get("Expect", "").lower() == "100-continue" and request.version >= (
            1,
            1,
        )
        self.answered = False
        self.failure: Exception | None = None
        self.taker: asyncio.BaseTransport | None = None

    @property
    def at_hand(self) -> bool:
        """Whether some of the body has come already."""
        return self._request.content.total_bytes > 0 or self._request.content.is_eof()

    def __aiter__(self) -> Upload:
        return self

    async def __anext__(self) -> bytes:
        try:
            if self._awaited:
                self._awaited = False
                if not self.answered:
                    await ask_for_body(self._request)
            self._allow(Cut.client_slow, self._patience.body_seconds)
            piece = await self._request.content.readany()
        except Exception as error:
            self.failure = error
            raise
        if not piece:
            self._allow(Cut.upstream_slow, None)
            raise StopAsyncIteration
        self._allow(Cut.upstream_slow, self._patience.stall_seconds, self.taker)
        return piece

    def _allow(self, blame: Cut, seconds: float | None, taker: asyncio.BaseTransport | None = None) -> None:
        """Once the answer has begun, its own limits hold."""
        if not self.answered:
            self._watch.allow(blame, seconds, taker)


class _Streamed(aiohttp.AsyncIterablePayload):
    """A body behind its head. aiohttp keeps the head back until the first piece of the body is there; but a client may
    wait for the answer before it sends one."""

    def __init__(self, upload: Upload) -> None:
        super().__init__(upload)
        self._upload = upload

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        self._upload.taker = writer.transport
        if not self._upload.at_hand:
            writer.send_headers()
        await super().write_with_length(writer, content_length)
