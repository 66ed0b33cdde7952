"""The ledger of one session as plain Python, written from the theory and the contract, so that it can disagree.

Slots are objects that know who holds them; `used` is counted and not kept; generations are one clock of writes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

State = Literal["preparing", "live", "ended"]


@dataclass
class Slot:
    """`known`: attached, as far as the ledger knows; `counted`: it was attached while that counted for good."""

    touched: int
    holders: set[str] = field(default_factory=set)
    known: bool = False
    counted: bool = False

    @property
    def unconfirmed(self) -> bool:
        return not self.known and not self.counted


@dataclass
class Record:
    kind: Literal["t", "g", "s"]
    product: str
    touched: int = 0
    doubt: bool = False


@dataclass
class Model:
    state: State = "preparing"
    clock: int = 0
    slots: dict[str, Slot] = field(default_factory=dict)
    records: dict[str, dict[int, Record]] = field(default_factory=dict)
    lends: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def used(self) -> int:
        return len(self.slots) - len(self.lends)

    @property
    def starting(self) -> bool:
        return any(record.kind == "s" for found in self.records.values() for record in found.values())

    def lent_by(self, product: str, *, besides: str = "") -> set[str]:
        return {op for op, pair in self.lends.items() if product in pair and op != besides}

    def _record(self, op: str, number: int, record: Record) -> None:
        self.records.setdefault(op, {})[number] = record

    def _forget(self, op: str, number: int) -> Record | None:
        record = self.records.get(op, {}).pop(number, None)
        if op in self.records and not self.records[op]:
            del self.records[op]
        return record

    def _take(self, product: str, op: str) -> None:
        slot = self.slots.setdefault(product, Slot(self.clock))
        slot.holders.add(op)
        slot.touched = self.clock

    def _drop(self, product: str, op: str, *, applied: bool) -> None:
        slot = self.slots.get(product)
        if slot is None:
            return
        slot.holders.discard(op)
        if applied:
            slot.known, slot.counted, slot.touched = True, False, self.clock
        if not slot.holders and not slot.known and not slot.counted:
            del self.slots[product]

    def reserve(self, op: str, cap: int | None, products: list[str]) -> str:
        if op in self.records:
            return "held"
        if self.state == "ended":
            return "ended"
        new = [product for product in products if product not in self.slots]
        lenders = set[str]().union(*(self.lent_by(product, besides=op) for product in products))
        needed = len(new) + len(lenders)
        if cap is not None and needed and self.used + needed > cap:
            return "full"
        self.clock += 1
        for lender in lenders:
            del self.lends[lender]
        for number, product in enumerate(products):
            self._take(product, op)
            self._record(op, number, Record("t", product, self.clock))
        return "held"

    def detach(self, op: str, product: str) -> str:
        if self.state == "ended":
            return "ended"
        if product not in self.slots:
            return "untracked"
        live, slot = self.state == "live" or self.starting, self.slots[product]
        if op not in self.records and (not live or slot.unconfirmed):
            self._record(op, 0, Record("g", product, slot.touched))
        return "live" if live else "asked"

    def replace(self, op: str, cap: int | None, seen: State, old: str, new: str) -> str:
        if op in self.records:
            return "held"
        self.learn(seen)
        if self.state == "ended":
            return "ended"
        live = self.state == "live" or self.starting
        given = self.slots.get(old)
        lenders = self.lent_by(new)
        needed = len(lenders) + (new not in self.slots)
        lends = False
        if cap is not None and new not in self.slots and live:
            return "started"
        if cap is not None and needed:
            lends = (
                not live
                and not lenders
                and old != new
                and given is not None
                and not given.holders
                and given.known
                and not self.lent_by(old)
                and self.used <= cap
            )
            if not lends and self.used + needed > cap:
                return "full"
        if given is not None and (not live or given.unconfirmed):
            self._record(op, 0, Record("g", old, given.touched))
        for lender in lenders:
            del self.lends[lender]
        self.clock += 1
        self._take(new, op)
        self._record(op, 1, Record("t", new, self.clock))
        if lends:
            self.lends[op] = (old, new)
        return "held"

    def start(self, op: str, cap: int | None) -> str:
        if self.state != "preparing":
            return "live"
        if self.lends:
            if cap is not None and self.used + len(self.lends) > cap:
                return "unsettled"
            self.lends.clear()
        if op not in self.records:
            self.clock += 1
            self._record(op, 0, Record("s", ""))
        return "asked"

    def learn(self, seen: State | None) -> None:
        if seen == "live" and self.state == "preparing":
            self.state = "live"
        elif seen == "ended":
            self.state = "ended"

    def _give_back(self, product: str, asked: int, seen: State | None) -> bool:
        slot = self.slots.get(product)
        if slot is None:
            return True
        if seen in ("live", "ended") or self.state != "preparing":
            slot.known, slot.counted = False, True
            return True
        if seen != "preparing" or self.starting or slot.touched != asked or self.lent_by(product):
            return False
        slot.known = slot.counted = False
        if not slot.holders:
            del self.slots[product]
        return True

    def commit(self, op: str, steps: list[tuple[str, str, bool]], seen: State | None) -> None:
        self.clock += 1
        self.lends.pop(op, None)
        for number, (kind, product, applied) in enumerate(steps):
            record = self._forget(op, number)
            if kind == "t" and record is not None:
                self._drop(product, op, applied=applied)
            elif kind == "t" and applied:
                slot = self.slots.get(product)
                if slot is None or not slot.known:
                    self._take(product, op)
                    self._record(op, number, Record("t", product, self.clock, doubt=True))
            elif kind == "g" and applied:
                asked = record.touched if record is not None else -1
                if not self._give_back(product, asked, seen):
                    self._record(op, number, Record("g", product, self.clock, doubt=True))
            elif kind == "s" and record is not None and applied and self.state == "preparing":
                self.state = "live"
        self.learn(seen)

    def release(self, op: str) -> None:
        self.clock += 1
        self.lends.pop(op, None)
        for number in list(self.records.get(op, {})):
            record = self._forget(op, number)
            if record is not None and record.kind == "t":
                self._drop(record.product, op, applied=False)

    def doubt(self, op: str) -> None:
        for record in self.records.get(op, {}).values():
            record.doubt = True

    def settle(self, op: str, seen: State, touched: dict[str, int | None], listed: set[str]) -> None:
        """`touched`: each product's generation when the list was asked."""
        self.learn(seen)
        self.clock += 1
        self.lends.pop(op, None)
        for number, record in sorted(self.records.get(op, {}).items()):
            product, slot = record.product, self.slots.get(record.product)
            if record.kind == "s":
                self._forget(op, number)
                continue
            if slot is not None and slot.touched != touched.get(product):
                continue
            asked = slot.touched if slot is not None else 0
            live = self.state != "preparing" or self.starting
            if slot is not None and slot.unconfirmed and product not in listed and live:
                slot.counted = record.kind == "g" or self._given_elsewhere(product, op)
            self._forget(op, number)
            if record.kind == "t":
                self._drop(product, op, applied=product in listed)
            slot = self.slots.get(product)
            if slot is None:
                continue
            if product in listed:
                slot.known, slot.counted = True, False
            elif (slot.known or slot.counted) and not self._give_back(product, asked, seen):
                self._record(op, number, Record("g", product, asked, doubt=True))

    def _given_elsewhere(self, product: str, op: str) -> bool:
        others = (record for other, found in self.records.items() if other != op for record in found.values())
        return any(record.kind == "g" and record.product == product for record in others)

    def end(self) -> None:
        self.learn("ended")
