"""What a run is judged by, over HTTP: the platform's journal, sessions' lists, the gateway's view of sessions.

Also what must be there before a run: an answering target, and the world sown into the platform. These are
few requests outside the measured load, through aiohttp's client. Nothing is judged here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, TypeVar

import aiohttp
import msgspec
from msgspec import Struct

from gateway.load.judge import Difference, Entry, Judge, Seen, View, compare
from gateway.load.scenario import Session
from gateway.load.world import World

AT_ONCE: Final = 32
TRIES: Final = 5
AGAIN_SECONDS: Final = 0.5
MAX_SHOWN: Final = 200

T = TypeVar("T")
R = TypeVar("R")


class Unusable(Exception):
    """The run can't be made or judged: what is missing, and what to do."""


class Slots(Struct, frozen=True):
    """The comparison with the gateway's view. `compared` 0: it was not made, `note` says why."""

    compared: int
    differences: list[Difference]
    waited_seconds: float
    note: str = ""


class _Journal(Struct):
    entries: list[Entry]


class _Listed(Struct):
    product_id: str


class _List(Struct):
    products: list[_Listed]


_journal = msgspec.json.Decoder(_Journal)
_list = msgspec.json.Decoder(_List)
_view = msgspec.json.Decoder(View)


async def each(items: Iterable[T], work: Callable[[T], Awaitable[R]]) -> list[R]:
    """The work done on each item, `AT_ONCE` at a time, results in the items' order."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(item: T) -> R:
        async with gate:
            return await work(item)

    return list(await asyncio.gather(*(one(item) for item in items)))


def why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__


class Evidence:
    """`session` should have a total time limit per request."""

    def __init__(self, http: aiohttp.ClientSession, targets: Sequence[str], platform: str | None, header: str) -> None:
        self._http = http
        self._targets = targets
        self._platform = platform
        self._header = header

    # Before the run

    async def probe(self) -> None:
        """Raises `Unusable` where a target or the platform does not answer HTTP."""
        for target in self._targets:
            await self._answer("target", target, "/")
        if self._platform is not None:
            path = f"/_platform/journal?after={10**12 - 1}"
            status, _ = await self._answer("platform", self._platform, path)
            if status != 200:
                raise Unusable(
                    f"platform {self._platform} answers {status} to GET /_platform/journal: it is not the reference"
                    " platform (start one with `attachgate platform`, or leave --platform out and give --data)"
                )

    async def _answer(self, what: str, url: str, path: str) -> tuple[int, bytes]:
        try:
            async with self._http.get(url + path, allow_redirects=False) as answer:
                return answer.status, await answer.read()
        except (aiohttp.ClientError, OSError) as error:
            raise Unusable(f"{what} {url} can't be reached: {why(error)}") from error

    async def sow(self, world: World) -> None:
        """Puts the accounts and products into the platform."""

        async def put(path: str, record: Struct) -> None:
            url = f"{self._platform}/_platform/{path}"
            headers = {"Content-Type": "application/json"}
            try:
                async with self._http.put(url, data=msgspec.json.encode(record), headers=headers) as answer:
                    if answer.status != 200:
                        text = (await answer.text())[:MAX_SHOWN]
                        raise Unusable(f"the platform does not take {path}: {answer.status} {text}")
            except (aiohttp.ClientError, OSError) as error:
                raise Unusable(f"platform {self._platform} went away: {why(error)}") from error

        await each(world.accounts.values(), lambda account: put(f"accounts/{account.account_id}", account))
        await each(world.products.values(), lambda product: put(f"products/{product.product_id}", product))

    # After the run

    async def journal(self, after: int) -> list[Entry]:
        """The entries above a sequence number. Raises `Unusable`."""
        assert self._platform is not None
        status, body = await self._answer("platform", self._platform, f"/_platform/journal?after={after}")
        if status != 200:
            raise Unusable(f"platform {self._platform} answers {status} to GET /_platform/journal")
        try:
            return _journal.decode(body).entries
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unusable(f"platform {self._platform}: its journal can't be read: {error}") from error

    async def seen(self, sessions: Sequence[Session]) -> tuple[list[Seen], list[str]]:
        """Each session's list through the targets, and a line for each that could not be had."""
        problems: list[str] = []

        async def one(session: Session) -> Seen | None:
            status, body = await self._ask(f"/live/sessions/{session.id}/products", session)
            try:
                if status == 200:
                    listed = frozenset(product.product_id for product in _list.decode(body).products)
                    return Seen(session.id, session.account_id, listed, frozenset(session.added_live))
                problem = f"status {status}" if status else body.decode()
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                problem = str(error)
            problems.append(f"the list of session {session.id} can't be had: {problem}")
            return None

        return [seen for seen in await each(sessions, one) if seen is not None], problems

    async def slots(self, sample: Sequence[Session], judge: Judge, settle_seconds: float) -> Slots:
        """The judge's count of each session beside the gateway's, until they agree and nothing is in doubt, or
        the time is over. The judge reads on in the journal meanwhile."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while True:
            views = await each(sample, self._view_of)
            judge.feed(await self.journal(judge.last_seq))
            if all(view == 404 for view in views):
                note = "the target has no session view (404 on /_gateway/sessions/{id})" if views else "no session"
                return Slots(0, [], 0.0, note)
            found = [self._compare(session, view, judge) for session, view in zip(sample, views, strict=True)]
            differences = [difference for difference in found if difference is not None]
            waited = loop.time() - begun
            if not differences or waited >= settle_seconds:
                return Slots(len(sample), differences, round(waited, 1))
            await asyncio.sleep(AGAIN_SECONDS)

    async def _view_of(self, session: Session) -> View | int | str:
        """The view, or the status that was answered instead, or why there was none."""
        status, body = await self._ask(f"/_gateway/sessions/{session.id}", session)
        if status != 200:
            return status or body.decode()
        try:
            return _view.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return str(error)

    @staticmethod
    def _compare(session: Session, view: View | int | str, judge: Judge) -> Difference | None:
        count = judge.count(session.id)
        if not isinstance(view, View):
            said = f"status {view}" if isinstance(view, int) else view
            return Difference(session.id, [], [], [], f"the view can't be had: {said}")
        if count is None:
            return Difference(session.id, [], [], [], "the platform's journal does not know it")
        return compare(session.id, count, view)

    async def _ask(self, path: str, session: Session) -> tuple[int, bytes]:
        """Status and body; 0 and why, where no target answered. Each try goes to the next target."""
        said: tuple[int, bytes] = (0, b"")
        for tried in range(TRIES):
            url = self._targets[(session.room.number + tried) % len(self._targets)] + path
            try:
                async with self._http.get(url, headers={self._header: session.account_id}) as answer:
                    said = answer.status, await answer.read()
            except (aiohttp.ClientError, OSError) as error:
                said = 0, why(error).encode()
            if said[0] and said[0] < 500 and said[0] != 429:
                break
            await asyncio.sleep(AGAIN_SECONDS / TRIES)
        return said
