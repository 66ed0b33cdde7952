"""The notice, rule by rule, as a live-room client meets it."""

from __future__ import annotations

import pytest

from tests.acceptance.conftest import World, eventually

LIVE = "累计添加联盟商品数已达上限，请添加您店铺的商品喔~"
LIVE_HANT = "累計添加聯盟商品數已達上限，請添加您店鋪的商品喔~"
ELSEWHERE = "您的店铺类型暂不支持添加联盟商品，请添加自己店铺商品"
ELSEWHERE_HANT = "您的店鋪類型暫不支持添加聯盟商品，請添加自己店鋪商品"

PROFESSIONAL = ("shop-mall", "shop-official-flagship", "shop-flagship", "shop-exclusive", "shop-franchise")
OTHERS = ("shop-individual", "shop-enterprise")


@pytest.mark.parametrize("account", PROFESSIONAL)
async def test_n1_a_professional_shop_sells_only_its_own(world: World, account: str) -> None:
    room = await world.room(account)
    own = f"own-{account.removeprefix('shop-')}-1"
    assert (await room.attach(own)).status == 200
    refused = await room.attach("ally-1")
    assert (refused.status, refused.reason) == (403, "foreign_not_allowed")
    assert refused.body["detail"] == LIVE
    assert refused.body["rule"] == "N1"
    assert (refused.body["cap"], refused.body["used"], refused.body["remaining"]) == (0, 0, 0)
    assert await world.applied(room.session) == [own]


async def test_n2_a_cross_border_professional_shop_is_excepted_everywhere(world: World) -> None:
    room = await world.room("shop-crossborder")
    assert (await room.attach(*[f"ally-{n}" for n in range(1, 8)])).status == 200
    for path in ("showcase", "videos/v1"):
        answer = await room.ask("POST", f"/accounts/{room.account}/{path}/products", {"product_id": "ally-1"})
        assert answer.status == 200


async def test_n2_does_not_except_a_cross_border_shop_of_another_type(world: World) -> None:
    shop = {"shop_id": "individual", "shop_type": "individual", "cross_border": True, "status": "open"}
    record = {"account_id": "shop-individual", "kind": "official", "pure_creator": False, "shop": shop}
    await world.control("PUT", "accounts/shop-individual", record)
    room = await world.room()
    for n in (1, 2, 3):
        assert (await room.attach(f"ally-{n}")).status == 200
    assert (await room.attach("ally-4")).reason == "foreign_cap_reached"


@pytest.mark.parametrize("account", OTHERS)
async def test_n3_three_foreign_products_and_own_ones_without_limit(world: World, account: str) -> None:
    room = await world.room(account)
    for n in (1, 2, 3):
        assert (await room.attach(f"ally-{n}")).status == 200
    for n in range(1, 6):
        assert (await room.attach(f"own-{account.removeprefix('shop-')}-{n}")).status == 200
    refused = await room.attach("ally-4")
    assert (refused.status, refused.reason, refused.body["detail"]) == (403, "foreign_cap_reached", LIVE)
    assert refused.body["rule"] == "N3"
    assert (refused.body["cap"], refused.body["used"], refused.body["remaining"]) == (3, 3, 0)
    assert refused.slots == {"ally-1": True, "ally-2": True, "ally-3": True}


@pytest.mark.parametrize("account", [*PROFESSIONAL, *OTHERS])
@pytest.mark.parametrize("path", ["showcase", "videos/v1"])
async def test_n4_no_foreign_product_in_showcase_or_short_video(world: World, account: str, path: str) -> None:
    own = f"own-{account.removeprefix('shop-')}-1"
    url = f"/accounts/{account}/{path}/products"
    assert (await world.ask("POST", url, {"product_id": own}, account)).status == 200
    refused = await world.ask("POST", url, {"product_id": "ally-1"}, account)
    assert (refused.status, refused.reason, refused.body["detail"]) == (403, "foreign_not_allowed", ELSEWHERE)
    assert refused.body["rule"] == "N4"
    assert refused.body["surface"] == ("showcase" if path == "showcase" else "short_video")


async def test_n5_live_a_removed_product_gives_nothing_back_but_may_come_back(world: World) -> None:
    room = await world.room()
    await room.start()
    for n in (1, 2, 3):
        assert (await room.attach(f"ally-{n}")).status == 200
    assert (await room.detach("ally-2")).status == 204
    refused = await room.attach("ally-4")
    assert refused.reason == "foreign_cap_reached"
    assert refused.slots == {"ally-1": True, "ally-2": False, "ally-3": True}
    assert (await room.attach("ally-2")).status == 200
    assert await world.applied(room.session) == ["ally-1", "ally-2", "ally-3", "ally-2"]


async def test_n6_before_the_start_the_selection_may_change(world: World) -> None:
    room = await world.room()
    for n in (1, 2, 3):
        assert (await room.attach(f"ally-{n}")).status == 200
    assert (await room.detach("ally-1")).status == 204
    assert (await room.attach("ally-4")).status == 200
    assert (await room.replace("ally-2", "ally-5")).status == 200
    assert (await room.attach("ally-6")).reason == "foreign_cap_reached"
    assert (await room.start()).status == 200
    assert (await room.view()).slots == {"ally-3": True, "ally-4": True, "ally-5": True}


async def test_n6_once_live_it_cannot_be_replaced(world: World) -> None:
    room = await world.room()
    assert (await room.attach("ally-1")).status == 200
    await room.start()
    refused = await room.replace("ally-1", "ally-2")
    assert (refused.status, refused.reason, refused.body["rule"]) == (403, "replace_after_start", "N6")
    assert await room.listed() == ["ally-1"]
    assert (await room.replace("ally-1", "own-individual-1")).status == 200


async def test_n6_also_where_it_was_started_past_the_gateway(world: World) -> None:
    room = await world.room()
    for n in (1, 2, 3):
        await room.attach(f"ally-{n}")
    assert (await world.ask("POST", f"{world.upstream.url}{room.path}/start")).status == 200
    assert (await room.detach("ally-1")).status == 204
    assert (await room.attach("ally-4")).reason == "foreign_cap_reached"
    assert (await room.replace("ally-2", "ally-4")).reason == "replace_after_start"


async def test_n7_the_next_session_starts_afresh(world: World) -> None:
    for _ in range(2):
        room = await world.room()
        for n in (1, 2, 3):
            assert (await room.attach(f"ally-{n}")).status == 200
        assert (await room.attach("ally-4")).status == 403
        await room.end()


async def test_n8_the_addable_list_has_no_foreign_product_for_a_restricted_account(world: World) -> None:
    path = "/accounts/shop-individual/showcase/addable"
    listed = await world.ask("GET", path, account="shop-individual")
    assert {product["shop_id"] for product in listed.body["products"]} == {"individual"}
    upstream = await world.ask("GET", f"{world.upstream.url}/accounts/creator-li/showcase/addable")
    through = await world.ask("GET", "/accounts/creator-li/showcase/addable", account="creator-li")
    assert through.raw == upstream.raw


async def test_n9_a_new_shop_type_brings_its_own_rules(world: World) -> None:
    room = await world.room("shop-flagship")
    assert (await room.attach("ally-1")).status == 403
    shop = {"shop_id": "flagship", "shop_type": "enterprise", "cross_border": False, "status": "open"}
    record = {"account_id": "shop-flagship", "kind": "official", "pure_creator": False, "shop": shop}
    await world.control("PUT", "accounts/shop-flagship", record)
    await eventually(lambda: room.attach("ally-1"), lambda answer: answer.status == 200)
    for n in (2, 3):
        assert (await room.attach(f"ally-{n}")).status == 200
    assert (await room.attach("ally-4")).reason == "foreign_cap_reached"


@pytest.mark.parametrize("account", ["shop-closed", "shop-purecreator", "creator-li"])
async def test_n10_n11_n14_who_is_not_restricted(world: World, account: str) -> None:
    room = await world.room(account)
    assert (await room.attach(*[f"ally-{n}" for n in range(1, 10)])).status == 200
    answer = await room.ask("POST", f"/accounts/{account}/showcase/products", {"product_id": "ally-1"})
    assert answer.status == 200
    assert "RateLimit-Policy" not in answer.headers


async def test_the_messages_in_three_languages(world: World) -> None:
    room = await world.room("shop-flagship")
    url = "/accounts/shop-flagship/showcase/products"
    for language, live, elsewhere in (("zh-CN", LIVE, ELSEWHERE), ("zh-Hant", LIVE_HANT, ELSEWHERE_HANT)):
        answer = await room.attach("ally-1", Accept_Language=language)
        assert answer.body["detail"] == live
        answer = await room.ask("POST", url, {"product_id": "ally-1"}, Accept_Language=language)
        assert answer.body["detail"] == elsewhere
    english = await room.attach("ally-1", Accept_Language="en-GB,en;q=0.9")
    assert english.body["detail"].isascii()
    assert (await room.attach("ally-1", Accept_Language="fr")).body["detail"] == LIVE


async def test_what_merchants_ask_is_answered_by_the_refusals(world: World) -> None:
    professional = await (await world.room("shop-flagship")).attach("ally-1")
    assert {"N1", "N9", "N10", "N11", "N12"} <= professional.notices
    room = await world.room()
    await room.start()
    for n in (1, 2, 3):
        await room.attach(f"ally-{n}")
    await room.detach("ally-1")
    full = await room.attach("ally-4", Accept_Language="en")
    assert {"N5", "N7", "N10", "N11", "N12"} <= full.notices
    told = " ".join(entry["title"] for entry in full.body["help"])
    assert all(f"ally-{n}" in told for n in (1, 2, 3))
    showcase = await room.ask("POST", "/accounts/shop-individual/showcase/products", {"product_id": "ally-1"})
    assert "N8" in showcase.notices
