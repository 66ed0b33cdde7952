"""Whether a peer really does the job: asked before anything is measured."""

from __future__ import annotations

import asyncio
from typing import Final

from tests.bench.mixes import attach
from tests.bench.openloop import each

SESSION: Final = "e9999999"
PATIENCE_SECONDS: Final = 2.0
FIRST: Final = (("p0", 200), ("p1", 200), ("x0", 422))
THEN: Final = (("p3", 403), ("x0", 403), ("p0", 200), ("p2", 200), ("own1", 200), ("p4", 403))


async def fault(port: int) -> str | None:
    """What a proxy does wrong, None where all is right: a fourth foreign product must be refused, an attached one pass
    again, a product that the upstream refuses must give its slot back, and an own product need none."""
    for product, expected in FIRST:
        if (status := await _ask(port, product)) != expected:
            return f"attach of {product} answered {status}, expected {expected}"
    loop = asyncio.get_running_loop()
    until = loop.time() + PATIENCE_SECONDS
    while (status := await _ask(port, "p2")) != 200:
        if loop.time() > until:
            return f"the slot of a product that the upstream refused did not come back: {status}"
        await asyncio.sleep(0.01)
    for product, expected in THEN:
        if (status := await _ask(port, product)) != expected:
            return f"with three attached, attach of {product} answered {status}, expected {expected}"
    return None


async def _ask(port: int, product_id: str) -> int:
    return (await each(port, [attach(SESSION, product_id)], 1))[0]
