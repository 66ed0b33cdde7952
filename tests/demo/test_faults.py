"""Each fault of the reference platform does on the wire and in its journal what the contract says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from gateway.demo.faults import EFFECTS, Fault, FaultPlan, Mode

if TYPE_CHECKING:
    from .conftest import Caller

ATTACH = {"product_ids": ["ally-1", "ally-2", "ally-3"]}


@pytest.mark.parametrize(
    ("mode", "status", "applied"),
    [("error", 500, 0), ("refuse", 422, 0), ("apply_then_error", 500, 3)],
)
async def test_a_fault_that_answers(call: Caller, mode: str, status: int, applied: int) -> None:
    path = await call.live()
    await call.fault(mode)
    answered, answer = await call("POST", path + "/products", ATTACH)
    assert (answered, answer) == (status, {"error": f"fault {mode}"})
    assert len(await call.attached(path)) == applied


async def test_apply_then_drop_applies_and_closes_without_a_byte(call: Caller) -> None:
    path = await call.live()
    await call.fault("apply_then_drop")
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await call("POST", path + "/products", ATTACH)
    assert await call.attached(path) == ATTACH["product_ids"]


async def test_a_dropped_connection_ends_on_the_wire(call: Caller) -> None:
    path = await call.live()
    await call.fault("apply_then_drop", "end")
    request = f"POST {path}/end HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    assert await call.raw(request.encode()) == b""
    assert (await call("GET", path))[1]["state"] == "ended"


async def test_drop_then_apply_late_closes_at_once_and_applies_afterwards(call: Caller) -> None:
    path = await call.live()
    await call.fault("drop_then_apply_late", delay_ms=50)
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await call("POST", path + "/products", ATTACH)
    store = call.running.platform.store
    assert store.listed("s1") == []
    await call.until(lambda: len(store.listed("s1")) == 3)
    assert [entry["operation"] for entry in await call.journal()] == ["create", "start", *["attach"] * 3]


async def test_what_is_applied_late_meets_the_session_as_it_is_then(call: Caller) -> None:
    path = await call.live()
    await call.fault("drop_then_apply_late", delay_ms=30)
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await call("POST", path + "/products", ATTACH)
    await call("POST", path + "/end")
    await call.running.platform._late.drain(10)
    assert await call.attached(path) == []


async def test_timeout_never_answers_and_applies_nothing(call: Caller) -> None:
    path = await call.live()
    await call.fault("timeout")
    asked = asyncio.ensure_future(call("POST", path + "/products", ATTACH))
    silent = call.running.platform._silent
    await call.until(lambda: len(silent) == 1)
    assert not asked.done()
    asked.cancel()
    await call.until(lambda: not silent)
    assert await call.attached(path) == []


async def test_the_end_of_all_faults_lets_go_of_requests_that_hang(call: Caller) -> None:
    path = await call.live()
    await call.fault("timeout")
    asked = asyncio.ensure_future(call("POST", path + "/products", ATTACH))
    await call.until(lambda: len(call.running.platform._silent) == 1)
    assert (await call("DELETE", "/_platform/faults"))[0] == 204
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await asked
    assert await call.attached(path) == []
    assert (await call("POST", path + "/products", ATTACH))[0] == 200


async def test_slow_applies_at_once_and_answers_after_its_delay(call: Caller) -> None:
    path = await call.live()
    await call.fault("slow", delay_ms=150)
    store = call.running.platform.store
    loop = asyncio.get_running_loop()
    began = loop.time()
    asked = asyncio.ensure_future(call("POST", path + "/products", ATTACH))
    await call.until(lambda: len(store.listed("s1")) == 3)
    assert not asked.done()
    assert await asked == (200, {"attached": ATTACH["product_ids"]})
    assert loop.time() - began >= 0.15


async def test_partial_applies_the_first_half_and_says_which(call: Caller) -> None:
    path = await call.live()
    await call.fault("partial")
    for batch, attached in (
        (["ally-1"], []),
        (["ally-1", "ally-2", "ally-3"], ["ally-1"]),
        (["ally-4", "ally-5", "ally-6", "ally-7"], ["ally-4", "ally-5"]),
        (["ally-8", "ally-1"], ["ally-8", "ally-1"]),
    ):
        answer = await call("POST", path + "/products", {"product_ids": batch})
        assert answer == (200, {"attached": attached})
    assert await call.attached(path) == ["ally-1", "ally-4", "ally-5", "ally-8"]


async def test_partial_is_no_fault_where_there_is_no_batch(call: Caller) -> None:
    path = await call.live("s1", "shop-individual", "ally-1")
    await call.fault("partial", "all")
    assert await call.attached(path) == ["ally-1"]
    assert (await call("PUT", path + "/products/ally-1", {"product_id": "ally-2"}))[0] == 200
    assert (await call("DELETE", path + "/products/ally-2"))[0] == 204


OPERATIONS = {
    "create": [("POST", "/live/sessions", {"account_id": "creator-li"})],
    "start": [("POST", "/live/sessions/s1/start", None)],
    "end": [("POST", "/live/sessions/s1/end", None)],
    "attach": [
        ("POST", "/live/sessions/s1/products", {"product_id": "ally-9"}),
        ("POST", "/accounts/creator-li/showcase/products", {"product_id": "ally-9"}),
        ("POST", "/accounts/creator-li/videos/v1/products", {"product_id": "ally-9"}),
    ],
    "detach": [("DELETE", "/live/sessions/s1/products/ally-1", None)],
    "replace": [("PUT", "/live/sessions/s1/products/ally-1", {"product_id": "ally-2"})],
    "list": [
        ("GET", "/live/sessions/s1/products", None),
        ("GET", "/accounts/creator-li/showcase/addable", None),
    ],
    "directory": [
        ("GET", "/accounts/creator-li", None),
        ("GET", "/products/ally-1", None),
        ("GET", "/live/sessions/s1", None),
    ],
}


@pytest.mark.parametrize("operation", [*OPERATIONS, "all"])
async def test_a_fault_meets_its_own_operation_only(call: Caller, operation: str) -> None:
    await call.live("s1", "shop-individual", "ally-1")
    await call.fault("refuse", operation)
    for name, requests in OPERATIONS.items():
        for method, path, body in requests:
            status, _ = await call(method, path, body)
            # What worked on the session may be gone by then; only 422 is the fault's.
            assert (status == 422) == (operation in (name, "all")), (method, path, status)


async def test_faults_for_different_operations_hold_beside_each_other(call: Caller) -> None:
    path = await call.live("s1", "shop-individual", "ally-1")
    await call.fault("refuse", "attach")
    await call.fault("error", "detach")
    await call.fault("apply_then_error", "attach")
    assert (await call("DELETE", path + "/products/ally-1"))[0] == 500
    assert (await call("POST", path + "/products", {"product_id": "ally-2"}))[0] == 500
    assert await call.attached(path) == ["ally-1", "ally-2"]


@pytest.mark.parametrize(
    "body",
    [
        {"mode": "magic"},
        {"mode": "error", "rate": 1.5},
        {"mode": "error", "operation": "sing"},
        {"mode": "slow", "delay_ms": -1},
        {"mode": "error", "ratee": 1},
        {},
        [],
    ],
)
async def test_a_wrong_fault_is_400_and_none_holds(call: Caller, body: Any) -> None:
    assert (await call("POST", "/_platform/faults", body))[0] == 400
    assert (await call("GET", "/accounts/creator-li"))[0] == 200


async def test_a_platform_closes_with_requests_that_hang_and_changes_to_come(call: Caller) -> None:
    path = await call.live()
    await call.fault("timeout", "directory")
    await call.fault("drop_then_apply_late", "attach", delay_ms=600_000)
    hanging = asyncio.ensure_future(call("GET", "/accounts/creator-li"))
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await call("POST", path + "/products", ATTACH)
    await call.until(lambda: len(call.running.platform._silent) == 1)
    await call.running.close()
    with pytest.raises(aiohttp.ClientConnectionError):
        await hanging
    assert call.running.platform.store.listed("s1") == []


def test_a_rate_is_drawn_the_same_way_from_the_same_seed() -> None:
    def drawn(seed: int) -> list[bool]:
        plan = FaultPlan()
        plan.post(Fault(Mode.error, "attach", rate=0.2, seed=seed))
        return [plan.draw("attach") is not None for _ in range(500)]

    assert drawn(7) == drawn(7)
    assert drawn(7) != drawn(8)
    assert 60 < sum(drawn(7)) < 140


def test_an_operations_own_fault_comes_before_the_one_for_all() -> None:
    plan = FaultPlan()
    plan.post(Fault(Mode.error))
    plan.post(Fault(Mode.refuse, "attach"))
    assert plan.draw("attach") == Fault(Mode.refuse, "attach")
    assert plan.draw("detach") == Fault(Mode.error)
    plan.post(Fault(Mode.refuse, "attach", rate=0.0))
    assert plan.draw("attach") == Fault(Mode.error)
    plan.clear()
    assert plan.draw("attach") is None


def test_every_mode_has_its_effect() -> None:
    assert set(EFFECTS) == set(Mode)
