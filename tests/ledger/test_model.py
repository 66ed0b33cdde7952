"""Scripts and model side by side through random interleavings, compared after each step, and the promise, judged from
what the upstream accepted.

Several gateways ask, forward, are answered, settle or die; the upstream applies when it likes, late where the answer
was lost; reconcilers claim, look and settle with everything else between their steps; sessions start through the
gateway and past it; caps change; steps are repeated at once and long after. `ATTACHGATE_LONG=1` runs fifty times as
many.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, ClassVar

import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.config import Ledger as LedgerConfig
from gateway.ledger import embedded
from gateway.ledger.connection import connect
from gateway.ledger.full import FullSessions
from gateway.ledger.lines import line_of
from gateway.ledger.steps import Answer, Ledger, Pending, Snapshot, Step, bucket_of
from gateway.policy.model import SessionState
from gateway.reconciler.recall import Index
from tests.ledger.model import Kind, Model, State, Upstream

LONG = bool(os.environ.get("ATTACHGATE_LONG"))
PRODUCTS = ("a", "b", "c", "d")
EVENTS = {"attach": "attached", "detach": "detached", "replace": "replaced", "start": "started"}

products = st.sampled_from(PRODUCTS)
caps = st.sampled_from([2, 2, 2, 3, 1, 0, 4, None])
picks = st.integers(0, 1000)
_numbers = itertools.count(1)
_loop = asyncio.new_event_loop()


@dataclass
class Flight:
    """One operation, from its question to its settlement. `refused`: the upstream said no, and will not apply it any
    more; `absent`: because it did not find the product; `closed`: too much time has passed for it to be applied.
    `stage`: sent, answered, lost (its gateway gave it up), dead (its gateway is gone), settled. `seen`: how the session
    looked after the answer."""

    operation: str
    name: str
    steps: list[tuple[Kind, str]]
    look: bool = False
    stage: str = "sent"
    applied: set[str] | None = None
    refused: bool = False
    absent: bool = False
    closed: bool = False
    seen: State | None = None

    @property
    def may_be_applied(self) -> bool:
        return self.applied is None and not self.refused and not self.closed and self.stage != "settled"


@dataclass
class Look:
    """One settlement of a reconciler, or one early look, and what it knows so far. Stamps are the model's."""

    operation: str
    pending: Pending
    snapshot: Snapshot | None = None
    touched: dict[int, int | None] = field(default_factory=dict)
    listed: set[str] | None = None
    seen: State | None = None


@dataclass
class Comparison:
    """One opening or comparison: the ledger's version, the list, the state."""

    version: str
    listed: set[str] | None = None
    seen: State | None = None


class LedgerMachine(RuleBasedStateMachine):
    ledger: ClassVar[Ledger]
    raw: ClassVar[redis.Redis]

    def __init__(self) -> None:
        super().__init__()
        self.session = f"s{next(_numbers)}"
        self.bucket = bucket_of(self.session)
        self.model = Model()
        self.upstream = Upstream()
        self.flights: dict[str, Flight] = {}
        self.looks: list[Look] = []
        self.comparisons: list[Comparison] = []
        self.late: list[tuple[Callable[[], Coroutine[Any, Any, Answer]], Callable[[], object]]] = []
        self.cap: int | None = 2
        self.max_cap = 2.0
        self.past_the_gateway = False
        self.unclear: set[str] = set()
        self.unknown: dict[str, set[str]] = {"t": set(), "g": set()}
        self.told = 0
        self.full = FullSessions(lambda: 0.0, 60.0)
        self.last_event = self.newest_event()

    @initialize(
        listed=st.sets(products, max_size=2),
        removed=st.sets(products, max_size=1),
        lost=st.sampled_from([False] * 4 + [True]),
    )
    def opened(self, listed: set[str], removed: set[str], lost: bool) -> None:
        """A new session, or one that Redis lost while it was live, with what was removed since its start (N5)."""
        self.upstream.attach(listed)
        removed = removed if lost and len(listed | removed) <= self.max_cap else set()
        if lost:
            self.upstream.start()
            self.upstream.attach(removed - listed)
            self.upstream.attached = set(listed)
        state = SessionState(self.upstream.state)
        self.run(self.ledger.adopt(self.session, "open", "", state, sorted(listed), (), sorted(removed)))
        self.model.adopt("open", self.upstream.state, listed, removed)
        self.model.state = self.upstream.state
        self.model.events.clear()
        self.last_event = self.newest_event()

    # Talking to both

    def newest_event(self) -> str:
        newest: Any = self.raw.xrevrange(self.ledger.stream_key(self.bucket), count=1)
        return str(newest[0][0]) if newest else "0-0"

    def run(self, step: Coroutine[Any, Any, Any]) -> Any:
        return _loop.run_until_complete(step)

    def fields(self) -> dict[str, str]:
        """What the session's hash holds, but for the count of writes."""
        found: dict[str, str] = self.raw.hgetall(f"ag:{{{self.bucket}}}:s:{self.session}")  # type: ignore[assignment]
        found.pop("v", None)
        return found

    def both(
        self,
        step: Callable[[], Coroutine[Any, Any, Answer]],
        modelled: Callable[[], Any],
        *,
        twice: bool = False,
    ) -> str:
        """A step on both. `twice`: its answer was lost, and it is repeated at once, which changes nothing."""
        said = self.run(step()).said
        expected = modelled()
        assert expected is None or said == expected, (said, expected)
        self.late = [*self.late[-5:], (step, modelled)]
        if twice:
            before = self.fields()
            repeated = self.run(step()).said
            assert self.fields() == before
            assert repeated == said or said in ("settled", "pending")
        return str(said)

    def operation(self) -> str:
        return f"o{next(_numbers)}"

    def pick(self, pick: int, *stages: str, test: Callable[[Flight], bool] = lambda _: True) -> Flight | None:
        found = [flight for flight in self.flights.values() if flight.stage in stages and test(flight)]
        return found[pick % len(found)] if found else None

    # Clients ask

    @rule(wanted=st.lists(products, min_size=1, max_size=2, unique=True), twice=st.booleans())
    def attach_asked(self, wanted: list[str], twice: bool) -> None:
        op, cap = self.operation(), self.cap
        # A refusal that is repeated as a first call is a second refusal, with an event of its own.
        said = self.both(
            lambda: self.ledger.reserve(self.session, op, cap, wanted), lambda: self.model.reserve(op, cap, wanted)
        )
        if said == "full":
            self.full.learn(self.session, self.run(self.ledger.snapshot(self.session)))
        if said == "held":
            self.flights[op] = Flight(op, "attach", [("t", product) for product in wanted])
            if twice:
                before = self.fields()
                assert self.run(self.ledger.reserve(self.session, op, cap, wanted)).said == "held"
                assert self.fields() == before

    @rule(product=products, twice=st.booleans())
    def detach_asked(self, product: str, twice: bool) -> None:
        op = self.operation()
        said = self.both(
            lambda: self.ledger.detach(self.session, op, product), lambda: self.model.detach(op, product), twice=twice
        )
        if said != "ended":
            self.flights[op] = Flight(op, "detach", [("g", product)], look=said == "asked")

    @rule(old=products, new=products, foreign=st.sampled_from([True, True, True, False]), twice=st.booleans())
    def replace_asked(self, old: str, new: str, foreign: bool, twice: bool) -> None:
        op, cap, seen = self.operation(), self.cap, self.upstream.state
        if not foreign:
            new = "own"
        said = self.both(
            lambda: self.ledger.replace(self.session, op, cap, SessionState(seen), old, new, foreign=foreign),
            lambda: self.model.replace(op, cap, seen, old, new, foreign=foreign),
        )
        if said == "held":
            steps: list[tuple[Kind, str]] = [("g", old), ("t", new)] if foreign else [("g", old)]
            self.flights[op] = Flight(op, "replace", steps, look=seen == "preparing")
            if twice:
                before = self.fields()
                again = self.ledger.replace(self.session, op, cap, SessionState(seen), old, new, foreign=foreign)
                assert self.run(again).said == "held"
                assert self.fields() == before

    @rule(twice=st.booleans())
    def start_asked(self, twice: bool) -> None:
        op, cap = self.operation(), self.cap
        said = self.both(
            lambda: self.ledger.start(self.session, op, cap), lambda: self.model.start(op, cap), twice=twice
        )
        if said != "unsettled":
            self._note_unclear()
            self.flights[op] = Flight(op, "start", [("s", "")] if said == "asked" else [])

    @rule(cap=caps)
    def cap_changes(self, cap: int | None) -> None:
        self.cap = cap
        self.max_cap = max(self.max_cap, float("inf") if cap is None else cap)

    @rule()
    def started_past_the_gateway(self) -> None:
        self._note_unclear()
        # Nothing can help a replace that is on its way while its session starts elsewhere: see `replace.lua`.
        self.past_the_gateway = self.past_the_gateway or (self.upstream.state == "preparing" and bool(self.model.lends))
        self.upstream.start()

    @precondition(lambda self: len(self.flights) > 6)
    @rule(recorded=st.booleans(), twice=st.booleans(), rarely=st.sampled_from([True, False, False, False]))
    def ended(self, recorded: bool, twice: bool, rarely: bool) -> None:
        if not rarely:
            return
        op = self.operation()
        self.upstream.end()
        if recorded:
            self.both(lambda: self.ledger.end(self.session, op), lambda: self.model.end(op), twice=twice)

    def _note_unclear(self) -> None:
        """What the ledger has not settled when the session may go live counts, though it may have left before."""
        self.unclear |= {product for product in self.upstream.ever if product in self.model.slots}

    # The upstream does, or does not

    @rule(pick=picks, half=st.booleans())
    def upstream_applies(self, pick: int, half: bool) -> None:
        """Perhaps after the answer was given up; of a batch, perhaps a part."""
        flight = self.pick(pick, "sent", "lost", "dead", test=lambda flight: flight.may_be_applied)
        if flight is None:
            return
        names = [product for _, product in flight.steps]
        if flight.name == "attach":
            wanted = names[: max(1, len(names) // 2)] if half else names
            done = self.upstream.attach(wanted)
            names = wanted
        elif flight.name == "detach":
            flight.absent = not (done := self.upstream.detach(names[0]))
        elif flight.name == "replace":
            done = self.upstream.replace(*names)
        else:
            self._note_unclear()
            done = self.upstream.start()
        flight.applied, flight.refused = (set(names), False) if done else (None, True)

    @rule(pick=picks)
    def upstream_refuses(self, pick: int) -> None:
        if flight := self.pick(pick, "sent", test=lambda flight: flight.may_be_applied):
            flight.refused = True

    # The gateway learns, and settles

    @rule(pick=picks, fails=st.sampled_from([False, False, True]))
    def answer_arrives(self, pick: int, fails: bool) -> None:
        """With a look at the session after it, where the operation calls for one; the look may fail."""
        flight = self.pick(pick, "sent", test=lambda flight: flight.applied is not None or flight.refused)
        if flight is not None:
            flight.stage = "answered"
            flight.seen = self.upstream.state if flight.look and not fails else None

    @rule(pick=picks, twice=st.booleans())
    def gateway_settles(self, pick: int, twice: bool) -> None:
        if flight := self.pick(pick, "answered"):
            self._settle_flight(flight, twice=twice)

    def _settle_flight(self, flight: Flight, *, twice: bool = False) -> None:
        op, steps, seen, event = flight.operation, flight.steps, flight.seen, EVENTS[flight.name]
        flight.stage = "settled"
        if not steps:
            return
        applied = flight.applied or set()
        done = [(kind, product, product in applied) for kind, product in steps]
        if flight.refused and not (flight.absent and flight.look):
            self.both(
                lambda: self.ledger.release(self.session, op, len(steps)), lambda: self.model.release(op), twice=twice
            )
            return
        self.both(
            lambda: self.ledger.commit(
                self.session, op, event, [Step(*one) for one in done], SessionState(seen) if seen else None
            ),
            lambda: self.model.commit(op, event, done, seen),
            twice=twice,
        )

    @rule(pick=picks, twice=st.booleans())
    def gateway_gives_up(self, pick: int, twice: bool) -> None:
        if flight := self.pick(pick, "sent"):
            flight.stage = "lost"
            self._note_unknown(flight)
            if flight.steps:
                steps = flight.steps
                self.both(
                    lambda: self.ledger.doubt(self.session, flight.operation, [Step(*one) for one in steps]),
                    lambda: self.model.doubt(flight.operation, steps, own=True),
                    twice=twice,
                )

    @rule(pick=picks)
    def gateway_dies(self, pick: int) -> None:
        """Of this operation nothing is heard any more, whatever the upstream did and does."""
        if flight := self.pick(pick, "sent", "answered"):
            flight.stage = "dead"
            self._note_unknown(flight)

    def _note_unknown(self, flight: Flight) -> None:
        for kind, product in flight.steps:
            if kind in self.unknown:
                self.unknown[kind].add(product)

    @precondition(lambda self: self.late)
    @rule(pick=picks)
    def step_arrives_again(self, pick: int) -> None:
        """Long after: it was stuck in a connection that its gateway has given up."""
        step, modelled = self.late[pick % len(self.late)]
        before = set(self.model.records)
        self.run(step())
        modelled()
        for op in set(self.model.records) - before:
            steps = [(record.kind, record.product) for record in self.model.records[op].values()]
            flight = self.flights.setdefault(op, Flight(op, "attach", steps, stage="settled"))
            flight.closed = flight.closed or flight.stage == "settled"
            flight.stage = "dead"
            self._note_unknown(flight)

    # Reconcilers and comparisons, each step with everything else in between

    @rule(pick=picks)
    def time_passes(self, pick: int) -> None:
        """For one operation: its hold is over, or nothing can be applied any more, or its lease."""
        ops = sorted(self.model.records)
        if not ops:
            return
        op = ops[pick % len(ops)]
        self._make_due(op)
        flight = self.flights[op]
        if all(record.doubt for record in self.model.records[op].values()):
            flight.closed = True
            self._note_unknown(flight)

    def _make_due(self, op: str) -> None:
        key = self.ledger.pending_key(self.bucket)
        for member in self.raw.zrange(key, 0, -1):  # type: ignore[union-attr]
            if member.split(" ")[:2] == [self.session, op]:
                self.raw.zadd(key, {member: 0})

    @rule()
    def reconciler_claims(self) -> None:
        # Time passes here within a millisecond: another length, so that it is another lease.
        _, claimed = self.run(self.ledger.claim(self.bucket, 60 + next(_numbers) / 1000, 100))
        self.looks += [Look(one.operation, one) for one in claimed if one.session_id == self.session]

    @rule(pick=picks)
    def start_looks_early(self, pick: int) -> None:
        doubtful = [op for op, found in self.model.records.items() if all(record.doubt for record in found.values())]
        if doubtful:
            op = doubtful[pick % len(doubtful)]
            self.looks.append(Look(op, Pending(self.session, op, max(self.model.records[op]) + 1, "")))

    @rule(pick=picks, steps=st.integers(1, 4))
    def reconciler_goes_on(self, pick: int, steps: int) -> None:
        if self.looks:
            look = self.looks[pick % len(self.looks)]
            for _ in range(steps):
                if look in self.looks:
                    self._go_on(look)

    def _go_on(self, look: Look) -> None:
        op = look.operation
        if look.snapshot is None:
            look.snapshot = self.run(self.ledger.snapshot(self.session))
            look.touched = {n: self.model.touched(one.product) for n, one in self.model.records.get(op, {}).items()}
            records = look.snapshot.records.get(op, ())
            if any(not record.in_doubt for record in records):
                self.looks.remove(look)
                if look.pending.lease:
                    self._put_in_doubt(look)
        elif look.listed is None:
            look.listed = set(self.upstream.attached)
        elif look.seen is None:
            look.seen = self.upstream.state
        else:
            self.looks.remove(look)
            self._settle_look(look)

    def _put_in_doubt(self, look: Look) -> None:
        assert look.snapshot is not None
        found = {record.number: record for record in look.snapshot.records[look.operation]}
        steps: list[tuple[Kind, str]] = [
            (found[n].kind, found[n].product_id) if n in found else ("g", "") for n in range(look.pending.records)
        ]
        self.both(
            lambda: self.ledger.doubt(self.session, look.operation, [Step(*one) for one in steps], own=False),
            lambda: self.model.doubt(look.operation, steps, own=False),
        )
        self._note_unknown(self.flights[look.operation])

    def _settle_look(self, look: Look) -> None:
        assert look.snapshot is not None
        assert look.listed is not None
        assert look.seen is not None
        op, listed, seen = look.operation, look.listed, look.seen
        outcomes = []
        for record in look.snapshot.records.get(op, ()):
            slot = look.snapshot.slot(record.product_id)
            outcomes.append((record.number, slot.generation if slot else None, record.product_id in listed))
        said = self.run(self.ledger.settle(look.pending, SessionState(seen), outcomes)).said
        if said == "lost":
            assert look.pending.lease
            return
        done = self.model.settle(op, seen, look.touched, listed, early=not look.pending.lease)
        if look.pending.lease:
            assert said == ("settled" if done else "stale")

    @rule()
    def comparison_begins(self) -> None:
        snapshot = self.run(self.ledger.snapshot(self.session))
        self.comparisons.append(Comparison(snapshot.version))

    @precondition(lambda self: self.comparisons)
    @rule(pick=picks, steps=st.integers(1, 3))
    def comparison_goes_on(self, pick: int, steps: int) -> None:
        comparison = self.comparisons[pick % len(self.comparisons)]
        for _ in range(steps):
            if comparison.listed is None:
                comparison.listed = set(self.upstream.attached)
            elif comparison.seen is None:
                comparison.seen = self.upstream.state
            elif comparison in self.comparisons:
                self.comparisons.remove(comparison)
                adopted = self.run(
                    self.ledger.adopt(
                        self.session,
                        "drift",
                        comparison.version,
                        SessionState(comparison.seen),
                        sorted(comparison.listed),
                    )
                )
                if adopted.said == "adopted":
                    self.model.adopt("drift", comparison.seen, comparison.listed)

    # What must always be true

    @invariant()
    def scripts_and_model_agree(self) -> None:
        fields, model = self.fields(), self.model
        if not fields:
            return
        state = {"p": "preparing", "l": "live", "e": "ended"}[fields.pop("s")]
        assert (state, int(fields.pop("u"))) == (model.state, model.used)
        assert int(fields.pop("w", "0")) == len(model.lends)
        assert (int(fields.pop("g", "0")) > 0) == model.starting
        expected = {}
        for product, slot in model.slots.items():
            expected["p" + product] = (slot.flag, len(slot.holders))
        for op, pair in model.lends.items():
            expected |= {"w" + product: op for product in pair}
        for op, found in model.records.items():
            for number, record in found.items():
                expected[f"h{op}.{number}"] = (record.letter, record.product)
        assert {name: _read(name, value) for name, value in fields.items()} == expected

    @invariant()
    def events_agree(self) -> None:
        entries = self.raw.xrange(self.ledger.stream_key(self.bucket), min=f"({self.last_event}")
        said = []
        for identifier, entry in entries:  # type: ignore[union-attr]
            self.last_event = identifier
            if entry["s"] == self.session:
                others = entry.get("x", "") + " " + entry.get("r", "")
                said.append((entry["e"], entry["o"], frozenset(entry.get("p", "").split()), frozenset(others.split())))
        assert said == self.model.events[self.told :]
        self.told = len(self.model.events)

    @invariant()
    def what_counts_or_may_still_come_has_a_slot(self) -> None:
        assert self.upstream.accepted <= set(self.model.slots)
        for flight in self.flights.values():
            if flight.may_be_applied:
                coming = {product for kind, product in flight.steps if kind == "t"}
                assert coming <= set(self.model.slots), (flight, self.model)

    @invariant()
    def the_promise_holds(self) -> None:
        assert self.past_the_gateway or len(self.upstream.accepted) <= self.max_cap

    @invariant()
    def what_is_remembered_as_full_is_full(self) -> None:
        """Whatever happened since: a product that is refused from memory finds no place in the ledger either, unless
        the ledger has got a slot for it meanwhile, or the session has ended."""
        for cap in range(4):
            for product in PRODUCTS:
                if self.full.refuses(self.session, cap, [product]) is None:
                    continue
                needed = 1 + len(self.model.lenders([product], ""))
                ended, has_slot = self.model.state == "ended", product in self.model.slots
                assert ended or has_slot or self.model.used + needed > cap, (cap, product, self.model)

    def teardown(self) -> None:
        """Everything comes to its end: then no record is left, no slot is lost, and none is missing."""
        self.looks.clear()
        for flight in self.flights.values():
            if flight.may_be_applied:
                flight.refused = flight.stage == "sent"
                flight.closed = True
            if flight.stage == "sent" and flight.steps:
                flight.seen = self.upstream.state if flight.look else None
                self._settle_flight(flight)
            elif flight.stage == "answered":
                self._settle_flight(flight)
        for _ in range(8):
            for op in list(self.model.records):
                self._make_due(op)
            self.reconciler_claims()
            while self.looks:
                self._go_on(self.looks[0])
        self.scripts_and_model_agree()
        self.events_agree()
        self.what_counts_or_may_still_come_has_a_slot()
        self.the_promise_holds()
        slots = set(self.model.slots)
        assert not self.model.records, self.model
        assert self.model.used == len(slots)
        members = self.raw.zrange(self.ledger.pending_key(self.bucket), 0, -1)
        assert not [member for member in members if member.split(" ")[0] == self.session]  # type: ignore[union-attr]
        if self.upstream.state == "preparing":
            assert slots == self.upstream.attached
            assert all(slot.known for slot in self.model.slots.values())
        else:
            if self.upstream.state == "live":
                assert self.upstream.accepted <= self.upstream.attached | self.counted_by_the_journal()
            unsure = self.unclear | (self.unknown["t"] & self.unknown["g"])
            assert slots - unsure <= self.upstream.accepted <= slots, (slots, unsure, self.upstream.accepted)

    def counted_by_the_journal(self) -> set[str]:
        """What would be found again, were the ledger lost now."""
        index = Index("", 1000, 1e9, lambda: 0.0)
        for identifier, entry in self.raw.xrange(self.ledger.stream_key(self.bucket)):  # type: ignore[union-attr]
            index.take(line_of(self.bucket, identifier, entry), "")
        return set(index.counted(self.session).products)


def _read(name: str, value: str) -> Any:
    if name[0] == "p":
        _, _, flag, holders = value.split("|")
        return flag, int(holders)
    if name[0] == "h":
        head, _, product = value.partition(":")
        return head[0], product
    return value


def test_scripts_and_model_agree_and_keep_the_promise() -> None:
    server = _loop.run_until_complete(embedded.start())
    connection = connect(server.url, 5.0, _loop.time)
    LedgerMachine.ledger = Ledger(connection, LedgerConfig(hold_seconds=1000), 1000)
    LedgerMachine.raw = redis.Redis.from_url(server.url, decode_responses=True)
    try:
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            LedgerMachine,
            settings=settings(
                max_examples=6000 if LONG else 200,
                stateful_step_count=60,
                deadline=None,
                derandomize=not LONG,
                database=None,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        LedgerMachine.raw.close()
        _loop.run_until_complete(connection.close())
        _loop.run_until_complete(server.close())
        _loop.close()
