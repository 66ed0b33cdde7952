"""A verdict or an error as a problem document (RFC 9457), with its status and headers.

Promises: the `detail` of a refusal by the rules is the policy's own text, letter for letter; an answer is
made for every error, even one whose texts are missing; what an error quotes of a request can't break the
encoding. Knows no HTTP library and no clock.

A full session is refused over and over, and its refusals differ in what was asked and in their decision's id only: the
rest is encoded once and kept (`refusal_body`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from gateway.errors import GatewayError
from gateway.policy.model import SessionState, Surface, Verdict
from gateway.refusals import texts
from gateway.refusals.advice import PURE_CREATOR_OFFER_ENDS, Help, SlotView, advise, advise_error
from gateway.refusals.language import DEFAULT_LANGUAGE, Language

PolicyReason = Literal["foreign_cap_reached", "foreign_not_allowed", "replace_after_start"]
HeaderList = tuple[tuple[str, str], ...]

MAX_REMEMBERED = 16_384
"""Refusals of as many full sessions, some 1.5 KB each. Fewer than are refused in turn would remember none."""

_MAX_TECHNICAL_CHARS = 500
_encode = msgspec.json.Encoder().encode


class ProductVerdict(msgspec.Struct, frozen=True, gc=False):
    """What became of one product of the request. `reason` only where it was refused."""

    product_id: str
    verdict: Literal["allowed", "refused"]
    reason: str | UnsetType = UNSET


class Problem(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The document, its members in the order in which a reader wants them. Unset members are left out."""

    type: str
    title: str
    status: int
    detail: str
    reason: str
    rule: str | UnsetType = UNSET
    surface: Surface | UnsetType = UNSET
    session_id: str | UnsetType = UNSET
    decision_id: str | UnsetType = UNSET
    policy_version: str | UnsetType = UNSET
    cap: int | UnsetType = UNSET
    used: int | UnsetType = UNSET
    remaining: int | UnsetType = UNSET
    products: list[ProductVerdict] | UnsetType = UNSET
    slots: Sequence[SlotView] | UnsetType = UNSET
    help: Sequence[Help] | UnsetType = UNSET


class Answer(NamedTuple):
    status: int
    headers: HeaderList
    body: bytes


def policy_reason(verdict: Verdict) -> PolicyReason:
    """Why a foreign product is refused under a verdict with a cap."""
    return "foreign_not_allowed" if verdict.cap == 0 else "foreign_cap_reached"


def _set(value: str | None) -> str | UnsetType:
    return UNSET if value is None else value


def _products(products: Iterable[tuple[str, bool, str | None]]) -> list[ProductVerdict]:
    return [
        ProductVerdict(product_id, "allowed" if allowed else "refused", UNSET if reason is None else reason)
        for product_id, allowed, reason in products
    ]


def _message(verdict: Verdict, reason: PolicyReason, language: Language) -> str:
    if reason == "replace_after_start":
        return texts.REPLACE_AFTER_START[language]
    message = verdict.message
    return message.get(language) or message.get(DEFAULT_LANGUAGE) or texts.TITLES[reason][language]


class _Case(NamedTuple):
    """What the refusals of one full session have in common."""

    reason: PolicyReason
    rule: str
    surface: Surface
    language: Language
    detail: str
    policy_version: str
    cap: int | None
    used: int | None
    slots: tuple[SlotView, ...]
    state: SessionState | None
    pure_creator_on_offer: bool


def _case(
    verdict: Verdict,
    reason: PolicyReason,
    surface: Surface,
    language: Language,
    now: float,
    state: SessionState | None,
    used: int | None,
    slots: tuple[SlotView, ...],
) -> _Case:
    return _Case(
        reason,
        refused_by(verdict, reason),
        surface,
        language,
        _message(verdict, reason, language),
        verdict.policy_version,
        verdict.cap,
        used,
        slots,
        state,
        now < PURE_CREATOR_OFFER_ENDS,
    )


def refused_by(verdict: Verdict, reason: PolicyReason) -> str:
    """The notice's id of the rule that refuses."""
    return "N6" if reason == "replace_after_start" else verdict.rule


def refuse_policy(
    *,
    verdict: Verdict,
    reason: PolicyReason,
    surface: Surface,
    language: Language,
    decision_id: str | None,
    now: float,
    products: Sequence[tuple[str, bool, str | None]],
    session_id: str | None = None,
    state: SessionState | None = None,
    used: int | None = None,
    slots: tuple[SlotView, ...] = (),
) -> Problem:
    """The refusal (403) of foreign products by the rules.

    `products` are (product id, allowed, reason or None), each product of the request. `used` is None where
    the ledger was not asked; `state` is None where the session's state is not known. `now`, in seconds since
    the epoch, decides what is still on offer (N11).
    """
    case = _case(verdict, reason, surface, language, now, state, used, slots)
    return _refusal(case, session_id, decision_id, _products(products))


def _refusal(case: _Case, session_id: str | None, decision_id: str | None, products: list[ProductVerdict]) -> Problem:
    reason, rule, surface, language, detail, policy_version, cap, used, slots, state, on_offer = case
    if cap == 0:
        remaining: int | UnsetType = 0
    else:
        remaining = UNSET if cap is None or used is None else max(cap - used, 0)
    return Problem(
        type="urn:attachgate:problem:" + reason,
        title=texts.TITLES[reason][language],
        status=403,
        detail=detail,
        reason=reason,
        rule=rule,
        surface=surface,
        session_id=_set(session_id),
        decision_id=_set(decision_id),
        policy_version=policy_version,
        cap=UNSET if cap is None else cap,
        used=UNSET if used is None else used,
        remaining=remaining,
        products=products,
        slots=slots,
        help=advise(reason, rule, surface, language, on_offer, cap, used, slots, state),
    )


def refusal_body(
    verdict: Verdict,
    reason: PolicyReason,
    surface: Surface,
    language: Language,
    decision_id: str,
    now: float,
    products: Sequence[tuple[str, bool, str | None]],
    session_id: str | None,
    state: SessionState | None,
    used: int | None,
    slots: tuple[SlotView, ...],
) -> bytes:
    """`encode(refuse_policy(…))`, with all but the request's own members from memory."""
    case = _case(verdict, reason, surface, language, now, state, used, slots)
    head, between, middle, after = _frame(case, session_id is not None)
    session = _encode(session_id) if session_id is not None else b""
    return b"".join((head, session, between, _encode(decision_id), middle, _encode(_products(products)), after))


_BLANK = "\0"
_BLANK_TEXT = _encode(_BLANK)
_BLANK_PRODUCTS = [ProductVerdict(_BLANK, "refused")]


@lru_cache(MAX_REMEMBERED)
def _frame(case: _Case, in_session: bool) -> tuple[bytes, bytes, bytes, bytes]:
    """A refusal around its session, decision and products."""
    document = _encode(_refusal(case, _BLANK if in_session else None, _BLANK, _BLANK_PRODUCTS))
    before, after = document.split(_encode(_BLANK_PRODUCTS))
    head, *between, middle = before.split(_BLANK_TEXT)
    return head, between[0] if between else b"", middle, after


def _error_detail(error: GatewayError, language: Language) -> str:
    # A technical sentence may quote what a client sent: lone surrogates would break the encoding.
    technical = error.detail[:_MAX_TECHNICAL_CHARS].encode("utf-8", "backslashreplace").decode()
    sentences = texts.SENTENCES.get(error.reason)
    if language == "en" or sentences is None:
        return technical
    sentence = sentences[0] if language == "zh-CN" else sentences[1]
    if error.reason in texts.WITH_WHERE_AND_WHAT and technical:
        return f"{sentence}（{technical}）"
    return sentence


def refuse_error(
    error: GatewayError,
    *,
    language: Language,
    decision_id: str | None,
    session_id: str | None = None,
    surface: Surface | None = None,
    products: Sequence[tuple[str, bool, str | None]] = (),
) -> Problem:
    """The answer to a request that failed. In English `detail` is the error's own sentence; in Chinese it is
    a sentence for the merchant, followed by the error's own where the client's maker needs it."""
    reason = error.reason
    titles = texts.TITLES.get(reason)
    return Problem(
        type="urn:attachgate:problem:" + reason,
        title=titles[language] if titles else reason,
        status=error.status,
        detail=_error_detail(error, language),
        reason=reason,
        surface=UNSET if surface is None else surface,
        session_id=_set(session_id),
        decision_id=_set(decision_id),
        products=_products(products) if products else UNSET,
        help=advise_error(reason, language) or UNSET,
    )


def encode(problem: Problem) -> bytes:
    """The document as JSON, UTF-8."""
    return _encode(problem)


@lru_cache(maxsize=256)
def headers(language: Language, retry_after_seconds: int | None = None) -> HeaderList:
    """The headers of a problem document, for the error's `retry_after_seconds` where it has one."""
    common = (
        ("Content-Type", "application/problem+json"),
        ("Content-Language", language),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
    )
    return common if retry_after_seconds is None else (*common, ("Retry-After", str(retry_after_seconds)))


def answer(problem: Problem, language: Language, retry_after_seconds: int | None = None) -> Answer:
    """Status, headers and body: all that a server needs to send."""
    return Answer(problem.status, headers(language, retry_after_seconds), encode(problem))


def rate_limit_headers(cap: int | None, remaining: int | None) -> HeaderList:
    """`RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers) of an answer on an attach
    route: none where no cap holds, only the first where what remains is not known."""
    if cap is None:
        return ()
    policy = ("RateLimit-Policy", f'"foreign";q={cap}')
    return (policy,) if remaining is None else (policy, ("RateLimit", f'"foreign";r={remaining}'))
