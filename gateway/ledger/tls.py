"""TLS to Redis: what is trusted and shown, kept ready for every connection; and what its failures mean.

redis-py makes a new `SSLContext` for each connection, and each reads the system's certificates anew, which holds up
the event loop for 25 ms: four times a second while Redis is away. Here all connections of a `ledger.url` share one. It
is made again when one of its files changes, so that renewed certificates are taken over by the next connection; files
that don't fit each other, as in the middle of a renewal, leave the old one in force.

`ssl_ca_certs` is all that is trusted where it is given. redis-py would trust the system's certificates besides.
"""

from __future__ import annotations

import os
import ssl
from contextlib import suppress
from typing import Any

import structlog
from redis.asyncio.connection import RedisSSLContext, SSLConnection

_UNTRUSTED = (
    "The certificate of Redis at ledger.url is not trusted ({}); see whether ssl_ca_certs in ledger.url names the"
    " authority that signed it, and whether it is for that host."
)
_SHOW_ONE = (
    "Redis at ledger.url refuses this gateway's certificate, or asks for one ({}); see ssl_certfile and ssl_keyfile in"
    " ledger.url, and tls-auth-clients and tls-ca-cert-file in Redis."
)
_NO_TLS = "Redis at ledger.url does not answer with TLS ({}); see whether that is its tls-port, or write redis://."
_FILES = "A file that ssl_ca_certs, ssl_certfile or ssl_keyfile in ledger.url names can't be used ({}); correct it."

log = structlog.get_logger(__name__)


def shared() -> type[SSLConnection]:
    """A class of connections that share what is trusted and shown."""
    contexts = _Contexts()

    class Shared(SSLConnection):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.ssl_context.context = contexts.current(self.ssl_context)

    return Shared


class Files(Exception):
    """What `ledger.url` names can't be read, or is no certificate or key."""


class _Contexts:
    def __init__(self) -> None:
        self._context: ssl.SSLContext | None = None
        self._stamp: list[tuple[int, int]] = []

    def current(self, wanted: RedisSSLContext) -> ssl.SSLContext:
        """Raises `Files` where none can be made, and none was before."""
        stamp = [_stamp(file) for file in (wanted.ca_certs, wanted.certfile, wanted.keyfile) if file]
        if self._context is None or stamp != self._stamp:
            try:
                self._context = _made(wanted)
            except (OSError, ValueError) as error:
                if self._context is None:
                    raise Files(str(error)) from error
                log.warning("ledger_certificates_kept", error=str(error)[:300])
            self._stamp = stamp
        return self._context


def _stamp(file: str) -> tuple[int, int]:
    with suppress(OSError):
        found = os.stat(file)
        return found.st_mtime_ns, found.st_ino
    return (0, 0)


def _made(wanted: RedisSSLContext) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=wanted.ca_certs, capath=wanted.ca_path, cadata=wanted.ca_data)
    context.check_hostname = wanted.check_hostname
    context.verify_mode = wanted.cert_reqs
    for flag in wanted.include_verify_flags or ():
        context.verify_flags |= flag
    for flag in wanted.exclude_verify_flags or ():
        context.verify_flags &= ~flag
    if wanted.certfile:
        context.load_cert_chain(wanted.certfile, wanted.keyfile, wanted.password)
    if wanted.min_version is not None:
        context.minimum_version = wanted.min_version
    if wanted.ciphers is not None:
        context.set_ciphers(wanted.ciphers)
    return context


def problem_of(error: BaseException) -> str | None:
    """What an error says about TLS; None where it is not about TLS."""
    if isinstance(error, Files):
        return _FILES.format(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return _UNTRUSTED.format(error.verify_message)
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or str(error)).replace("_", " ").lower()
        alert = "alert" in reason and ("certificate" in reason or "unknown ca" in reason)
        return (_SHOW_ONE if alert else _NO_TLS).format(reason)
    return None
