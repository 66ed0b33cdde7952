"""Whose turn it is: what waits to be begun, one of each asker after the other.

A thousand clients that hammer one session are one asker: beside them, a session that asks once waits for one of their
requests, and not for all of them. Pure: knows nothing of connections.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """A queue for each key, in the order in which they came."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[T]] = {}
        self._round: deque[str] = deque()

    def __bool__(self) -> bool:
        return bool(self._round)

    def put(self, key: str, item: T) -> None:
        queue = self._queues.get(key)
        if queue is None:
            self._queues[key] = deque((item,))
            self._round.append(key)
        else:
            queue.append(item)

    def take(self, most: int, each: int) -> list[T]:
        """So many at most, and of each key at most `each`: the first of all keys, then the second of all."""
        taken: list[T] = []
        for _ in range(each):
            for _ in range(min(len(self._round), most - len(taken))):
                taken.append(self._next())
        return taken

    def _next(self) -> T:
        key = self._round.popleft()
        queue = self._queues[key]
        item = queue.popleft()
        if queue:
            self._round.append(key)
        else:
            del self._queues[key]
        return item
