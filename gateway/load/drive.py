"""The schedule: each request starts when it is due, whether or not earlier ones were answered (an open loop).

Promises that latency counts from when a request should have started, so that a target that stalls can't hide
the requests that it kept from starting; that a timer's coarseness adds nothing (what falls due within one tick
is started at its beginning, and then counts from there); and that each action gets its outcome exactly once,
after its retries. A race takes as many places of the schedule as it has clients, all at the first one's time,
so that the rate holds on average.

Retries come on top of the rate: after no answer, a 429 or a 5xx, with a growing, jittered pause or the
target's Retry-After.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from gateway.load.client import Answer, Done
from gateway.load.measure import Measures, Second
from gateway.load.scenario import Action, Scenario

TICK_SECONDS: Final = 0.001
MAX_STARTS_A_TICK: Final = 500
FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 3.0
SPARE_SECONDS: Final = 1.0


class Sender(Protocol):
    """What the schedule needs of a client."""

    def send(self, method: str, path: str, account_id: str, body: bytes, done: Done) -> None: ...

    def expire(self) -> None: ...


class Pace(Struct, frozen=True):
    """`rate` in requests per second."""

    rate: float
    duration_seconds: float
    retries: int
    timeout_seconds: float

    @property
    def drain_seconds(self) -> float:
        """The longest time that the last request can take, its retries included."""
        return (self.retries + 1) * self.timeout_seconds + self.retries * LONGEST_PAUSE_SECONDS + SPARE_SECONDS


class _Problem(msgspec.Struct):
    reason: str = ""


_problem = msgspec.json.Decoder(_Problem)


def reason_of(answer: Answer) -> str:
    """The gateway's reason (RFC 9457 document), or why there was no answer; empty where there is none."""
    if answer.status < 400:
        return answer.reason
    try:
        return _problem.decode(answer.body).reason
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def worth_retrying(status: int) -> bool:
    return status == 0 or status == 429 or status >= 500


class Drive:
    """`clock` is in seconds; `sleep` waits that many of them."""

    def __init__(
        self,
        scenario: Scenario,
        senders: Sequence[Sender],
        pace: Pace,
        measures: Measures,
        *,
        seed: int,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        on_second: Callable[[Second], None] = lambda second: None,
    ) -> None:
        self._scenario = scenario
        self._senders = senders
        self._pace = pace
        self._measures = measures
        self._random = random.Random(seed)
        self._clock = clock
        self._sleep = sleep
        self._on_second = on_second
        self._later: list[tuple[float, int, Action, int]] = []
        self._numbers = itertools.count()
        self._open = 0
        self._failure: Exception | None = None

    async def run(self, stop: Callable[[], bool] = lambda: False) -> None:
        """The whole schedule, then the rest of what is in flight. `stop` ends the schedule early."""
        begun = self._clock()
        interval, end = 1 / self._pace.rate, begun + self._pace.duration_seconds
        arrivals, next_second = 0, begun + 1
        while not stop():
            due = begun + arrivals * interval
            now = self._clock()
            if due >= end:
                break
            for _ in range(MAX_STARTS_A_TICK):
                if due > now + TICK_SECONDS or due >= end:
                    break
                actions = self._scenario.next()
                for action in actions:
                    self._start(action, due, 0)
                arrivals += len(actions)
                due = begun + arrivals * interval
            self._turn(now)
            if now >= next_second:
                self._close_second(begun, now)
                next_second += max(1, int(now - next_second) + 1)
            # Behind the schedule: let answers in, but don't rest.
            await self._sleep(0 if due <= self._clock() else TICK_SECONDS)
        await self._drain(begun, next_second)

    async def open(self, actions: Sequence[Action], at_once: int, tries: int) -> list[tuple[Action, Answer]]:
        """Before the schedule: carry out actions, so many at a time, unmeasured. Returns those that failed,
        with the last answer."""
        left = list(reversed(actions))
        failed: list[tuple[Action, Answer]] = []
        running = 0

        def start(action: Action, tried: int) -> None:
            def done(answer: Answer) -> None:
                nonlocal running
                if worth_retrying(answer.status) and tried + 1 < tries:
                    start(action, tried + 1)
                    return
                running -= 1
                self._scenario.learn(action, answer.status, answer.body)
                if not (200 <= answer.status < 300 or (answer.status == 409 and tried)):
                    failed.append((action, answer))

            self._send(action, tried, done)

        while (left or running) and not failed:
            while left and running < at_once:
                running += 1
                start(left.pop(), 0)
            for sender in self._senders:
                sender.expire()
            self._check()
            await self._sleep(TICK_SECONDS)
        return failed

    async def _drain(self, begun: float, next_second: float) -> None:
        until = self._clock() + self._pace.drain_seconds
        while self._open and (now := self._clock()) < until:
            self._turn(now)
            if now >= next_second:
                self._close_second(begun, now)
                next_second += 1
            await self._sleep(TICK_SECONDS)
        self._measures.unfinished = self._open
        self._close_second(begun, self._clock())

    def _turn(self, now: float) -> None:
        for sender in self._senders:
            sender.expire()
        while self._later and self._later[0][0] <= now + TICK_SECONDS:
            due, _, action, tried = heapq.heappop(self._later)
            self._open -= 1
            self._start(action, due, tried)
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _close_second(self, begun: float, now: float) -> None:
        self._on_second(self._measures.close_second(now - begun, self._open))

    def _start(self, action: Action, due: float, tried: int) -> None:
        started = self._clock()
        since = min(due, started)
        self._measures.started(max(0.0, started - due), retry=tried > 0)
        self._open += 1

        self._send(action, tried, lambda answer: self._done(action, answer, since, tried))

    def _send(self, action: Action, tried: int, done: Done) -> None:
        """A room's clients, and a client's tries, are spread over all targets."""
        session = action.session
        sender = self._senders[(session.room.number + action.client + tried) % len(self._senders)]

        def guarded(answer: Answer) -> None:
            # Called from a transport, where an exception would end the connection and nothing else.
            try:
                done(answer)
            except Exception as error:
                self._failure = error

        sender.send(action.method, action.path, session.account_id, action.body, guarded)

    def _done(self, action: Action, answer: Answer, since: float, tried: int) -> None:
        now = self._clock()
        self._measures.answered(action.operation, answer.status, reason_of(answer), now - since)
        self._open -= 1
        if worth_retrying(answer.status):
            action.session.shaken = True
            if tried < self._pace.retries:
                self._open += 1
                pause = self._pause(answer, tried)
                heapq.heappush(self._later, (now + pause, next(self._numbers), action, tried + 1))
                return
        self._scenario.learn(action, answer.status, answer.body)

    def _pause(self, answer: Answer, tried: int) -> float:
        asked = answer.retry_after_seconds or FIRST_PAUSE_SECONDS * 2**tried
        return min(asked, LONGEST_PAUSE_SECONDS) * self._random.uniform(0.75, 1.25)
