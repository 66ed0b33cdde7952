"""Who may ask the upstream now: places, shared among the routes so that a slow one can't take them all.

Half of the places are kept back, the same number for each route; the other half is whoever's comes first. So a route
that hangs holds its own part and the common half at most, and every other route still has a part to itself, however
many hang at once. Who finds no place waits in its route's own queue, which is bounded in length and in time; a place
that comes free goes to who has waited longest of those that may have it.

Decides synchronously, and knows nothing about connections.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from contextlib import suppress

from gateway.errors import Overloaded
from gateway.tasks import within


class Share:
    """One route's part: how many places it holds, and who waits for one, with the number of its arrival."""

    __slots__ = ("busy", "queue")

    def __init__(self) -> None:
        self.busy = 0
        self.queue: deque[tuple[int, asyncio.Future[None]]] = deque()


class Places:
    """`routes`: the names of those that are known from the beginning; one that comes later gets its part then.
    `max_queue`: of each route."""

    def __init__(self, routes: Iterable[str], most: int, max_queue: int) -> None:
        self._most = most
        self._max_queue = max_queue
        self._shares = {name: Share() for name in routes}
        self._waiting = 0
        self._arrivals = 0
        self.busy = 0
        self._divide()

    def _divide(self) -> None:
        routes = max(1, len(self._shares))
        self._own = self._most // (2 * routes)
        self._common = self._most - self._own * routes
        self._common_busy = sum(max(0, share.busy - self._own) for share in self._shares.values())

    def share(self, route: str) -> Share:
        share = self._shares.get(route)
        if share is None:
            share = self._shares[route] = Share()
            self._divide()
        return share

    def take(self, share: Share) -> bool:
        """Whether there is a place now; it is then held until `give`."""
        if not self._may(share):
            return False
        self._hold(share)
        return True

    def _may(self, share: Share) -> bool:
        if share.busy >= self._own:
            return self._common_busy < self._common
        # Where a route came later, others may still hold what is kept back for it.
        return self.busy < self._most

    def _hold(self, share: Share) -> None:
        if share.busy >= self._own:
            self._common_busy += 1
        share.busy += 1
        self.busy += 1

    def give(self, share: Share) -> None:
        """A place comes free."""
        self.busy -= 1
        share.busy -= 1
        if share.busy >= self._own:
            self._common_busy -= 1
        if self._waiting:
            self._hand_on()

    def _hand_on(self) -> None:
        while waiting := [share for share in self._shares.values() if share.queue and self._may(share)]:
            share = min(waiting, key=lambda one: one.queue[0][0])
            _, place = share.queue.popleft()
            self._waiting -= 1
            if not place.done():
                self._hold(share)
                place.set_result(None)

    async def wait(self, share: Share, limit_seconds: float) -> None:
        """Until there is a place, which is then held. Raises `Overloaded`: at once where the queue is full, else when
        the time is up."""
        if len(share.queue) >= self._max_queue:
            raise Overloaded("All upstream connections that this route may have are busy, and its queue is full.")
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrivals += 1
        waiter = (self._arrivals, place)
        share.queue.append(waiter)
        self._waiting += 1
        try:
            async with within(limit_seconds):
                await place
        except BaseException as error:
            if place.done() and not place.cancelled():
                self.give(share)
            else:
                with suppress(ValueError):
                    share.queue.remove(waiter)
                    self._waiting -= 1
            if isinstance(error, TimeoutError):
                raise Overloaded(f"No upstream connection came free within {limit_seconds} s.") from None
            raise
