"""Background work that outlives the request which started it, and never disappears unseen.

asyncio keeps only weak references to tasks, so one that nobody holds can be collected in mid-flight. A settlement
must not: every background task of the gateway is started here, and `drain` waits for all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

from gateway.errors import GatewayError

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Tasks:
    """A set of running tasks with a name for the log, all in the loop in which the first was started."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._running: set[asyncio.Task[Any]] = set()
        # To ask for the running loop costs a system call (Python 3.11), and this is done several times a request.
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._running)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        task = self._loop.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, GatewayError):
            # Foreseen, and perhaps by the hundred while something is away: no tracebacks.
            log.warning("task_failed", tasks=self._name, reason=error.reason, error=error.detail)
        else:
            log.error("task_failed", tasks=self._name, error=repr(error), exc_info=error)

    async def below(self, limit: int) -> None:
        """Wait until fewer than so many are running."""
        while len(self._running) >= limit:
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)

    async def drain(self, limit_seconds: float) -> int:
        """Wait until all have ended, but no longer than the limit; returns how many are still running."""
        if self._running:
            await asyncio.wait(self._running, timeout=limit_seconds)
        return len(self._running)

    async def cancel(self) -> None:
        """End what is still running: for loops that would never end by themselves."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
