"""The judge counts as the notice says (N3, N5, N6), and sees a broken promise when there is one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.demo.store import Store
from gateway.load.judge import Entry, Judge, Judgement, Seen, Slot, View, cap_of, compare, judge_lists
from gateway.policy.model import Account, Kind, Product, Shop, ShopType

SMALL = Account("small", Kind.official, shop=Shop("s", ShopType.individual))
BRAND = Account("brand", Kind.official, shop=Shop("b", ShopType.flagship))
CREATOR = Account("creator", Kind.creator)
ACCOUNTS = {account.account_id: account for account in (SMALL, BRAND, CREATOR)}
SHOPS = {**{f"own{n}": "s" for n in range(5)}, **{f"f{n}": "ally" for n in range(9)}}
CAP = 3


def journal(*lines: str, account: str = "small", session: str = "s1") -> list[Entry]:
    """`attach f1`, `replace f1 f2` (the old one first), `start`, …"""
    entries = []
    for seq, line in enumerate(lines, 1):
        operation, *products = line.split()
        replaced = products[0] if operation == "replace" else None
        entries.append(Entry(seq, f"t{seq}", operation, session, account, products[-1] if products else None, replaced))
    return entries


def judged(entries: list[Entry]) -> Judgement:
    judge = Judge(ACCOUNTS, SHOPS, CAP)
    judge.feed(entries)
    return judge.judgement()


THREE = ("create", "attach f1", "attach f2", "attach f3")


@pytest.mark.parametrize(
    "lines",
    [
        THREE,
        (*THREE, "attach own1", "attach own2", "start", "attach own3"),
        (*THREE, "detach f1", "attach f4", "start"),
        (*THREE, "replace f1 f4", "start", "detach f4", "attach f4"),
        (*THREE, "start", "detach f1", "attach f1", "end"),
        (*THREE, "replace f1 own1", "attach f4", "start"),
        (*THREE, "replace f1 f2", "attach f4"),
    ],
)
def test_a_kept_promise(lines: tuple[str, ...]) -> None:
    judgement = judged(journal(*lines))
    assert (judgement.sessions, judgement.over, judgement.most_foreign) == (1, 0, 3)
    assert judgement.kept


@pytest.mark.parametrize(
    ("lines", "seq"),
    [
        ((*THREE, "attach f4"), 5),
        ((*THREE, "start", "detach f1", "attach f4"), 7),
        ((*THREE, "start", "replace f1 f4"), 6),
        ((*THREE, "start", "replace f1 own1", "attach f4"), 7),
        ((*THREE, "detach f1", "start", "attach f4", "attach f5"), 8),
        ((*THREE, "attach nobody-knows-whose"), 5),
        ((*THREE, "attach f4", "detach f4", "attach f5"), 5),
    ],
)
def test_a_planted_fourth_product_is_caught_where_it_came(lines: tuple[str, ...], seq: int) -> None:
    judgement = judged(journal(*lines))
    assert judgement.over == 1
    assert not judgement.kept
    (breach,) = judgement.breaches
    assert (breach.session_id, breach.account_id, breach.cap, breach.seq, breach.at) == (
        "s1",
        "small",
        3,
        seq,
        f"t{seq}",
    )
    assert len(breach.foreign) == 4


def test_each_session_counts_afresh() -> None:
    entries = journal(*THREE, "start", "end")
    second = journal(*THREE, "attach f4", session="s2")
    judgement = judged([*entries, *(Entry(e.seq + 6, *_rest(e)) for e in second)])
    assert [breach.session_id for breach in judgement.breaches] == ["s2"]
    assert judgement.sessions == 2


def _rest(entry: Entry) -> tuple[Any, ...]:
    return tuple(getattr(entry, name) for name in entry.__struct_fields__[1:])


def test_the_cap_follows_the_account() -> None:
    assert judged(journal("create", "attach f1", account="brand")).over == 1
    assert judged(journal(*THREE, "attach f4", account="creator")).sessions == 0
    closed = Account("x", Kind.official, shop=Shop("x", ShopType.mall, status="closed"))
    pure = Account("x", Kind.official, True, Shop("x", ShopType.individual))
    abroad = Account("x", Kind.official, shop=Shop("x", ShopType.mall, cross_border=True))
    small_abroad = Account("x", Kind.official, shop=Shop("x", ShopType.enterprise, cross_border=True))
    assert [cap_of(account, 3) for account in (closed, pure, abroad, small_abroad, SMALL, BRAND)] == [
        None, None, None, 3, 3, 0,
    ]  # fmt: skip


def test_what_it_cannot_see_is_not_taken_for_good() -> None:
    whole = journal(*THREE, "start", "end")
    hole = judged([entry for entry in whole if entry.seq != 3])
    assert (hole.doubts, hole.kept) == (["entries 3 to 3 are missing from the journal"], False)
    headless = judged(whole[1:])
    assert "beginning" in headless.doubts[0]
    assert not headless.kept
    assert "not understood" in judged(journal("create", "pin f1")).doubts[0]
    assert not judged([]).kept, "nothing was checked"


def test_what_came_before_the_run_and_other_accounts_are_not_judged() -> None:
    judge = Judge(ACCOUNTS, SHOPS, CAP)
    judge.skip_to(2)
    judge.feed([Entry(2, "", "attach", "old", "small", "f1"), Entry(3, "", "create", "other", "stranger")])
    assert (judge.judgement().sessions, judge.judgement().entries, judge.last_seq) == (0, 0, 3)


def test_a_journal_that_is_read_again_counts_once() -> None:
    judge = Judge(ACCOUNTS, SHOPS, CAP)
    entries = journal(*THREE, "detach f1", "attach f4", "start")
    judge.feed(entries)
    judge.feed(entries)
    assert judge.judgement().over == 0
    assert judge.judgement().entries == len(entries)


STEPS = st.tuples(
    st.sampled_from(["attach", "detach", "replace", "start"]),
    st.sampled_from(["f1", "f2", "f3", "f4", "f5", "own1"]),
    st.sampled_from(["f1", "f2", "f3", "f4", "f5", "own1"]),
)


@given(st.lists(STEPS, max_size=30))
def test_it_agrees_with_what_the_platform_shows_after_each_step(steps: list[tuple[str, str, str]]) -> None:
    """Counted another way: what is in the list while preparing, and everything that was ever in it since the start."""
    store = Store([SMALL, *(Product(product_id, shop_id) for product_id, shop_id in SHOPS.items())])
    store.create("s1", "small", 0.0)
    counted: set[str] = set()
    most = 0
    for operation, one, other in steps:
        try:
            match operation:
                case "attach":
                    store.attach("s1", [one], 0.0)
                case "detach":
                    store.detach("s1", one, 0.0)
                case "replace":
                    store.replace("s1", one, other, 0.0)
                case _:
                    store.start("s1", 0.0)
        except Exception:
            continue
        listed = {product.product_id for product in store.listed("s1") if product.shop_id != "s"}
        counted = listed if store.session("s1").state == "preparing" else counted | listed
        most = max(most, len(counted))
    judge = Judge(ACCOUNTS, SHOPS, CAP)
    judge.feed(
        Entry(e.seq, e.at, e.operation, e.session_id, e.account_id, e.product_id, e.replaced or None)
        for e in store.entries()
    )
    count = judge.count("s1")
    assert count is not None
    assert count.used.keys() == counted
    assert judge.judgement().most_foreign == most
    assert judge.judgement().over == (most > CAP)


def test_lists_show_what_is_there_and_what_clients_were_told() -> None:
    def seen(listed: set[str], told: set[str], account: str = "small") -> Seen:
        return Seen("s1", account, frozenset(listed), frozenset(told))

    def over(*sessions: Seen) -> int:
        return judge_lists(sessions, ACCOUNTS, SHOPS, CAP).over

    assert over(seen({"f1", "f2", "f3", "own1", "own2"}, {"f1", "own3"})) == 0
    assert over(seen({"f1", "f2", "f3", "f4"}, set())) == 1
    assert over(seen({"f1", "f2"}, {"f3", "f4"})) == 1
    assert over(seen({"f1"}, set(), "brand"), seen({"f1", "f2", "f3", "f4"}, set(), "creator")) == 1


def test_the_gateways_view_must_agree() -> None:
    judge = Judge(ACCOUNTS, SHOPS, CAP)
    judge.feed(journal(*THREE, "start", "detach f1"))
    count = judge.count("s1")
    assert count is not None

    def against(*slots: Slot, used: int | None = None) -> list[list[str] | str] | None:
        found = compare("s1", count, View("s1", len(slots) if used is None else used, list(slots)))
        return None if found is None else [found.lost, found.uncounted, found.in_doubt, found.problem]

    three = (Slot("f1", attached=False), Slot("f2"), Slot("f3"))
    assert against(*three) is None
    assert against(*three, Slot("f4")) == [["f4"], [], [], ""]
    assert against(*three[1:]) == [[], ["f1"], [], ""]
    assert against(*three[:2], Slot("f3", in_doubt=True)) == [[], [], ["f3"], ""]
    assert against(*three, used=2) == [[], [], [], "says used 2, names 3 slots"]
