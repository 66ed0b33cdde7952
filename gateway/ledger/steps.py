"""The ledger's steps, typed: one method a script, its answer as a struct.

Knows Redis only through `Connection`, and nothing of HTTP or of the policy. All raise `LedgerUnavailable` where Redis
can't do the step; what may then have been written is left to the reconciler, or released by who reserved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal
from zlib import crc32

from msgspec import Struct

from gateway.config import Ledger as LedgerConfig
from gateway.errors import LedgerUnavailable
from gateway.ledger.connection import Connection
from gateway.ledger.replies import LostAnswer
from gateway.ledger.scripts import Script
from gateway.policy.model import SessionState

BUCKETS = 1024
MAX_REMEMBERED = 16_384
MAX_REMEMBERED_ITEMS = 32
"""Sessions as they were read, and how many fields and values one may have: a full session is read over and over, and
has few; one without a cap may have hundreds of products, and the sweep reads it as seldom as any other."""

_RESERVE, _COMMIT, _RELEASE, _DOUBT = Script("reserve"), Script("commit"), Script("release"), Script("doubt")
_DETACH, _REPLACE, _START, _END = Script("detach"), Script("replace"), Script("start"), Script("end")
_SNAPSHOT, _ADOPT, _SETTLE = Script("snapshot"), Script("adopt"), Script("settle")
_CLAIM, _POSTPONE, _READY = (Script(name, shared=False) for name in ("claim", "postpone", "ready"))

_TOOK = ("held", "asked", "stays", "untracked")
_NOT_REPLICATED = "Too few replicas of Redis have the step in time: ledger.replicas says how many; see to them."

_STATES = {b"p": SessionState.preparing, b"l": SessionState.live, b"e": SessionState.ended}
_LETTERS = {SessionState.preparing: "p", SessionState.live: "l", SessionState.ended: "e", None: ""}

Kind = Literal["t", "g", "s"]
"""What a record does: t takes a slot, g gives one back, s starts the session."""


class Slot(Struct, frozen=True, gc=False):
    """`attached`: the upstream is known to have the product. `held`: how many operations try to attach it.
    `in_doubt`: the outcome of one of them is unknown. `for_good`: once the session is live it never comes back."""

    product_id: str
    since_ms: int
    attached: bool
    held: int
    in_doubt: bool
    generation: int
    for_good: bool = True


class Record(Struct, frozen=True, gc=False):
    """`in_doubt`: what became of it is unknown; or `sure`: it was applied, and only when is unknown."""

    number: int
    kind: Kind
    product_id: str
    in_doubt: bool
    sure: bool = False


class Snapshot(Struct, frozen=True, gc=False):
    """A session as the ledger knows it. `used` counts towards the cap; slots are in the order of their time."""

    state: SessionState
    used: int
    version: str
    slots: tuple[Slot, ...]
    records: dict[str, tuple[Record, ...]]

    def slot(self, product_id: str) -> Slot | None:
        return next((slot for slot in self.slots if slot.product_id == product_id), None)


class Answer(Struct, frozen=True, gc=False):
    """What a step said, in the words of its script, and the count after it. `snapshot` comes with refusals; `new` is
    how many slots an adopt made."""

    said: str
    used: int = 0
    state: SessionState | None = None
    snapshot: Snapshot | None = None
    new: int = 0


class Pending(Struct, frozen=True, gc=False):
    """An operation that a reconciler has claimed. `lease` is its fence: a claim by another one changes it."""

    session_id: str
    operation: str
    records: int
    lease: str


class Step(Struct, frozen=True, gc=False):
    """One record of an operation, as its gateway remembers it."""

    kind: Kind
    product_id: str = ""
    applied: bool = True


class OnItsWay(Struct, frozen=True, gc=False):
    """An operation that its own gateway has forwarded and not settled yet."""

    operation: str
    steps: tuple[Step, ...]
    in_doubt: bool = False


def bucket_of(session_id: str) -> int:
    return crc32(session_id.encode()) % BUCKETS


def session_key(prefix: str, session_id: str) -> str:
    return f"{prefix}:{{{bucket_of(session_id)}}}:s:{session_id}"


def stream_key(prefix: str, bucket: int) -> str:
    return f"{prefix}:{{{bucket}}}:e"


def decode_snapshot(items: tuple[bytes, ...]) -> Snapshot | None:
    """The fields and values of a session's hash, in turn; None where there are none."""
    return _remembered(items) if len(items) <= MAX_REMEMBERED_ITEMS else _decoded(items)


def _decoded(items: tuple[bytes, ...]) -> Snapshot | None:
    fields = {key.decode(): value for key, value in zip(items[::2], items[1::2], strict=True)}
    if "s" not in fields:
        return None
    records: dict[str, list[Record]] = {}
    doubtful: set[str] = set()
    for name, value in fields.items():
        if name[0] == "h":
            operation, _, number = name[1:].rpartition(".")
            head, _, product_id = value.decode().partition(":")
            kind: Any = "g" if head[0] == "K" else head[0].lower()
            record = Record(int(number), kind, product_id, head[0].isupper(), head[0] == "K")
            records.setdefault(operation, []).append(record)
            if record.in_doubt:
                doubtful.add(product_id)
    slots = []
    for name, value in fields.items():
        if name[0] == "p":
            since, generation, flag, holders = value.decode().split("|")
            product_id, doubt = name[1:], name[1:] in doubtful
            slots.append(Slot(product_id, int(since), flag == "a", int(holders), doubt, int(generation), flag in "arx"))
    slots.sort(key=lambda slot: (slot.since_ms, slot.generation))
    return Snapshot(
        state=_STATES[fields["s"]],
        used=int(fields["u"]),
        version=fields["v"].decode(),
        slots=tuple(slots),
        records={operation: tuple(found) for operation, found in records.items()},
    )


_remembered = lru_cache(MAX_REMEMBERED)(_decoded)


class Ledger:
    """Steps on sessions. Times of the configuration go to the scripts in ms; the clock is Redis' own."""

    def __init__(self, connection: Connection, config: LedgerConfig, late_apply_seconds: float) -> None:
        self._connection = connection
        self._prefix = config.prefix
        # As they go over the wire: see `packed`.
        self._hold_ms = str(_ms(config.hold_seconds))
        self._late_ms = str(_ms(late_apply_seconds))
        self.hold_seconds = config.hold_seconds
        self.late_apply_seconds = late_apply_seconds
        self._replicated = config.durability == "replicated"
        self._tail = (str(_ms(config.retention_seconds)), str(config.stream_entries))

    @property
    def available(self) -> bool:
        return self._connection.available

    def stream_key(self, bucket: int) -> str:
        return stream_key(self._prefix, bucket)

    def pending_key(self, bucket: int) -> str:
        return f"{self._prefix}:{{{bucket}}}:p"

    def _keys(self, session_id: str) -> tuple[str, str, str]:
        head = f"{self._prefix}:{{{crc32(session_id.encode()) % BUCKETS}}}:"
        return f"{head}s:{session_id}", head + "p", head + "e"

    def _call(self, script: Script, session_id: str, operation: str, *arguments: str | int) -> asyncio.Future[Any]:
        return self._connection.call(script, self._keys(session_id), (session_id, operation, *self._tail, *arguments))

    async def _step(self, script: Script, session_id: str, operation: str, *arguments: str | int) -> Answer:
        return await answered(lambda: self._call(script, session_id, operation, *arguments))

    async def _take(
        self, script: Script, session_id: str, operation: str, first: Sequence[str | int], again: Sequence[str | int]
    ) -> Answer:
        """A step that something is forwarded upon. With ledger.durability = "replicated" it counts only once a replica
        has it: where none says so, or the answer is lost, this raises, and who reserved releases."""
        if self._replicated:
            arguments = (session_id, operation, *self._tail, *first)
            reply, confirmed = await self._connection.call_replicated(script, self._keys(session_id), arguments)
            answer = answer_of(reply)
            if answer.said in _TOOK and not confirmed:
                raise LedgerUnavailable(_NOT_REPLICATED)
            return answer
        try:
            reply = await self._call(script, session_id, operation, *first)
        except LostAnswer:
            reply = await self._call(script, session_id, operation, *again)
        return answer_of(reply)

    async def reserve(self, session_id: str, operation: str, cap: int | None, products: Sequence[str]) -> Answer:
        """`held`, `full` with the snapshot, `missing` or `ended`."""
        head = (self._hold_ms, _cap(cap))
        return await self._take(_RESERVE, session_id, operation, (*head, "0", *products), (*head, "1", *products))

    async def commit(
        self, session_id: str, operation: str, event: str, steps: Sequence[Step], seen: SessionState | None = None
    ) -> Answer:
        """As `ask_commit`."""
        return await answered(lambda: self.ask_commit(session_id, operation, event, steps, seen))

    def ask_commit(
        self, session_id: str, operation: str, event: str, steps: Sequence[Step], seen: SessionState | None = None
    ) -> asyncio.Future[Any]:
        """The upstream said yes; `seen` is the session's state looked at after its answer. `missing` where the ledger
        has lost the session. Asked at once, here and in what follows; see `answered`."""
        arguments: list[str | int] = [_LETTERS[seen], self._late_ms, event]
        for step in steps:
            arguments += (step.kind, "1" if step.applied else "0", step.product_id)
        return self._call(_COMMIT, session_id, operation, *arguments)

    async def release(self, session_id: str, operation: str, records: int) -> Answer:
        """As `ask_release`."""
        return await answered(lambda: self.ask_release(session_id, operation, records))

    def ask_release(self, session_id: str, operation: str, records: int) -> asyncio.Future[Any]:
        """The upstream said no, or was not asked."""
        return self._call(_RELEASE, session_id, operation, records)

    async def doubt(self, session_id: str, operation: str, steps: Sequence[Step], *, own: bool = True) -> Answer:
        """As `ask_doubt`."""
        return await answered(lambda: self.ask_doubt(session_id, operation, steps, own=own))

    def ask_doubt(
        self, session_id: str, operation: str, steps: Sequence[Step], *, own: bool = True
    ) -> asyncio.Future[Any]:
        """Nobody knows; `own` is False where a reconciler says so of a gateway that is gone. `missing` where the ledger
        has lost the session."""
        arguments: list[str | int] = [self._late_ms, "1" if own else "0"]
        for step in steps:
            arguments += (step.kind, step.product_id)
        return self._call(_DOUBT, session_id, operation, *arguments)

    async def detach(self, session_id: str, operation: str, product_id: str) -> Answer:
        """`asked`, `stays`, `untracked`, `missing` or `ended`."""
        arguments = (self._hold_ms, product_id)
        return await self._take(_DETACH, session_id, operation, arguments, arguments)

    async def replace(
        self,
        session_id: str,
        operation: str,
        cap: int | None,
        seen: SessionState,
        old: str,
        new: str,
        *,
        foreign: bool,
    ) -> Answer:
        """`held`; `full` or `started` with the snapshot; `missing` or `ended`."""
        arguments = (self._hold_ms, _cap(cap), _LETTERS[seen], old, new, "1" if foreign else "0")
        return await self._take(_REPLACE, session_id, operation, (*arguments, "0"), (*arguments, "1"))

    async def start(self, session_id: str, operation: str, cap: int | None) -> Answer:
        """`asked`, `live`, `unsettled` or `missing`."""
        arguments = (self._hold_ms, _cap(cap))
        return await self._take(_START, session_id, operation, arguments, arguments)

    async def end(self, session_id: str, operation: str) -> Answer:
        """`ended` or `missing`."""
        return await self._step(_END, session_id, operation)

    async def adopt(
        self,
        session_id: str,
        operation: str,
        version: str,
        state: SessionState,
        products: Sequence[str],
        on_their_way: Sequence[OnItsWay] = (),
        removed: Sequence[str] = (),
    ) -> Answer:
        """`adopted`, or `changed` where the ledger is no longer at `version` ("" for none). What is on its way is held
        where the ledger has no record of it. `removed`: what the upstream no longer has and counts all the same."""
        arguments: list[str | int] = [version, _LETTERS[state], self._hold_ms, self._late_ms]
        arguments += (len(products), len(removed), *products, *removed)
        for other in on_their_way:
            arguments += (other.operation, "1" if other.in_doubt else "0", len(other.steps))
            for step in other.steps:
                arguments += (step.kind, step.product_id)
        return await self._step(_ADOPT, session_id, operation, *arguments)

    async def snapshot(self, session_id: str) -> Snapshot | None:
        """The session, or None where the ledger does not have it."""
        return decode_snapshot(tuple(await _reply(lambda: self._call(_SNAPSHOT, session_id, ""))))

    def used(self, session_id: str) -> asyncio.Future[bytes | None]:
        """How many slots count, asked for at once, so that the answer can be had by the time it is wanted."""
        head = f"{self._prefix}:{{{bucket_of(session_id)}}}:"
        return self._connection.command("HGET", f"{head}s:{session_id}", "u")

    async def claim(self, bucket: int, lease_seconds: float, limit: int) -> tuple[int, list[Pending]]:
        """How many operations of a bucket are pending, and those that are due, for one reconciler at a time."""
        reply = await self._connection.call(_CLAIM, (self.pending_key(bucket),), (_ms(lease_seconds), limit))
        claimed = []
        for member, lease in zip(reply[1::2], reply[2::2], strict=True):
            session_id, operation, records = member.decode().split(" ")
            claimed.append(Pending(session_id, operation, int(records), lease.decode()))
        return reply[0], claimed

    async def settle(
        self, pending: Pending, seen: SessionState | None, outcomes: Sequence[tuple[int, int | None, bool]]
    ) -> Answer:
        """`outcomes`: record number, the slot's generation before the list was asked, whether the list has it. A
        pending operation without a lease is looked at early: only what the list shows to be applied is settled."""
        arguments: list[str | int] = [pending.lease, pending.records, _LETTERS[seen]]
        for number, generation, listed in outcomes:
            arguments += (number, "" if generation is None else generation, "1" if listed else "0")
        return await self._step(_SETTLE, pending.session_id, pending.operation, *arguments)

    async def postpone(self, pending: Pending, seconds: float) -> None:
        """A claimed operation is due again in so long, unless its lease was lost."""
        member = f"{pending.session_id} {pending.operation} {pending.records}"
        key = self.pending_key(bucket_of(pending.session_id))
        await self._connection.call(_POSTPONE, (key,), (pending.lease, _ms(seconds), member))

    async def events(self, bucket: int, after: str, limit: int) -> list[tuple[str, dict[str, str]]]:
        """Entries of a bucket's stream that came after an id, oldest first: id and fields (see `slots.lua`)."""
        reply = await self._connection.command("XRANGE", self.stream_key(bucket), f"({after}", "+", "COUNT", limit)
        return [_entry(entry) for entry in reply]

    async def event_bounds(self, bucket: int) -> tuple[str, str]:
        """Ids of the oldest and newest entry of a bucket's stream, "0-0" where it is empty."""
        key = self.stream_key(bucket)
        first = self._connection.command("XRANGE", key, "-", "+", "COUNT", 1)
        last = self._connection.command("XREVRANGE", key, "+", "-", "COUNT", 1)
        oldest, newest = await asyncio.gather(first, last)
        return (_entry(oldest[0])[0] if oldest else "0-0", _entry(newest[0])[0] if newest else "0-0")

    async def ping(self) -> None:
        """Raises `LedgerUnavailable` where no Redis answers, or none can write; of a Cluster, where all masters fail: a
        gateway that lacks one still serves the sessions of the others."""
        keys = self._connection.one_a_server(f"{self._prefix}:{{{bucket}}}:r" for bucket in range(BUCKETS))
        said = await asyncio.gather(*(self._ready(key) for key in keys), return_exceptions=True)
        problems = [one for one in said if isinstance(one, BaseException)]
        if len(problems) == len(said):
            raise problems[0]

    async def _ready(self, key: str) -> None:
        if self._replicated:
            _, confirmed = await self._connection.call_replicated(_READY, (key,), ())
            if not confirmed:
                raise LedgerUnavailable(_NOT_REPLICATED)
        else:
            await self._connection.call(_READY, (key,), ())

    async def warnings(self) -> list[str]:
        """What about Redis would break the promise, to be said at start. Raises `LedgerUnavailable`."""
        return await self._connection.warnings(replicated=self._replicated)


async def answered(ask: Callable[[], asyncio.Future[Any]], first: asyncio.Future[Any] | None = None) -> Answer:
    """The answer to a step whose repetition changes nothing: asked again where it is lost. `first`: the reply, where it
    was asked already."""
    return answer_of(await _reply(ask, first))


async def _reply(ask: Callable[[], asyncio.Future[Any]], first: asyncio.Future[Any] | None = None) -> Any:
    try:
        return await (ask() if first is None else first)
    except LostAnswer:
        return await ask()


def answer_of(reply: list[Any]) -> Answer:
    """What a step's script replied."""
    said = reply[0].decode()
    state = reply[2] if len(reply) > 2 else None
    return Answer(
        said=said,
        used=reply[1] if len(reply) > 1 else 0,
        state=_STATES[state] if isinstance(state, bytes) else None,
        snapshot=decode_snapshot(tuple(reply[3:])) if len(reply) > 3 and isinstance(state, bytes) else None,
        new=state if isinstance(state, int) else 0,
    )


def _entry(entry: tuple[bytes, list[bytes]]) -> tuple[str, dict[str, str]]:
    name, items = entry
    return name.decode(), {key.decode(): value.decode() for key, value in zip(items[::2], items[1::2], strict=True)}


def _cap(cap: int | None) -> str:
    return "-1" if cap is None else str(cap)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
