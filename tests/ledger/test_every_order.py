"""Two clients, two products and one place: every order of attach, detach, replace and start, with every answer lost and
every gateway dead at every step. The promise holds in each, and the scripts do what the model does.

`ATTACHGATE_LONG=1` goes through all programs of two operations on the scripts, and of three on the model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import combinations_with_replacement, count
from typing import Any

import pytest

from gateway.ledger.steps import Answer, Pending, Step, bucket_of
from gateway.policy.model import SessionState
from tests.ledger.explore import Move, Operation, World, actions, explore
from tests.ledger.stage import Stage

LONG = bool(os.environ.get("ATTACHGATE_LONG"))
POOL = (
    Operation("attach", ("a",)),
    Operation("attach", ("x",)),
    Operation("detach", ("a",)),
    Operation("detach", ("x",)),
    Operation("replace", ("a", "x")),
    Operation("replace", ("x", "a")),
    Operation("start"),
)
EVERY_TWO = list(combinations_with_replacement(POOL, 2))
PROGRAMS = EVERY_TWO if LONG else [program for program in EVERY_TWO if POOL[4] in program]
ON_SCRIPTS = EVERY_TWO if LONG else [(POOL[0], POOL[4]), (POOL[1], POOL[6])]
OF_THREE = list(combinations_with_replacement(POOL, 3)) if LONG else []
LEASE = 7.5
_numbers = count(1)


def judge(move: Move) -> bool:
    """Raises where the promise is broken; whether it was the end of this way."""
    model, upstream, way = move.after.model, move.after.upstream, move.way
    assert len(upstream.accepted) <= move.after.cap, (upstream.accepted, way)
    assert upstream.accepted <= set(model.slots), (upstream.accepted, model.slots, way)
    if any(actions(move.after)):
        return False
    assert not model.records, (model.records, way)
    assert model.used == len(model.slots), way
    if upstream.state == "preparing":
        assert set(model.slots) == upstream.attached, (model.slots, way)
    return True


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: ", ".join(map(str, program)))
def test_two_operations_in_every_order(program: Sequence[Operation]) -> None:
    assert sum(judge(move) for move in explore(World.begin(1, ["a"], program)) if move.new) >= 1


@pytest.mark.parametrize("program", OF_THREE, ids=lambda program: ", ".join(map(str, program)))
def test_three_operations_in_every_order(program: Sequence[Operation]) -> None:
    assert sum(judge(move) for move in explore(World.begin(1, ["a"], program)) if move.new) >= 1


class Scripts:
    """The same moves on the real scripts: a session for each state, made as a copy of the one before it. All are in one
    bucket, whose index and stream hold what the state at hand has."""

    def __init__(self, stage: Stage) -> None:
        self._ledger = stage.ledger
        self._raw = stage.raw
        self._bucket = stage.bucket
        self._sessions: dict[int, str] = {}
        self._kept: list[World] = []

    def _new(self, world: World) -> str:
        session = next(name for name in map("s{}".format, _numbers) if bucket_of(name) == self._bucket)
        self._sessions[id(world)] = session
        self._kept.append(world)  # an id is unique only while its owner lives
        return session

    def _key(self, session: str) -> str:
        return f"ag:{{{self._bucket}}}:s:{session}"

    async def begin(self, world: World) -> None:
        await self._ledger.adopt(self._new(world), "open", "", SessionState.preparing, sorted(world.upstream.attached))

    async def follow(self, move: Move) -> None:
        before, after = move.before, move.after
        session = self._new(after)
        stream, pending = self._ledger.stream_key(self._bucket), self._ledger.pending_key(self._bucket)
        pipe = self._raw.pipeline(transaction=False)
        pipe.delete(stream, pending)
        for event in before.model.events:
            pipe.xadd(stream, {"s": session, "e": event[0], "o": event[1]})
        pipe.copy(self._key(self._sessions[id(before)]), self._key(session))
        for op, found in before.model.records.items():
            pipe.zadd(pending, {f"{session} {op} {max(found) + 1}": LEASE})
        await pipe.execute()
        for name, args, named, said in after.model.told:
            answer = await self._step(session, name, args, named)
            if isinstance(said, str):
                assert answer.said == said, (name, args, move.way)
        fields = await self._raw.hgetall(self._key(session))
        assert _slots(fields) == {p: (s.flag, len(s.holders)) for p, s in after.model.slots.items()}, move.way
        assert int(fields["u"]) == after.model.used, move.way
        assert sum(name[0] == "h" for name in fields) == sum(map(len, after.model.records.values())), move.way

    async def _step(self, session: str, name: str, args: tuple[Any, ...], named: dict[str, Any]) -> Answer:
        ledger, op, rest = self._ledger, args[0], args[1:]
        if name in ("reserve", "start", "detach"):
            return await getattr(ledger, name)(session, op, *rest)  # type: ignore[no-any-return]
        if name == "replace":
            cap, seen, old, new = rest
            return await ledger.replace(session, op, cap, SessionState(seen), old, new, **named)
        if name == "commit":
            event, steps, seen = rest
            looked = SessionState(seen) if seen else None
            return await ledger.commit(session, op, event, [Step(*step) for step in steps], looked)
        if name == "release":
            return await ledger.release(session, op, 2)
        if name == "doubt":
            return await ledger.doubt(session, op, [Step(*step) for step in rest[0]], **named)
        seen, _, listed = rest
        snapshot = await ledger.snapshot(session)
        assert snapshot is not None
        records, outcomes = snapshot.records[op], []
        for record in records:
            slot = snapshot.slot(record.product_id)
            outcomes.append((record.number, slot.generation if slot else None, record.product_id in listed))
        lease = "" if named.get("early") else str(LEASE)
        pending = Pending(session, op, max(record.number for record in records) + 1, lease)
        return await ledger.settle(pending, SessionState(seen), outcomes)


def _slots(fields: dict[str, str]) -> dict[str, tuple[str, int]]:
    found = {}
    for name, value in fields.items():
        if name[0] == "p":
            _, _, flag, holders = value.split("|")
            found[name[1:]] = (flag, int(holders))
    return found


@pytest.mark.parametrize("program", ON_SCRIPTS, ids=lambda program: ", ".join(map(str, program)))
async def test_the_scripts_go_the_same_way(stage: Stage, program: Sequence[Operation]) -> None:
    scripts, begin = Scripts(stage), World.begin(1, ["a"], program)
    await scripts.begin(begin)
    for move in explore(begin):
        await scripts.follow(move)
