"""Background work that outlives the request which started it, and never disappears unseen.

asyncio keeps only weak references to tasks, so one that nobody holds can be collected in mid-flight. A settlement
must not: every background task of the gateway is started here, and `drain` waits for all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from types import CoroutineType
from typing import Any, TypeVar

import structlog

from gateway.errors import GatewayError

R = TypeVar("R")
T = TypeVar("T")

log = structlog.get_logger(__name__)


class Tasks:
    """What runs, with a name for the log: tasks, and futures that something waits for without one; all in the loop in
    which the first was started."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._running: set[asyncio.Future[Any]] = set()
        # To ask for the running loop costs a system call (Python 3.11), and this is done several times a request.
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._running)

    def _in_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = self._in_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it at once until it waits for something; only what does wait becomes a task.

        For callbacks of the event loop. Until the work waits there is no current task, which `asyncio.timeout` needs
        (see `within`); and called by another task, which it must not take for its own, it begins as a task.
        """
        if asyncio.current_task(self._in_loop()) is not None:
            self.start(work)
            return
        try:
            waits_for = work.send(None)
        except StopIteration:
            return
        except Exception as error:
            self._failed(error)
            return
        self.start(_Begun(work, waits_for))

    def after(
        self, first: asyncio.Future[R], then: Callable[[asyncio.Future[R]], T | Coroutine[Any, Any, T]]
    ) -> asyncio.Future[T]:
        """Work that needs no task where one future decides it. `then` is called when that is done, however it ended; it
        returns the outcome, or what is left to do for it, which is started. The future that this returns has the
        outcome; to cancel it stops nothing."""
        outcome: asyncio.Future[T] = self._in_loop().create_future()

        def decide(first: asyncio.Future[R]) -> None:
            self._running.discard(first)
            try:
                found = then(first)
            except Exception as error:
                self._failed(error)
                _fail(outcome, error)
                return
            if isinstance(found, CoroutineType):
                self.start(found).add_done_callback(lambda task: _pass_on(task, outcome))
            elif not outcome.done():
                outcome.set_result(found)  # type: ignore[arg-type]

        self._running.add(first)
        first.add_done_callback(decide)
        return outcome

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
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
        """Wait until all have ended, also what they start, but no longer than the limit; returns how many still run."""
        until = self._in_loop().time() + limit_seconds
        while self._running:
            await asyncio.wait(self._running, timeout=until - self._in_loop().time())
            if self._in_loop().time() >= until:
                break
        return len(self._running)

    async def cancel(self) -> None:
        """End what is still running: for loops that would never end by themselves."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _pass_on(task: asyncio.Task[T], outcome: asyncio.Future[T]) -> None:
    if outcome.done():
        return
    if task.cancelled():
        outcome.cancel()
    elif (error := task.exception()) is not None:
        _fail(outcome, error)
    else:
        outcome.set_result(task.result())


def _fail(outcome: asyncio.Future[Any], error: BaseException) -> None:
    """It was said in the log already: asyncio need not say that nobody has asked for it."""
    if not outcome.done():
        outcome.set_exception(error)
        outcome.exception()


class _Begun(Coroutine[Any, Any, None]):
    """What is left of work that has begun: it waits for `waits_for`, as it was yielded to the event loop."""

    def __init__(self, work: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._work = work
        self._waits_for = waits_for

    def send(self, value: None) -> Any:
        self._hand_over()
        return self._waits_for

    def throw(self, *error: Any) -> Any:
        self._hand_over()
        return self._work.throw(*error)

    def _hand_over(self) -> None:
        """From its second step on the task speaks with the work itself."""
        self.send = self._work.send  # type: ignore[method-assign, assignment]

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, None]:
        raise TypeError("What has begun is for a task.")


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """`asyncio.timeout`, also for work that has only begun (`Tasks.begin`). Raises TimeoutError."""
    if asyncio.current_task() is None:
        await asyncio.sleep(0)
    async with asyncio.timeout(seconds):
        yield
