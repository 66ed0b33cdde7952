"""One verdict in words: the same answer as the gateway's, for whoever helps a merchant."""

from __future__ import annotations

import io
import json
import re
from datetime import datetime
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from gateway import refusals
from gateway.errors import NotSessionOwner, ProductUnknown
from gateway.explain import Explanation, Snapshot, explain, explain_error, render, to_json
from gateway.explain.words import ALLOWED, LABELS
from gateway.policy.model import (
    Account,
    Kind,
    Product,
    SessionState,
    Shop,
    ShopType,
    Standing,
    Surface,
    Verdict,
)
from gateway.refusals import Language, SlotView
from gateway.refusals.language import LANGUAGES

TEXT = "累计添加联盟商品数已达上限，请添加您店铺的商品喔~"
MESSAGE = {
    "zh-CN": TEXT,
    "zh-Hant": "累計添加聯盟商品數已達上限，請添加您店鋪的商品喔~",
    "en": "The limit is reached.",
}
NOW = datetime.fromisoformat("2026-07-05T12:00:00.250+08:00").timestamp()

INDIVIDUAL = Account("a-individual", Kind.official, False, Shop("s-1", ShopType.individual))
FLAGSHIP = Account("a-flagship", Kind.official, False, Shop("s-2", ShopType.flagship))
CROSS_BORDER = Account("a-cross", Kind.official, False, Shop("s-3", ShopType.mall, True))
CREATOR = Account("a-creator", Kind.creator)
FOREIGN = Product("p4", "s-9")
SLOTS = tuple(SlotView(f"p{n}", f"2026-07-05T03:0{n}:15.120Z", n != 2) for n in (1, 2, 3))


def verdict(
    rule: str = "N3", cap: int | None = 3, reached: bool = True, standing: Standing = Standing.official
) -> Verdict:
    return Verdict(cap, rule, "2026-07", reached, standing, MESSAGE)


def session(used: int, state: SessionState = SessionState.live) -> Snapshot:
    return Snapshot("l-1", state, used, SLOTS[:used])


def ask(**changes: Any) -> Explanation:
    arguments: dict[str, Any] = {
        "account": INDIVIDUAL,
        "product": FOREIGN,
        "surface": Surface.live_room,
        "verdict": verdict(),
        "snapshot": session(3),
        "language": "zh-CN",
        "now": NOW,
    }
    return explain(**arguments | changes)


def notices(told: Explanation) -> list[str]:
    return [entry.notice for entry in told.help]


class TestRefused:
    def test_the_fourth_foreign_product_is_refused_as_the_gateway_would(self) -> None:
        told = ask()
        problem = refusals.refuse_policy(
            verdict=verdict(),
            reason="foreign_cap_reached",
            surface=Surface.live_room,
            language="zh-CN",
            decision_id=None,
            now=NOW,
            products=[],
            session_id="l-1",
            state=SessionState.live,
            used=3,
            slots=SLOTS,
        )
        assert told.verdict == "refused"
        assert (told.status, told.reason, told.rule) == (problem.status, problem.reason, problem.rule)
        assert told.message == problem.detail == TEXT
        assert told.help == problem.help
        assert (told.cap, told.used, told.remaining) == (3, 3, 0)
        assert told.notice == "N3"
        assert told.why == "每场直播最多添加3件联盟商品，本场已用3个名额"

    def test_before_the_start_it_says_that_a_product_can_be_replaced(self) -> None:
        assert "N6" in notices(ask(snapshot=session(3, SessionState.preparing)))

    def test_a_professional_shop_is_refused_in_the_live_room(self) -> None:
        told = ask(account=FLAGSHIP, verdict=verdict("N1", 0), snapshot=None)
        assert (told.verdict, told.reason, told.notice) == ("refused", "foreign_not_allowed", "N1")
        assert "N9" in notices(told)

    def test_the_showcase_is_refused_and_the_session_does_not_matter(self) -> None:
        told = ask(surface=Surface.showcase, verdict=verdict("N4", 0))
        assert (told.verdict, told.reason, told.notice) == ("refused", "foreign_not_allowed", "N4")
        assert "N8" in notices(told)
        assert not told.session_id
        assert not told.slots

    @pytest.mark.parametrize("product", [FOREIGN, Product("mine", "s-1")])
    def test_an_ended_session_takes_no_product(self, product: Product) -> None:
        told = ask(product=product, snapshot=session(1, SessionState.ended))
        assert (told.verdict, told.status, told.reason) == ("refused", 409, "session_ended")
        assert notices(told) == ["N7"]

    @pytest.mark.parametrize(
        "error",
        [ProductUnknown("Product p4 is not known."), NotSessionOwner("Session l-1 belongs to another.")],
    )
    def test_what_could_not_be_learnt_is_refused_with_its_reason(self, error: Any) -> None:
        told = explain_error(
            error,
            account_id="a",
            product_id="p4",
            surface=Surface.live_room,
            session_id=None,
            language="en",
            now=NOW,
        )
        assert (told.verdict, told.reason, told.why) == ("refused", error.reason, error.detail)


class TestAllowed:
    @pytest.mark.parametrize(("surface", "counted"), [(Surface.live_room, True), (Surface.showcase, False)])
    def test_only_in_the_live_room_does_what_is_added_before_the_roll_out_count(
        self, surface: Surface, counted: bool
    ) -> None:
        told = ask(surface=surface, verdict=verdict("N3", None, False), language="en")
        assert told.verdict == "allowed"
        assert ("counts in this session" in told.why) is counted

    @pytest.mark.parametrize(
        ("changes", "notice"),
        [
            ({"product": Product("mine", "s-1")}, "N3"),
            ({"account": FLAGSHIP, "verdict": verdict("N1", 0), "product": Product("mine", "s-2")}, "N3"),
            ({"account": CREATOR, "verdict": verdict("N14", None, True, Standing.creator)}, "N14"),
            ({"verdict": verdict("N10", None, True, Standing.unbound)}, "N10"),
            ({"verdict": verdict("N11", None, True, Standing.pure_creator)}, "N11"),
            ({"account": CROSS_BORDER, "verdict": verdict("N2", None)}, "N2"),
            ({"verdict": verdict("N3", None, False)}, "N12"),
            ({"verdict": verdict("X1", None)}, "X1"),
            ({"product": Product("p2", "s-9")}, "N5"),
            ({"snapshot": None}, "N3"),
            ({"snapshot": session(2)}, "N3"),
        ],
    )
    @pytest.mark.parametrize("language", LANGUAGES)
    def test_each_reason_names_its_rule_of_the_notice(
        self, changes: dict[str, Any], notice: str, language: Language
    ) -> None:
        told = ask(**changes, language=language)
        assert (told.verdict, told.notice) == ("allowed", notice)
        assert told.why
        assert not told.reason
        assert not told.message

    def test_the_third_place_is_told_by_its_number(self) -> None:
        told = ask(snapshot=session(2))
        assert told.why == "本场还有名额：这是第3件联盟商品，最多3件"
        assert told.remaining == 1
        assert notices(told) == ["N5", "N7"]

    def test_before_the_start_it_says_that_the_choice_can_change(self) -> None:
        assert notices(ask(snapshot=session(2, SessionState.preparing))) == ["N6", "N7"]

    def test_without_a_session_nothing_is_said_of_what_is_used(self) -> None:
        told = ask(snapshot=None)
        assert told.cap == 3
        assert not told.used
        assert not told.remaining


class TestJson:
    def test_it_carries_the_answer_and_what_led_to_it(self) -> None:
        told = json.loads(to_json(ask()))
        assert len(told.pop("slots")) == 3
        assert told.pop("help")
        assert told == {
            "verdict": "refused",
            "language": "zh-CN",
            "at": "2026-07-05T04:00:00.250Z",
            "account_id": "a-individual",
            "standing": "official",
            "shop_id": "s-1",
            "shop_type": "individual",
            "cross_border": False,
            "product_id": "p4",
            "product_shop_id": "s-9",
            "own": False,
            "surface": "live_room",
            "session_id": "l-1",
            "state": "live",
            "policy_version": "2026-07",
            "rule": "N3",
            "notice": "N3",
            "status": 403,
            "reason": "foreign_cap_reached",
            "message": TEXT,
            "why": "每场直播最多添加3件联盟商品，本场已用3个名额",
            "cap": 3,
            "used": 3,
            "remaining": 0,
        }

    def test_what_does_not_apply_is_left_out(self) -> None:
        told = json.loads(to_json(ask(account=CREATOR, verdict=verdict("N14", None), snapshot=None)))
        assert None not in told.values()
        assert not {"shop_id", "shop_type", "cap", "used", "remaining", "reason", "session_id"} & set(told)


def printed(told: Explanation, width: int = 80) -> str:
    console = Console(file=io.StringIO(), record=True, width=width, color_system=None)
    render(told, console)
    return console.export_text()


class TestTable:
    @pytest.mark.parametrize("language", LANGUAGES)
    @pytest.mark.parametrize("width", [60, 80, 200])
    def test_no_line_is_wider_than_the_terminal_and_all_borders_meet(self, language: Language, width: int) -> None:
        lines = printed(ask(language=language), width).splitlines()
        assert {cell_len(line) for line in lines} == {min(width, 96)}

    def test_it_shows_what_a_support_engineer_asks_for(self) -> None:
        text = printed(ask())
        for shown in ("拒绝 403 foreign_cap_reached", "个体店", "非本店商品", "已开播", "N3", TEXT):
            assert shown in text
        assert re.search("p2 +2026-07-05 11:02:15 +不在，仍占名额", text)
        assert "N12" in text

    def test_the_reason_and_the_slots_are_not_said_twice(self) -> None:
        assert printed(ask()).count("2026-07-05 11:02:15") == 1
        text = printed(ask(account=FLAGSHIP, verdict=verdict("N1", 0), snapshot=None), 96)
        assert text.count("直播间只能添加本店商品") == 1

    def test_places_are_shown_only_where_there_are_any(self) -> None:
        assert "每场最多3个" in printed(ask(snapshot=None))
        assert "每场最多" not in printed(ask(account=FLAGSHIP, verdict=verdict("N1", 0), snapshot=None))

    def test_the_kind_of_account_is_told(self) -> None:
        assert "卖场 · 跨境" in printed(ask(account=CROSS_BORDER, verdict=verdict("N2", None)))
        creator = ask(account=CREATOR, verdict=verdict("N14", None, True, Standing.creator), snapshot=None)
        assert "a-creator  达人 " in printed(creator)

    def test_an_error_is_told_in_the_same_form(self) -> None:
        told = explain_error(
            ProductUnknown("Product [b]p4[/b] is not known."),
            account_id="a",
            product_id="[b]p4[/b]",
            surface=Surface.live_room,
            session_id="l-1",
            language="en",
            now=NOW,
        )
        text = printed(told)
        assert "Refused 404 product_unknown" in text
        assert text.count("[b]p4[/b]") == 2

    def test_every_word_has_three_languages(self) -> None:
        for label in LABELS.values():
            assert len(label) == len(LANGUAGES)
        for _, sentences in ALLOWED.values():
            assert len(sentences) == len(LANGUAGES)
            assert all(sentences)
