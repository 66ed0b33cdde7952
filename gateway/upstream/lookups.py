"""Documents of the directory and the upstream's lists, on lean keep-alive connections of their own (`pool`).

With many sessions the directory is asked about as often as the upstream: by default for each session and each account
every five seconds. aiohttp's client takes five times the CPU for such a question.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from gateway import config, fetch
from gateway.errors import UpstreamTimeout, UpstreamUnreachable
from gateway.upstream.pool import UPSTREAM, Pool, Stale, Unanswered, UpstreamAnswer

_FIELDS = b"Accept: application/json\r\nAccept-Encoding: identity\r\n"


class Lookups:
    """GETs at `url`, at most `max_connections` at once. `upstream`: TLS, and how long to connect and to keep what is
    idle. `clock`: monotonic seconds. `named`: see `Pool`."""

    def __init__(
        self,
        upstream: config.Upstream,
        url: str,
        *,
        limit_bytes: int,
        timeout_seconds: float,
        max_connections: int,
        clock: Callable[[], float],
        named: str = UPSTREAM,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        settings = msgspec.structs.replace(
            upstream,
            url=url,
            response_timeout_seconds=timeout_seconds,
            max_connections=max_connections,
            max_answer_bytes=limit_bytes,
        )
        self._pool = Pool(settings, clock, named=named)

    async def get(self, path: str) -> UpstreamAnswer | fetch.Failure:
        """The answer to one GET of a path, percent-encoded, with its query. Asked once more where a kept connection
        turns out to be closed: it changes nothing. Raises `Overloaded` where no connection comes free."""
        try:
            try:
                return await self._ask(path)
            except (Unanswered, Stale):
                return await self._ask(path)
        except UpstreamTimeout as error:
            return fetch.late(self._timeout_seconds, error.detail)
        except UpstreamUnreachable as error:
            return fetch.Failure("no whole answer could be had", error.detail)

    async def _ask(self, path: str) -> UpstreamAnswer:
        return await self._pool.request("GET", path, (), None, lines=_FIELDS)

    def close(self) -> None:
        self._pool.close()
