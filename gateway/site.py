"""A TCP port that a server listens on, over TLS or not.

aiohttp's own (`web.TCPSite`) leaves a client a minute for its handshake, and half of one to say goodbye; and until its
handshake is done, a connection is counted nowhere.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from aiohttp import web

from gateway.tls import ServerTls

GOODBYE_SECONDS = 2.0


class Site(web.BaseSite):
    """`factory`: makes the protocol of each connection; the runner's server does where there is none. `shared`: whether
    other processes listen on the same port (SO_REUSEPORT)."""

    __slots__ = ("_factory", "_handshake_seconds", "_host", "_port", "_shared")

    def __init__(
        self,
        runner: web.BaseRunner,
        host: str,
        port: int,
        *,
        tls: ServerTls | None,
        handshake_seconds: float,
        factory: Callable[[], asyncio.Protocol] | None = None,
        shared: bool = False,
    ) -> None:
        super().__init__(runner, ssl_context=tls.context if tls is not None else None, backlog=1024)
        self._host = host
        self._port = port
        self._handshake_seconds = handshake_seconds
        self._factory = factory
        self._shared = shared

    @property
    def name(self) -> str:
        return f"{'https' if self._ssl_context else 'http'}://{self._host}:{self._port}"

    async def start(self) -> None:
        """Raises OSError where the address can't be had."""
        await super().start()
        assert self._runner.server is not None
        secure = self._ssl_context is not None
        self._server = await asyncio.get_running_loop().create_server(
            self._factory or self._runner.server,
            self._host,
            self._port,
            ssl=self._ssl_context,
            backlog=self._backlog,
            reuse_port=self._shared,
            ssl_handshake_timeout=self._handshake_seconds if secure else None,
            ssl_shutdown_timeout=GOODBYE_SECONDS if secure else None,
        )


def end_when_stalled(transport: asyncio.BaseTransport, seconds: float) -> None:
    """Have the kernel end a connection whose peer takes nothing of what waits for it, for so long. A client that does
    not read would hold its place for ever, also on a connection that ends behind its answer. Only Linux can."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))
