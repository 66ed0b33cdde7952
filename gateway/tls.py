"""TLS contexts from the files that the configuration names: for those who come in, and for where the gateway goes.

At least TLS 1.2, no renegotiation, HTTP/1.1 in ALPN. A file that can't be used is said with its key, before anything
listens by it. A listener's certificate can be changed while it is open: connections stay, and the next handshake gets
the new one.

Knows nothing about what runs over it.
"""

from __future__ import annotations

import ssl

from gateway import config
from gateway.errors import Mistake

_ALPN = ["http/1.1"]


class Unusable(Exception):
    """A file can't be used. `key`: which of its table's keys names it; `problem`: what is wrong, and what to do."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key
        self.problem = problem


class ServerTls:
    """What a listener shows, and asks of its clients. `context` is for the listener, and stays the same.

    OpenSSL asks for the certificate in the middle of each handshake; there the newest context is handed out, whole. To
    load new files into the one in use could leave a new certificate there beside an old key.
    """

    def __init__(self, files: config.ServerTls) -> None:
        """Raises `Unusable`."""
        self._files = files
        self.context = _server(files)
        self._newest = self.context
        self.context.sni_callback = self._choose

    def _choose(self, handshake: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        handshake.context = self._newest

    def reload(self, files: config.ServerTls) -> None:
        """Read the files anew. Raises `Unusable`; then all stays as it is, and also where the files are not of the same
        kind."""
        if same_kind(self._files, files):
            self._newest = _server(files)


def same_kind(before: config.ServerTls, after: config.ServerTls) -> bool:
    """Whether a listener that is open can change from one to the other: TLS or not, and whether clients are asked for
    certificates, is fixed; with which files is not."""
    return (bool(before.certificate), bool(before.client_ca)) == (bool(after.certificate), bool(after.client_ca))


def server(files: config.ServerTls) -> ServerTls | None:
    """None where no certificate is named: plain HTTP. Raises `Unusable`."""
    return ServerTls(files) if files.certificate else None


def _server(files: config.ServerTls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    _load_chain(context, files.certificate, files.key)
    if files.client_ca:
        _load_ca(context, "client_ca", files.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
        # A resumed session would not be checked again: who signs may have changed meanwhile.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def client(files: config.ClientTls) -> ssl.SSLContext:
    """What is asked of a server: a certificate for its name, signed by `ca`, or by those whom the system trusts.
    Raises `Unusable`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _harden(context)
    if files.ca:
        _load_ca(context, "ca", files.ca)
    else:
        context.load_default_certs()
    if files.certificate:
        _load_chain(context, files.certificate, files.key)
    return context


def mistakes(settings: config.Config, file: str) -> list[Mistake]:
    """What is wrong with the files that the tables of the configuration name."""
    found = []
    for table, files in (("listen.tls", settings.listen.tls), ("listen.admin_tls", settings.listen.admin_tls)):
        try:
            server(files)
        except Unusable as error:
            found.append(Mistake(file, f"{table}.{error.key}", error.problem))
    try:
        client(settings.upstream.tls)
    except Unusable as error:
        found.append(Mistake(file, f"upstream.tls.{error.key}", error.problem))
    return found


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(_ALPN)


def _load_ca(context: ssl.SSLContext, key: str, path: str) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError:
        raise Unusable(key, f"{path} holds no certificates in PEM form") from None
    except OSError as error:
        raise _unreadable(key, path, error) from None


def _load_chain(context: ssl.SSLContext, certificate: str, key: str) -> None:
    for name, path in (("certificate", certificate), ("key", key)):
        try:
            if path:
                with open(path, "rb"):
                    pass
        except OSError as error:
            raise _unreadable(name, path, error) from None
    place, path = ("key", key) if key else ("certificate", certificate)
    try:
        context.load_cert_chain(certificate, key or None, password=_no_password)
    except _Encrypted:
        raise Unusable(place, f"the key in {path} is encrypted, and there is nobody to ask: decrypt it") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise Unusable(place, f"the key in {path} is not that of the certificate in {certificate}") from None
        hint = "the certificate, those between it and its root, and its key, in PEM form"
        raise Unusable(place, f"{certificate} and {path} are expected to hold {hint}") from None


class _Encrypted(Exception):
    pass


def _no_password() -> str:
    """Without it, OpenSSL asks at the terminal."""
    raise _Encrypted


def _unreadable(key: str, path: str, error: OSError) -> Unusable:
    return Unusable(
        key, f"{path} can't be read ({error.strerror or type(error).__name__}); check the path and its rights"
    )
