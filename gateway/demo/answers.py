"""What comes back to the story's client: read, judged against what its step expects, and put in words.

Pure. Any bytes give an answer: what is no JSON object of the contract's form has an empty body and is told as it came.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import Struct

from gateway.demo.scenes import Step

MAX_SHOWN: Final = 200
"""Characters of an answer that is not understood."""

MAX_LISTED: Final = 8
"""Products of a list."""


class Listed(Struct, frozen=True):
    product_id: str


class Slot(Struct, frozen=True):
    product_id: str
    since: str
    attached: bool
    in_doubt: bool = False


class Entry(Struct, frozen=True):
    """Of the platform's journal."""

    operation: str
    session_id: str | None
    product_id: str | None


class Body(Struct, frozen=True):
    """Every field of the contract's answers that the story reads; which of them are there says what it is."""

    account_id: str = ""
    session_id: str | None = None
    state: str = ""
    reason: str = ""
    detail: str = ""
    cap: int | None = None
    used: int | None = None
    slots: tuple[Slot, ...] = ()
    products: tuple[Listed, ...] = ()
    attached: tuple[str, ...] = ()
    entries: tuple[Entry, ...] = ()


class Answer(Struct, frozen=True):
    """`status` 0: none came. `told`: the part that a reader wants."""

    status: int
    body: Body
    told: str


_body = msgspec.json.Decoder(Body)


def read(status: int, content: bytes) -> Answer:
    try:
        body = _body.decode(content) if content else Body()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Answer(status, Body(), content.decode(errors="replace")[:MAX_SHOWN])
    return Answer(status, body, _told(body))


def none(why: str) -> Answer:
    return Answer(0, Body(), why)


def problems(step: Step, answer: Answer) -> Iterator[str]:
    """What came otherwise than the step expects, in words."""
    body = answer.body
    if answer.status != step.status:
        yield f"expected status {step.status}, got {answer.status or 'no answer'}"
        return
    if step.reason and body.reason != step.reason:
        yield f"expected reason {step.reason!r}, got {body.reason!r}"
    if step.detail and body.detail != step.detail:
        yield f"expected detail {step.detail!r}, got {body.detail!r}"
    if step.used is not None and body.used != step.used:
        yield f"expected {step.used} used, got {body.used}"
    doubtful = tuple(slot.product_id for slot in body.slots if slot.in_doubt)
    if step.doubtful is not None and doubtful != step.doubtful:
        yield f"expected in doubt: {_names(step.doubtful)}, got {_names(doubtful)}"
    listed = tuple(product.product_id for product in body.products)
    if step.offered and step.offered not in listed:
        yield f"expected {step.offered} in the list"
    if step.listed is not None and listed != step.listed:
        yield f"expected the list to be {_names(step.listed)}"


def _names(products: tuple[str, ...]) -> str:
    return ", ".join(products) or "none"


def _told(body: Body) -> str:
    if body.reason:
        return f"{body.reason}: {body.detail}"
    if body.used is not None:
        return f"{body.used} of {body.cap} used: {', '.join(map(_slot, body.slots)) or 'none'}"
    if body.products:
        listed = ", ".join(product.product_id for product in body.products[:MAX_LISTED])
        more = len(body.products) > MAX_LISTED
        return f"{listed}, … ({len(body.products)} in all)" if more else listed
    return ", ".join(body.attached) or body.state


def _slot(slot: Slot) -> str:
    state = " (in doubt)" if slot.in_doubt else "" if slot.attached else " (removed)"
    return f"{slot.product_id}{state}"
