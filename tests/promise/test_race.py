"""Two gateway processes on one Redis, 64 clients with different products, three places.

A slice in every run; all 200 sessions with ATTACHGATE_LONG=1.
"""

from __future__ import annotations

import asyncio
import itertools
import os

from tests.promise.conftest import World

CLIENTS = 64
SESSIONS = 200 if os.environ.get("ATTACHGATE_LONG") else 24
MODES = ("error", "timeout", "apply_then_drop", "apply_then_error", "drop_then_apply_late")


async def sow(world: World) -> None:
    for number in range(CLIENTS):
        body = {"product_id": f"race-{number}", "shop_id": "ally-shop-1"}
        status, _ = await world.ask("PUT", f"{world.platform}/_platform/products/race-{number}", body)
        assert status == 200


async def open_session(world: World, session_id: str) -> None:
    body = {"account_id": "shop-individual", "session_id": session_id}
    status, answer = await world.ask("POST", f"{world.gateways[0]}/live/sessions", body)
    assert status == 201, answer


async def attach(world: World, gateway: str, session_id: str, product: str) -> int:
    url = f"{gateway}/live/sessions/{session_id}/products"
    status, _ = await world.ask("POST", url, {"product_id": product})
    return status


async def race(world: World, session_id: str) -> list[int]:
    gateways = itertools.cycle(world.gateways)
    attaches = [attach(world, next(gateways), session_id, f"race-{number}") for number in range(CLIENTS)]
    return await asyncio.gather(*attaches)


async def test_of_64_clients_at_two_gateways_exactly_three_get_in(world: World) -> None:
    await sow(world)
    for number in range(SESSIONS):
        session_id = f"calm-{number}"
        await open_session(world, session_id)
        statuses = await race(world, session_id)
        assert statuses.count(200) == 3
        assert statuses.count(403) == CLIENTS - 3
        assert len(await world.foreign_in(session_id)) == 3


async def test_while_every_fifth_call_fails_there_are_never_four_and_no_place_is_lost(world: World) -> None:
    await sow(world)
    for number in range(SESSIONS):
        session_id = f"storm-{number}"
        await open_session(world, session_id)
        mode = MODES[number % len(MODES)]
        fault = {"operation": "attach", "rate": 0.2, "mode": mode, "delay_ms": 300, "seed": number}
        await world.ask("POST", f"{world.platform}/_platform/faults", fault)
        await race(world, session_id)
        assert len(await world.foreign_in(session_id)) <= 3
    await world.ask("DELETE", f"{world.platform}/_platform/faults")

    for number in range(SESSIONS):
        session_id = f"storm-{number}"
        for _ in range(100):
            view = await world.view(session_id)
            if not any(slot["in_doubt"] or not slot["attached"] for slot in view["slots"]):
                break
            await asyncio.sleep(0.2)
        assert len(await world.foreign_in(session_id)) == view["used"]
        await race(world, session_id)
        assert len(await world.foreign_in(session_id)) == 3
