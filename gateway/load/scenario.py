"""What clients do next: many live rooms, some far more popular than others. Pure and seeded.

`Scenario.next` gives the next arrival, `learn` tells it the outcome. The same seed and the same outcomes in the
same order give the same actions. It never waits: a room whose session is still being created passes its turn to
another room, so that a slow target can't slow the schedule down (no coordinated omission).

A room goes through one session after the other: created, prepared, live, ended, the next created. A host
picks foreign products mostly from a few of its own choice, so that places are asked for again and again. In
a race every client of the room asks for a foreign product at the same moment. Knows nothing of the cap: what
is right is the judge's business.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec
from msgspec import Struct

from gateway.load.options import ATTACHES, Operation

CHOICES: Final = 8
"""How many foreign products a host has in mind for one session."""

MAX_BATCH: Final = 5
MAX_DRAWS: Final = 8
FOREIGN_REPLACEMENTS: Final = 0.7


class State(StrEnum):
    creating = "creating"
    preparing = "preparing"
    live = "live"
    ended = "ended"


class Merchant(Struct, frozen=True):
    """An account as the scenario needs it: its shop's id (empty where it has none) and its own products."""

    account_id: str
    shop_id: str
    own: tuple[str, ...]


class Shape(Struct, frozen=True):
    rooms: int
    clients_per_room: int
    zipf: float
    mix: Mapping[Operation, float]


class Session:
    """One live session as its host believes it to be.

    `attached` is what the target said it attached; `added_live` are the products that it said so of after it
    had confirmed the start: each of them is in the session's count for good (N5), whatever else happened.
    `shaken`: a request had no answer.
    """

    __slots__ = ("account_id", "added_live", "attached", "choices", "confirmed", "id", "room", "shaken", "state")

    def __init__(self, room: Room, choices: tuple[str, ...], label: str) -> None:
        self.room = room
        self.id = f"{label}-r{room.number}-s{room.generation}"
        self.account_id = room.merchant.account_id
        self.choices = choices
        self.state = State.creating
        self.confirmed = False
        self.attached: dict[str, None] = {}
        self.added_live: set[str] = set()
        self.shaken = False


class Action:
    """One request. `products` are those that it wants in the session, `leaving` the one that it wants out."""

    __slots__ = ("body", "client", "leaving", "live", "method", "operation", "path", "products", "session")

    def __init__(
        self,
        operation: Operation,
        session: Session,
        client: int,
        method: str,
        path: str,
        body: bytes = b"",
        products: tuple[str, ...] = (),
        leaving: str | None = None,
    ) -> None:
        self.operation = operation
        self.session = session
        self.client = client
        self.method = method
        self.path = path
        self.body = body
        self.products = products
        self.leaving = leaving
        self.live = session.confirmed


class Room:
    """A place in the ranking, and one session after the other."""

    __slots__ = ("creating", "generation", "merchant", "number", "session")

    def __init__(self, number: int, merchant: Merchant) -> None:
        self.number = number
        self.merchant = merchant
        self.generation = 0
        self.creating = False
        self.session: Session


class _Attached(Struct):
    attached: list[str] = []


_attached = msgspec.json.Decoder(_Attached)
_Table = tuple[list[Operation], list[float]]


class Scenario:
    """`merchants` take the rooms in turn; `foreign` is the alliance's offer as (product, shop). `label`
    begins every session's id, so that two runs never share one."""

    def __init__(
        self,
        shape: Shape,
        merchants: Sequence[Merchant],
        foreign: Sequence[tuple[str, str]],
        label: str,
        seed: int,
    ) -> None:
        self._random = random.Random(seed)
        self._shape = shape
        self._foreign = foreign
        self._label = label
        self._rooms = [Room(number, merchants[number % len(merchants)]) for number in range(shape.rooms)]
        self._popularity = list(itertools.accumulate((k + 1) ** -shape.zipf for k in range(shape.rooms)))
        self._tables: dict[tuple[bool, bool, bool, bool], _Table] = {}
        self.sessions: list[Session] = []
        for room in self._rooms:
            self._open(room)

    def opening(self) -> list[Action]:
        """The creation of each room's first session, which the schedule takes for done."""
        return [self._create(room) for room in self._rooms]

    def next(self) -> list[Action]:
        """The next arrival: one action, or the many of a race."""
        room = self._draw_room()
        session = room.session
        if session.state is State.ended and not room.creating:
            room.generation += 1
            self._open(room)
            return [self._create(room)]
        if session.state is State.creating and not room.creating:
            return [self._create(room)]
        return list(self._act(self._draw_operation(room), room))

    def learn(self, action: Action, status: int, body: bytes) -> None:
        """The final outcome of an action, after its retries; status 0: no answer."""
        session = action.session
        applied = 200 <= status < 300
        if status == 0 or status >= 500:
            session.shaken = True
        match action.operation:
            case Operation.create:
                session.room.creating = False
                # 409: an earlier try was applied without an answer.
                if applied or status == 409:
                    session.state = State.preparing
            case Operation.start if applied:
                session.confirmed = True
            case Operation.start if session.state is State.live and not session.confirmed and status in range(400, 500):
                session.state = State.preparing
            case Operation.detach if applied or status == 404:
                session.attached.pop(action.leaving or "", None)
            case Operation.replace if applied:
                session.attached.pop(action.leaving or "", None)
                self._attach(action, action.products)
            case operation if applied and operation in ATTACHES:
                self._attach(action, _said_attached(action, body))

    def _attach(self, action: Action, products: Sequence[str]) -> None:
        session = action.session
        session.attached.update(dict.fromkeys(products))
        if action.live:
            session.added_live.update(products)

    # Which room, which operation

    def _draw_room(self) -> Room:
        rooms, popularity = self._rooms, self._popularity
        for _ in range(MAX_DRAWS):
            (room,) = self._random.choices(rooms, cum_weights=popularity)
            if not room.creating:
                break
        return room

    def _draw_operation(self, room: Room) -> Operation:
        session = room.session
        if room.creating:
            return Operation.list
        operations, weights = self._table(session, bool(room.merchant.own))
        return self._random.choices(operations, cum_weights=weights)[0] if operations else Operation.list

    def _table(self, session: Session, has_own: bool) -> _Table:
        live = session.state is State.live
        key = (live, session.confirmed, bool(session.attached), has_own)
        if (table := self._tables.get(key)) is None:
            impossible = set() if has_own else {Operation.attach_own}
            impossible |= {Operation.start} if session.confirmed else set()
            impossible |= set() if live else {Operation.end}
            impossible |= set() if session.attached else {Operation.detach, Operation.replace}
            mix = {op: weight for op, weight in self._shape.mix.items() if weight and op not in impossible}
            table = self._tables[key] = (list(mix), list(itertools.accumulate(mix.values())))
        return table

    # What it does

    def _open(self, room: Room) -> None:
        choices = tuple(dict.fromkeys(self._draw_foreign(room.merchant) for _ in range(CHOICES)))
        room.session = Session(room, choices, self._label)
        self.sessions.append(room.session)

    def _create(self, room: Room) -> Action:
        room.creating = True
        session = room.session
        body = {"session_id": session.id, "account_id": session.account_id}
        return Action(Operation.create, session, 0, "POST", "/live/sessions", msgspec.json.encode(body))

    def _act(self, operation: Operation, room: Room) -> Iterator[Action]:
        session, draw = room.session, self._random
        client = draw.randrange(self._shape.clients_per_room)
        path = f"/live/sessions/{session.id}"
        match operation:
            case Operation.attach_own:
                yield _attach(operation, session, client, (draw.choice(room.merchant.own),))
            case Operation.attach_foreign:
                yield _attach(operation, session, client, (draw.choice(session.choices),))
            case Operation.attach_batch:
                batch = draw.choices((*room.merchant.own, *session.choices), k=draw.randint(2, MAX_BATCH))
                yield _attach(operation, session, client, tuple(dict.fromkeys(batch)))
            case Operation.race:
                for racer in range(self._shape.clients_per_room):
                    yield _attach(operation, session, racer, (self._draw_foreign(room.merchant),))
            case Operation.detach:
                leaving = draw.choice(list(session.attached))
                yield Action(operation, session, client, "DELETE", f"{path}/products/{leaving}", leaving=leaving)
            case Operation.replace:
                leaving, new = draw.choice(list(session.attached)), self._draw_replacement(room)
                body = msgspec.json.encode({"product_id": new})
                path = f"{path}/products/{leaving}"
                yield Action(operation, session, client, "PUT", path, body, (new,), leaving)
            case Operation.start:
                session.state = State.live
                yield Action(operation, session, client, "POST", f"{path}/start")
            case Operation.end:
                session.state = State.ended
                yield Action(operation, session, client, "POST", f"{path}/end")
            case Operation.view:
                yield Action(operation, session, client, "GET", f"/_gateway/sessions/{session.id}")
            case _:
                yield Action(Operation.list, session, client, "GET", f"{path}/products")

    def _draw_replacement(self, room: Room) -> str:
        if room.merchant.own and self._random.random() >= FOREIGN_REPLACEMENTS:
            return self._random.choice(room.merchant.own)
        return self._random.choice(room.session.choices)

    def _draw_foreign(self, merchant: Merchant) -> str:
        """A foreign product; after many draws that hit the merchant's own shop, whatever came last."""
        for _ in range(100):
            product_id, shop_id = self._random.choice(self._foreign)
            if shop_id != merchant.shop_id:
                break
        return product_id


def _attach(operation: Operation, session: Session, client: int, products: tuple[str, ...]) -> Action:
    if operation is Operation.attach_batch:
        body = msgspec.json.encode({"product_ids": products})
    else:
        body = msgspec.json.encode({"product_id": products[0]})
    path = f"/live/sessions/{session.id}/products"
    return Action(operation, session, client, "POST", path, body, products)


def _said_attached(action: Action, body: bytes) -> Sequence[str]:
    """What a 2xx names as attached, of what was asked; nothing where it can't be read."""
    try:
        said = set(_attached.decode(body).attached)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ()
    return [product_id for product_id in action.products if product_id in said]
