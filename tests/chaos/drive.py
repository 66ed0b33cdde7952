"""The clients: each planned request when it is due, through the gateways' links, and a record of every one.

An open loop: a request starts when the plan says so, whatever became of those before it. After no answer, a 429 or a
5xx it is asked again, at the next gateway, as often as the plan allows.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from gateway.load.client import Answer, Client
from gateway.load.drive import reason_of, worth_retrying
from tests.chaos.plan import SessionPlan, Step

TICK_SECONDS: Final = 0.004
PATIENT_SECONDS: Final = 5.0
HURRIED_SECONDS: Final = 0.06
CONNECTIONS: Final = 192
PAUSES_SECONDS: Final = (0.1, 0.3, 0.8, 1.5)


class Request:
    """One try of a step. Times are seconds since the epoch; `status` -1: not answered yet, 0: not at all."""

    __slots__ = ("answered", "decision", "reason", "sent", "session", "status", "step", "target", "tried")

    def __init__(self, session: SessionPlan, step: Step, target: str, tried: int) -> None:
        self.session = session
        self.step = step
        self.target = target
        self.tried = tried
        self.sent = time.time()
        self.answered = 0.0
        self.status = -1
        self.reason = ""
        self.decision = ""


class Record:
    """Every request of a run, by session."""

    def __init__(self) -> None:
        self.by_session: dict[str, list[Request]] = {}
        self.sent: Counter[str] = Counter()
        self.answers: Counter[tuple[str, int, str]] = Counter()
        self.steps: Counter[str] = Counter()

    @property
    def requests(self) -> int:
        return sum(self.sent.values())

    def add(self, request: Request) -> None:
        self.by_session.setdefault(request.session.id, []).append(request)
        self.sent[request.step.operation] += 1
        if request.tried == 0:
            self.steps[request.step.operation] += 1

    def answered(self, request: Request, answer: Answer) -> None:
        request.answered = time.time()
        request.status = answer.status
        request.reason = reason_of(answer)
        request.decision = answer.decision
        self.answers[request.step.operation, answer.status, request.reason] += 1


def address(session: SessionPlan, step: Step) -> tuple[str, str, bytes]:
    """Method, path and body of a step."""
    path = f"/live/sessions/{session.id}"
    encode = msgspec.json.encode
    match step.operation:
        case "create":
            body = {"session_id": session.id, "account_id": session.account_id}
            return "POST", "/live/sessions", encode(body)
        case "start" | "start_past":
            return "POST", f"{path}/start", b""
        case "end":
            return "POST", f"{path}/end", b""
        case "attach":
            many = {"product_ids": step.products} if len(step.products) > 1 else {"product_id": step.products[0]}
            return "POST", f"{path}/products", encode(many)
        case "detach":
            return "DELETE", f"{path}/products/{step.leaving}", b""
        case "replace":
            return "PUT", f"{path}/products/{step.leaving}", encode({"product_id": step.products[0]})
        case "view":
            return "GET", f"/_gateway/sessions/{session.id}", b""
        case _:
            return "GET", f"{path}/products", b""


class Drive:
    """Plays the sessions. `gateways` are the addresses of the clients' links, `platform` the platform's own."""

    def __init__(self, gateways: Sequence[str], platform: str) -> None:
        clock = time.monotonic

        def client(url: str, seconds: float) -> Client:
            return Client(url, "X-Account-Id", CONNECTIONS, seconds, clock)

        self._patient = [client(url, PATIENT_SECONDS) for url in gateways]
        self._hurried = [client(url, HURRIED_SECONDS) for url in gateways]
        self._platform = client(platform, PATIENT_SECONDS)
        self._later: list[tuple[float, int, SessionPlan, Step, int]] = []
        self._numbers = itertools.count()
        self._open = 0
        self._failure: Exception | None = None
        self.record = Record()
        self.longest_stall_seconds = 0.0

    async def run(self, sessions: Iterator[SessionPlan], stop: asyncio.Event) -> None:
        """All sessions, from now on; returns when every request has its answer, or soon after `stop` is set."""
        begun = time.monotonic()
        coming = next(sessions, None)
        last = begun
        while (coming is not None or self._later or self._open) and not stop.is_set():
            now = time.monotonic()
            self.longest_stall_seconds = max(self.longest_stall_seconds, now - last)
            last = now
            while coming is not None and begun + coming.begins <= now + 0.1:
                for step in coming.steps:
                    self._at(begun + step.at, coming, step, 0)
                coming = next(sessions, None)
            while self._later and self._later[0][0] <= now:
                _, _, session, step, tried = heapq.heappop(self._later)
                self._send(session, step, tried)
            for client in (*self._patient, *self._hurried, self._platform):
                client.expire()
            if self._failure is not None:
                raise self._failure
            await asyncio.sleep(TICK_SECONDS)

    async def close(self) -> None:
        for client in (*self._patient, *self._hurried, self._platform):
            await client.close()

    def _at(self, due: float, session: SessionPlan, step: Step, tried: int) -> None:
        heapq.heappush(self._later, (due, next(self._numbers), session, step, tried))

    def _send(self, session: SessionPlan, step: Step, tried: int) -> None:
        number = (step.client + tried) % len(self._patient)
        if step.operation == "start_past":
            target, client = "platform", self._platform
        else:
            target = f"gateway {number}"
            client = (self._hurried if step.hurry and tried == 0 else self._patient)[number]
        request = Request(session, step, target, tried)
        self.record.add(request)
        self._open += 1

        def done(answer: Answer) -> None:
            # Called from a transport, where an exception would end the connection and nothing else.
            try:
                self._answered(request, answer)
            except Exception as error:
                self._failure = error

        client.send(*address(session, step)[:2], session.account_id, address(session, step)[2], done)

    def _answered(self, request: Request, answer: Answer) -> None:
        self._open -= 1
        self.record.answered(request, answer)
        step, tried = request.step, request.tried
        if worth_retrying(answer.status) and tried < step.retries:
            pause = PAUSES_SECONDS[min(tried, len(PAUSES_SECONDS) - 1)]
            self._at(time.monotonic() + pause, request.session, step, tried + 1)
