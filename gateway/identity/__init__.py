"""Who is asking: the account that a request speaks for, or a refusal.

Two ways to know, one shape: `header` (a proxy in front says so) and `token` (a signed JWT says so, verified
with `keys`). Whichever it is, the upstream is told by the gateway's own header, never by the client's.

Knows nothing about what the account may do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import aiohttp

from gateway import config
from gateway.identity.header import Claims, HeaderIdentity
from gateway.identity.keys import Keys, file_source, url_source
from gateway.identity.token import TokenIdentity

URL_POLL_SECONDS = 300.0
FILE_POLL_SECONDS = 2.0


class Identity(Protocol):
    """`claims` are the request's header fields, as far as they may say who asks. `peer_ip` is the
    address of the connection's other end; an empty one means a unix socket, which is trusted as the file's
    permissions are. So where an address could not be learnt (a connection that is gone), pass any text that
    is not an address.

    Both look-ups raise `IdentityMissing` or `IdentityInvalid`; `resolve` may also raise
    `IdentityUnavailable`.
    """

    own_header: bytes
    """The header that only the gateway may set, in lower case: a client's is never forwarded."""

    challenge: bytes
    """What a 401 asks for (RFC 9110 section 11.6.1)."""

    def peek(self, peer_ip: str, claims: Claims) -> str | None:
        """The account, without waiting; None where a signing key must be fetched first. Header mode never
        waits."""

    async def resolve(self, peer_ip: str, claims: Claims) -> str:
        """The account; fetches signing keys where `peek` returned None."""

    def forwarded_header(self, account_id: str) -> tuple[bytes, bytes]:
        """What tells the upstream who asks. It is set anew, in place of any that the client sent."""

    async def start(self) -> None:
        """Fetch the signing keys and keep them fresh from now on. Does not fail: without keys, `resolve`
        does."""

    async def reload(self) -> None:
        """Fetch the signing keys now."""

    async def close(self) -> None:
        """Stop keeping the keys fresh."""


def build(
    settings: config.Identity,
    id_pattern: str,
    http: aiohttp.ClientSession,
    clock: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
) -> Identity:
    """The way that the configuration names. `clock` is monotonic, `wall` seconds since the epoch: tokens
    expire by it."""
    if settings.mode == "header":
        return HeaderIdentity(settings, id_pattern)
    by_url = "://" in settings.jwks
    source = url_source(http, settings.jwks) if by_url else file_source(settings.jwks)
    poll_seconds = URL_POLL_SECONDS if by_url else FILE_POLL_SECONDS
    keys = Keys(source, settings.algorithms, clock, poll_seconds)
    return TokenIdentity(settings, id_pattern, keys, clock, wall)
