"""What must hold of gateway.toml besides the types: addresses, networks, names, and what one key asks of
another.

Each check says what to do. A key that is wrong already is not judged again. No message shows an address: it
may hold a password.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, parse_qsl, urlsplit

from gateway.config import ids, routes
from gateway.config.structs import ClientTls, Config, Directory, Identity, Listen, ServerTls
from gateway.config.tables import Findings, shown, suggestion

_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_TLS = (*_TLS_FILES, "ssl_ca_path", "ssl_password", "ssl_cert_reqs", "ssl_check_hostname", "ssl_ciphers")
_OF_ONE = ("db", "username", "password", "client_name")
_LEDGER_PARAMETERS = {
    "redis": _OF_ONE,
    "rediss": (*_OF_ONE, *_TLS),
    "unix": _OF_ONE,
    "redis+sentinel": ("tls", *_TLS, "sentinel_username", "sentinel_password"),
    "redis+cluster": ("tls", *_TLS),
}
LEDGER_SCHEMES = tuple(_LEDGER_PARAMETERS)
SHARED_SECRET = frozenset({"HS256", "HS384", "HS512"})
ALGORITHMS = (
    *("RS256", "ES256", "EdDSA", "HS256", "HS384", "HS512", "RS384", "RS512"),
    *("ES384", "ES512", "PS256", "PS384", "PS512"),
)
_FRAMING_HEADERS = frozenset(
    (
        "host",
        "connection",
        "content-length",
        "content-type",
        "transfer-encoding",
        "te",
        "trailer",
        "upgrade",
        "expect",
    )
)
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_HOST = re.compile(r"[A-Za-z0-9_.:%-]+")
MIN_TOKEN_CHARS, MAX_TOKEN_CHARS = 16, 512
_TOKEN = re.compile(rf"[A-Za-z0-9._~+/=-]{{{MIN_TOKEN_CHARS},{MAX_TOKEN_CHARS}}}")
_PREFIX = re.compile(r"/(?:[A-Za-z0-9_~-][A-Za-z0-9._~-]*/)+")


def check(config: Config, findings: Findings) -> None:
    """Add every mistake between the keys to the findings."""
    _check_listen(config.listen, findings)
    _check_tls(config, findings)
    _check_http_address("upstream.url", config.upstream.url, findings)
    if config.directory.url:
        _check_http_address("directory.url", config.directory.url, findings)
    _check_directory_paths(config.directory, findings)
    if not findings.has("ledger.url") and (problem := _ledger_problem(config.ledger.url)):
        findings.add("ledger.url", problem)
    _check_hold(config, findings)
    _check_identity(config.identity, findings)
    if not findings.has("limits.id_pattern") and (problem := ids.problem(config.limits.id_pattern)):
        findings.add("limits.id_pattern", problem)
    routes.check(config.routes, config.listen.client_prefix, findings)


def _check_listen(listen: Listen, findings: Findings) -> None:
    for name, host in (("host", listen.host), ("admin_host", listen.admin_host)):
        if not findings.has(f"listen.{name}") and not _HOST.fullmatch(host):
            findings.add(f"listen.{name}", f'expected an address or a host name, such as "0.0.0.0", got {shown(host)}')
    _check_admin(listen, findings)
    same_host = listen.host in (listen.admin_host, "0.0.0.0", "::")
    if listen.port and listen.port == listen.admin_port and same_host and not findings.has("listen.port"):
        findings.add("listen.admin_port", f"the same as listen.port ({listen.port}); choose another one")
    if not findings.has("listen.client_prefix") and not _PREFIX.fullmatch(listen.client_prefix):
        findings.add(
            "listen.client_prefix",
            'expected a path that starts and ends with "/", such as "/_gateway/", got ' + shown(listen.client_prefix),
        )


def _check_tls(config: Config, findings: Findings) -> None:
    tables: tuple[tuple[str, ServerTls | ClientTls], ...] = (
        ("listen.tls", config.listen.tls),
        ("listen.admin_tls", config.listen.admin_tls),
        ("upstream.tls", config.upstream.tls),
    )
    for table, files in tables:
        needs = files.key or (isinstance(files, ServerTls) and files.client_ca)
        if needs and not files.certificate and not findings.has(table):
            findings.add(f"{table}.certificate", f"missing: the other keys of [{table}] go with a certificate")
    urls = config.upstream.url, config.directory.url
    if config.upstream.tls != ClientTls() and not any(url.startswith("https:") for url in urls):
        findings.add(
            "upstream.tls", "has no effect: upstream.url is no https:// address; correct it, or leave this out"
        )


def _check_admin(listen: Listen, findings: Findings) -> None:
    if listen.admin_token and listen.admin_token_file:
        findings.add("listen.admin_token_file", "stands beside listen.admin_token; keep one of them")
    if listen.admin_token and not findings.has("listen.admin_token") and (problem := token_problem(listen.admin_token)):
        findings.add("listen.admin_token", problem)
    asks = listen.admin_token or listen.admin_token_file or listen.admin_tls.client_ca
    if not findings.has("listen.admin_host") and not asks and not _is_loopback(listen.admin_host):
        findings.add(
            "listen.admin_host",
            "an admin port that asks for no credentials listens on 127.0.0.1, ::1 or localhost only; to open it, set "
            "listen.admin_token, listen.admin_token_file or listen.admin_tls.client_ca",
        )


def token_problem(token: str) -> str | None:
    """What is wrong with a token that the admin port shall ask for, or None. Never shows it."""
    if not _TOKEN.fullmatch(token):
        return (
            f"expected {MIN_TOKEN_CHARS} to {MAX_TOKEN_CHARS} of the characters A-Z a-z 0-9 . _ ~ + / = -, "
            'such as `python -c "import secrets; print(secrets.token_urlsafe())"` makes'
        )
    return None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _split(address: str) -> SplitResult | None:
    """The address taken apart, or None. urlsplit alone would drop line ends and tabs silently."""
    if not address.isascii() or any(char <= " " or char == "\x7f" for char in address):
        return None
    try:
        return urlsplit(address)
    except ValueError:
        return None


def _check_http_address(key: str, address: str, findings: Findings) -> None:
    if not findings.has(key) and (problem := http_problem(address)):
        findings.add(key, problem)


def http_problem(address: str) -> str | None:
    """What is wrong with an address that the gateway sends requests to, or None."""
    example = 'expected one such as "http://attach.internal:9000"'
    parts = _split(address)
    if parts is None:
        return f"not an address; {example}"
    if parts.scheme not in ("http", "https"):
        return f"an address starts with http:// or https://; {example}"
    if not parts.hostname or not _HOST.fullmatch(parts.hostname):
        return f"no host that could be looked up; {example}"
    if not _is_node(parts.netloc.rpartition("@")[2]):
        return f"the port is not a number from 1 to 65535; {example}"
    if "@" in parts.netloc:
        return f"user name and password are not supported in it; {example}"
    if "?" in address or "#" in address:
        return f"a query or fragment has no meaning in it; {example}"
    return None


def _ledger_problem(address: str) -> str | None:
    if address == "embedded":
        return None
    known = ", ".join(f"{scheme}://" for scheme in LEDGER_SCHEMES)
    parts = _split(address)
    if parts is None or "://" not in address or parts.scheme not in LEDGER_SCHEMES:
        hint = suggestion(address.partition("://")[0], LEDGER_SCHEMES) if "://" in address else ""
        hint = hint or suggestion(address, ["embedded"])
        return f'expected "embedded" or an address that starts with one of {known}{hint}'
    if parts.fragment:
        return "a fragment (#…) has no meaning in it; write # in a password as %23"
    if problem := _parameters_problem(parts.scheme, parts.query):
        return problem
    if parts.scheme == "unix":
        return None if len(parts.path) > 1 else 'no path; expected one such as "unix:///run/redis/redis.sock"'
    nodes = parts.netloc.rpartition("@")[2].split(",")
    several = parts.scheme in ("redis+sentinel", "redis+cluster")
    if not all(map(_is_node, nodes)) or (len(nodes) > 1 and not several):
        form = "host:port,host:port" if several else "host:port"
        return f"expected {parts.scheme}://{form}, with ports from 1 to 65535"
    path = parts.path.strip("/")
    if parts.scheme == "redis+sentinel" and ("/" in path or not path):
        return (
            'expected the service that Sentinel watches as its path, as in "redis+sentinel://a:26379,b:26379/mymaster"'
        )
    if parts.scheme == "redis+cluster" and path:
        return "Redis Cluster has no numbered databases; leave the path out"
    if not several and path and not (path.isdigit() and len(path) <= 5):
        return 'its path is the number of a database, as in "redis://host:6379/0"'
    return None


def _parameters_problem(scheme: str, query: str) -> str | None:
    """What is wrong with what stands behind the address's ?. Says no value, since one may be a password."""
    known, found = _LEDGER_PARAMETERS[scheme], dict(parse_qsl(query, keep_blank_values=True))
    for name in found:
        if name in _TLS and name not in known:
            return f"{name} has no effect on {scheme}://, which is without TLS; write rediss://"
        if name not in known:
            hint = suggestion(name, known) or "; there are " + ", ".join(known)
            return f"a parameter behind its ? means nothing there{hint}"
    if found.get("tls", "true") != "true":
        return "TLS is written ?tls=true there, and left out where there is none"
    if "tls" in known and "tls" not in found and (without := [name for name in found if name in _TLS]):
        return f"{without[0]} has no effect without TLS; add tls=true"
    return None


def ledger_files(address: str) -> dict[str, str]:
    """The files that the ledger's address names, by parameter."""
    parts = _split(address)
    return {name: file for name, file in parse_qsl(parts.query if parts else "") if name in _TLS_FILES}


def _is_node(node: str) -> bool:
    try:
        parts = urlsplit(f"//{node}")
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _check_hold(config: Config, findings: Findings) -> None:
    upstream = config.upstream
    longest = upstream.connect_timeout_seconds + upstream.response_timeout_seconds
    if findings.has("ledger.hold_seconds", "upstream.connect_timeout_seconds", "upstream.response_timeout_seconds"):
        return
    if config.ledger.hold_seconds <= longest:
        findings.add(
            "ledger.hold_seconds",
            f"{config.ledger.hold_seconds:g} s is not longer than upstream.connect_timeout_seconds and "
            f"upstream.response_timeout_seconds together ({longest:g} s): a request still running would be "
            "taken for one whose gateway died; raise it above that, or lower those",
        )


def _check_directory_paths(directory: Directory, findings: Findings) -> None:
    for name, placeholder in (
        ("account_path", "{account_id}"),
        ("product_path", "{product_id}"),
        ("session_path", "{session_id}"),
        ("list_path", "{session_id}"),
    ):
        key, path = f"directory.{name}", getattr(directory, name)
        if findings.has(key):
            continue
        rest = path.replace(placeholder, "")
        if path.count(placeholder) != 1 or "{" in rest or "}" in rest:
            findings.add(key, f"must contain {placeholder} exactly once and no other placeholder, got {shown(path)}")
        elif not path.startswith("/") or _split(rest) is None or "#" in path:
            findings.add(key, f'expected a path that starts with "/", got {shown(path)}')


def _check_identity(identity: Identity, findings: Findings) -> None:
    if not findings.has("identity.header"):
        if not _HEADER.fullmatch(identity.header):
            problem = f'expected a header\'s name of letters, digits and "-", got {shown(identity.header)}'
            findings.add("identity.header", problem)
        elif identity.header.lower() in _FRAMING_HEADERS:
            findings.add("identity.header", f"{identity.header} has a meaning of its own in HTTP; choose another name")
    _check_peers(identity, findings)
    _check_algorithms(identity, findings)
    if identity.mode == "jwt" and not findings.has("identity.mode"):
        for name, what in (
            ("jwks", "where the keys are: a file or an address"),
            ("algorithms", 'the algorithms that a token may be signed with, such as ["RS256"]'),
            ("issuer", "the issuer that a token must name (iss)"),
            ("audience", "the audience that a token must name (aud)"),
        ):
            if not getattr(identity, name) and not findings.has(f"identity.{name}"):
                findings.add(f"identity.{name}", f'mode = "jwt" needs {what}')
        if not identity.claim and not findings.has("identity.claim"):
            findings.add("identity.claim", 'expected the claim that names the account, such as "sub"')
    if "://" in identity.jwks and not findings.has("identity.jwks"):
        address, _, fragment = identity.jwks.partition("#")
        if fragment or http_problem(address.partition("?")[0]):
            findings.add("identity.jwks", 'expected a file, or an address such as "https://id.internal/jwks.json"')


def _check_peers(identity: Identity, findings: Findings) -> None:
    if not identity.trusted_peers and identity.mode == "header" and not findings.has("identity.trusted_peers"):
        problem = "nobody would be believed, and every attach refused; name the networks of the proxies in front"
        findings.add("identity.trusted_peers", problem)
    for index, peer in enumerate(identity.trusted_peers):
        key = f"identity.trusted_peers[{index}]"
        if findings.has(key):
            continue
        try:
            ipaddress.ip_network(peer)
        except ValueError:
            findings.add(key, f'expected a network such as "10.0.0.0/8", got {shown(peer)}{_network_hint(peer)}')


def _network_hint(peer: str) -> str:
    try:
        return f'; did you mean "{ipaddress.ip_network(peer, strict=False)}"?'
    except ValueError:
        return ""


def _check_algorithms(identity: Identity, findings: Findings) -> None:
    for index, algorithm in enumerate(identity.algorithms):
        key = f"identity.algorithms[{index}]"
        if findings.has(key) or algorithm in ALGORITHMS:
            continue
        if algorithm.lower() == "none":
            findings.add(key, '"none" means unsigned: anybody could be anybody; remove it')
        else:
            hint = suggestion(algorithm, ALGORITHMS) or "; there are " + ", ".join(ALGORITHMS)
            findings.add(key, f"unknown algorithm {shown(algorithm)}{hint}")
    chosen = set(identity.algorithms) & set(ALGORITHMS)
    if chosen & SHARED_SECRET and chosen - SHARED_SECRET:
        findings.add(
            "identity.algorithms",
            "HS… (one shared secret) can't stand beside algorithms with public keys: a token could be signed "
            "with the public key as if it were the secret (algorithm confusion); keep one kind",
        )
