"""Places among routes: no route starves another, none is lost, and nobody is passed over."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import Overloaded
from gateway.upstream.places import Places, Share

NAMES = ("attach", "detach", "start")


def taken(places: Places, name: str, tries: int = 100) -> int:
    share = places.share(name)
    return sum(places.take(share) for _ in range(tries))


async def queued(places: Places, *names: str) -> list[asyncio.Task[None]]:
    tasks = [asyncio.ensure_future(places.wait(places.share(name), 5.0)) for name in names]
    await asyncio.sleep(0)
    return tasks


async def done(*tasks: asyncio.Task[None]) -> list[bool]:
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return [task.done() for task in tasks]


def test_a_route_that_hangs_leaves_the_others_their_part() -> None:
    places = Places(NAMES, 24, 0)
    assert taken(places, "attach") == 4 + 12
    assert (taken(places, "detach"), taken(places, "start")) == (4, 4)
    assert places.busy == 24


def test_one_route_alone_has_all() -> None:
    assert taken(Places(["attach"], 7, 0), "attach") == 7


def test_with_fewer_places_than_routes_whoever_comes_first_has_them() -> None:
    places = Places(NAMES, 2, 0)
    assert (taken(places, "attach"), taken(places, "detach")) == (2, 0)


def test_a_route_that_comes_later_gets_its_part_as_places_come_free() -> None:
    places = Places(["attach"], 8, 0)
    assert taken(places, "attach") == 8
    attach, late = places.share("attach"), places.share("late")
    assert not places.take(late), "never more than there are"
    for _ in range(3):
        places.give(attach)
    assert taken(places, "attach") == 1, "what is kept back for the late one is not taken again"
    assert taken(places, "late") == 2
    assert places.busy == 8


async def test_a_place_goes_to_who_waited_longest_of_those_who_may_have_it() -> None:
    places = Places(NAMES[:2], 8, 5)
    assert (taken(places, "attach"), taken(places, "detach")) == (6, 2)
    first, second, third = await queued(places, "attach", "detach", "attach")
    places.give(places.share("detach"))
    assert await done(first, second, third) == [False, True, False], "detach's own part is not attach's"
    places.give(places.share("attach"))
    assert await done(first, second, third) == [True, True, False]
    places.give(places.share("attach"))
    assert await done(third) == [True]
    later = await queued(places, "detach", "attach")
    places.give(places.share("attach"))
    assert await done(*later) == [True, False], "both may have it"
    later[1].cancel()
    await asyncio.wait([later[1]])
    assert places._waiting == 0


async def test_a_full_queue_of_one_route_is_not_the_others() -> None:
    places = Places(NAMES[:2], 4, 2)
    assert (taken(places, "attach"), taken(places, "detach")) == (3, 1)
    tasks = await queued(places, "attach", "attach", "detach", "attach", "detach")
    refused = tasks.pop(3)
    assert await done(refused, *tasks) == [True, False, False, False, False]
    with pytest.raises(Overloaded, match="queue is full"):
        await refused
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_who_waits_in_vain_is_told_when_the_time_is_up() -> None:
    places = Places(["attach"], 1, 2)
    share = places.share("attach")
    assert places.take(share)
    with pytest.raises(Overloaded, match=r"within 0\.01 s"):
        await places.wait(share, 0.01)
    places.give(share)
    assert places.take(share)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from((*NAMES, "late")), st.booleans()),
        st.tuples(st.just("give"), st.integers(0, 20), st.booleans()),
        st.tuples(st.just("give up"), st.integers(0, 20), st.booleans()),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(steps=steps, most=st.integers(1, 12), queue=st.integers(0, 3))
def test_whatever_happens(steps: list[tuple[str, object, bool]], most: int, queue: int) -> None:
    asyncio.run(play(steps, most, queue))


async def asked(places: Places, share: Share) -> None:
    if not places.take(share):
        await places.wait(share, 5.0)


async def play(steps: list[tuple[str, object, bool]], most: int, queue: int) -> None:
    places = Places(NAMES, most, queue)
    held: list[Share] = []
    waiting: list[tuple[Share, asyncio.Task[None]]] = []
    for what, which, at_once in steps:
        if what == "ask":
            share = places.share(str(which))
            waiting.append((share, asyncio.ensure_future(asked(places, share))))
        elif what == "give" and held:
            places.give(held.pop(int(str(which)) % len(held)))
        elif what == "give up" and waiting:
            waiting[int(str(which)) % len(waiting)][1].cancel()
        if at_once:
            continue
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for share, task in [one for one in waiting if one[1].done()]:
            waiting.remove((share, task))
            if not task.cancelled() and task.exception() is None:
                held.append(share)
        assert places.busy <= most
        assert not any(share.queue and places._may(share) for share in places._shares.values()), "nobody waits in vain"
    for _, task in waiting:
        task.cancel()
    for share, task in waiting:
        if await asyncio.gather(task, return_exceptions=True) == [None]:
            held.append(share)
    for share in held:
        places.give(share)
    assert (places.busy, places._common_busy, places._waiting) == (0, 0, 0)
    assert all((share.busy, len(share.queue)) == (0, 0) for share in places._shares.values())
