"""Full sessions, remembered for a moment: a refusal that is sure asks Redis nothing.

Why it is sure. In a live session no slot comes back whose product is attached, was removed or was replaced: flags a, r
and x of `slots.lua`. Where there are as many of these as the cap allows, a product without a slot finds no place, now
or later, whatever any gateway does: each reserve at this cap, or at a lower one, says `full`. The cap comes with each
question, so one that rises with a policy, a roll-out or a shop's type is compared anew. Everything else asks Redis: a
session in preparation, a slot that lives by its holders alone, a product that has a slot.

What it can miss, and no longer than `fresh_seconds`: that the session has ended (then the refusal names the count and
not the end), and a slot that a list or a late answer brought in meanwhile, whose product is refused as it was before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec import Struct

from gateway.ledger.steps import Snapshot
from gateway.policy.model import SessionState

MAX_FRESH_SECONDS = 60.0
MAX_SESSIONS = 16_384


class _Full(Struct, frozen=True, gc=False):
    snapshot: Snapshot
    taken_for_good: int
    products: frozenset[str]
    until: float


class FullSessions:
    """`clock`: monotonic seconds. `fresh_seconds`: how long the directory's word on a session is believed, so that an
    end is noticed here no later than there; at most `MAX_FRESH_SECONDS`, and with 0 nothing is remembered."""

    def __init__(self, clock: Callable[[], float], fresh_seconds: float) -> None:
        self._clock = clock
        self._fresh_seconds = min(fresh_seconds, MAX_FRESH_SECONDS)
        self._known: dict[str, _Full] = {}

    def __len__(self) -> int:
        return len(self._known)

    def learn(self, session_id: str, snapshot: Snapshot) -> None:
        """A reserve was refused just now, and this is what the ledger had."""
        if snapshot.state is not SessionState.live or self._fresh_seconds == 0:
            return
        taken = sum(slot.for_good for slot in snapshot.slots)
        products = frozenset([slot.product_id for slot in snapshot.slots])
        self._known.pop(session_id, None)
        if len(self._known) >= MAX_SESSIONS:
            del self._known[next(iter(self._known))]
        self._known[session_id] = _Full(snapshot, taken, products, self._clock() + self._fresh_seconds)

    def refuses(self, session_id: str, cap: int, products: Iterable[str]) -> Snapshot | None:
        """What a reserve of these products would be refused with; None where only Redis knows."""
        known = self._known.get(session_id)
        if known is None or known.taken_for_good < cap or known.products.issuperset(products):
            return None
        if self._clock() > known.until:
            del self._known[session_id]
            return None
        return known.snapshot

    def forget(self, session_id: str) -> None:
        self._known.pop(session_id, None)
