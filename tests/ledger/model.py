"""The ledger of one session and the upstream behind it, as plain Python written from the theory and the contract, so
that the scripts can disagree with it.

Slots know who holds them, `used` is counted and never kept, and what happened to a slot is told by stamps. The upstream
knows what the ledger must find out: what is attached, and which distinct products it has accepted (N5, N6).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

State = Literal["preparing", "live", "ended"]
Kind = Literal["t", "g", "s"]
Event = tuple[str, str, frozenset[str], frozenset[str]]
"""Kind, operation, products, and what left or was released."""

_stamps = itertools.count(1)


@dataclass
class Upstream:
    """`accepted`: before the start what is selected, from then on also all that was added since. `ever`: what it ever
    had."""

    state: State = "preparing"
    attached: set[str] = field(default_factory=set)
    accepted: set[str] = field(default_factory=set)
    ever: set[str] = field(default_factory=set)

    def attach(self, products: Iterable[str]) -> bool:
        if self.state == "ended":
            return False
        self.attached |= set(products)
        self._count()
        return True

    def detach(self, product: str) -> bool:
        if self.state == "ended" or product not in self.attached:
            return False
        self.attached.discard(product)
        self._count()
        return True

    def replace(self, old: str, *new: str) -> bool:
        """`new` is left out where it is an own product."""
        if self.state == "ended" or old not in self.attached:
            return False
        self.attached = (self.attached - {old}) | set(new)
        self._count()
        return True

    def start(self) -> bool:
        if self.state != "preparing":
            return False
        self.state = "live"
        return True

    def end(self) -> bool:
        self.state = "ended"
        return True

    def _count(self) -> None:
        self.ever |= self.attached
        self.accepted = set(self.attached) if self.state == "preparing" else self.accepted | self.attached


@dataclass
class Slot:
    """`known`: the upstream has it, as far as the ledger knows. `counted`: it came while that counts for good, or left
    while it counts. `crossed`: a detach was concluded while somebody held it. `touched`: when it was last written to in
    a way that matters to whoever has read it before. `yielded`: its place was given to another by a replace, and
    it may count all the same."""

    holders: set[tuple[str, int]] = field(default_factory=set)
    known: bool = False
    counted: bool = False
    crossed: bool = False
    touched: int = 0
    yielded: bool = False

    @property
    def only_held(self) -> bool:
        return not self.known and not self.counted

    @property
    def flag(self) -> str:
        if self.known:
            return "a"
        if self.yielded:
            return "x"
        return "r" if self.counted else "d" if self.crossed else "h"

    def attached(self) -> None:
        self._become(known=True)

    def used_up(self) -> None:
        self._become(counted=True, yielded=self.yielded)

    def removed(self) -> None:
        self._become(crossed=True)

    def yields(self) -> None:
        self._become(counted=True, yielded=True)

    def _become(
        self, *, known: bool = False, counted: bool = False, crossed: bool = False, yielded: bool = False
    ) -> None:
        self.known, self.counted, self.crossed, self.yielded = known, counted, crossed, yielded
        self.touched = next(_stamps)


@dataclass
class Record:
    kind: Kind
    product: str
    touched: int = 0
    doubt: bool = False
    sure: bool = False

    @property
    def letter(self) -> str:
        return "K" if self.sure else self.kind.upper() if self.doubt else self.kind


@dataclass
class Model:
    """A session's ledger. Every step says what its script says."""

    state: State = "preparing"
    slots: dict[str, Slot] = field(default_factory=dict)
    records: dict[str, dict[int, Record]] = field(default_factory=dict)
    lends: dict[str, tuple[str, str]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    @property
    def used(self) -> int:
        return len(self.slots) - len(self.lends)

    @property
    def starting(self) -> bool:
        return any(record.kind == "s" for found in self.records.values() for record in found.values())

    @property
    def maybe_live(self) -> bool:
        return self.state != "preparing" or self.starting

    def touched(self, product: str) -> int | None:
        slot = self.slots.get(product)
        return slot.touched if slot is not None else None

    def lenders(self, products: Iterable[str], besides: str) -> set[str]:
        wanted = set(products)
        return {op for op, pair in self.lends.items() if op != besides and wanted & set(pair)}

    # Steps of an operation's own gateway

    def reserve(self, op: str, cap: int | None, products: Sequence[str]) -> str:
        if 0 in self.records.get(op, {}):
            return "held"
        if self.state == "ended":
            return "ended"
        lenders = self.lenders(products, op)
        needed = sum(product not in self.slots for product in products) + len(lenders)
        asks = needed or any(product in self.slots and self.slots[product].yielded for product in products)
        if cap is not None and asks and self.used + needed > cap:
            self._say("refused", op, products)
            return "full"
        for lender in lenders:
            del self.lends[lender]
        for number, product in enumerate(products):
            self._take(op, number, product)
        return "held"

    def detach(self, op: str, product: str) -> str:
        if self.state == "ended":
            return "ended"
        if 0 not in self.records.get(op, {}):
            self._record(op, 0, Record("g", product, self.touched(product) or 0))
        if product not in self.slots:
            return "untracked"
        return "stays" if self.maybe_live else "asked"

    def replace(self, op: str, cap: int | None, seen: State, old: str, new: str, *, foreign: bool) -> str:
        if op in self.records:
            return "held"
        self._learn(seen, op)
        if self.state == "ended":
            return "ended"
        lenders = self.lenders([new], op)
        beyond = cap is not None and self.used > cap and new in self.slots and self.slots[new].yielded
        needs_slot = foreign and (new not in self.slots or beyond)
        needed = needs_slot + len(lenders)
        lends = False
        if foreign and needed and cap is not None:
            if needs_slot and self.maybe_live:
                self._say("refused", op, [new])
                return "started"
            lends = not self.maybe_live and not lenders and self._may_lend(op, old, cap)
            if not lends and self.used + needed > cap:
                self._say("refused", op, [new])
                return "full"
        self._record(op, 0, Record("g", old, self.touched(old) or 0))
        if foreign:
            for lender in lenders:
                del self.lends[lender]
            self._take(op, 1, new)
            if lends:
                self.lends[op] = (old, new)
        return "held"

    def _may_lend(self, op: str, old: str, cap: int) -> bool:
        """Only a slot that is surely attached, and that nobody else may attach, holds for two."""
        slot = self.slots.get(old)
        return slot is not None and slot.known and not slot.holders and not self.lenders([old], op) and self.used <= cap

    def start(self, op: str, cap: int | None) -> str:
        if self.state != "preparing":
            return "live"
        if self.lends and cap is not None and self.used + len(self.lends) > cap:
            return "unsettled"
        self.lends.clear()
        if op not in self.records:
            self._record(op, 0, Record("s", ""))
        return "asked"

    def end(self, op: str) -> None:
        self._learn("ended", op)

    def commit(self, op: str, event: str, steps: Sequence[tuple[Kind, str, bool]], seen: State | None) -> None:
        found = self.records.get(op, {})
        repeated = all(record.doubt for record in found.values()) and any(e[:2] == (event, op) for e in self.events)
        if repeated:
            return
        lent = self.lends.pop(op, None)
        came, went = set(), set()
        for number, (kind, product, yes) in enumerate(steps):
            record, slot = found.get(number), self.slots.get(product)
            news, look = yes, False
            if kind == "t":
                news = yes and (record is not None or slot is None or not slot.known)
                look = self._commit_attach(op, number, product, record, yes=yes)
            elif kind == "g" and yes:
                news = slot is not None and slot.flag != "r"
                look = not self._gone(product, record.touched if record else -1, seen)
                if lent and product in self.slots:
                    self.slots[product].yields()
            elif kind == "g":
                look = slot is not None and slot.known and not self.maybe_live
            else:
                news = yes and self.state == "preparing"
            if look:
                sure = kind == "g" and yes
                self._record(op, number, Record(kind, product, self.touched(product) or 0, doubt=True, sure=sure))
            else:
                self._forget(op, number)
            if kind == "s" and yes and self.state == "preparing":
                self.state = "live"
            if news:
                (went if kind == "g" and event == "replaced" else came).add(product)
        self._learn(seen, op)
        if came or went:
            self._say(event, op, came, went)

    def _commit_attach(self, op: str, number: int, product: str, record: Record | None, *, yes: bool) -> bool:
        """Whether the list must be asked before the confirmation is believed."""
        slot = self.slots.get(product)
        if record is None:
            if not yes or (slot is not None and slot.known):
                return False
            self._take(op, number, product)
            self.slots[product].attached()
            return True
        assert slot is not None
        if yes and (slot.flag == "d" or (slot.known and record.doubt)):
            slot.attached()
            return True
        if yes:
            slot.attached()
        self._drop(op, number, product)
        return False

    def _gone(self, product: str, asked: int, seen: State | None) -> bool:
        """The upstream had it and no longer has it. Whether that is concluded."""
        slot = self.slots.get(product)
        if slot is None:
            return True
        if seen in ("live", "ended") or self.state != "preparing":
            slot.used_up()
            return True
        if seen is None or self.starting or slot.touched != asked or self.lenders([product], ""):
            if slot.only_held:
                slot.attached()
            return False
        if slot.holders:
            slot.removed()
        else:
            del self.slots[product]
        return True

    def release(self, op: str) -> None:
        self.lends.pop(op, None)
        for number, record in list(self.records.get(op, {}).items()):
            if record.kind == "t":
                self._drop(op, number, record.product)
            self._forget(op, number)

    def doubt(self, op: str, steps: Sequence[tuple[Kind, str]], *, own: bool) -> None:
        marked = set()
        for number, (kind, product) in enumerate(steps):
            record = self.records.get(op, {}).get(number)
            if record is None and own:
                if kind == "t":
                    self._take(op, number, product)
                self._record(op, number, Record(kind, product, self.touched(product) or 0, doubt=True))
                marked.add(product)
            elif record is not None and not record.doubt:
                record.doubt = True
                marked.add(product)
        if marked:
            self._say("in_doubt", op, marked)

    # Steps of a reconciler

    def settle(
        self, op: str, seen: State, touched: dict[int, int | None], listed: set[str], *, early: bool = False
    ) -> bool:
        """`touched`: the slot's stamp in the snapshot, for each record that it had. Whether all is settled."""
        found = {n: record for n, record in self.records.get(op, {}).items() if n in touched}
        if early:
            found = {n: record for n, record in found.items() if record.doubt and self._shown(op, record, seen, listed)}
            if not found:
                return False
        self._learn(seen, op)
        committed, released = set(), set()
        lent = self.lends.get(op)
        for number, record in sorted(found.items(), reverse=lent is not None):
            was = record.kind
            if not self._settle_one(op, number, record, seen, touched[number], listed, early=early):
                if was == "t" and record.kind == "g":
                    released.add(record.product)
                continue
            self._forget(op, number)
            if was == "t":
                (committed if record.product in listed else released).add(record.product)
        if lent and 1 not in self.records.get(op, {}):
            self._replaced_in_part(op, *lent)
        if committed or released:
            self._say("settled", op, committed, released)
        return op not in self.records

    def _replaced_in_part(self, op: str, old: str, new: str) -> None:
        """It is known what became of the new product, and perhaps not of the old one."""
        self.lends.pop(op, None)
        unsure = 0 in self.records.get(op, {})
        if old in self.slots and new in self.slots and (unsure or self.slots[old].flag == "r"):
            self.slots[old].yields()
            if unsure:
                self.records[op][0].sure = self.records[op][0].doubt = True

    def _settle_one(
        self,
        op: str,
        number: int,
        record: Record,
        seen: State,
        touched: int | None,
        listed: set[str],
        *,
        early: bool,
    ) -> bool:
        product, slot = record.product, self.slots.get(record.product)
        if record.kind == "s" or slot is None:
            return True
        if slot.touched != touched:
            return False
        live = seen != "preparing" or self.state != "preparing"
        if op in self.lends and record.kind == "g" and product == self.lends[op][0]:
            if 1 in self.records[op] and (product in listed or live or slot.holders):
                return False
            del self.lends[op]
        if product in listed:
            if record.kind == "t" or not slot.known:
                slot.attached()
            self._drop(op, number, product)
            return True
        if slot.only_held:
            others = self._others(op, product, "g" if record.kind == "t" else "t") if live else []
            if not all(other.doubt for other in others):
                return False
            if others:
                slot.used_up()
            elif not live and record.kind == "g":
                slot.removed()
            self._drop(op, number, product)
            return True
        self._drop(op, number, product)
        if self._gone(product, slot.touched, seen):
            return True
        record.kind, record.touched, record.doubt, record.sure = "g", slot.touched, True, record.sure or not early
        return False

    def _shown(self, op: str, record: Record, seen: State, listed: set[str]) -> bool:
        """Whether a list that may be too early shows that this operation was applied, and no other."""
        slot = self.slots.get(record.product)
        if record.kind == "s":
            return seen != "preparing"
        if record.sure:
            return record.product not in listed and seen == "preparing"
        if slot is None:
            return False
        if record.kind == "t":
            return record.product in listed and slot.flag == "h" and len(slot.holders) == 1
        unseen = record.product not in listed and seen == "preparing"
        return unseen and slot.flag in "ax" and not slot.holders and not self._others(op, record.product, "g")

    def _others(self, op: str, product: str, kind: Kind) -> list[Record]:
        others = (record for other, found in self.records.items() if other != op for record in found.values())
        return [record for record in others if record.kind == kind and record.product == product]

    def adopt(self, op: str, seen: State, listed: Iterable[str], removed: Iterable[str] = ()) -> None:
        """The list of a time since which nothing was written, and what counts although it is not in it."""
        self._learn(seen, op)
        new = set()
        for product in listed:
            if product not in self.slots:
                new.add(product)
            if product not in self.slots or not self.slots[product].known:
                self.slots.setdefault(product, Slot()).attached()
        for product in set(removed) - set(self.slots):
            self.slots[product] = Slot()
            self.slots[product].yields()
        if new:
            self._say("attached", op, new)

    # What they share

    def _record(self, op: str, number: int, record: Record) -> None:
        self.records.setdefault(op, {})[number] = record

    def _forget(self, op: str, number: int) -> None:
        found = self.records.get(op, {})
        found.pop(number, None)
        if not found:
            self.records.pop(op, None)

    def _take(self, op: str, number: int, product: str) -> None:
        slot = self.slots.setdefault(product, Slot())
        slot.holders.add((op, number))
        slot.touched = next(_stamps)
        self._record(op, number, Record("t", product, slot.touched))

    def _drop(self, op: str, number: int, product: str) -> None:
        slot = self.slots[product]
        slot.holders.discard((op, number))
        if slot.only_held and not slot.holders:
            del self.slots[product]

    def _learn(self, seen: State | None, op: str) -> None:
        if seen == "live" and self.state == "preparing":
            self.state = "live"
            self._say("started", op, ())
        elif seen == "ended" and self.state != "ended":
            self.state = "ended"
            self._say("ended", op, ())

    def _say(self, event: str, op: str, products: Iterable[str], others: Iterable[str] = ()) -> None:
        self.events.append((event, op, frozenset(products) - {""}, frozenset(others)))
