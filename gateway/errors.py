"""Every exception of the gateway on one page: whose fault it is, its reason, its status.

A subclass of `GatewayError` carries what a client may read: `reason` (a stable code of the contract), `status`,
and `detail`, one English sentence that says what happened, where, and what to do. Nothing here knows HTTP
libraries; `refusals` turns an error into a problem document (RFC 9457).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Mistake:
    """One mistake in a configuration or policy file: which file, which key (`routes[2].path`), what is wrong
    and what was expected instead."""

    file: str
    key: str
    problem: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {self.problem}" if self.key else f"{self.file}: {self.problem}"


class ConfigurationError(Exception):
    """The operator's fault. Holds every mistake that was found, in the order of the files."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("\n".join(map(str, mistakes)))
        self.mistakes = mistakes


class GatewayError(Exception):
    """A request that the gateway answers itself."""

    status: ClassVar[int]
    reason: ClassVar[str]
    retry_after_seconds: int | None = None
    closes: ClassVar[bool] = False
    """Whether the connection is closed after the answer, because its framing can't be trusted any more."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class ClientError(GatewayError):
    """The client's fault: the same request, sent again, fails again."""


class AddressMalformed(ClientError):
    status, reason = 400, "address_malformed"


class MethodRefused(AddressMalformed):
    """CONNECT and its like: what follows is no HTTP to one reader, and a body or a request to another."""

    closes = True


class HeadersMalformed(ClientError):
    status, reason, closes = 400, "headers_malformed", True


class BodyMalformed(ClientError):
    status, reason = 400, "body_malformed"


class BodyIncomplete(BodyMalformed):
    """The body did not come whole, so where the next request begins is not known."""

    closes = True


class IdentityMissing(ClientError):
    status, reason = 401, "identity_missing"


class IdentityInvalid(ClientError):
    status, reason = 401, "identity_invalid"


class NotSessionOwner(ClientError):
    status, reason = 403, "not_session_owner"


class NotAccountOwner(ClientError):
    status, reason = 403, "not_account_owner"


class RouteUnknown(ClientError):
    """Only where `listen.deny_unmatched` makes the gateway an allow-list, and under the gateway's own prefix."""

    status, reason = 404, "route_unknown"


class SessionUnknown(ClientError):
    status, reason = 404, "session_unknown"


class ProductUnknown(ClientError):
    status, reason = 404, "product_unknown"


class AccountUnknown(ClientError):
    status, reason = 404, "account_unknown"


class MethodNotAllowed(ClientError):
    """`allow` are the methods that there are (RFC 9110 section 15.5.6)."""

    status, reason = 405, "method_not_allowed"

    def __init__(self, detail: str, allow: str = "GET") -> None:
        super().__init__(detail)
        self.allow = allow


class SessionEnded(ClientError):
    status, reason = 409, "session_ended"


class LengthRequired(ClientError):
    status, reason = 411, "length_required"


class BodyTooLarge(ClientError):
    status, reason, closes = 413, "body_too_large", True


class MediaTypeUnsupported(ClientError):
    status, reason = 415, "media_type_unsupported"


class TooManyRequests(ClientError):
    """A limit of `[limits]`: the next request passes after so many seconds. `account_id`: whose, where it is one of an
    account."""

    status, reason = 429, "too_many_requests"

    def __init__(self, detail: str, retry_after_seconds: int = 1, account_id: str | None = None) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds
        self.account_id = account_id


class HeadersTooLarge(ClientError):
    status, reason, closes = 431, "headers_too_large", True


UNFORESEEN = "Something unforeseen went wrong in this gateway: its log says what, under the decision id."


class InternalError(GatewayError):
    """The gateway's own fault: what went wrong is in its log, under the decision id."""

    status, reason = 500, "internal_error"


class DependencyError(GatewayError):
    """Something behind the gateway failed: the same request may succeed later."""


class UpstreamUnreachable(DependencyError):
    status, reason = 502, "upstream_unreachable"


class UpstreamTimeout(DependencyError):
    status, reason = 504, "upstream_timeout"


class LedgerUnavailable(DependencyError):
    status, reason, retry_after_seconds = 503, "ledger_unavailable", 1


class DirectoryUnavailable(DependencyError):
    status, reason, retry_after_seconds = 503, "directory_unavailable", 1


class IdentityUnavailable(DependencyError):
    """The keys that tokens are verified with could not be had, so it is not known whether this one is good."""

    status, reason, retry_after_seconds = 503, "identity_unavailable", 1


class SessionUnsettled(DependencyError):
    """A replace in this session has an unknown outcome: until it is known, a start could let a product in over
    the cap (N6)."""

    status, reason, retry_after_seconds = 503, "session_unsettled", 2


class Overloaded(DependencyError):
    status, reason, retry_after_seconds = 503, "overloaded", 1


class Draining(DependencyError):
    status, reason, retry_after_seconds = 503, "draining", 1
