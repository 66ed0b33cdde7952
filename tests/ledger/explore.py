"""Every order in which a few operations can happen, with an answer lost or a gateway dead at every step.

The operations of a program are played on the model of the ledger and the model of the upstream. A state that was seen
before is not gone into again. What a reconciler does to one operation is one step here; `test_model.py` takes it apart.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.ledger.model import Kind, Model, State, Upstream

Name = Literal["attach", "detach", "replace", "start"]
EVENTS = {"attach": "attached", "detach": "detached", "replace": "replaced", "start": "started"}


@dataclass(frozen=True)
class Operation:
    """`products`: one, for a replace the old and the new, for a start none."""

    name: Name
    products: tuple[str, ...] = ()

    @property
    def steps(self) -> list[tuple[Kind, str]]:
        if self.name == "replace":
            return [("g", self.products[0]), ("t", self.products[1])]
        kinds: dict[str, Kind] = {"attach": "t", "detach": "g", "start": "s"}
        return [(kinds[self.name], product) for product in self.products or ("",)]

    def __str__(self) -> str:
        return " ".join((self.name, *self.products))


@dataclass
class Flight:
    """Where one operation is. `recorded`: the ledger has, or had, a record of it. `answer`: what the upstream did, once
    it did something. `closed`: it is too late for it to be applied."""

    stage: Literal["to be asked", "sent", "looked", "lost", "dead", "done"] = "to be asked"
    recorded: bool = False
    look: bool = False
    answer: Literal["", "applied", "absent", "refused"] = ""
    closed: bool = False
    seen: State | None = None


class Told(Model):
    """A model that remembers what it was told, so that the scripts can be told the same."""

    STEPS = frozenset({"reserve", "detach", "replace", "start", "commit", "release", "doubt", "settle"})

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, tuple[Any, ...], dict[str, Any], Any]] = []

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in Told.STEPS:
            return found

        def step(*args: Any, **named: Any) -> Any:
            said = found(*args, **named)
            self.told.append((name, args, named, said))
            return said

        return step


@dataclass
class World:
    cap: int
    program: tuple[Operation, ...]
    model: Told = field(default_factory=Told)
    upstream: Upstream = field(default_factory=Upstream)
    flights: list[Flight] = field(default_factory=list)

    @classmethod
    def begin(cls, cap: int, attached: Sequence[str], program: Sequence[Operation]) -> World:
        world = cls(cap, tuple(program), flights=[Flight() for _ in program])
        world.upstream.attach(attached)
        world.model.adopt("open", "preparing", attached)
        world.model.events.clear()
        return world

    def key(self) -> object:
        """Equal for states that can't be told apart by anything that follows."""
        model = self.model
        fresh = {
            (op, number)
            for op, found in model.records.items()
            for number, record in found.items()
            if record.touched == model.touched(record.product)
        }
        return (
            model.state,
            tuple(sorted((product, slot.flag, tuple(sorted(slot.holders))) for product, slot in model.slots.items())),
            tuple(
                (op, number, record.kind, record.product, record.letter, (op, number) in fresh)
                for op in sorted(model.records)
                for number, record in sorted(model.records[op].items())
            ),
            tuple(sorted(model.lends.items())),
            frozenset(event[:2] for event in model.events),
            self.upstream.state,
            frozenset(self.upstream.attached),
            frozenset(self.upstream.accepted),
            tuple(
                (flight.stage, flight.recorded, flight.look, flight.answer, flight.closed, flight.seen)
                for flight in self.flights
            ),
        )


Action = tuple[str, Callable[[World], None]]


def actions(world: World) -> Iterator[Action]:
    """Everything that can happen next."""
    for n, (operation, flight) in enumerate(zip(world.program, world.flights, strict=True)):
        if flight.stage == "to be asked":
            yield f"{operation}: asked", lambda world, n=n: _ask(world, n)  # type: ignore[misc]
            continue
        if flight.stage in ("sent", "lost", "dead") and not flight.answer and not flight.closed:
            yield f"{operation}: upstream gets it", lambda world, n=n: _apply(world, n)  # type: ignore[misc]
        if flight.stage == "sent":
            if flight.answer:
                yield f"{operation}: answered, session seen", lambda world, n=n: _answer(world, n, True)  # type: ignore[misc]
                if flight.look:
                    yield f"{operation}: answered, look failed", lambda world, n=n: _answer(world, n, False)  # type: ignore[misc]
            else:
                yield f"{operation}: refused", lambda world, n=n: _refuse(world, n)  # type: ignore[misc]
            yield f"{operation}: answer lost", lambda world, n=n: _lose(world, n)  # type: ignore[misc]
            yield f"{operation}: gateway dies", lambda world, n=n: _stage(world, n, "dead")  # type: ignore[misc]
        elif flight.stage == "looked":
            yield f"{operation}: settled", lambda world, n=n: _settle(world, n)  # type: ignore[misc]
            yield f"{operation}: gateway dies", lambda world, n=n: _stage(world, n, "dead")  # type: ignore[misc]
        if str(n) in world.model.records and flight.stage in ("lost", "dead", "done"):
            yield f"{operation}: reconciled", lambda world, n=n: _reconcile(world, n)  # type: ignore[misc]


def _stage(world: World, n: int, stage: Literal["dead"]) -> None:
    world.flights[n].stage = stage


def _ask(world: World, n: int) -> None:
    operation, flight, model, op = world.program[n], world.flights[n], world.model, str(n)
    flight.stage = "sent"
    if operation.name == "attach":
        said = model.reserve(op, world.cap, operation.products)
    elif operation.name == "detach":
        said = model.detach(op, operation.products[0])
        flight.look = said == "asked"
    elif operation.name == "replace":
        old, new = operation.products
        said = model.replace(op, world.cap, world.upstream.state, old, new, foreign=True)
        flight.look = world.upstream.state == "preparing"
    else:
        for other in [op for op, found in model.records.items() if all(record.doubt for record in found.values())]:
            _settle_by_list(world, other, early=True)
        said = model.start(op, world.cap)
    flight.recorded = op in model.records
    if said in ("full", "started", "ended", "unsettled"):
        flight.stage = "done"


def _apply(world: World, n: int) -> None:
    operation, flight, upstream = world.program[n], world.flights[n], world.upstream
    if operation.name == "attach":
        done = upstream.attach(operation.products)
    elif operation.name == "detach":
        done = upstream.detach(operation.products[0])
    elif operation.name == "replace":
        done = upstream.replace(*operation.products)
    else:
        done = upstream.start()
    flight.answer = "applied" if done else "absent" if operation.name in ("detach", "replace") else "refused"


def _refuse(world: World, n: int) -> None:
    world.flights[n].answer = "refused"


def _answer(world: World, n: int, sees: bool) -> None:
    flight = world.flights[n]
    flight.stage = "looked"
    flight.seen = world.upstream.state if flight.look and sees else None


def _settle(world: World, n: int) -> None:
    operation, flight, op = world.program[n], world.flights[n], str(n)
    flight.stage = "done"
    flight.closed = True
    if not flight.recorded:
        return
    if flight.answer == "applied" or (flight.answer == "absent" and flight.look):
        done = [(kind, product, flight.answer == "applied") for kind, product in operation.steps]
        world.model.commit(op, EVENTS[operation.name], done, flight.seen)
    else:
        world.model.release(op)


def _lose(world: World, n: int) -> None:
    world.flights[n].stage = "lost"
    if world.flights[n].recorded:
        world.model.doubt(str(n), world.program[n].steps, own=True)


def _reconcile(world: World, n: int) -> None:
    """Its hold is over, or the time to apply it; a later step finds it once more, where it was not settled."""
    op = str(n)
    if not all(record.doubt for record in world.model.records[op].values()):
        found = world.model.records[op]
        steps: list[tuple[Kind, str]] = [
            (found[number].kind, found[number].product) if number in found else ("g", "")
            for number in range(max(found) + 1)
        ]
        world.model.doubt(op, steps, own=False)
    else:
        world.flights[n].closed = True
        _settle_by_list(world, op)


def _settle_by_list(world: World, op: str, *, early: bool = False) -> None:
    touched = {number: world.model.touched(record.product) for number, record in world.model.records[op].items()}
    world.model.settle(op, world.upstream.state, touched, set(world.upstream.attached), early=early)


@dataclass
class Move:
    """From one state to the next; `way`: all that happened until then; `new`: it is seen for the first time."""

    before: World
    after: World
    way: list[str]
    new: bool


def explore(begin: World) -> Iterator[Move]:
    """Every move that is possible from any state that can be reached, once."""
    seen = {begin.key()}
    todo: list[tuple[World, list[str]]] = [(begin, [])]
    while todo:
        world, way = todo.pop()
        for name, act in actions(world):
            after = copy.deepcopy(world)
            after.model.told.clear()
            act(after)
            key = after.key()
            move = Move(world, after, [*way, name], key not in seen)
            yield move
            if move.new:
                seen.add(key)
                todo.append((after, move.way))
