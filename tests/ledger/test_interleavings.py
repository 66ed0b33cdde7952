"""The interleavings that a simple ledger gets wrong, each played step by step against the real scripts.

What other operations do between an operation's question, the upstream's deed, its answer and the ledger's step; and
what a reconciler finds that read before something else happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import permutations
from typing import Any

import pytest

from gateway.ledger.replies import LostAnswer
from gateway.ledger.steps import OnItsWay, Step
from tests.ledger.stage import ENDED, LIVE, PREPARING, Stage

# Attach, detach and attach of one product


async def test_attach_detach_attach_and_the_detach_is_learnt_last(stage: Stage) -> None:
    assert await stage.reserve("first", "x") == "held"
    assert await stage.detach("away", "x") == "asked"
    assert await stage.reserve("second", "x") == "held"
    stage.upstream.attach("x")
    stage.upstream.detach("x")
    stage.upstream.attach("x")
    await stage.commit("first", "x")
    await stage.commit("second", "x")
    assert (await stage.detached("away", "x", PREPARING)).said == "pending"
    assert await stage.slots() == {"x"}, "the slot must not come back"
    assert await stage.reconcile("away") == "settled"
    await stage.is_settled("x")


@pytest.mark.parametrize("order", list(permutations(("commit first", "commit second", "commit away"))))
async def test_attach_detach_attach_in_every_order_of_the_answers(stage: Stage, order: tuple[str, ...]) -> None:
    for op in ("first", "second"):
        await stage.reserve(op, "x")
    await stage.detach("away", "x")
    stage.upstream.attach("x")
    stage.upstream.detach("x")
    stage.upstream.attach("x")
    for step in order:
        op = step.split()[1]
        await (stage.detached("away", "x", PREPARING) if op == "away" else stage.commit(op, "x"))
        assert await stage.slots() == {"x"}
    for op in await stage.pending():
        await stage.reconcile(op)
    await stage.is_settled("x")


@pytest.mark.parametrize("ends", ["commit", "doubt", "dies"])
async def test_an_attach_is_confirmed_after_the_detach_of_what_it_attached(stage: Stage, ends: str) -> None:
    """Upstream: attach, detach. Ledger: the detach first. Believing the late confirmation would lose the slot."""
    await stage.reserve("attach", "x")
    stage.upstream.attach("x")
    await stage.detach("away", "x")
    stage.upstream.detach("x")
    assert (await stage.detached("away", "x", PREPARING)).said == "settled"
    assert await stage.slots() == {"x"}, "the attach may have been applied after the detach: still held"
    if ends == "commit":
        assert await stage.commit("attach", "x") == "pending"
    elif ends == "doubt":
        await stage.doubt("attach", "t:x")
    await stage.reconcile("attach")
    await stage.is_settled()


async def test_a_detached_product_that_is_refused_again_gives_its_slot_back(stage: Stage) -> None:
    await stage.attach("first", "x")
    await stage.detach("away", "x")
    stage.upstream.detach("x")
    await stage.reserve("again", "x")
    await stage.detached("away", "x", PREPARING)
    await stage.release("again")
    if "away" in await stage.pending():
        await stage.reconcile("away")
    await stage.is_settled()


async def test_detached_in_preparation_while_an_attach_was_in_doubt_costs_nothing_once_live(stage: Stage) -> None:
    await stage.reserve("attach", "x")
    stage.upstream.attach("x")
    await stage.doubt("attach", "t:x")
    await stage.detach("away", "x")
    stage.upstream.detach("x")
    await stage.detached("away", "x", PREPARING)
    await stage.go_live()
    await stage.reconcile("attach")
    await stage.is_settled()


# Detach and start


@pytest.mark.parametrize("by", ["a detach", "a replace"])
async def test_a_start_right_after_the_removal_of_what_another_attach_may_have_touched(stage: Stage, by: str) -> None:
    """An older attach was settled while the removal was on its way, a newer one is in doubt and comes to nothing: the
    look before the start sees that the product is gone, and gone before the start."""
    await stage.reserve("older", "x")
    stage.upstream.attach("x")
    await stage.doubt("older", "t:x")
    await stage.reserve("newer", "x")
    await stage.doubt("newer", "t:x")
    if by == "a detach":
        await stage.detach("away", "x")
    else:
        await stage.replace("away", "x", "own", foreign=False)
    await stage.reconcile("older")
    stage.upstream.detach("x")
    assert (await stage.detached("away", "x", PREPARING)).said == "pending"
    assert await stage.look_early("away") == "settled"
    await stage.go_live()
    await stage.reconcile("newer")
    await stage.is_settled()


@pytest.mark.parametrize("through", ["gateway", "gateway, answer lost", "past the gateway"])
async def test_a_start_between_the_detachs_answer_and_its_step(full: Stage, through: str) -> None:
    await full.detach("away", "a")
    full.upstream.detach("a")
    if through == "past the gateway":
        full.upstream.start()
        await full.detached("away", "a", LIVE)
    else:
        assert await full.start("start") == "asked"
        full.upstream.start()
        seen = PREPARING  # looked at before the start
        if through == "gateway":
            await full.started("start")
        assert (await full.detached("away", "a", seen)).used == 3
    for op in await full.pending():
        await full.reconcile(op)
    assert await full.reserve("fourth", "d") == "full", "the slot must not come back"
    await full.is_settled("a", "b", "c")


async def test_a_detach_whose_look_failed_is_looked_at_again(full: Stage) -> None:
    await full.detach("away", "a")
    full.upstream.detach("a")
    assert (await full.detached("away", "a", None)).said == "pending"
    assert await full.used() == 3
    await full.reconcile("away")
    await full.is_settled("b", "c")


async def test_live_what_was_removed_counts_and_may_come_back(full: Stage) -> None:
    await full.go_live()
    assert await full.detach("away", "a") == "stays"
    full.upstream.detach("a")
    await full.detached("away", "a", None)
    assert await full.reserve("other", "d") == "full"
    await full.attach("again", "a")
    await full.is_settled("a", "b", "c")
    assert all(slot.attached for slot in (await full.snapshot()).slots)


async def test_a_start_is_committed_although_its_record_was_settled_too_early(full: Stage) -> None:
    await full.start("start")
    assert await full.reconcile("start") == "settled"  # it was not applied yet
    full.upstream.start()
    await full.started("start")
    assert (await full.snapshot()).state is LIVE
    assert len(await full.events("started")) == 1
    assert await full.replace("swap", "a", "d", PREPARING) == "started"


async def test_a_detach_that_found_nothing_is_looked_at_before_the_start_and_forgotten_after(full: Stage) -> None:
    """The ledger believes that the product is there, the upstream says that it is not."""
    full.upstream.attached.discard("a")
    await full.detach("away", "a")
    assert (await full.detached("away", "a", PREPARING, found=False)).said == "pending"
    assert await full.used() == 3
    await full.reconcile("away")
    await full.is_settled("b", "c")
    await full.go_live()
    await full.detach("later", "b")
    assert (await full.detached("later", "b", None, found=False)).said == "settled"
    await full.is_settled("b", "c")


async def test_an_attach_in_doubt_was_not_applied_and_its_detach_found_nothing(stage: Stage) -> None:
    """A client that tidies up after a time-out, and goes live: the place comes back."""
    await stage.reserve("attach", "x")
    await stage.doubt("attach", "t:x")
    await stage.detach("away", "x")
    await stage.detached("away", "x", PREPARING, found=False)
    await stage.go_live()
    await stage.reconcile("attach")
    await stage.is_settled()


# Time-outs and late application


async def test_a_time_out_keeps_the_slot_until_nothing_can_be_applied_any_more(full: Stage) -> None:
    await full.detach("away", "c")
    full.upstream.detach("c")
    await full.detached("away", "c", PREPARING)
    await full.reserve("slow", "d")
    await full.doubt("slow", "t:d")
    assert await full.reserve("fourth", "e") == "full"
    full.upstream.attach("d")
    await full.reconcile("slow")
    await full.is_settled("a", "b", "d")
    assert await full.reserve("fifth", "e") == "full"


async def test_a_time_out_that_was_not_applied_gives_its_slot_back(full: Stage) -> None:
    await full.detach("away", "c")
    full.upstream.detach("c")
    await full.detached("away", "c", PREPARING)
    await full.reserve("slow", "d")
    await full.doubt("slow", "t:d")
    await full.reconcile("slow")
    await full.is_settled("a", "b")


@pytest.mark.parametrize("state", ["preparing", "live"])
async def test_a_yes_after_the_slot_was_given_up_takes_it_again(stage: Stage, state: str) -> None:
    """Whoever thought that it had failed was wrong; live, the product counts even if it is gone again."""
    if state == "live":
        await stage.go_live()
    await stage.reserve("attach", "x")
    await stage.release("attach")
    stage.upstream.attach("x")
    assert await stage.commit("attach", "x") == "pending"
    assert await stage.slots() == {"x"}
    stage.upstream.detach("x")
    await stage.reconcile("attach")
    await stage.is_settled(*(("x",) if state == "live" else ()))


async def test_a_doubt_after_the_record_was_settled_holds_again(stage: Stage) -> None:
    await stage.reserve("attach", "x")
    await stage.reconcile("attach")
    assert await stage.doubt("attach", "t:x") == "in_doubt"
    stage.upstream.attach("x")
    await stage.reconcile("attach")
    await stage.is_settled("x")


async def test_a_gateway_that_gives_up_late_restarts_the_time(stage: Stage) -> None:
    """A reconciler has put it in doubt, its gateway was alive: late is counted from the gateway's last word."""
    await stage.reserve("attach", "x")
    pending = await stage.claim("attach")
    await stage.ledger.doubt(stage.session, "attach", [Step("t", "x")], own=False)
    await stage.time_passes("attach")
    assert await stage.doubt("attach", "t:x") == "in_doubt"
    _, claimed = await stage.ledger.claim(stage.bucket, 5.0, 1000)
    assert [one for one in claimed if one.session_id == stage.session] == []
    assert len(await stage.events("in_doubt")) == 1
    assert (await stage.settle(await stage.look(pending))).said == "lost"


async def test_of_a_batch_what_was_applied_is_committed_and_the_rest_released(stage: Stage) -> None:
    await stage.reserve("batch", "x", "y", "z")
    stage.upstream.attach("x")
    assert await stage.commit("batch", "x", failed=("y", "z")) == "settled"
    await stage.is_settled("x")
    assert await stage.events() == [("attached", "batch", "x")]


# Two requests for one product


@pytest.mark.parametrize("yes_first", [True, False])
@pytest.mark.parametrize("killed", ["nobody", "who was refused", "who was accepted"])
async def test_two_hold_one_product_and_one_fails(stage: Stage, yes_first: bool, killed: str) -> None:
    assert await stage.reserve("yes", "x") == "held"
    assert await stage.reserve("no", "x") == "held"
    assert await stage.used() == 1, "one product, one slot"
    stage.upstream.attach("x")
    for op in ("yes", "no") if yes_first else ("no", "yes"):
        if (op == "no" and killed == "who was refused") or (op == "yes" and killed == "who was accepted"):
            continue
        await (stage.commit("yes", "x") if op == "yes" else stage.release("no"))
        assert await stage.slots() == {"x"}
    for op in await stage.pending():
        await stage.reconcile(op)
    await stage.is_settled("x")


async def test_two_hold_one_product_and_both_fail(stage: Stage) -> None:
    await stage.reserve("one", "x")
    await stage.reserve("two", "x")
    await stage.release("one")
    assert await stage.slots() == {"x"}
    await stage.release("two")
    await stage.is_settled()


async def test_sixty_four_clients_race_for_one_place(redis_url: str) -> None:
    stage = await Stage.begin(redis_url, "a", "b")
    said = await asyncio.gather(*(stage.reserve(f"op{n}", f"p{n}") for n in range(64)))
    assert said.count("held") == 1
    await stage.close()


# Replace


@pytest.mark.parametrize("old_there", [True, False])
@pytest.mark.parametrize("new_there", [True, False])
@pytest.mark.parametrize("dies", [True, False])
async def test_a_replace_whose_answer_is_lost(full: Stage, old_there: bool, new_there: bool, dies: bool) -> None:
    assert await full.replace("swap", "a", "d") == "held"
    if not dies:
        await full.doubt("swap", "g:a", "t:d")
    assert await full.used() == 3
    assert await full.reserve("fourth", "e") == "full"
    full.upstream.attached = ({"a"} if old_there else set()) | ({"d"} if new_there else set()) | {"b", "c"}
    await full.reconcile("swap")
    await full.is_settled(*full.upstream.attached)


async def test_a_replace_passes_the_slot_in_one_step(full: Stage) -> None:
    assert await full.replace("swap", "a", "d") == "held"
    full.upstream.replace("a", "d")
    assert (await full.replaced("swap", "a", "d", PREPARING)).used == 3
    await full.is_settled("b", "c", "d")
    assert await full.events() == [("replaced", "swap", "d")]


async def test_a_replace_that_is_refused_gives_nothing_away(full: Stage) -> None:
    await full.replace("swap", "a", "d")
    await full.release("swap", 2)
    await full.is_settled("a", "b", "c")


async def test_the_old_product_of_a_pending_replace_is_not_free_to_attach(full: Stage) -> None:
    """It has a slot, but lent: whoever attaches it again could make two of one."""
    await full.replace("swap", "a", "d")
    assert await full.reserve("old again", "a") == "full"
    assert await full.reserve("new too", "d") == "full"
    assert await full.reserve("another", "b") == "held"
    full.cap = 4
    assert await full.reserve("old again", "a") == "held"
    assert await full.used() == 4, "paid: both count from now on"


@pytest.mark.parametrize("moment", ["asked", "in doubt"])
async def test_no_start_while_a_lent_slot_may_become_two(full: Stage, moment: str) -> None:
    await full.replace("swap", "a", "d")
    if moment == "in doubt":
        await full.doubt("swap", "g:a", "t:d")
    assert await full.start("start") == "unsettled"
    full.upstream.replace("a", "d")
    if moment == "in doubt":
        assert await full.look_early("swap") == "settled"
    else:
        await full.replaced("swap", "a", "d", PREPARING)
    assert await full.start("start") == "asked"
    assert await full.slots() == {"b", "c", "d"}


async def test_a_start_pays_for_a_lent_slot_where_there_is_room(redis_url: str) -> None:
    stage = await Stage.begin(redis_url, "a", "b")
    await stage.replace("swap", "a", "d")
    assert await stage.used() == 2
    assert await stage.start("start") == "asked"
    assert await stage.used() == 3
    stage.upstream.start()
    stage.upstream.replace("a", "d")  # live: a was selected, d came after
    assert (await stage.replaced("swap", "a", "d", LIVE)).used == 3
    await stage.started("start")
    await stage.is_settled("a", "b", "d")
    await stage.close()


@pytest.mark.parametrize("then", ["looked at again", "started first", "started first, by a replace"])
async def test_a_replaced_product_is_no_place_for_a_fourth(full: Stage, then: str) -> None:
    """The look after the answer failed: its slot stays, beside that of the product which has its place."""
    await full.replace("swap", "a", "d")
    full.upstream.replace("a", "d")
    assert (await full.replaced("swap", "a", "d", None)).said == "pending"
    assert await full.used() == 4
    assert await full.reserve("old again", "a") == "full"
    assert await full.replace("back", "b", "a") == "full"
    assert await full.reserve("new again", "d") == "held"
    await full.release("new again")
    if then == "looked at again":
        await full.reconcile("swap")
        await full.is_settled("b", "c", "d")
        return
    await full.go_live()
    await full.reconcile("swap")
    await full.is_settled("a", "b", "c", "d")
    if then == "started first":
        assert await full.reserve("old again", "a") == "full"
    else:
        assert await full.replace("back", "b", "a") == "started"
    full.cap = 4
    assert await full.reserve("old again", "a") == "held"


async def test_a_replaced_product_is_no_place_for_a_fourth_after_an_early_look(full: Stage) -> None:
    """The new product is listed; the old one may have been detached by another, so that its slot stays for now."""
    await full.replace("swap", "a", "d")
    await full.doubt("swap", "g:a", "t:d")
    await full.detach("away", "a")
    full.upstream.replace("a", "d")
    assert await full.look_early("swap") == "in_doubt"
    assert await full.reserve("old again", "a") == "full"
    await full.go_live()
    assert await full.reserve("old again", "a") == "full"
    await full.release("away")
    for op in await full.pending():
        await full.reconcile(op)
    assert await full.reserve("old again", "a") == "full"


async def test_a_lent_slot_stays_lent_while_neither_product_can_be_settled(full: Stage) -> None:
    await full.replace("swap", "a", "d")
    await full.doubt("swap", "g:a", "t:d")
    look = await full.look(await full.claim("swap"))
    full.upstream.replace("a", "d")
    full.upstream.attach("a")  # past the gateway, for a moment
    version = (await full.snapshot()).version
    await full.ledger.adopt(full.session, "drift", version, PREPARING, sorted(full.upstream.attached))
    full.upstream.detach("a")
    assert (await full.settle(look)).said == "stale"
    assert await full.reserve("old again", "a") == "full"
    assert await full.start("start") == "unsettled"
    await full.reconcile("swap")
    await full.is_settled("b", "c", "d")


@pytest.mark.parametrize("why", ["held", "in doubt", "already lent", "over the cap", "a start is pending"])
async def test_a_slot_is_lent_only_where_nobody_else_can_make_two_of_it(full: Stage, why: str) -> None:
    if why in ("held", "in doubt"):
        await full.reserve("again", "a")
        if why == "in doubt":
            await full.doubt("again", "t:a")
    elif why == "already lent":
        await full.replace("other", "a", "e")
    elif why == "over the cap":
        full.cap = 2
    else:
        await full.start("start")
    assert await full.replace("swap", "a", "d") == ("started" if why == "a start is pending" else "full")
    assert await full.slots() == {"a", "b", "c"} | ({"e"} if why == "already lent" else set())


async def test_live_a_replace_by_what_has_a_slot_or_needs_none_passes(full: Stage) -> None:
    await full.go_live()
    full.upstream.detach("c")
    assert await full.replace("new", "a", "d", LIVE) == "started"
    assert await full.replace("known", "a", "c", LIVE) == "held"
    full.upstream.replace("a", "c")
    await full.replaced("known", "a", "c", LIVE)
    assert await full.replace("own", "b", "own-1", LIVE, foreign=False) == "held"
    full.upstream.replace("b")
    await full.ledger.commit(full.session, "own", "replaced", [Step("g", "b")], LIVE)
    await full.is_settled("a", "b", "c")


# Reconcilers


async def test_an_attach_between_the_list_and_the_settlement(stage: Stage) -> None:
    await stage.reserve("lost", "x")
    await stage.doubt("lost", "t:x")
    look = await stage.look(await stage.claim("lost"))
    await stage.attach("meanwhile", "x")
    assert (await stage.settle(look)).said == "stale"
    assert await stage.slots() == {"x"}
    await stage.reconcile("lost")
    await stage.is_settled("x")


async def test_a_detach_between_the_list_and_the_settlement(stage: Stage) -> None:
    """The list still had the product: believing it would hold a slot for nothing, for good."""
    await stage.reserve("lost", "x")
    stage.upstream.attach("x")
    await stage.doubt("lost", "t:x")
    look = await stage.look(await stage.claim("lost"))
    assert look.listed == {"x"}
    await stage.detach("away", "x")
    stage.upstream.detach("x")
    await stage.detached("away", "x", PREPARING)
    assert (await stage.settle(look)).said == "stale"
    await stage.reconcile("lost")
    await stage.is_settled()


async def test_a_reconciler_that_wakes_after_its_lease_changes_nothing(stage: Stage) -> None:
    await stage.reserve("lost", "x")
    await stage.doubt("lost", "t:x")
    paused = await stage.look(await stage.claim("lost"))
    other = await stage.look(await stage.claim("lost"))
    stage.upstream.attach("x")  # by another request, whose step comes later
    assert (await stage.settle(paused)).said == "lost"
    await stage.ledger.postpone(paused.pending, 0.0)
    assert (await stage.settle(other)).said == "settled"
    assert (await stage.settle(paused)).said == "lost"
    assert (await stage.settle(other)).said == "lost"


async def test_no_time_looks_like_a_lease(stage: Stage) -> None:
    await stage.reserve("lost", "x")
    pending = await stage.claim("lost")
    assert pending.lease.endswith(".5")
    await stage.ledger.postpone(pending, 5.0)
    scores = dict(await stage.raw.zrange(stage.ledger.pending_key(stage.bucket), 0, -1, withscores=True))
    assert scores[f"{stage.session} lost 1"] % 1 == 0


async def test_only_one_of_two_reconcilers_claims(stage: Stage) -> None:
    await stage.reserve("lost", "x")
    await stage.time_passes("lost")
    claims = await asyncio.gather(*(stage.ledger.claim(stage.bucket, 5.0, 10) for _ in range(2)))
    mine = [one for _, claimed in claims for one in claimed if one.session_id == stage.session]
    assert len(mine) == 1


async def test_a_commit_between_the_list_and_the_settlement(stage: Stage) -> None:
    """Its gateway was only slow."""
    await stage.reserve("slow", "x")
    pending = await stage.claim("slow")
    await stage.ledger.doubt(stage.session, "slow", [Step("t", "x")], own=False)
    look = await stage.look(await stage.claim("slow"))
    stage.upstream.attach("x")
    await stage.commit("slow", "x")
    assert (await stage.settle(look)).said == "lost"
    assert (await stage.ledger.doubt(stage.session, pending.operation, [Step("t", "x")], own=False)).said == "gone"
    await stage.is_settled("x")


async def test_a_part_that_can_be_settled_is_and_is_said(stage: Stage) -> None:
    await stage.reserve("batch", "x", "y")
    stage.upstream.attach("x")
    await stage.doubt("batch", "t:x", "t:y")
    look = await stage.look(await stage.claim("batch"))
    await stage.attach("meanwhile", "y")
    assert (await stage.settle(look)).said == "stale"
    assert await stage.events("settled") == [("settled", "batch", "x")]
    await stage.reconcile("batch")
    assert await stage.events("settled") == [("settled", "batch", "x"), ("settled", "batch", "y")]
    await stage.is_settled("x", "y")


# Live: what came and went counts


@pytest.mark.parametrize("detach", ["in doubt", "its gateway died", "of an unknown product, its gateway died"])
async def test_live_attached_and_gone_again_with_both_answers_lost(stage: Stage, detach: str) -> None:
    await stage.go_live()
    if detach.startswith("of an unknown"):
        assert await stage.detach("away", "x") == "untracked"
    await stage.reserve("attach", "x")
    stage.upstream.attach("x")
    await stage.doubt("attach", "t:x")
    if not detach.startswith("of an unknown"):
        assert await stage.detach("away", "x") == "stays"
    stage.upstream.detach("x")
    if detach == "in doubt":
        await stage.doubt("away", "g:x")
    for op in ("attach", "away", "attach"):
        if op in await stage.pending():
            await stage.reconcile(op)
    assert stage.upstream.accepted == {"x"}
    await stage.is_settled("x")


async def test_live_a_detach_on_its_way_is_waited_for(stage: Stage) -> None:
    """The attach was not applied and the detach is refused: the slot is not lost to the mere possibility."""
    await stage.go_live()
    await stage.reserve("attach", "x")
    await stage.doubt("attach", "t:x")
    await stage.detach("away", "x")
    assert await stage.reconcile("attach") == "stale"
    assert await stage.slots() == {"x"}
    await stage.release("away")
    assert await stage.reconcile("attach") == "settled"
    await stage.is_settled()


@pytest.mark.parametrize("attach", ["refused", "applied", "lost"])
async def test_live_a_detach_in_doubt_waits_for_an_attach_on_its_way(stage: Stage, attach: str) -> None:
    await stage.go_live()
    await stage.detach("away", "x")
    await stage.doubt("away", "g:x")
    await stage.reserve("attach", "x")
    assert await stage.reconcile("away") == "stale"
    if attach == "refused":
        await stage.release("attach")
    elif attach == "applied":
        stage.upstream.attach("x")
        await stage.commit("attach", "x")
    else:
        stage.upstream.attach("x")
        stage.upstream.detach("x")
        await stage.doubt("attach", "t:x")
    for op in ("away", "attach"):
        if op in await stage.pending():
            await stage.reconcile(op)
    await stage.is_settled(*(() if attach == "refused" else ("x",)))


# Early looks, before a start


async def test_an_early_look_does_not_believe_that_a_detach_was_applied_to_what_was_never_seen(stage: Stage) -> None:
    """Both may still come, after the start: the product then counts."""
    await stage.reserve("attach", "x")
    await stage.doubt("attach", "t:x")
    await stage.detach("away", "x")
    await stage.doubt("away", "g:x")
    assert await stage.look_early("away") == "in_doubt"
    await stage.go_live()
    stage.upstream.attach("x")
    stage.upstream.detach("x")
    for op in ("attach", "away"):
        await stage.reconcile(op)
    assert stage.upstream.accepted == {"x"}
    await stage.is_settled("x")


async def test_an_early_look_does_not_take_an_older_attach_for_the_one_in_doubt(stage: Stage) -> None:
    await stage.attach("first", "x")
    await stage.reserve("again", "x")
    await stage.doubt("again", "t:x")
    assert await stage.look_early("again") == "in_doubt"
    await stage.detach("away", "x")
    stage.upstream.detach("x")
    await stage.detached("away", "x", PREPARING)
    assert await stage.slots() == {"x"}, "the second attach may still come"
    stage.upstream.attach("x")
    await stage.reconcile("again")
    await stage.is_settled("x")


async def test_an_early_look_does_not_take_anothers_detach_for_the_one_in_doubt(stage: Stage) -> None:
    await stage.attach("first", "x")
    for op in ("one", "two"):
        await stage.detach(op, "x")
        await stage.doubt(op, "g:x")
    stage.upstream.detach("x")
    assert await stage.look_early("one") == "in_doubt"
    assert await stage.look_early("two") == "in_doubt"
    await stage.attach("again", "x")
    stage.upstream.detach("x")  # the other one, late
    for op in ("one", "two"):
        await stage.reconcile(op)
    await stage.is_settled()


async def test_an_early_look_settles_what_the_list_shows(stage: Stage) -> None:
    await stage.attach("first", "y")
    await stage.reserve("attach", "x")
    stage.upstream.attach("x")
    await stage.doubt("attach", "t:x")
    await stage.detach("away", "y")
    stage.upstream.detach("y")
    await stage.doubt("away", "g:y")
    assert await stage.look_early("attach") == "settled"
    assert await stage.look_early("away") == "settled"
    await stage.is_settled("x")


# Clocks, restored snapshots, adoption


async def test_no_gateways_clock_matters(stage: Stage) -> None:
    """Every time in the ledger is Redis' own: no step takes one."""
    seconds, micros = await stage.raw.time()
    before = seconds * 1000 + micros // 1000
    await stage.reserve("attach", "x")
    seconds, micros = await stage.raw.time()
    after = seconds * 1000 + micros // 1000 + 1
    slot = await stage.slot("x")
    assert slot is not None
    assert before <= slot.since_ms <= after
    score = await stage.raw.zscore(stage.ledger.pending_key(stage.bucket), f"{stage.session} attach 1")
    assert before + 20_000 <= score <= after + 20_000


async def test_redis_comes_back_five_minutes_older(full: Stage) -> None:
    """What was attached since is adopted, what was on its way is settled by the list, whoever learns of it first."""
    full.cap = 5
    key, pending = full.key, full.ledger.pending_key(full.bucket)
    await full.reserve("old", "d")
    saved = {name: await _dump(full, name) for name in (key, pending)}
    full.upstream.attach("d")
    await full.commit("old", "d")
    await full.attach("new", "e")
    await full.reserve("flying", "f")
    for name, value in saved.items():
        await _restore(full, name, value)
    assert await full.slots() == {"a", "b", "c", "d"}

    full.upstream.attach("f")
    assert await full.commit("flying", "f") == "pending"
    snapshot = await full.snapshot()
    adopted = await full.ledger.adopt(
        full.session, "drift", snapshot.version, PREPARING, sorted(full.upstream.attached)
    )
    assert (adopted.said, adopted.new) == ("adopted", 1)
    for op in await full.pending():
        await full.reconcile(op)
    await full.is_settled("a", "b", "c", "d", "e", "f")


async def _dump(stage: Stage, name: str) -> bytes:
    return await stage.connection.command("DUMP", name)  # type: ignore[no-any-return]


async def _restore(stage: Stage, name: str, value: bytes) -> None:
    await stage.connection.command("RESTORE", name, 0, value, "REPLACE")  # type: ignore[arg-type]


async def test_an_adoption_is_fenced_by_the_version(stage: Stage) -> None:
    version = (await stage.snapshot()).version
    listed = ["x"]
    stage.upstream.attach(listed)
    await stage.attach("meanwhile", "y")
    assert (await stage.ledger.adopt(stage.session, "drift", version, PREPARING, listed)).said == "changed"
    assert (await stage.ledger.adopt(stage.session, "drift", "", PREPARING, listed)).said == "changed"
    version = (await stage.snapshot()).version
    assert (await stage.ledger.adopt(stage.session, "drift", version, PREPARING, ["x", "y"])).new == 1
    assert await stage.events("attached") == [("attached", "meanwhile", "y"), ("attached", "drift", "x")]
    await stage.is_settled("x", "y")


async def test_a_detach_on_its_way_undoes_what_an_older_list_adopts(stage: Stage) -> None:
    """Attached past the gateway, detached through it: the list was read before."""
    stage.upstream.attach("x")
    version = (await stage.snapshot()).version
    assert await stage.detach("away", "x") == "untracked"
    stage.upstream.detach("x")
    assert (await stage.ledger.adopt(stage.session, "drift", version, PREPARING, ["x"])).said == "adopted"
    assert (await stage.detached("away", "x", PREPARING)).said == "pending"
    await stage.reconcile("away")
    await stage.is_settled()


async def test_an_opening_holds_what_is_on_its_way(redis_url: str) -> None:
    stage = await Stage.begin(redis_url, "a", opened=False)
    assert await stage.reserve("first", "x") == "missing"
    flying = [
        OnItsWay("attach", (Step("t", "x"),)),
        OnItsWay("away", (Step("g", "a"),)),
        OnItsWay("swap", (Step("g", "a"), Step("t", "y")), True),
        OnItsWay("start", (Step("s"),)),
    ]
    await stage.ledger.adopt(stage.session, "open", "", PREPARING, ["a"], flying)
    assert await stage.slots() == {"a", "x", "y"}
    assert await stage.reserve("fourth", "z") == "full"
    assert sorted(await stage.pending()) == ["attach", "away", "start", "swap"]
    await stage.release("start")
    for op in await stage.pending():
        await stage.reconcile(op)
    await stage.is_settled("a")
    await stage.close()


# End


@pytest.mark.parametrize("applied", [True, False])
async def test_the_end_comes_while_attaches_are_in_doubt(full: Stage, applied: bool) -> None:
    full.cap = 4
    await full.reserve("lost", "d")
    await full.doubt("lost", "t:d")
    if applied:
        full.upstream.attach("d")
    full.upstream.end()
    assert (await full.ledger.end(full.session, "end")).said == "ended"
    assert await full.reserve("late", "e") == "ended"
    await full.reconcile("lost")
    await full.is_settled("a", "b", "c", *(("d",) if applied else ()))


async def test_a_session_id_that_comes_again_after_its_end_has_no_fresh_count(full: Stage) -> None:
    await full.ledger.end(full.session, "end")
    await full.ledger.end(full.session, "end")
    version = (await full.snapshot()).version
    assert (await full.ledger.adopt(full.session, "create", "", PREPARING, [])).said == "changed"
    await full.ledger.adopt(full.session, "create", version, PREPARING, [])
    assert (await full.snapshot()).state is ENDED
    assert await full.reserve("again", "d") == "ended"
    assert await full.replace("again", "a", "d") == "ended"
    assert await full.detach("again", "a") == "ended"
    assert await full.events() == [("ended", "end", "")]


# Repeated steps


class Unlucky:
    """A connection that does what it is told and loses the first answer."""

    def __init__(self, stage: Stage) -> None:
        self._connection = stage.connection
        self.lost = 0

    def call(self, *call: Any) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self._call(*call))

    async def _call(self, *call: Any) -> Any:
        reply = await self._connection.call(*call)
        if self.lost == 0:
            self.lost += 1
            raise LostAnswer("The connection broke.")
        return reply

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@pytest.fixture
def unlucky(full: Stage) -> Callable[[], None]:
    """The next call's answer will be lost, and the call repeated."""

    def next_call() -> None:
        full.ledger._connection = Unlucky(full)  # type: ignore[assignment]

    return next_call


async def test_a_repeated_refusal_is_one_event(full: Stage, unlucky: Callable[[], None]) -> None:
    unlucky()
    assert await full.reserve("fourth", "d") == "full"
    assert await full.events() == [("refused", "fourth", "d")]
    full.cap = 2
    unlucky()
    assert await full.replace("swap", "a", "d") == "full"
    assert await full.events("refused") == [("refused", "fourth", "d"), ("refused", "swap", "d")]
    await full.is_settled("a", "b", "c")


async def test_every_step_is_one_event_though_every_answer_is_lost_once(
    full: Stage, unlucky: Callable[[], None]
) -> None:
    full.cap = 4

    async def lost(step: Awaitable[Any]) -> None:
        unlucky()
        await step

    await lost(full.reserve("attach", "d"))
    full.upstream.attach("d")
    await lost(full.commit("attach", "d"))
    await lost(full.detach("away", "a"))
    full.upstream.detach("a")
    await lost(full.detached("away", "a", PREPARING))
    await lost(full.replace("swap", "b", "e"))
    full.upstream.replace("b", "e")
    await lost(full.replaced("swap", "b", "e", PREPARING))
    await lost(full.reserve("doubt", "f"))
    await lost(full.doubt("doubt", "t:f"))
    await full.reconcile("doubt")
    await lost(full.start("start"))
    full.upstream.start()
    await lost(full.started("start"))
    await lost(full.ledger.end(full.session, "end"))
    assert await full.events() == [
        ("attached", "attach", "d"),
        ("detached", "away", "a"),
        ("replaced", "swap", "e"),
        ("in_doubt", "doubt", "f"),
        ("settled", "doubt", ""),
        ("started", "start", ""),
        ("ended", "end", ""),
    ]
    await full.is_settled("c", "d", "e")


async def test_a_commit_repeated_long_after_says_and_takes_nothing(stage: Stage) -> None:
    await stage.attach("attach", "x")
    await stage.detach("away", "x")
    stage.upstream.detach("x")
    await stage.detached("away", "x", PREPARING)
    for _ in range(2):
        await stage.commit("attach", "x")
        await stage.detached("away", "x", PREPARING)
    await stage.is_settled()
    assert await stage.events() == [("attached", "attach", "x"), ("detached", "away", "x")]


async def test_a_repeated_commit_does_not_end_the_look_that_the_first_asked_for(stage: Stage) -> None:
    await stage.reserve("attach", "x")
    stage.upstream.attach("x")
    await stage.detach("away", "x")
    stage.upstream.detach("x")
    await stage.detached("away", "x", PREPARING)
    for _ in range(2):
        assert await stage.commit("attach", "x") == "pending"
        assert await stage.pending() == ["attach"]
    await stage.reconcile("attach")
    await stage.is_settled()


async def test_a_reserve_that_arrives_after_its_gateway_has_given_it_up_is_found(stage: Stage) -> None:
    """It was stuck in a connection; its gateway has released it, and has forwarded nothing."""
    await stage.release("stuck")
    assert await stage.reserve("stuck", "x") == "held"
    await stage.reconcile("stuck")
    await stage.is_settled()
