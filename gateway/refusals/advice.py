"""What a refused merchant can know and do: the answers to the notice's five questions, chosen by the case.

Every list answers by itself: why, what used the places and when, when they are free again, what may be
changed, and why another account still can.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

import msgspec

from gateway.policy.model import SessionState, Surface
from gateway.refusals import texts
from gateway.refusals.language import Language

PURE_CREATOR_OFFER_ENDS: Final = datetime.fromisoformat("2026-07-17T00:00:00+08:00").timestamp()
"""N11: on offer until 16 July, that day included."""

_BEIJING = timedelta(hours=8)
_MAX_SLOTS_SHOWN = 10


class SlotView(msgspec.Struct, frozen=True, gc=False):
    """A place that counts. `since` is RFC 3339 in UTC with milliseconds (`2026-07-03T12:00:00.000Z`);
    `attached` False: the product is not in the cart, yet its place is taken (N5)."""

    product_id: str
    since: str
    attached: bool


class Help(msgspec.Struct, frozen=True, gc=False):
    """One thing to know or do, and the notice's id that it rests on."""

    title: str
    notice: str


def _keys(
    reason: str,
    rule: str,
    surface: Surface,
    state: SessionState | None,
    remaining: int | None,
    pure_creator_on_offer: bool,
) -> Iterator[str]:
    if reason == "foreign_not_allowed":
        yield {"N1": "why_live_room", "N4": "why_elsewhere"}.get(rule, "why_other")
        if surface is Surface.showcase:
            yield "vanished"
        yield "own_products"
        if rule == "N1":
            yield "shop_type"
    else:
        if reason == "replace_after_start":
            yield "choose_before_start"
        if remaining:
            yield "add_instead" if reason == "replace_after_start" else "too_many_at_once"
        if state is SessionState.preparing:
            yield "replaceable"
        else:
            yield "cumulative"
        if state is None and reason != "replace_after_start":
            yield "replaceable_before_start"
        yield "next_session"
        yield "own_products"
    yield "close_shop"
    yield "pure_creator" if pure_creator_on_offer else "pure_creator_ended"
    yield "other_accounts"


@lru_cache(maxsize=4096)
def _static(
    reason: str,
    rule: str,
    surface: Surface,
    state: SessionState | None,
    remaining: int | None,
    language: Language,
    pure_creator_on_offer: bool,
) -> tuple[Help, ...]:
    return tuple(
        say(key, language, rule, remaining=remaining)
        for key in _keys(reason, rule, surface, state, remaining, pure_creator_on_offer)
    )


def say(key: str, language: Language, rule: str = "", **values: object) -> Help:
    """One entry of `texts.ADVICE`, filled in; `rule` is its notice where it has none of its own."""
    notice, sentence = texts.ADVICE[key]
    return Help(sentence[language].format(**values), notice or rule)


def beijing_time(time: str) -> str:
    """`2026-07-03 20:00:15` for a time in RFC 3339 and UTC: what the merchant's clock said."""
    return (datetime.fromisoformat(time) + _BEIJING).isoformat(" ")[:19]


def _place(slot: SlotView, language: Language) -> str:
    sentence = texts.SLOT_ATTACHED if slot.attached else texts.SLOT_GONE
    return sentence[language].format(product=slot.product_id, since=beijing_time(slot.since)[5:])


def _places(cap: int, used: int, slots: Sequence[SlotView], state: SessionState | None, language: Language) -> Help:
    """Which places are used, by what and since when."""
    if not slots:
        return say("used", language, cap=cap, used=used)
    shown = [_place(slot, language) for slot in slots[:_MAX_SLOTS_SHOWN]]
    if len(slots) > _MAX_SLOTS_SHOWN:
        shown.append(texts.SLOTS_MORE[language].format(more=len(slots) - _MAX_SLOTS_SHOWN))
    listed = texts.SLOT_SEPARATOR[language].join(shown)
    title = texts.SLOTS[language].format(cap=cap, used=used, slots=listed)
    return Help(title, "N3" if state is SessionState.preparing else "N5")


def advise(
    reason: str,
    rule: str,
    surface: Surface,
    language: Language,
    pure_creator_on_offer: bool,
    cap: int | None,
    used: int | None,
    slots: tuple[SlotView, ...],
    state: SessionState | None,
) -> tuple[Help, ...]:
    """The help of a refusal by the rules, most telling first. `state` is None where it is not known or there is no
    session."""
    remaining = None if cap is None or used is None else max(cap - used, 0)
    static = _static(reason, rule, surface, state, remaining, language, pure_creator_on_offer)
    if not cap or used is None:
        return static
    return (_places(cap, used, slots, state, language), *static)


_OF_ERROR = {
    "session_ended": "next_session",
    "ledger_unavailable": "own_products",
    "session_unsettled": "choose_before_start",
}


@lru_cache(maxsize=256)
def advise_error(reason: str, language: Language) -> tuple[Help, ...]:
    """The help of an error: none, where the notice says nothing about it."""
    key = _OF_ERROR.get(reason)
    return () if key is None else (say(key, language),)
