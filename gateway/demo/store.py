"""The reference platform's memory: accounts, products, live sessions, shelves, and the journal.

Pure and synchronous: the time is passed in, nothing waits. Promises:

- a change is applied whole and journaled in the same call, or `Refused` is raised and nothing has changed;
- the journal holds real changes only, in the order in which they were applied: an attach of what was there
  already, or a start of a session that is live, writes nothing;
- `seq` grows by one with each entry and is never used again, also after the journal was emptied.

It keeps no rule of the notice: how many products of which shop a session holds is the gateway's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Final

import msgspec

from gateway.demo.records import Record
from gateway.policy.model import Account, Product, Session, SessionState, Surface

MAX_ENTRIES: Final = 2_000_000
"""A journal that forgot its oldest entries could hide a broken promise, so a full one refuses
changes instead."""


class Refused(Exception):
    """The platform's no: the status of the answer and the sentence in it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One change really applied. `product_id` of a replace is the new product's, `replaced` the old one's."""

    seq: int
    at: str
    operation: str
    surface: Surface | None
    session_id: str | None
    account_id: str
    product_id: str | None
    replaced: str | msgspec.UnsetType = msgspec.UNSET


class Room:
    """A live session while the platform runs. `products` is a set in the order of attaching."""

    __slots__ = ("account_id", "products", "session_id", "state")

    def __init__(self, session_id: str, account_id: str) -> None:
        self.session_id = session_id
        self.account_id = account_id
        self.state = SessionState.preparing
        self.products: dict[str, None] = {}

    @property
    def session(self) -> Session:
        return Session(self.session_id, self.account_id, self.state)


class Page(msgspec.Struct, frozen=True):
    products: list[Product]
    next_cursor: str | msgspec.UnsetType = msgspec.UNSET


class Store:
    """`on_change` is called with each entry, after the change was applied."""

    def __init__(
        self,
        records: Iterable[Record] = (),
        on_change: Callable[[Entry], None] = lambda entry: None,
        max_entries: int = MAX_ENTRIES,
    ) -> None:
        self._accounts: dict[str, Account] = {}
        self._products: dict[str, Product] = {}
        self._rooms: dict[str, Room] = {}
        self._shelves: dict[tuple[Surface, str, str], dict[str, None]] = {}
        self._journal: list[Entry] = []
        self._on_change = on_change
        self._max_entries = max_entries
        self._next_seq = 1
        self._next_room = 1
        for record in records:
            self.upsert(record)

    # The directory

    def upsert(self, record: Record) -> None:
        if isinstance(record, Account):
            self._accounts[record.account_id] = record
        else:
            self._products[record.product_id] = record

    def account(self, account_id: str) -> Account:
        try:
            return self._accounts[account_id]
        except KeyError:
            raise Refused(404, f"no account {account_id}") from None

    def product(self, product_id: str) -> Product:
        try:
            return self._products[product_id]
        except KeyError:
            raise Refused(404, f"no product {product_id}") from None

    def session(self, session_id: str) -> Session:
        return self._room(session_id).session

    def knows(self, session_id: str) -> bool:
        return session_id in self._rooms

    def addable(self, account_id: str, cursor: int, limit: int | None) -> Page:
        """All products of the platform, from the cursor on, in a stable order."""
        self.account(account_id)
        end = None if limit is None else cursor + limit
        products = list(self._products.values())[cursor:end]
        if end is None or end >= len(self._products):
            return Page(products)
        return Page(products, str(end))

    # Live sessions

    def create(self, session_id: str | None, account_id: str, at: float) -> Session:
        """A new session, preparing. An id that was used before is refused with 409, also when that one has
        ended."""
        self.account(account_id)
        if session_id is None:
            session_id = self._free_session_id()
        elif session_id in self._rooms:
            raise Refused(409, f"session {session_id} exists already")
        self._must_hold(1)
        room = self._rooms[session_id] = Room(session_id, account_id)
        self._record(at, "create", room)
        return room.session

    def start(self, session_id: str, at: float) -> Session:
        room = self._open_room(session_id)
        if room.state is SessionState.preparing:
            self._must_hold(1)
            room.state = SessionState.live
            self._record(at, "start", room)
        return room.session

    def end(self, session_id: str, at: float) -> Session:
        room = self._room(session_id)
        if room.state is not SessionState.ended:
            self._must_hold(1)
            room.state = SessionState.ended
            self._record(at, "end", room)
        return room.session

    def listed(self, session_id: str) -> list[Product]:
        return [self._products[product_id] for product_id in self._room(session_id).products]

    def attach(self, session_id: str, product_ids: list[str], at: float, half: bool = False) -> list[str]:
        """Puts the products of a batch into the session; returns which of the batch are in it now.

        One unknown product refuses the whole batch. With `half`, only the first half of the batch, rounded
        down, is applied.
        """
        room = self._open_room(session_id)
        batch = self._batch(product_ids)
        for product_id in self._missing(room.products, batch, half):
            room.products[product_id] = None
            self._record(at, "attach", room, product_id)
        return [product_id for product_id in batch if product_id in room.products]

    def detach(self, session_id: str, product_id: str, at: float) -> None:
        room = self._open_room(session_id)
        self._must_be_in(room, product_id)
        self._must_hold(1)
        del room.products[product_id]
        self._record(at, "detach", room, product_id)

    def replace(self, session_id: str, old_id: str, new_id: str, at: float) -> None:
        """Puts the new product in the old one's place. One that was in the session already keeps its own
        place."""
        room = self._open_room(session_id)
        self._must_be_in(room, old_id)
        self.product(new_id)
        if new_id == old_id:
            return
        self._must_hold(1)
        if new_id in room.products:
            del room.products[old_id]
        else:
            room.products = {new_id if held == old_id else held: None for held in room.products}
        self._record(at, "replace", room, new_id, replaced=old_id)

    # Shelves: a showcase, or a short video

    def shelve(
        self,
        surface: Surface,
        account_id: str,
        video_id: str,
        product_ids: list[str],
        at: float,
        half: bool = False,
    ) -> list[str]:
        """`attach`, for an account's showcase (`video_id` empty) or one of its videos."""
        self.account(account_id)
        batch = self._batch(product_ids)
        shelf = self._shelves.setdefault((surface, account_id, video_id), {})
        for product_id in self._missing(shelf, batch, half):
            shelf[product_id] = None
            self._append(at, "attach", surface, None, account_id, product_id)
        return [product_id for product_id in batch if product_id in shelf]

    # The journal

    def entries(self, after: int = 0) -> list[Entry]:
        """The entries with a `seq` above `after`."""
        if not self._journal:
            return []
        return self._journal[max(0, after + 1 - self._journal[0].seq) :]

    def changes_of(self, session_id: str, after: int) -> Iterator[Entry]:
        return (entry for entry in self.entries(after) if entry.session_id == session_id)

    def forget_entries(self) -> None:
        self._journal.clear()

    def _must_hold(self, count: int) -> None:
        if len(self._journal) + count > self._max_entries:
            raise Refused(507, f"the journal is full ({self._max_entries}): DELETE /_platform/journal empties it")

    def _record(
        self,
        at: float,
        operation: str,
        room: Room,
        product_id: str | None = None,
        replaced: str | msgspec.UnsetType = msgspec.UNSET,
    ) -> None:
        surface = None if product_id is None else Surface.live_room
        self._append(at, operation, surface, room.session_id, room.account_id, product_id, replaced)

    def _append(
        self,
        at: float,
        operation: str,
        surface: Surface | None,
        session_id: str | None,
        account_id: str,
        product_id: str | None,
        replaced: str | msgspec.UnsetType = msgspec.UNSET,
    ) -> None:
        when = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry = Entry(self._next_seq, when, operation, surface, session_id, account_id, product_id, replaced)
        self._next_seq += 1
        self._journal.append(entry)
        self._on_change(entry)

    # What the operations share

    def _room(self, session_id: str) -> Room:
        try:
            return self._rooms[session_id]
        except KeyError:
            raise Refused(404, f"no session {session_id}") from None

    def _open_room(self, session_id: str) -> Room:
        room = self._room(session_id)
        if room.state is SessionState.ended:
            raise Refused(409, f"session {session_id} has ended")
        return room

    def _batch(self, product_ids: list[str]) -> list[str]:
        batch = list(dict.fromkeys(product_ids))
        for product_id in batch:
            self.product(product_id)
        return batch

    def _missing(self, held: dict[str, None], batch: list[str], half: bool) -> list[str]:
        """What of the batch is still to be put in; all of it fits into the journal."""
        wanted = batch[: len(batch) // 2] if half else batch
        missing = [product_id for product_id in wanted if product_id not in held]
        self._must_hold(len(missing))
        return missing

    @staticmethod
    def _must_be_in(room: Room, product_id: str) -> None:
        if product_id not in room.products:
            raise Refused(404, f"product {product_id} is not in session {room.session_id}")

    def _free_session_id(self) -> str:
        while (session_id := f"live-{self._next_room}") in self._rooms:
            self._next_room += 1
        return session_id
