"""Work that begins at once, and is a task only where it waits; or that a future alone decides."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.errors import LedgerUnavailable
from gateway.tasks import Tasks, within


@pytest.fixture
def tasks() -> Tasks:
    return Tasks("test")


async def begin(tasks: Tasks, work: Coroutine[Any, Any, None]) -> None:
    """As a callback of the event loop does."""
    asyncio.get_running_loop().call_soon(tasks.begin, work)
    await asyncio.sleep(0)


async def test_what_waits_for_nothing_has_ended_when_it_was_begun(tasks: Tasks) -> None:
    said: list[str] = []

    async def inner() -> str:
        return "done"

    async def work() -> None:
        said.append(await inner())

    await begin(tasks, work())
    assert (said, len(tasks)) == (["done"], 0)


@pytest.mark.parametrize("late", [False, True], ids=["before its first step as a task", "after it"])
async def test_what_waits_goes_on_with_what_it_waited_for(tasks: Tasks, late: bool) -> None:
    first, second = (asyncio.get_running_loop().create_future() for _ in range(2))
    said: list[object] = []

    async def work() -> None:
        said.append(await first)
        with pytest.raises(KeyError):
            await second
        await asyncio.sleep(0)
        said.append(asyncio.current_task() is not None)

    await begin(tasks, work())
    assert len(tasks) == 1
    if late:
        await asyncio.sleep(0)
    first.set_result(1)
    await asyncio.sleep(0)
    second.set_exception(KeyError("x"))
    assert await tasks.drain(5.0) == 0
    assert said == [1, True]


async def test_it_can_be_cancelled_and_may_catch_it(tasks: Tasks) -> None:
    said: list[str] = []

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            said.append("cancelled")
            await asyncio.sleep(0)
            said.append("cleaned up")
            raise

    await begin(tasks, work())
    assert len(tasks) == 1
    await tasks.cancel()
    assert (said, len(tasks)) == (["cancelled", "cleaned up"], 0)


async def test_begun_by_a_task_it_is_one_of_its_own(tasks: Tasks) -> None:
    said: list[object] = []

    async def work() -> None:
        said.append(asyncio.current_task())

    tasks.begin(work())
    assert await tasks.drain(5.0) == 0
    assert said != [asyncio.current_task()]
    assert said != [None]


async def at_once() -> None:
    raise ValueError("unforeseen")


async def later() -> None:
    await asyncio.sleep(0)
    raise ValueError("unforeseen")


@pytest.mark.parametrize("work", [at_once, later])
async def test_a_failure_is_logged(
    tasks: Tasks, work: Callable[[], Coroutine[Any, Any, None]], capsys: pytest.CaptureFixture[str]
) -> None:
    await begin(tasks, work())
    assert await tasks.drain(5.0) == 0
    await asyncio.sleep(0)
    assert "unforeseen" in capsys.readouterr().out


async def test_a_time_limit_holds_for_what_has_only_begun(tasks: Tasks) -> None:
    said: list[str] = []

    async def work() -> None:
        with pytest.raises(TimeoutError):
            async with within(0.01):
                await asyncio.get_running_loop().create_future()
        async with within(5.0):
            said.append("in time")

    await begin(tasks, work())
    assert await tasks.drain(5.0) == 0
    assert said == ["in time"]


def reply() -> asyncio.Future[str]:
    return asyncio.get_running_loop().create_future()


async def test_what_one_future_decides_needs_no_task() -> None:
    tasks, first = Tasks("work"), reply()
    outcome = tasks.after(first, lambda done: done.result() + "!")
    assert (len(tasks), len(asyncio.all_tasks())) == (1, 1)
    first.set_result("done")
    assert await outcome == "done!"
    assert (len(tasks), len(asyncio.all_tasks())) == (0, 1)


async def test_what_it_does_not_decide_goes_on_in_a_task_that_a_drain_waits_for() -> None:
    tasks, first, second = Tasks("work"), reply(), reply()

    async def rest() -> str:
        return await second

    def then(done: asyncio.Future[str]) -> str | Coroutine[Any, Any, str]:
        asyncio.get_running_loop().call_later(0.01, second.set_result, "second")
        return rest()

    outcome = tasks.after(first, then)
    first.set_exception(LedgerUnavailable("away"))
    assert await tasks.drain(5.0) == 0
    assert (second.done(), await outcome) == (True, "second")


async def test_a_drain_ends_in_time() -> None:
    tasks, first = Tasks("work"), reply()
    tasks.after(first, lambda done: None)
    assert [await tasks.drain(seconds) for seconds in (0.0, -1.0, 0.01)] == [1, 1, 1]
    await tasks.cancel()
    assert (first.cancelled(), len(tasks)) == (True, 0)


@pytest.mark.parametrize("later", [False, True])
async def test_what_fails_is_said_once(later: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def rest() -> str:
        raise RuntimeError("unforeseen")

    def then(done: asyncio.Future[str]) -> str | Coroutine[Any, Any, str]:
        if later:
            return rest()
        raise RuntimeError("unforeseen")

    async def ask() -> None:
        first = reply()
        first.set_result("")
        outcome = tasks.after(first, then)
        await asyncio.wait([outcome])

    tasks = Tasks("work")
    with capture_logs() as said:
        await ask()
        gc.collect()
    assert [line["event"] for line in said] == ["task_failed"]
    assert not caplog.records, "asyncio does not say besides that nobody has asked for it"


async def test_what_is_cancelled_in_its_second_part_has_a_cancelled_outcome() -> None:
    async def rest() -> str:
        return await reply()

    tasks, first = Tasks("work"), reply()
    outcome = tasks.after(first, lambda done: rest())
    first.set_result("")
    await asyncio.sleep(0)
    await tasks.cancel()
    await asyncio.wait([outcome])
    assert (outcome.cancelled(), len(tasks)) == (True, 0)
