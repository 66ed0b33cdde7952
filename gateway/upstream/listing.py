"""The products of one session as the upstream lists them: the whole list, or an error.

The reconciler commits and releases slots by this list, and a rebuild counts by it. A product that is missing
from it is taken as not attached, so a list in part would give slots back that are in use: over the cap. Hence
whatever hints at more (a cursor, a next page, a total above what came) is an error and not a shorter list.

Knows nothing about the ledger, and keeps nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from gateway import fetch
from gateway.config import Config, Upstream
from gateway.errors import SessionUnknown, UpstreamTimeout, UpstreamUnreachable
from gateway.policy.model import Product
from gateway.tasks import within
from gateway.upstream.lookups import Lookups
from gateway.upstream.pool import UpstreamAnswer

log = structlog.get_logger(__name__)

LIMIT_BYTES = 8 * 1024 * 1024
LISTS_AT_ONCE = 64
"""On connections of their own: where the upstream's lists hang, the directory's answers do not wait behind them."""


class _List(msgspec.Struct):
    """The upstream's answer, with the members by which well-known APIs say that there is more."""

    products: list[Product]
    session_id: str | None = None
    next: Any = None
    next_cursor: Any = None
    next_page: Any = None
    next_page_token: Any = None
    has_more: Any = None
    truncated: Any = None
    total: Any = None
    total_count: Any = None


_decoder = msgspec.json.Decoder(_List)


def lists(upstream: Upstream, clock: Callable[[], float]) -> Lookups:
    """Where lists come from: connections of their own. `clock`: monotonic seconds."""
    return Lookups(
        upstream,
        upstream.url,
        limit_bytes=LIMIT_BYTES,
        timeout_seconds=upstream.response_timeout_seconds,
        max_connections=LISTS_AT_ONCE,
        clock=clock,
    )


async def list_products(lookups: Lookups, config: Config, session_id: str) -> tuple[Product, ...]:
    """Every product of the session, asked now. `lookups`: see `lists`.

    Raises `SessionUnknown` where the upstream knows no such session, `Overloaded` where too many lists are asked for
    already, `UpstreamTimeout` where no whole answer came in time, and `UpstreamUnreachable` for everything else that is
    not a whole list."""
    path = fetch.Template(config.directory.list_path, "{session_id}").path(session_id)
    if path is None:
        raise SessionUnknown(f"No session can have the id {session_id!r}.")
    limit_seconds = config.upstream.response_timeout_seconds
    try:
        async with within(limit_seconds):
            answer = await lookups.get(path)
    except TimeoutError:
        answer = fetch.late(limit_seconds)
    if isinstance(answer, fetch.Failure):
        log.warning("list_failed", session_id=session_id, why=answer.why, cause=answer.cause)
        error = UpstreamTimeout if answer.timed_out else UpstreamUnreachable
        raise error(f"The product list of session {session_id} was not to be had: {answer.why}.")
    if answer.status == 404:
        raise SessionUnknown(f"Session {session_id} is not known to the upstream.")
    if answer.status != 200:
        raise UpstreamUnreachable(
            f"The upstream answered {answer.status} when asked for the product list of session {session_id}."
        )
    return _whole(answer, session_id)


def _whole(answer: UpstreamAnswer, session_id: str) -> tuple[Product, ...]:
    listed = fetch.decode(_decoder, answer.body)
    if isinstance(listed, fetch.Failure):
        raise UpstreamUnreachable(f"The product list of session {session_id} can't be used: {listed.why}.")
    if listed.session_id is not None and listed.session_id != session_id:
        raise UpstreamUnreachable(f"Asked for the product list of session {session_id}, got another session's.")
    hint = _more(listed) or _next_link(answer)
    if hint:
        raise UpstreamUnreachable(
            f"The product list of session {session_id} is one page of several ({hint}): only a list "
            "that comes whole can be used. Let `directory.list_path` ask for all products."
        )
    return tuple(listed.products)


def _more(listed: _List) -> str:
    """The member that says there is more than what came, or an empty string."""
    for name in ("next", "next_cursor", "next_page", "next_page_token", "has_more", "truncated"):
        if getattr(listed, name):
            return name
    for name in ("total", "total_count"):
        total = getattr(listed, name)
        if isinstance(total, int | float) and total > len(listed.products):
            return name
    return ""


def _next_link(answer: UpstreamAnswer) -> str:
    """RFC 8288: pages may be announced in a Link header."""
    for name, value in answer.headers:
        if name.lower() != b"link":
            continue
        for parameter in value.decode("latin-1").replace(",", ";").split(";"):
            key, _, kinds = parameter.partition("=")
            if key.strip().lower() == "rel" and "next" in kinds.strip().strip('"').lower().split():
                return "Link"
    return ""
