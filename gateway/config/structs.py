"""gateway.toml as frozen structs: every key, its type, its default and its limits. Times are seconds.

What must hold between keys, and what a type can't say, is in `checks`, `routes` and `ids`. A `Meta`
description is what an operator is told was expected.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Operation = Literal["create", "start", "end", "attach", "detach", "replace", "filter"]

_UPSTREAM_URL = 'the address of the product-attach API, such as "http://attach.internal:9000"'
_PREFIX = "1 to 32 of the characters A-Z a-z 0-9 _ . -"


class ServerTls(Struct, frozen=True, forbid_unknown_fields=True):
    """Files in PEM form. Without a certificate: no TLS. The key may stand in the certificate's file; `client_ca`: who
    signs the certificates of clients, which then need one."""

    certificate: str = ""
    key: str = ""
    client_ca: str = ""


class ClientTls(Struct, frozen=True, forbid_unknown_fields=True):
    """Files in PEM form. `ca`: who signs the server's certificate, instead of those whom the system trusts; the others
    are the gateway's own, for a server that asks for one."""

    ca: str = ""
    certificate: str = ""
    key: str = ""


class Listen(Struct, frozen=True, forbid_unknown_fields=True):
    """The public and the admin listener. Port 0 takes a free one. `admin_token_file` is where `admin_token` stands
    instead; whoever loads the configuration reads it."""

    host: str = "127.0.0.1"
    port: Port = 8080
    admin_host: str = "127.0.0.1"
    admin_port: Port = 8081
    admin_token: str = ""
    admin_token_file: str = ""
    client_prefix: str = "/_gateway/"
    drain_seconds: Seconds = 10.0
    max_body_bytes: Annotated[int, Meta(ge=1, le=16_777_216)] = 262_144
    max_header_bytes: Annotated[int, Meta(ge=1024, le=1_048_576)] = 16_384
    max_headers: Annotated[int, Meta(ge=8, le=1000)] = 100
    max_connections: Annotated[int, Meta(ge=1)] = 10_000
    forwarded_hops: Annotated[int, Meta(ge=0, le=16)] = 0
    header_timeout_seconds: Seconds = 15.0
    body_timeout_seconds: Seconds = 15.0
    keepalive_seconds: Seconds = 75.0
    stall_seconds: Seconds = 60.0
    deny_unmatched: bool = False
    tls: ServerTls = ServerTls()
    admin_tls: ServerTls = ServerTls()


class Upstream(Struct, frozen=True, forbid_unknown_fields=True):
    """The product-attach API. `stall_seconds`: how long it may take nothing of a request, or send nothing more of an
    answer that has begun. `max_queue`: of each route. `late_apply_seconds`: the longest time after a lost answer within
    which it may still apply the request."""

    url: Annotated[str, Meta(description=_UPSTREAM_URL)]
    connect_timeout_seconds: Seconds = 2.0
    response_timeout_seconds: Seconds = 10.0
    stall_seconds: Seconds = 5.0
    max_connections: Annotated[int, Meta(ge=1, le=65535)] = 256
    max_queue: Annotated[int, Meta(ge=0, le=65535)] = 512
    keepalive_seconds: Seconds = 15.0
    max_answer_bytes: Annotated[int, Meta(ge=1024)] = 8_388_608
    late_apply_seconds: Annotated[float, Meta(ge=0, le=86400)] = 30.0
    tls: ClientTls = ClientTls()


class Ledger(Struct, frozen=True, forbid_unknown_fields=True):
    """`hold_seconds`: how long a gateway may take from a reserve to the upstream's answer; a reservation
    older than that belongs to a gateway that died. `stream_entries`: how many events a bucket's stream
    keeps. `sweep_sessions_per_second`: of all gateways together, for each of Redis' servers; 0 is no sweep.
    `replicas`: how many must have a slot before it counts, with durability "replicated"."""

    url: str = "redis://127.0.0.1:6379/0"
    timeout_seconds: Seconds = 0.25
    hold_seconds: Seconds = 20.0
    retention_seconds: Seconds = 604_800.0
    stream_entries: Annotated[int, Meta(ge=16, le=1_000_000)] = 1000
    sweep_sessions_per_second: Annotated[float, Meta(ge=0, le=1000)] = 2.0
    durability: Literal["primary", "replicated"] = "primary"
    replicas: Annotated[int, Meta(ge=1, le=16)] = 1
    prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,32}\Z", description=_PREFIX)] = "ag"


class Identity(Struct, frozen=True, forbid_unknown_fields=True):
    """Who is asking: a header, believed only from trusted peers, or a signed token (RFC 7519)."""

    mode: Literal["header", "jwt"] = "header"
    header: str = "X-Account-Id"
    trusted_peers: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    issuer: str = ""
    audience: str = ""
    algorithms: tuple[str, ...] = ()
    jwks: str = ""
    claim: str = "sub"
    leeway_seconds: Annotated[float, Meta(ge=0, le=300)] = 5.0


class Directory(Struct, frozen=True, forbid_unknown_fields=True):
    """Where accounts, products and sessions are looked up, and how long an answer is believed."""

    url: str = ""
    account_path: str = "/accounts/{account_id}"
    product_path: str = "/products/{product_id}"
    session_path: str = "/live/sessions/{session_id}"
    list_path: str = "/live/sessions/{session_id}/products"
    timeout_seconds: Seconds = 2.0
    ttl_seconds: Annotated[float, Meta(ge=0, le=31_536_000)] = 5.0
    negative_ttl_seconds: Annotated[float, Meta(ge=0, le=31_536_000)] = 1.0
    stale_if_error_seconds: Annotated[float, Meta(ge=0, le=86400)] = 30.0
    max_entries: Annotated[int, Meta(ge=16)] = 100_000


class Journal(Struct, frozen=True, forbid_unknown_fields=True):
    """What `attachgate journal` has written, for sessions that the ledger loses. `files`: a path with `*`, relative to
    the configuration's own folder; empty means none. `max_products`: how many are held in memory while that is
    needed."""

    files: str = ""
    max_products: Annotated[int, Meta(ge=1000, le=100_000_000)] = 1_000_000


class PolicyFile(Struct, frozen=True, forbid_unknown_fields=True):
    """`file` is relative to the configuration's own folder; empty means the notice as shipped."""

    file: str = ""


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """The rates hold for each gateway process by itself; 0 is no limit. `…_burst`: requests at once before a rate
    holds. A peer is a client's address, as `listen.forwarded_hops` finds it; `peer_connections` are of the address
    that connects."""

    id_pattern: str = r"[A-Za-z0-9._:-]{1,128}"
    max_batch_products: Annotated[int, Meta(ge=1, le=1000)] = 100
    account_requests_per_second: Annotated[float, Meta(ge=0, le=1_000_000)] = 0.0
    account_burst: Annotated[int, Meta(ge=1, le=1_000_000)] = 100
    peer_requests_per_second: Annotated[float, Meta(ge=0, le=1_000_000)] = 0.0
    peer_burst: Annotated[int, Meta(ge=1, le=1_000_000)] = 200
    peer_connections: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


class Route(Struct, frozen=True, forbid_unknown_fields=True):
    """A request that the gateway understands.

    `product_ids` are JSON pointers (RFC 6901) into the body, `*` for each element; `applied_ids` points into
    the answer, to what was applied; `extra_members` names body members that are forwarded besides those that
    the pointers name; `already_there` are statuses that mean the product was attached before.
    """

    operation: Operation
    method: str
    path: str
    surface: Literal["live_room", "showcase", "short_video", ""] = ""
    product_ids: tuple[str, ...] = ()
    applied_ids: str = ""
    extra_members: tuple[str, ...] = ()
    already_there: tuple[int, ...] = ()
    batch: Literal["all_or_nothing"] = "all_or_nothing"


_IDS = ("/product_id", "/product_ids/*")

DEFAULT_ROUTES: tuple[Route, ...] = (
    Route("create", "POST", "/live/sessions", extra_members=("session_id", "account_id", "title")),
    Route("start", "POST", "/live/sessions/{session_id}/start"),
    Route("end", "POST", "/live/sessions/{session_id}/end"),
    Route("attach", "POST", "/live/sessions/{session_id}/products", "live_room", _IDS, "/attached/*"),
    Route("detach", "DELETE", "/live/sessions/{session_id}/products/{product_id}", "live_room"),
    Route("replace", "PUT", "/live/sessions/{session_id}/products/{product_id}", "live_room", ("/product_id",)),
    Route("attach", "POST", "/accounts/{account_id}/showcase/products", "showcase", _IDS, "/attached/*"),
    Route("filter", "GET", "/accounts/{account_id}/showcase/addable", "showcase"),
    Route(
        "attach",
        "POST",
        "/accounts/{account_id}/videos/{video_id}/products",
        "short_video",
        _IDS,
        "/attached/*",
    ),
)


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    upstream: Upstream
    listen: Listen = Listen()
    ledger: Ledger = Ledger()
    identity: Identity = Identity()
    directory: Directory = Directory()
    policy: PolicyFile = PolicyFile()
    journal: Journal = Journal()
    limits: Limits = Limits()
    routes: tuple[Route, ...] = DEFAULT_ROUTES
