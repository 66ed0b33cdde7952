"""What must be known before anything is decided, and which of several mistakes is said first."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gateway.admission.facts import Facts, at_hand, check_owner, check_path_account, gather
from gateway.directory import Directory
from gateway.errors import (
    AccountUnknown,
    DirectoryUnavailable,
    NotAccountOwner,
    NotSessionOwner,
    ProductUnknown,
    SessionEnded,
    SessionUnknown,
)
from gateway.policy.model import Session, SessionState
from tests.admission.world import ACCOUNT, World


@pytest.fixture
def directory(world: World) -> Directory:
    return world.gateways[0]._directory


async def known_of(directory: Directory, account_id: str, session_id: str | None, product_ids: Sequence[str]) -> Facts:
    """As an attach asks."""
    asked = (directory, account_id, session_id, product_ids)
    return at_hand(*asked) or await gather(*asked)


async def test_all_is_known(directory: Directory) -> None:
    for _ in range(2):  # asked, and remembered
        known = await known_of(directory, ACCOUNT, "s1", ["ally-1", "own-individual-1"])
        assert (known.account.account_id, known.session) == (ACCOUNT, Session("s1", ACCOUNT, SessionState.preparing))
        assert [product.shop_id for product in known.products] == ["ally-shop-1", "individual"]


@pytest.mark.parametrize("remembered", [True, False])
async def test_the_first_mistake_is_said(world: World, directory: Directory, remembered: bool) -> None:
    await world.session("other", "creator-li")
    await world.session("over")
    world.platform.platform.store.end("over", 0.0)
    cases = [
        (("nobody", "nowhere", ["nothing"]), SessionUnknown),
        (("nobody", "s1", ["nothing"]), AccountUnknown),
        ((ACCOUNT, "other", ["ally-1"]), NotSessionOwner),
        ((ACCOUNT, "over", ["ally-1"]), SessionEnded),
        ((ACCOUNT, "s1", ["ally-1", "nothing", "neither"]), ProductUnknown),
        (("creator-li", "over", ["ally-1"]), NotSessionOwner),
    ]
    for (account, session_id, products), kind in cases:
        for _ in range(1 + remembered):
            with pytest.raises(kind):
                await known_of(directory, account, session_id, products)


async def test_a_creator_is_not_asked_whose_products_they_are(world: World, directory: Directory) -> None:
    known = await known_of(directory, "creator-li", None, ["nothing"])
    assert known.products == []
    world.fault("error", "directory")
    assert (await known_of(directory, "creator-li", None, ["something else"])).products == []


async def test_a_directory_that_fails_is_not_guessed_for(world: World, directory: Directory) -> None:
    world.fault("error", "directory")
    with pytest.raises(DirectoryUnavailable):
        await known_of(directory, ACCOUNT, "s1", ["ally-1"])


async def test_nothing_is_asked_twice_at_once(world: World, directory: Directory) -> None:
    await asyncio.gather(*(known_of(directory, ACCOUNT, "s1", ["ally-1"]) for _ in range(50)))
    assert directory.product_records.misses <= 50
    assert at_hand(directory, ACCOUNT, "s1", ["ally-1"]) is not None
    assert at_hand(directory, ACCOUNT, "s1", ["ally-1", "ally-2"]) is None


def test_an_account_in_the_path_serves_itself() -> None:
    check_path_account(None, "a")
    check_path_account("a", "a")
    with pytest.raises(NotAccountOwner):
        check_path_account("b", "a")
    with pytest.raises(NotSessionOwner):
        check_owner(Session("s", "b", SessionState.live), "a")
