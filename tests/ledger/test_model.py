"""Scripts and model driven side by side through random interleavings, with an upstream that may apply late, and
compared after each step; and the promise itself, judged from what the upstream accepted."""

from __future__ import annotations

import asyncio
import itertools
import os
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.config import Ledger as LedgerConfig
from gateway.ledger import embedded
from gateway.ledger.connection import connect
from gateway.ledger.steps import Ledger, Pending, Step, bucket_of
from gateway.policy.model import SessionState
from tests.ledger.model import Model

CAP = 2
PRODUCTS = ("a", "b", "c", "d")
LONG = bool(os.environ.get("ATTACHGATE_LONG"))

products = st.sampled_from(PRODUCTS)
_numbers = itertools.count(1)
_loop = asyncio.new_event_loop()


@dataclass
class Upstream:
    """What the product-attach API did: `accepted` are the distinct products that count (N5, N6)."""

    state: str = "preparing"
    attached: set[str] = field(default_factory=set)
    accepted: set[str] = field(default_factory=set)

    def attach(self, wanted: list[str]) -> bool:
        if self.state == "ended":
            return False
        self.attached |= set(wanted)
        self._count()
        return True

    def detach(self, product: str) -> bool:
        if self.state == "ended" or product not in self.attached:
            return False
        self.attached.discard(product)
        self._count()
        return True

    def replace(self, old: str, new: str) -> bool:
        if self.state == "ended" or old not in self.attached:
            return False
        self.attached = (self.attached - {old}) | {new}
        self._count()
        return True

    def start(self) -> bool:
        if self.state == "ended":
            return False
        self.state = "live"
        self._count()
        return True

    def _count(self) -> None:
        self.accepted = set(self.attached) if self.state == "preparing" else self.accepted | self.attached


@dataclass
class Flight:
    """One operation between its question and its settlement."""

    event: str
    steps: list[tuple[str, str]]
    applied: bool | None = None
    lost: bool = False
    over: bool = False


@dataclass
class Look:
    pending: Pending
    snapshot: Any
    listed: set[str]
    seen: str


class LedgerMachine(RuleBasedStateMachine):
    ledger: ClassVar[Ledger]

    def __init__(self) -> None:
        super().__init__()
        self.session = f"s{next(_numbers)}"
        self.model = Model()
        self.upstream = Upstream()
        self.flights: dict[str, Flight] = {}
        self.looks: list[Look] = []
        self.call(self.ledger.adopt(self.session, "open", "", SessionState.preparing, ()))
        self.model.clock = 1

    def call(self, step: Any) -> Any:
        return _loop.run_until_complete(step)

    def op(self) -> str:
        return f"o{next(_numbers)}"

    def agree(self, said: str, modelled: str) -> None:
        assert said == modelled, (said, modelled)

    @rule(wanted=st.lists(products, min_size=1, max_size=2, unique=True))
    def attach_asked(self, wanted: list[str]) -> None:
        op = self.op()
        said = self.call(self.ledger.reserve(self.session, op, CAP, wanted)).said
        self.agree(said, self.model.reserve(op, CAP, wanted))
        if said == "held":
            self.flights[op] = Flight("attached", [("t", product) for product in wanted])

    @rule(product=products)
    def detach_asked(self, product: str) -> None:
        op = self.op()
        said = self.call(self.ledger.detach(self.session, op, product)).said
        self.agree(said, self.model.detach(op, product))
        if said != "ended":
            self.flights[op] = Flight("detached", [("g", product)])

    @rule(old=products, new=products)
    def replace_asked(self, old: str, new: str) -> None:
        op, seen = self.op(), SessionState(self.upstream.state)
        said = self.call(self.ledger.replace(self.session, op, CAP, seen, old, new, foreign=True)).said
        self.agree(said, self.model.replace(op, CAP, seen.value, old, new))
        if said == "held":
            self.flights[op] = Flight("replaced", [("g", old), ("t", new)])

    @precondition(lambda self: self.upstream.state == "preparing")
    @rule()
    def start_asked(self) -> None:
        op = self.op()
        said = self.call(self.ledger.start(self.session, op, CAP)).said
        self.agree(said, self.model.start(op, CAP))
        if said != "unsettled":
            self.flights[op] = Flight("started", [("s", "")] if said == "asked" else [])

    def open_flights(self) -> list[str]:
        return [op for op, flight in self.flights.items() if not flight.over and flight.applied is None]

    @precondition(lambda self: self.open_flights())
    @rule(data=st.data(), does=st.booleans())
    def upstream_decides(self, data: st.DataObject, does: bool) -> None:
        """It applies an operation, perhaps after the answer was given up, or refuses it."""
        flight = self.flights[data.draw(st.sampled_from(self.open_flights()))]
        names = [product for _, product in flight.steps]
        if not does and not flight.lost:
            flight.applied = False
        elif flight.event == "attached":
            flight.applied = self.upstream.attach(names)
        elif flight.event == "detached":
            flight.applied = self.upstream.detach(names[0])
        elif flight.event == "replaced":
            flight.applied = self.upstream.replace(*names)
        else:
            flight.applied = self.upstream.start()

    def answered(self) -> list[str]:
        flights = self.flights.items()
        return [op for op, flight in flights if not flight.over and not flight.lost and flight.applied is not None]

    @precondition(lambda self: self.answered())
    @rule(data=st.data(), twice=st.booleans())
    def answer_arrives(self, data: st.DataObject, twice: bool) -> None:
        op = data.draw(st.sampled_from(self.answered()))
        flight = self.flights[op]
        flight.over = True
        steps = [Step(kind, product) for kind, product in flight.steps]  # type: ignore[arg-type]
        if flight.applied:
            seen = SessionState(self.upstream.state) if flight.event in ("detached", "replaced") else None
            for _ in range(1 + (twice and flight.event == "attached")):
                self.call(self.ledger.commit(self.session, op, flight.event, steps, seen))
                self.model.commit(op, [(kind, product, True) for kind, product in flight.steps], seen and seen.value)
        else:
            for _ in range(1 + twice):
                self.call(self.ledger.release(self.session, op, len(steps)))
                self.model.release(op)

    def unanswered(self) -> list[str]:
        return [op for op, flight in self.flights.items() if not flight.over and not flight.lost and flight.steps]

    @precondition(lambda self: self.unanswered())
    @rule(data=st.data(), gone=st.booleans())
    def answer_is_lost(self, data: st.DataObject, gone: bool) -> None:
        """The gateway gives up, or dies with the record still held."""
        op = data.draw(st.sampled_from(self.unanswered()))
        flight = self.flights[op]
        if op not in self.model.records:
            return
        flight.lost = True
        if not gone:
            steps = [Step(kind, product) for kind, product in flight.steps]  # type: ignore[arg-type]
            present = self.model.records[op]
            if len(present) == len(steps):
                self.call(self.ledger.doubt(self.session, op, steps))
                self.model.doubt(op)

    @precondition(lambda self: any(flight.lost or flight.over for flight in self.flights.values()))
    @rule(data=st.data())
    def reconciler_asks(self, data: st.DataObject) -> None:
        """Late apply is over for the operation; the reconciler claims it, and asks the list and the session."""
        candidates = [op for op in self.model.records if self.flights[op].lost or self.flights[op].over]
        if not candidates:
            return
        op = data.draw(st.sampled_from(candidates))
        self._make_due(op)
        _, claimed = self.call(self.ledger.claim(bucket_of(self.session), 60, 100))
        for pending in claimed:
            if pending.session_id != self.session or pending.operation != op:
                continue
            records = self.model.records[op]
            if any(not record.doubt for record in records.values()):
                steps = [
                    Step(records[n].kind, records[n].product) if n in records else Step("g")
                    for n in range(pending.records)
                ]
                self.call(self.ledger.doubt(self.session, op, steps, own=False))
                self.model.doubt(op)
                continue
            flight = self.flights[op]
            flight.applied = bool(flight.applied)
            snapshot = self.call(self.ledger.snapshot(self.session))
            self.looks.append(Look(pending, snapshot, set(self.upstream.attached), self.upstream.state))

    def _make_due(self, op: str) -> None:
        key = self.ledger.pending_key(bucket_of(self.session))
        connection = self.ledger._connection

        async def make_due() -> None:
            for member in await connection.command("ZRANGE", key, 0, -1):
                if member.decode().split(" ")[:2] == [self.session, op]:
                    await connection.command("ZADD", key, 0, member.decode())

        self.call(make_due())

    @precondition(lambda self: self.looks)
    @rule(data=st.data())
    def reconciler_settles(self, data: st.DataObject) -> None:
        look = self.looks.pop(data.draw(st.integers(0, len(self.looks) - 1)))
        op = look.pending.operation
        records = look.snapshot.records.get(op, ())
        outcomes, touched = [], {}
        for record in records:
            slot = look.snapshot.slot(record.product_id)
            touched[record.product_id] = slot.generation if slot is not None else None
            outcomes.append((record.number, touched[record.product_id], record.product_id in look.listed))
        said = self.call(self.ledger.settle(look.pending, SessionState(look.seen), outcomes)).said
        if said != "lost":
            self.model.settle(op, look.seen, touched, look.listed)  # type: ignore[arg-type]

    @invariant()
    def scripts_and_model_agree(self) -> None:
        snapshot = self.call(self.ledger.snapshot(self.session))
        assert snapshot.state == self.model.state
        assert snapshot.used == self.model.used
        slots = {slot.product_id: (slot.attached, slot.held, slot.generation) for slot in snapshot.slots}
        assert slots == {p: (s.known, len(s.holders), s.touched) for p, s in self.model.slots.items()}
        records = {
            op: {record.number: (record.kind, record.product_id, record.in_doubt) for record in found}
            for op, found in snapshot.records.items()
        }
        assert records == {
            op: {n: (record.kind, record.product, record.doubt) for n, record in found.items()}
            for op, found in self.model.records.items()
        }

    @invariant()
    def the_promise_holds(self) -> None:
        assert len(self.upstream.accepted) <= CAP
        assert self.upstream.accepted <= set(self.model.slots)

    def teardown(self) -> None:
        """Everything is answered or settled: then no record is left and no slot is lost. What left no record is
        answered: a gateway that dies then leaves its session to a comparison with the list."""
        for op, flight in self.flights.items():
            flight.applied = bool(flight.applied)
            if flight.applied and not flight.over and op not in self.model.records:
                steps = [Step(kind, product) for kind, product in flight.steps]  # type: ignore[arg-type]
                seen = SessionState(self.upstream.state)
                self.call(self.ledger.commit(self.session, op, flight.event, steps, seen))
                self.model.commit(op, [(kind, product, True) for kind, product in flight.steps], seen.value)
        for flight in self.flights.values():
            flight.lost = not flight.over
        for _ in range(6):
            for op in self.call(self.ledger.snapshot(self.session)).records:
                self._make_due(op)
                _, claimed = self.call(self.ledger.claim(bucket_of(self.session), 60, 100))
                for pending in claimed:
                    if pending.session_id == self.session:
                        self._settle_now(pending)
        snapshot = self.call(self.ledger.snapshot(self.session))
        assert not snapshot.records, snapshot
        slots = {slot.product_id for slot in snapshot.slots}
        assert snapshot.used == len(slots)
        if self.upstream.state == "preparing":
            assert slots == self.upstream.attached, (slots, self.upstream, snapshot, self.model)
        else:
            assert self.upstream.accepted <= slots

    def _settle_now(self, pending: Pending) -> None:
        snapshot = self.call(self.ledger.snapshot(self.session))
        records = snapshot.records.get(pending.operation, ())
        if any(not record.in_doubt for record in records):
            found = {record.number: Step(record.kind, record.product_id) for record in records}
            steps = [found.get(n, Step("g")) for n in range(pending.records)]
            self.call(self.ledger.doubt(self.session, pending.operation, steps, own=False))
            return
        outcomes = []
        for record in records:
            slot = snapshot.slot(record.product_id)
            outcomes.append(
                (record.number, slot.generation if slot else None, record.product_id in self.upstream.attached)
            )
        self.call(self.ledger.settle(pending, SessionState(self.upstream.state), outcomes))


def test_scripts_and_model_agree_and_keep_the_promise() -> None:
    redis = _loop.run_until_complete(embedded.start())
    connection = connect(redis.url, 5.0, _loop.time)
    LedgerMachine.ledger = Ledger(connection, LedgerConfig(hold_seconds=1000), 1000)
    try:
        from hypothesis.stateful import run_state_machine_as_test

        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            LedgerMachine,
            settings=settings(
                max_examples=3000 if LONG else 120,
                stateful_step_count=50,
                deadline=None,
                derandomize=not LONG,
                phases=(Phase.explicit, Phase.generate),
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        _loop.run_until_complete(connection.close())
        _loop.run_until_complete(redis.close())
        _loop.close()
