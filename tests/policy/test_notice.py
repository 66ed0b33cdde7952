"""The notice, sentence by sentence, judged by the policy as shipped. What the ledger, the filter and the directory
enact (N5 to N9) is tested here as far as the policy's part of it goes."""

from __future__ import annotations

from datetime import datetime
from itertools import product

import pytest

from gateway.policy.evaluate import BEFORE_FIRST_VERSION, evaluate
from gateway.policy.model import Account, Kind, Product, Shop, ShopType, Standing, Surface
from gateway.settings import load_policy

NOTICE = load_policy()
PROFESSIONAL = ("mall", "official_flagship", "flagship", "exclusive", "franchise")
OTHER = ("individual", "enterprise")
ALL_TYPES = (*PROFESSIONAL, *OTHER)
OFF_AIR = (Surface.showcase, Surface.short_video)

LIVE_TEXTS = {
    "zh-CN": "累计添加联盟商品数已达上限，请添加您店铺的商品喔~",
    "zh-Hant": "累計添加聯盟商品數已達上限，請添加您店鋪的商品喔~",
}
SHOWCASE_TEXTS = {
    "zh-CN": "您的店铺类型暂不支持添加联盟商品，请添加自己店铺商品",
    "zh-Hant": "您的店鋪類型暫不支持添加聯盟商品，請添加自己店鋪商品",
}


def at(text: str) -> float:
    return datetime.fromisoformat(f"{text}+08:00").timestamp()


AUGUST = at("2026-08-01T00:00:00")


def official(
    shop_type: str, *, cross_border: bool = False, pure_creator: bool = False, closed: bool = False
) -> Account:
    shop = Shop("own", ShopType(shop_type), cross_border, "closed" if closed else "open")
    return Account("account-1", Kind.official, pure_creator, shop)


CREATOR = Account("account-2", Kind.creator)


@pytest.mark.parametrize("shop_type", PROFESSIONAL)
def test_n1_a_professional_shop_adds_no_foreign_product_in_the_live_room(shop_type: str) -> None:
    verdict = evaluate(NOTICE, official(shop_type), Surface.live_room, AUGUST)
    assert (verdict.cap, verdict.rule, verdict.policy_version) == (0, "N1", "2026-07")
    assert LIVE_TEXTS.items() <= verdict.message.items()


@pytest.mark.parametrize(("shop_type", "surface"), list(product(PROFESSIONAL, Surface)))
def test_n2_a_cross_border_merchant_of_a_professional_type_is_excepted(shop_type: str, surface: Surface) -> None:
    verdict = evaluate(NOTICE, official(shop_type, cross_border=True), surface, AUGUST)
    assert (verdict.cap, verdict.rule, verdict.reached) == (None, "N2", True)


@pytest.mark.parametrize(("shop_type", "surface"), list(product(OTHER, Surface)))
def test_n2_a_cross_border_merchant_of_another_type_is_not_excepted(shop_type: str, surface: Surface) -> None:
    abroad = evaluate(NOTICE, official(shop_type, cross_border=True), surface, AUGUST)
    assert abroad == evaluate(NOTICE, official(shop_type), surface, AUGUST)
    assert abroad.cap is not None


@pytest.mark.parametrize("shop_type", OTHER)
def test_n3_a_non_professional_shop_adds_three_foreign_products_to_a_live_session(shop_type: str) -> None:
    verdict = evaluate(NOTICE, official(shop_type), Surface.live_room, AUGUST)
    assert (verdict.cap, verdict.rule) == (3, "N3")
    assert LIVE_TEXTS.items() <= verdict.message.items()


def test_n3_own_products_are_told_from_foreign_ones_by_the_shop() -> None:
    account = official("individual")
    assert account.owns(Product("p1", "own"))
    assert not account.owns(Product("p2", "another"))
    assert not official("individual", closed=True).owns(Product("p1", "own"))
    assert not CREATOR.owns(Product("p1", "own"))


@pytest.mark.parametrize(("shop_type", "surface"), list(product(ALL_TYPES, OFF_AIR)))
def test_n4_no_official_account_adds_foreign_products_to_showcase_or_video(shop_type: str, surface: Surface) -> None:
    verdict = evaluate(NOTICE, official(shop_type), surface, AUGUST)
    assert (verdict.cap, verdict.rule) == (0, "N4")
    assert SHOWCASE_TEXTS.items() <= verdict.message.items()


def test_n5_n6_n7_the_cap_is_one_number_whatever_the_session_holds_counting_is_the_ledgers() -> None:
    verdicts = {
        evaluate(NOTICE, official("individual"), Surface.live_room, AUGUST + day * 86400).cap for day in range(9)
    }
    assert verdicts == {3}


@pytest.mark.parametrize("shop_type", ALL_TYPES)
def test_n8_the_showcase_list_is_filtered_for_whom_the_showcase_is_closed(shop_type: str) -> None:
    assert evaluate(NOTICE, official(shop_type), Surface.showcase, AUGUST).cap == 0


def test_n9_a_new_shop_type_brings_its_own_rule() -> None:
    before, after = official("flagship"), official("enterprise")
    assert before.account_id == after.account_id
    assert evaluate(NOTICE, before, Surface.live_room, AUGUST).cap == 0
    assert evaluate(NOTICE, after, Surface.live_room, AUGUST).cap == 3


@pytest.mark.parametrize(("shop_type", "surface"), list(product(ALL_TYPES, Surface)))
def test_n10_a_closed_shop_makes_its_account_a_creator(shop_type: str, surface: Surface) -> None:
    verdict = evaluate(NOTICE, official(shop_type, closed=True), surface, AUGUST)
    assert (verdict.cap, verdict.rule, verdict.standing) == (None, "N10", Standing.unbound)


def test_n10_so_does_a_shop_that_is_not_there() -> None:
    assert evaluate(NOTICE, Account("a", Kind.official), Surface.live_room, AUGUST).rule == "N10"


@pytest.mark.parametrize(("shop_type", "surface"), list(product(ALL_TYPES, Surface)))
def test_n11_who_sells_as_a_pure_creator_is_not_restricted(shop_type: str, surface: Surface) -> None:
    verdict = evaluate(NOTICE, official(shop_type, pure_creator=True), surface, AUGUST)
    assert (verdict.cap, verdict.rule, verdict.standing) == (None, "N11", Standing.pure_creator)


def test_n12_the_restriction_opens_step_by_step_during_july() -> None:
    crowd = [Account(f"account-{n}", Kind.official, False, Shop("own", ShopType.individual)) for n in range(1000)]
    reached_before: set[str] = set()
    shares = []
    for day in range(1, 32):
        now = at(f"2026-07-{day:02}T12:00:00")
        verdicts = {one.account_id: evaluate(NOTICE, one, Surface.live_room, now) for one in crowd}
        reached = {name for name, verdict in verdicts.items() if verdict.reached}
        assert reached >= reached_before, "an account that was reached did not stay reached"
        assert all(verdicts[name].cap == 3 for name in reached)
        assert all(verdicts[name].cap is None for name in verdicts.keys() - reached)
        reached_before = reached
        shares.append(len(reached))
    assert shares[0] < 50
    assert 400 < shares[20] < 600
    assert shares[-1] == len(crowd), "by the end of July it reaches everybody"


def test_n12_whom_it_has_not_reached_learns_which_rule_is_coming() -> None:
    accounts = (Account(f"account-{n}", Kind.official, False, Shop("own", ShopType.mall)) for n in range(1000))
    verdicts = (evaluate(NOTICE, one, Surface.live_room, at("2026-07-10T00:00:00")) for one in accounts)
    verdict = next(verdict for verdict in verdicts if not verdict.reached)
    assert (verdict.cap, verdict.rule, verdict.policy_version) == (None, "N1", "2026-07")


def test_n13_rules_hold_from_their_time_on_and_not_before() -> None:
    start = at("2026-07-01T00:00:00")
    before = evaluate(NOTICE, official("mall"), Surface.live_room, start - 0.001)
    assert (before.cap, before.rule, before.policy_version) == (None, BEFORE_FIRST_VERSION, "")
    assert evaluate(NOTICE, official("mall"), Surface.live_room, start).policy_version == "2026-07"


@pytest.mark.parametrize("surface", Surface)
def test_n14_creators_without_a_shop_are_not_restricted(surface: Surface) -> None:
    verdict = evaluate(NOTICE, CREATOR, surface, AUGUST)
    assert (verdict.cap, verdict.rule, verdict.standing) == (None, "N14", Standing.creator)


@pytest.mark.parametrize("surface", Surface)
def test_no_rollout_is_needed_where_nothing_is_restricted(surface: Surface) -> None:
    first = at("2026-07-01T00:00:00")
    accounts = [CREATOR, official("mall", cross_border=True), official("mall", pure_creator=True)]
    assert all(evaluate(NOTICE, account, surface, first).reached for account in accounts)


def test_every_refusal_has_its_text_in_three_languages() -> None:
    for rule in NOTICE.versions[0].cases.values():
        assert set(rule.message) == ({"zh-CN", "zh-Hant", "en"} if rule.cap is not None else set())
