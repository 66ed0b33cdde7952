"""What a refused client reads: the notice's text, the reason, what used the places, and what can be done."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from datetime import datetime
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import errors, refusals
from gateway.policy.model import SessionState, Standing, Surface, Verdict
from gateway.refusals import Language, Problem, SlotView, texts
from gateway.refusals.language import LANGUAGES

LIVE_TEXT = "累计添加联盟商品数已达上限，请添加您店铺的商品喔~"
LIVE_TEXT_HANT = "累計添加聯盟商品數已達上限，請添加您店鋪的商品喔~"
SHOWCASE_TEXT = "您的店铺类型暂不支持添加联盟商品，请添加自己店铺商品"
LIVE = {"zh-CN": LIVE_TEXT, "zh-Hant": LIVE_TEXT_HANT, "en": "The limit is reached."}
SHOWCASE = {"zh-CN": SHOWCASE_TEXT, "zh-Hant": "…", "en": "Not supported for your shop type."}

SLOTS = (
    SlotView("p1", "2026-07-03T12:01:15.120Z", True),
    SlotView("p2", "2026-07-03T15:59:59.999Z", False),
    SlotView("p3", "2026-07-03T16:00:00.000Z", True),
)


def at(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


EARLY_JULY = at("2026-07-05T12:00:00+08:00")


def verdict(rule: str = "N3", cap: int | None = 3, message: dict[str, str] = LIVE) -> Verdict:
    return Verdict(cap, rule, "2026-07", True, Standing.official, message)


def refuse(**changes: Any) -> Problem:
    arguments: dict[str, Any] = {
        "verdict": verdict(),
        "reason": "foreign_cap_reached",
        "surface": Surface.live_room,
        "language": "zh-CN",
        "decision_id": "d-1",
        "now": EARLY_JULY,
        "products": [("p4", False, "foreign_cap_reached"), ("own-1", True, None)],
        "session_id": "s-1",
        "state": SessionState.live,
        "used": 3,
        "slots": SLOTS,
    }
    return refusals.refuse_policy(**arguments | changes)


def refuse_in_showcase(**changes: Any) -> Problem:
    return refuse(
        **{
            "verdict": verdict("N4", 0, SHOWCASE),
            "reason": "foreign_not_allowed",
            "surface": Surface.showcase,
            "session_id": None,
            "state": None,
            "used": None,
            "slots": (),
        }
        | changes
    )


def notices(problem: Problem) -> list[str]:
    assert problem.help
    return [entry.notice for entry in problem.help]


def read(problem: Problem) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(refusals.encode(problem))
    return document


class TestDocument:
    def test_a_reached_cap_says_everything_that_the_contract_names(self) -> None:
        document = read(refuse())
        advice = document.pop("help")
        assert document == {
            "type": "urn:attachgate:problem:foreign_cap_reached",
            "title": "联盟商品数已达上限",
            "status": 403,
            "detail": LIVE_TEXT,
            "reason": "foreign_cap_reached",
            "rule": "N3",
            "surface": "live_room",
            "session_id": "s-1",
            "decision_id": "d-1",
            "policy_version": "2026-07",
            "cap": 3,
            "used": 3,
            "remaining": 0,
            "products": [
                {"product_id": "p4", "verdict": "refused", "reason": "foreign_cap_reached"},
                {"product_id": "own-1", "verdict": "allowed"},
            ],
            "slots": [
                {"product_id": "p1", "since": "2026-07-03T12:01:15.120Z", "attached": True},
                {"product_id": "p2", "since": "2026-07-03T15:59:59.999Z", "attached": False},
                {"product_id": "p3", "since": "2026-07-03T16:00:00.000Z", "attached": True},
            ],
        }
        assert all(set(entry) == {"title", "notice"} for entry in advice)

    def test_what_is_not_known_is_left_out(self) -> None:
        document = read(refuse_in_showcase())
        assert document["cap"] == 0
        assert document["remaining"] == 0
        assert document["slots"] == []
        assert not {"used", "session_id"} & set(document)
        assert None not in document.values()

    @pytest.mark.parametrize(("language", "text"), LIVE.items())
    def test_detail_is_the_policys_text_letter_for_letter(self, language: Language, text: str) -> None:
        assert refuse(language=language).detail == text

    def test_the_showcase_has_its_own_text(self) -> None:
        assert refuse_in_showcase().detail == SHOWCASE_TEXT
        assert refuse_in_showcase(surface=Surface.short_video).detail == SHOWCASE_TEXT

    def test_a_message_that_lacks_the_language_falls_back_to_the_default_one(self) -> None:
        assert refuse(verdict=verdict(message={"zh-CN": LIVE_TEXT}), language="en").detail == LIVE_TEXT
        assert refuse(verdict=verdict(message={}), language="en").detail == ("Limit of other shops' products reached")

    @pytest.mark.parametrize("language", LANGUAGES)
    def test_a_replace_after_the_start_is_rule_n6_in_words_of_its_own(self, language: Language) -> None:
        problem = refuse(reason="replace_after_start", language=language)
        assert problem.rule == "N6"
        assert problem.detail == texts.REPLACE_AFTER_START[language]

    def test_cap_0_is_not_allowed_and_cap_n_is_reached(self) -> None:
        assert refusals.policy_reason(verdict(cap=0)) == "foreign_not_allowed"
        assert refusals.policy_reason(verdict(cap=3)) == "foreign_cap_reached"

    def test_what_remains_is_never_negative(self) -> None:
        assert refuse(verdict=verdict(cap=2)).remaining == 0


class TestTheFiveQuestions:
    def test_1_why_can_i_not_add_another_shops_product_and_what_can_i_do(self) -> None:
        problem = refuse(verdict=verdict("N1", 0), reason="foreign_not_allowed", used=None, slots=())
        assert notices(problem) == ["N1", "N3", "N9", "N10", "N11", "N12"]
        assert problem.help
        assert "只能添加本店商品" in problem.help[0].title

    def test_2_my_cart_does_not_hold_three(self) -> None:
        problem = refuse()
        assert notices(problem) == ["N5", "N5", "N7", "N3", "N10", "N11", "N12"]
        assert problem.help
        assert problem.help[0].title == (
            "本场3个名额已用3个：p1，07-03 20:01:15 添加；p2，07-03 23:59:59 添加，现不在购物车；"
            "p3，07-04 00:00:00 添加（北京时间）"
        )

    def test_2_before_the_start_a_place_can_be_had_back(self) -> None:
        assert notices(refuse(state=SessionState.preparing))[:2] == ["N3", "N6"]

    def test_2_where_the_state_is_not_known_both_are_said(self) -> None:
        assert notices(refuse(state=None))[:3] == ["N5", "N5", "N6"]

    def test_2_a_batch_that_is_too_large_is_told_how_many_places_are_left(self) -> None:
        problem = refuse(used=1, slots=SLOTS[:1])
        assert problem.remaining == 2
        assert problem.help
        assert "本场还剩2个名额" in problem.help[1].title

    def test_2_a_batch_that_is_too_large_for_a_fresh_session(self) -> None:
        problem = refuse(used=0, slots=(), state=SessionState.preparing)
        assert problem.help
        assert problem.help[0].title == "每场直播最多添加3件联盟商品，本场已用0个名额"

    def test_2_after_the_start_a_free_place_takes_the_new_product_without_a_replace(self) -> None:
        problem = refuse(reason="replace_after_start", used=2, slots=SLOTS[:2])
        assert notices(problem)[:4] == ["N5", "N6", "N3", "N5"]
        assert problem.help
        assert "直接添加新商品" in problem.help[2].title

    def test_3_why_did_a_product_vanish_from_my_list(self) -> None:
        assert notices(refuse_in_showcase()) == ["N4", "N8", "N3", "N10", "N11", "N12"]
        assert "N8" not in notices(refuse_in_showcase(surface=Surface.short_video))

    @pytest.mark.parametrize("problem", [refuse(), refuse_in_showcase(), refuse(reason="replace_after_start")])
    def test_4_and_5_can_i_go_on_selling_and_why_can_another_account(self, problem: Problem) -> None:
        assert notices(problem)[-3:] == ["N10", "N11", "N12"]

    def test_4_the_pure_creator_is_offered_until_16_july(self) -> None:
        assert "N11" in notices(refuse(now=at("2026-07-16T23:59:59+08:00")))
        offered, ended = refuse(now=at("2026-07-16T23:59:59+08:00")), refuse(now=at("2026-07-17T00:00:00+08:00"))
        assert "N11" in notices(ended)
        assert offered.help != ended.help

    def test_a_change_of_shop_type_is_offered_only_where_it_helps(self) -> None:
        assert "N9" not in notices(refuse())
        assert "N9" not in notices(refuse_in_showcase())

    def test_a_rule_that_the_notice_does_not_know_speaks_for_itself(self) -> None:
        problem = refuse(verdict=verdict("N13", 0), reason="foreign_not_allowed")
        assert notices(problem)[0] == "N13"
        assert "N9" not in notices(problem)

    def test_the_list_of_slots_is_bounded(self) -> None:
        slots = tuple(SlotView(f"p{n}", "2026-07-03T12:00:00.000Z", True) for n in range(40))
        problem = refuse(verdict=verdict(cap=40), used=40, slots=slots, language="en")
        assert problem.help
        assert problem.help[0].title.endswith("p9 added 07-03 20:00:00; 30 more (Beijing time)")
        assert problem.slots == slots


def gateway_errors(
    base: type[errors.GatewayError] = errors.GatewayError,
) -> Iterator[type[errors.GatewayError]]:
    for kind in base.__subclasses__():
        if kind.__module__.startswith("gateway."):
            if "reason" in vars(kind):
                yield kind
            yield from gateway_errors(kind)


class TestErrors:
    @pytest.mark.parametrize("language", LANGUAGES)
    @pytest.mark.parametrize("kind", list(gateway_errors()), ids=lambda kind: kind.reason)
    def test_every_error_has_its_texts(self, kind: type[errors.GatewayError], language: Language) -> None:
        error = kind("Member /product_id is a number: send a string.")
        document = read(refusals.refuse_error(error, language=language, decision_id="d", session_id="s"))
        assert document["title"] == texts.TITLES[kind.reason][language]
        assert document["reason"] == kind.reason
        assert document["status"] == kind.status
        assert document["type"] == f"urn:attachgate:problem:{kind.reason}"
        if language == "en":
            assert document["detail"] == error.detail
        else:
            assert document["detail"].startswith(texts.SENTENCES[kind.reason][LANGUAGES.index(language)])

    def test_no_text_is_left_over(self) -> None:
        reasons = {kind.reason for kind in gateway_errors()}
        assert set(texts.SENTENCES) == reasons
        assert set(texts.TITLES) == reasons | set(get_args(refusals.PolicyReason))
        assert reasons >= texts.WITH_WHERE_AND_WHAT

    def test_a_malformed_body_says_where_and_what_in_chinese_too(self) -> None:
        error = errors.BodyMalformed("Body: /product_ids/2 is a number: send a string.")
        problem = refusals.refuse_error(error, language="zh-CN", decision_id="d")
        assert problem.detail == (
            "请求内容格式不正确，请求未处理。（Body: /product_ids/2 is a number: send a string.）"
        )

    def test_a_merchant_is_spared_the_technical_sentence(self) -> None:
        error = errors.LedgerUnavailable("The ledger did not answer within 0.25 s: try again.")
        problem = refusals.refuse_error(error, language="zh-CN", decision_id="d", surface=Surface.live_room)
        assert problem.detail == "暂时无法核对本场名额，联盟商品暂不能添加，请稍后再试。"
        assert notices(problem) == ["N3"]

    def test_what_does_not_apply_is_left_out(self) -> None:
        error = errors.IdentityMissing("No X-Account-Id: send it.")
        document = read(refusals.refuse_error(error, language="en", decision_id="d"))
        assert set(document) == {"type", "title", "status", "detail", "reason", "decision_id"}

    def test_the_products_of_the_request_can_be_told(self) -> None:
        problem = refusals.refuse_error(
            errors.ProductUnknown("Product p7 is not in the directory."),
            language="en",
            decision_id="d",
            products=[("p7", False, "product_unknown")],
        )
        assert read(problem)["products"] == [{"product_id": "p7", "verdict": "refused", "reason": "product_unknown"}]

    def test_a_quoted_surrogate_or_a_long_quotation_breaks_nothing(self) -> None:
        error = errors.BodyMalformed("Bad id \udcff" + "x" * 10_000)
        detail = read(refusals.refuse_error(error, language="en", decision_id="d"))["detail"]
        assert detail.startswith("Bad id \\udcffx")
        assert len(detail) < 600

    def test_an_error_without_texts_is_answered_all_the_same(self) -> None:
        class Odd(errors.GatewayError):
            status, reason = 418, "odd"

        problem = refusals.refuse_error(Odd("An odd thing."), language="zh-CN", decision_id="d")
        assert (problem.status, problem.title, problem.detail) == (418, "odd", "An odd thing.")


class TestAnswer:
    def test_it_is_a_problem_document_that_nobody_stores(self) -> None:
        status, headers, body = refusals.answer(refuse(), "zh-CN")
        assert status == 403
        assert dict(headers) == {
            "Content-Type": "application/problem+json",
            "Content-Language": "zh-CN",
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
        }
        assert json.loads(body)["status"] == 403

    @given(
        reason=st.sampled_from(("foreign_cap_reached", "foreign_not_allowed", "replace_after_start")),
        cap=st.sampled_from((0, 1, 3)),
        surface=st.sampled_from(Surface),
        language=st.sampled_from(LANGUAGES),
        decision_id=st.text(),
        now=st.sampled_from((EARLY_JULY, EARLY_JULY + 30 * 86_400)),
        products=st.lists(st.tuples(st.text(), st.booleans(), st.none() | st.just("foreign_cap_reached")), max_size=3),
        session_id=st.none() | st.text(),
        state=st.none() | st.sampled_from(SessionState),
        used=st.none() | st.integers(0, 4),
        slots=st.sampled_from(((), SLOTS[:1], SLOTS)),
    )
    def test_it_is_the_same_from_memory(self, reason: Any, cap: int, **rest: Any) -> None:
        message = SHOWCASE if cap == 0 else LIVE
        whole = refuse(verdict=verdict(cap=cap, message=message), reason=reason, **rest)
        assert refusals.refusal_body(verdict(cap=cap, message=message), reason, **rest) == refusals.encode(whole)

    def test_it_says_when_to_come_back(self) -> None:
        error = errors.SessionUnsettled("A replace is in doubt.")
        problem = refusals.refuse_error(error, language="en", decision_id="d")
        _, headers, _ = refusals.answer(problem, "en", error.retry_after_seconds)
        assert dict(headers)["Retry-After"] == "2"
        assert dict(headers)["Content-Language"] == "en"

    def test_rate_limit_headers_stand_where_a_cap_holds(self) -> None:
        assert refusals.rate_limit_headers(None, None) == ()
        assert refusals.rate_limit_headers(3, None) == (("RateLimit-Policy", '"foreign";q=3'),)
        assert refusals.rate_limit_headers(3, 2) == (
            ("RateLimit-Policy", '"foreign";q=3'),
            ("RateLimit", '"foreign";r=2'),
        )


class TestLanguage:
    @pytest.mark.parametrize(
        ("header", "expected"),
        [
            (None, "zh-CN"),
            ("", "zh-CN"),
            ("*", "zh-CN"),
            ("fr-FR, de;q=0.9", "zh-CN"),
            ("zh", "zh-CN"),
            ("zh-CN,zh;q=0.9,en;q=0.8", "zh-CN"),
            ("zh-Hans", "zh-CN"),
            ("zh-Hans-HK", "zh-CN"),
            ("zh-SG", "zh-CN"),
            ("zh-cmn-Hans-CN", "zh-CN"),
            ("zh-Hant", "zh-Hant"),
            ("ZH-hant-CN", "zh-Hant"),
            ("zh-TW,zh;q=0.9,en-US;q=0.8", "zh-Hant"),
            ("zh-HK", "zh-Hant"),
            ("zh-MO", "zh-Hant"),
            ("en", "en"),
            ("en-GB", "en"),
            ("fr, en;q=0.1", "en"),
            ("en;q=0.5, zh;q=0.6", "zh-CN"),
            ("en;q=0.8,zh-HK;q=0.9", "zh-Hant"),
            ("en, zh-CN", "en"),
            ("en;q=0.5, *", "zh-CN"),
            ("en ; q=0.7 , zh-TW ; q=0.8", "zh-Hant"),
        ],
    )
    def test_the_client_gets_the_language_that_it_reads_best(self, header: str | None, expected: Language) -> None:
        assert refusals.language(header) == expected

    @pytest.mark.parametrize(
        ("header", "expected"),
        [
            ("zh;q=0, *", "en"),
            ("zh-CN;q=0", "zh-Hant"),
            ("zh-CN;q=0, zh", "zh-Hant"),
            ("zh-TW;q=0, zh", "zh-CN"),
            ("zh;q=0", "en"),
            ("zh;q=0, zh-TW;q=0.1", "zh-Hant"),
            ("en;q=0, zh-HK;q=0.2", "zh-Hant"),
            ("*;q=0", "zh-CN"),
            ("*;q=0, en;q=0.001", "en"),
        ],
    )
    def test_q_0_excludes(self, header: str, expected: Language) -> None:
        assert refusals.language(header) == expected

    @pytest.mark.parametrize(
        "header",
        ["en;q=2", "en;q=", "en;q=-1", "en;q=0.1234", "en;level=1", "e n", ";q=1", "en-", "ｅｎ", "en;q=١"],
    )
    def test_a_malformed_range_is_skipped(self, header: str) -> None:
        assert refusals.language(header) == "zh-CN"
        assert refusals.language(f"{header}, zh-TW;q=0.1") == "zh-Hant"

    def test_a_long_header_is_not_read(self) -> None:
        assert refusals.language("en," * 10 + "en") == "en"
        assert refusals.language("en," * 200) == "zh-CN"
        assert refusals.language("x," * 40 + "en") == "zh-CN"

    @given(st.one_of(st.text(max_size=600), st.text("zh-HansTWen;q=0.1, *", max_size=80)))
    def test_every_header_has_an_answer(self, header: str) -> None:
        assert refusals.language(header) in LANGUAGES


class TestTexts:
    def entries(self) -> Iterator[texts.Words]:
        yield from texts.TITLES.values()
        yield from (sentence for _, sentence in texts.ADVICE.values())
        yield from (value for name, value in vars(texts).items() if name.startswith(("SLOT", "REPLACE")))

    def test_every_text_stands_in_three_languages_with_the_same_values(self) -> None:
        for words in self.entries():
            assert tuple(words) == LANGUAGES
            named = [{field for _, field, _, _ in string.Formatter().parse(text) if field} for text in words.values()]
            assert all(words.values())
            assert named[0] == named[1] == named[2]

    def test_simplified_and_traditional_are_not_mixed_up(self) -> None:
        for words in self.entries():
            assert not set("账达关场还联铺类专业规则数额响应请试") & set(words["zh-Hant"])
            assert not set("帳號櫥達關場還聯鋪類專業規則數額響應請試") & set(words["zh-CN"])
