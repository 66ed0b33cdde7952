"""Accounts, products and sessions as the directory knows them, remembered for a short time.

Promises:
- A record is served for `ttl_seconds` after it was asked for; an unbound or changed shop (N9 to N11) takes
  effect by then.
- A thousand who miss the same record at once make one request, and none of them can spoil it for the others.
- While the directory fails, an expired record is served for up to `stale_if_error_seconds` more. What was
  never known is refused (`DirectoryUnavailable`), never guessed; so is a record of another id than the one
  asked for.
- "There is no such id" is remembered too, for `negative_ttl_seconds`, but apart from the records: a flood of
  invented ids can't push out what is in use. Nor can it drown the directory: look-ups of each kind are
  bounded.
- What was learnt or forgotten in the meantime is not overwritten by the answer to a question asked before it.

The cache is written here and not taken from a library because the hot path, one look-up and one comparison,
takes a sixth of what cachetools' TTLCache takes, and because expired records must be kept for the directory's
bad times.

Knows nothing about the policy, nor about who asks.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from operator import attrgetter
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec
import structlog

from gateway import config, fetch
from gateway.errors import (
    AccountUnknown,
    ClientError,
    DirectoryUnavailable,
    Overloaded,
    ProductUnknown,
    SessionUnknown,
)
from gateway.policy.model import Account, Product, Session
from gateway.tasks import Tasks
from gateway.telemetry import Seldom
from gateway.upstream.lookups import Lookups

log = structlog.get_logger(__name__)

R = TypeVar("R", bound=msgspec.Struct)

LIMIT_BYTES = 64 * 1024
MAX_CONCURRENT = 32
"""Look-ups of one kind on their way at once, each on a connection; those of another kind have their own."""
MAX_QUEUED = 1024
"""Look-ups of one kind that wait for their turn; one more is refused at once."""
MAX_UNKNOWN = 10_000
"""Ids of one kind that are remembered as unknown."""
LOG_SECONDS = 1.0
"""At most one line about failed look-ups of a kind in so long."""
RETRY_SECONDS = 1.0
"""How long an expired record is served without asking again, once the directory has failed to renew it."""


class _Unknown:
    """The directory's answer that there is no such id."""


_UNKNOWN = _Unknown()
Outcome: TypeAlias = R | _Unknown | fetch.Failure


class _Flight(Generic[R]):
    """One look-up on its way, and how it ends. `asked`: when the question left, None while it waits its
    turn."""

    task: asyncio.Task[Outcome[R]]
    asked: float | None = None


class Records(Generic[R]):
    """The records of one kind. The counters are for telemetry: `hits` were served from memory, `misses`
    waited for an answer, `stale` were served expired, `negative` were known to be unknown, `errors` counts
    failed look-ups."""

    def __init__(
        self,
        kind: str,
        record: type[R],
        unknown: type[ClientError],
        lookups: Lookups,
        template: fetch.Template,
        settings: config.Directory,
        clock: Callable[[], float],
        tasks: Tasks,
    ) -> None:
        self.kind = kind
        self._decoder = msgspec.json.Decoder(record)
        self._id_of: Callable[[R], str] = attrgetter(f"{kind}_id")
        self._unknown_error = unknown
        self._lookups = lookups
        self._template = template
        self._settings = settings
        self._clock = clock
        self._tasks = tasks
        # (served until, record, usable until), the oldest first. Not a dict: its first entry is slow to find
        # after many removals from the front.
        self._entries: OrderedDict[str, tuple[float, R, float]] = OrderedDict()
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self._flights: dict[str, _Flight[R]] = {}
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        self._under_way = 0
        self._say = Seldom(LOG_SECONDS, clock)
        self.hits = self.misses = self.stale = self.negative = self.errors = 0

    def __len__(self) -> int:
        return len(self._entries)

    def peek(self, identifier: str) -> R | None:
        """What `get` would return without asking, or None where it would ask or refuse."""
        entry = self._entries.get(identifier)
        if entry is None or entry[0] <= self._clock():
            return None
        self.hits += 1
        return entry[1]

    async def get(self, identifier: str) -> R:
        (record,) = await self.want((identifier,))()
        return record

    def want(self, identifiers: Sequence[str]) -> Callable[[], Coroutine[Any, Any, list[R]]]:
        """Ask for all of these that are not at hand, now; what is returned waits for them. It gives the records in the
        order asked. Ids that are unknown are named in one error, which comes before a failure: asking again would not
        help."""
        outcomes: dict[str, Outcome[R]] = {}
        flights: dict[str, _Flight[R] | fetch.Failure] = {}
        for identifier in identifiers:
            if identifier in outcomes or identifier in flights:
                continue
            outcome = self._at_hand(identifier)
            if outcome is None:
                self.misses += 1
                flights[identifier] = self._join(identifier)
            else:
                outcomes[identifier] = outcome

        async def records() -> list[R]:
            for identifier, flight in flights.items():
                outcomes[identifier] = self._or_stale(identifier, await self._wait(flight))
            unknown = [identifier for identifier in outcomes if outcomes[identifier] is _UNKNOWN]
            if unknown:
                raise self._unknown_error(self._unknown_detail(unknown))
            return [self._served(identifier, outcomes[identifier]) for identifier in identifiers]

        return records

    async def fresh(self, identifier: str) -> R:
        """The record as the directory has it after this call began: neither remembered nor asked for
        before."""
        self.misses += 1
        flight = self._flights.get(identifier)
        asked = self._begin(identifier) if flight is None or flight.asked is not None else flight
        return self._served(identifier, await self._wait(asked))

    def learn(self, record: R) -> None:
        """Remember a record that was seen in another answer. Look-ups under way may hold an older one."""
        self._flights.pop(self._id_of(record), None)
        self._remember(self._id_of(record), record, self._clock())

    def forget(self, identifier: str) -> None:
        self._flights.pop(identifier, None)
        self._entries.pop(identifier, None)
        self._unknown.pop(identifier, None)

    def _at_hand(self, identifier: str) -> R | _Unknown | None:
        """What is known without asking."""
        record = self.peek(identifier)
        if record is not None:
            return record
        until = self._unknown.get(identifier)
        if until is None or until <= self._clock():
            return None
        self.negative += 1
        return _UNKNOWN

    def _or_stale(self, identifier: str, outcome: Outcome[R]) -> Outcome[R]:
        if not isinstance(outcome, fetch.Failure):
            return outcome
        entry = self._entries.get(identifier)
        if entry is None or entry[2] <= self._clock():
            return outcome
        self.stale += 1
        return entry[1]

    def _served(self, identifier: str, outcome: Outcome[R]) -> R:
        if isinstance(outcome, _Unknown):
            raise self._unknown_error(self._unknown_detail([identifier]))
        if isinstance(outcome, fetch.Failure):
            raise DirectoryUnavailable(
                f"The directory could not tell about {self.kind} {identifier}: {outcome.why}. "
                "Nothing was changed; try again shortly."
            )
        return outcome

    def _unknown_detail(self, identifiers: list[str]) -> str:
        named = ", ".join(identifiers[:10]) + (", …" if len(identifiers) > 10 else "")
        return f"Not known to the directory: {self.kind} {named}. Check the id."

    def _join(self, identifier: str) -> _Flight[R] | fetch.Failure:
        return self._flights.get(identifier) or self._begin(identifier)

    def _begin(self, identifier: str) -> _Flight[R] | fetch.Failure:
        """Start a look-up that newcomers join from now on. One that is under way already still serves those
        who wait for it, but what it brings is not remembered."""
        if self._under_way >= MAX_CONCURRENT + MAX_QUEUED:
            self.errors += 1
            return fetch.Failure("too many look-ups are waiting")
        self._under_way += 1
        flight = _Flight[R]()
        self._flights[identifier] = flight
        flight.task = self._tasks.start(self._fly(identifier, flight))
        return flight

    async def _wait(self, flight: _Flight[R] | fetch.Failure) -> Outcome[R]:
        """How a look-up ends. It goes on where who waits for it is cancelled."""
        if isinstance(flight, fetch.Failure):
            return flight
        try:
            return await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            waiter = asyncio.current_task()
            if not flight.task.cancelled() or (waiter is not None and waiter.cancelling()):
                raise
            return fetch.Failure("the gateway is stopping")

    async def _fly(self, identifier: str, flight: _Flight[R]) -> Outcome[R]:
        try:
            outcome = await self._ask(identifier, flight)
            if isinstance(outcome, fetch.Failure):
                self._note_failure(identifier, outcome)
            elif self._flights.get(identifier) is flight:
                self._remember(identifier, outcome, self._clock() if flight.asked is None else flight.asked)
            return outcome
        finally:
            self._under_way -= 1
            if self._flights.get(identifier) is flight:
                del self._flights[identifier]

    async def _ask(self, identifier: str, flight: _Flight[R]) -> Outcome[R]:
        path = self._template.path(identifier)
        if path is None:
            return _UNKNOWN
        try:
            async with asyncio.timeout(self._settings.timeout_seconds), self._slots:
                flight.asked = self._clock()
                answer = await self._lookups.get(path)
        except TimeoutError:
            return fetch.Failure("no answer came in time", timed_out=True)
        except Overloaded as error:
            return fetch.Failure("too many look-ups are waiting", error.detail)
        if isinstance(answer, fetch.Failure):
            return answer
        if answer.status == 404:
            return _UNKNOWN
        if answer.status != 200:
            return fetch.Failure(f"it answered {answer.status}")
        record = fetch.decode(self._decoder, answer.body)
        if not isinstance(record, fetch.Failure) and self._id_of(record) != identifier:
            return fetch.Failure(f"it answered with another {self.kind}")
        return record

    def _remember(self, identifier: str, outcome: R | _Unknown, asked: float) -> None:
        """Times count from the question: what the answer says may have changed since."""
        self._entries.pop(identifier, None)
        self._unknown.pop(identifier, None)
        if isinstance(outcome, _Unknown):
            self._unknown[identifier] = asked + self._settings.negative_ttl_seconds
            if len(self._unknown) > MAX_UNKNOWN:
                self._unknown.popitem(last=False)
            return
        expires = asked + self._settings.ttl_seconds
        self._entries[identifier] = (expires, outcome, expires + self._settings.stale_if_error_seconds)
        self._shrink()

    def _shrink(self) -> None:
        """Drop the oldest entry where there are too many, and one or two that are of no use any more: each
        new entry costs the same, and what nobody asks for fades."""
        now = self._clock()
        for _ in range(min(2, len(self._entries))):
            oldest = next(iter(self._entries))
            if len(self._entries) <= self._settings.max_entries and self._entries[oldest][2] > now:
                return
            del self._entries[oldest]

    def _note_failure(self, identifier: str, failure: fetch.Failure) -> None:
        """Count it, log it (at most once a second), and let an expired record serve without asking for a
        while: a slow directory must not make each request slow."""
        self.errors += 1
        now = self._clock()
        entry = self._entries.get(identifier)
        if entry is not None and entry[0] <= now < entry[2]:
            self._entries[identifier] = (min(now + RETRY_SECONDS, entry[2]), entry[1], entry[2])
        if self._say.now():
            log.warning("directory_failed", kind=self.kind, id=identifier, why=failure.why, cause=failure.cause)


class Directory:
    """Look-ups of all three kinds. `peek_…` answer at once or not at all; the others may ask, and raise
    `AccountUnknown`, `ProductUnknown`, `SessionUnknown` or `DirectoryUnavailable`.

    `upstream`: the address where `settings` names none, and how its servers are spoken to. `clock` is monotonic, in
    seconds. `settings.max_entries` bounds each kind by itself.
    """

    def __init__(self, settings: config.Directory, upstream: config.Upstream, clock: Callable[[], float]) -> None:
        self._tasks = Tasks("directory")
        self._lookups: list[Lookups] = []

        def records(kind: str, record: type[R], path: str, unknown: type[ClientError]) -> Records[R]:
            lookups = Lookups(
                upstream,
                settings.url or upstream.url,
                limit_bytes=LIMIT_BYTES,
                timeout_seconds=settings.timeout_seconds,
                max_connections=MAX_CONCURRENT,
                clock=clock,
                named=f"The directory at {'directory.url' if settings.url else 'upstream.url'}",
            )
            self._lookups.append(lookups)
            template = fetch.Template(path, f"{{{kind}_id}}")
            return Records(kind, record, unknown, lookups, template, settings, clock, self._tasks)

        self.account_records = records("account", Account, settings.account_path, AccountUnknown)
        self.product_records = records("product", Product, settings.product_path, ProductUnknown)
        self.session_records = records("session", Session, settings.session_path, SessionUnknown)
        # Bound once: the hot path calls the look-up itself and nothing between.
        self.peek_account: Callable[[str], Account | None] = self.account_records.peek
        self.peek_product: Callable[[str], Product | None] = self.product_records.peek
        self.peek_session: Callable[[str], Session | None] = self.session_records.peek

    async def account(self, account_id: str) -> Account:
        return await self.account_records.get(account_id)

    async def product(self, product_id: str) -> Product:
        return await self.product_records.get(product_id)

    async def products(self, product_ids: Sequence[str]) -> list[Product]:
        """The products in the order asked, all looked up at once. Unknown ones are named in one error."""
        return await self.product_records.want(product_ids)()

    async def session(self, session_id: str) -> Session:
        return await self.session_records.get(session_id)

    async def fresh_session(self, session_id: str) -> Session:
        """The session as it is after this call began; an expired or remembered record is never served."""
        return await self.session_records.fresh(session_id)

    def learn_session(self, session: Session) -> None:
        """Remember a session that an upstream's answer showed, as if it had been asked now."""
        self.session_records.learn(session)

    def forget_session(self, session_id: str) -> None:
        self.session_records.forget(session_id)

    async def close(self) -> None:
        """End the look-ups on their way; who waits for one is told that the gateway is stopping."""
        await self._tasks.cancel()
        for lookups in self._lookups:
            lookups.close()
