"""Whether the promise was kept, judged from what the platform really applied. Pure.

The promise (contract; N3, N5, N6 of the notice): at no time has the platform accepted, over one session, more
distinct foreign products than the cap allows. Counted here entry by entry, in the journal's order:

- before the start a foreign product that is removed or replaced gives its place back;
- what is attached at the start counts, and from then on every foreign product ever added does, removed or not.

Independent of the gateway, so that it can disagree with it: of `gateway` only the form of the directory's
records is used. What it can't see it does not take for good: a hole in the journal, an entry that it does
not understand, or a session whose beginning is missing are said, and a product that nobody knows is foreign.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct, field

from gateway.policy.model import Account

NON_PROFESSIONAL: Final = frozenset({"individual", "enterprise"})
MAX_KEPT: Final = 1000
"""Breaches and oddities that are kept in full; all are counted."""


class Entry(Struct, frozen=True, gc=False):
    """One entry of the platform's journal. Of a replace `product_id` is the new product, `replaced` the old
    one."""

    seq: int
    at: str
    operation: str
    session_id: str | None = None
    account_id: str | None = None
    product_id: str | None = None
    replaced: str | None = None


class Breach(Struct, frozen=True):
    """A session over its cap, at the entry that first broke it. `foreign` is what counted then."""

    session_id: str
    account_id: str
    cap: int
    foreign: list[str]
    at: str = ""
    seq: int = 0


class Judgement(Struct, frozen=True):
    """`kept` needs sessions that were checked, none over the cap, and nothing in the way of seeing it."""

    sessions: int
    entries: int
    over: int
    breaches: list[Breach]
    most_foreign: int
    full: int
    doubts: list[str] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        return self.sessions > 0 and self.over == 0 and not self.doubts


class Count:
    """One session's count. `used` holds what takes a place now, in the order in which it came: before the
    start what is attached, from the start on what ever was."""

    __slots__ = ("account_id", "cap", "live", "over", "own_shop", "used")

    def __init__(self, account_id: str, cap: int | None, own_shop: str | None) -> None:
        self.account_id = account_id
        self.cap = cap
        self.own_shop = own_shop
        self.live = False
        self.over = False
        self.used: dict[str, None] = {}


def cap_of(account: Account, cap: int) -> int | None:
    """The cap of an account's live sessions, given that of non-professional shops; None: no limit (N1, N2,
    N3, N10, N11, N14)."""
    shop = account.shop
    if account.kind != "official" or account.pure_creator or shop is None or shop.status == "closed":
        return None
    if shop.shop_type in NON_PROFESSIONAL:
        return cap
    return None if shop.cross_border else 0


def own_shop_of(account: Account) -> str | None:
    return account.shop.shop_id if account.shop is not None and account.shop.status == "open" else None


class Judge:
    """Takes the journal in pieces. `shops` says whose a product is, `cap` what a non-professional shop may
    add."""

    def __init__(self, accounts: Mapping[str, Account], shops: Mapping[str, str], cap: int) -> None:
        self._accounts = accounts
        self._shops = shops
        self._cap = cap
        self._counts: dict[str, Count] = {}
        self._breaches: list[Breach] = []
        self._doubts: list[str] = []
        self._over = 0
        self._entries = 0
        self._most = 0
        self.last_seq = 0

    def skip_to(self, seq: int) -> None:
        """What the journal held before is not judged."""
        self.last_seq = seq

    def feed(self, entries: Iterable[Entry]) -> None:
        """The next entries. Those up to `last_seq` were judged already."""
        for entry in entries:
            if entry.seq <= self.last_seq:
                continue
            if self.last_seq and entry.seq != self.last_seq + 1:
                self._doubt(f"entries {self.last_seq + 1} to {entry.seq - 1} are missing from the journal")
            self.last_seq = entry.seq
            account = self._accounts.get(entry.account_id or "")
            if entry.session_id is not None and account is not None:
                self._entries += 1
                self._apply(entry, entry.session_id, account)

    def count(self, session_id: str) -> Count | None:
        return self._counts.get(session_id)

    def judgement(self) -> Judgement:
        capped = [count for count in self._counts.values() if count.cap is not None]
        full = sum(1 for count in capped if count.cap and len(count.used) >= count.cap)
        return Judgement(len(capped), self._entries, self._over, self._breaches[:], self._most, full, self._doubts[:])

    def _apply(self, entry: Entry, session_id: str, account: Account) -> None:
        if entry.operation == "create":
            self._counts[session_id] = Count(account.account_id, cap_of(account, self._cap), own_shop_of(account))
            return
        if (count := self._counts.get(session_id)) is None:
            self._doubt(f"entry {entry.seq}: the beginning of session {session_id} is not in the journal")
            return
        match entry.operation:
            case "start":
                count.live = True
            case "end":
                pass
            case "attach" if entry.product_id is not None:
                self._add(count, entry.product_id)
            case "detach" if entry.product_id is not None:
                self._remove(count, entry.product_id)
            case "replace" if entry.product_id is not None and entry.replaced is not None:
                self._remove(count, entry.replaced)
                self._add(count, entry.product_id)
            case _:
                self._doubt(f"entry {entry.seq} is not understood: {entry.operation} of {entry.product_id}")
        if count.cap is not None:
            self._weigh(entry, session_id, count, count.cap)

    def _add(self, count: Count, product_id: str) -> None:
        if count.own_shop is None or self._shops.get(product_id) != count.own_shop:
            count.used[product_id] = None

    def _remove(self, count: Count, product_id: str) -> None:
        if not count.live:
            count.used.pop(product_id, None)

    def _weigh(self, entry: Entry, session_id: str, count: Count, cap: int) -> None:
        self._most = max(self._most, len(count.used))
        if len(count.used) > cap and not count.over:
            count.over = True
            self._over += 1
            if len(self._breaches) < MAX_KEPT:
                foreign = list(count.used)
                self._breaches.append(Breach(session_id, count.account_id, cap, foreign, entry.at, entry.seq))

    def _doubt(self, text: str) -> None:
        if len(self._doubts) < MAX_KEPT:
            self._doubts.append(text)


class Seen(Struct, frozen=True):
    """What clients saw of one session: the list at the end, and what they were told was attached while live."""

    session_id: str
    account_id: str
    listed: frozenset[str]
    added_live: frozenset[str]


def judge_lists(seen: Iterable[Seen], accounts: Mapping[str, Account], shops: Mapping[str, str], cap: int) -> Judgement:
    """Without a journal: what is attached at the end of a session, and what was added while it was live, are
    both within its cap. Weaker: what came and went unseen is not known."""
    sessions = over = most = full = 0
    breaches: list[Breach] = []
    for session in seen:
        account = accounts[session.account_id]
        limit, own = cap_of(account, cap), own_shop_of(account)
        if limit is None:
            continue
        sessions += 1
        together = session.listed | session.added_live
        foreign = sorted(product for product in together if own is None or shops.get(product) != own)
        most = max(most, len(foreign))
        full += limit > 0 and len(foreign) >= limit
        if len(foreign) > limit:
            over += 1
            breaches.append(Breach(session.session_id, session.account_id, limit, foreign))
    return Judgement(sessions, 0, over, breaches[:MAX_KEPT], most, full)


class Slot(Struct, frozen=True):
    product_id: str
    attached: bool = True
    in_doubt: bool = False


class View(Struct, frozen=True):
    """The gateway's own answer about a session (contract, for live-room clients)."""

    session_id: str
    used: int
    slots: list[Slot]
    cap: int | None = None


class Difference(Struct, frozen=True):
    """`lost`: the gateway counts them, the platform never had them; `uncounted`: the other way round, a place
    that could be given twice."""

    session_id: str
    lost: list[str]
    uncounted: list[str]
    in_doubt: list[str]
    problem: str = ""


def compare(session_id: str, count: Count, view: View) -> Difference | None:
    """Where the gateway's view of a session differs from the count; None: it agrees, and nothing is in
    doubt."""
    slots = {slot.product_id for slot in view.slots}
    lost, uncounted = sorted(slots - count.used.keys()), sorted(count.used.keys() - slots)
    in_doubt = sorted(slot.product_id for slot in view.slots if slot.in_doubt)
    problem = "" if view.used == len(slots) else f"says used {view.used}, names {len(slots)} slots"
    if lost or uncounted or in_doubt or problem:
        return Difference(session_id, lost, uncounted, in_doubt, problem)
    return None
