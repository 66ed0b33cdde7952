"""What clients do is drawn from a seed, fits the session's state, and never waits."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest

from gateway.load.options import ATTACHES, Operation
from gateway.load.scenario import Action, Merchant, Scenario, Shape, State

MERCHANTS = [Merchant("a0", "shop0", ("own0-0", "own0-1")), Merchant("a1", "shop1", ("own1-0",))]
OFFER = [(f"ally{n}", "allyshop") for n in range(30)]
MIX = {operation: 1.0 for operation in Operation if operation is not Operation.create}


def scenario(seed: int = 1, rooms: int = 4, clients: int = 5, zipf: float = 1.0, mix: object = None) -> Scenario:
    shape = Shape(rooms, clients, zipf, MIX if mix is None else mix)  # type: ignore[arg-type]
    made = Scenario(shape, MERCHANTS, OFFER, "run", seed)
    for action in made.opening():
        made.learn(action, 201, b"{}")
    return made


def obey(made: Scenario, action: Action) -> None:
    """An upstream that does whatever it is asked."""
    body = msgspec.json.encode({"attached": action.products}) if action.products else b""
    made.learn(action, 201 if action.operation is Operation.create else 200, body)


def run(made: Scenario, count: int) -> list[Action]:
    actions = []
    for _ in range(count):
        for action in made.next():
            actions.append(action)
            obey(made, action)
    return actions


def told(actions: list[Action]) -> list[tuple[object, ...]]:
    return [(a.operation, a.session.id, a.client, a.method, a.path, a.body) for a in actions]


def test_the_same_seed_and_answers_give_the_same_requests() -> None:
    assert told(run(scenario(7), 500)) == told(run(scenario(7), 500))
    assert told(run(scenario(7), 500)) != told(run(scenario(8), 500))


def test_popular_rooms_come_far_more_often() -> None:
    counts = Counter(a.session.room.number for a in run(scenario(rooms=50, clients=1), 4000))
    assert counts[0] > 5 * counts[20] > 0
    even = Counter(a.session.room.number for a in run(scenario(rooms=50, clients=1, zipf=0), 4000))
    assert max(even.values()) < 2 * min(even.values())


def test_a_session_is_created_prepared_live_ended_and_followed_by_a_new_one() -> None:
    made = scenario(rooms=1)
    by_session: dict[str, list[Operation]] = {}
    for action in run(made, 600):
        by_session.setdefault(action.session.id, []).append(action.operation)
    assert len(by_session) > 5
    assert len({session.id for session in made.sessions}) == len(made.sessions)
    for number, operations in enumerate(by_session.values()):
        assert (operations[0] is Operation.create) == (number > 0), "the first was opened before"
        if Operation.end in operations:
            assert operations.index(Operation.start) < operations.index(Operation.end)
            assert operations[-1] is Operation.end
        assert operations.count(Operation.start) <= 1


def test_only_what_was_attached_is_detached_or_replaced() -> None:
    held: dict[str, set[str]] = {}
    for action in run(scenario(), 1500):
        products = held.setdefault(action.session.id, set())
        if action.leaving is not None:
            assert action.leaving in products
            products.discard(action.leaving)
        products.update(action.products)


def test_products_belong_where_the_operation_says() -> None:
    kinds = Counter()
    for action in run(scenario(), 2000):
        own = {product for product in action.products if product.startswith("own")}
        assert not own or own <= set(action.session.room.merchant.own)
        if action.operation is Operation.attach_own:
            assert len(own) == 1
        if action.operation in (Operation.attach_foreign, Operation.race):
            assert not own
        if action.operation is Operation.attach_batch:
            assert len(set(action.products)) == len(action.products)
            assert msgspec.json.decode(action.body) == {"product_ids": list(action.products)}
        kinds[action.operation] += 1
    assert all(kinds[operation] for operation in Operation)


def test_in_a_race_every_client_of_the_room_asks_at_once() -> None:
    made = scenario(clients=5, mix={Operation.race: 1.0})
    race = made.next()
    assert [action.client for action in race] == [0, 1, 2, 3, 4]
    assert len({action.session.id for action in race}) == 1


def test_a_room_whose_creation_has_no_answer_holds_up_nobody() -> None:
    made = Scenario(Shape(3, 2, 0.0, MIX), MERCHANTS, OFFER, "run", 1)
    creations = made.opening()
    for action in creations[1:]:
        made.learn(action, 201, b"")
    for _ in range(200):
        for action in made.next():
            if action.session.room.number == 0:
                assert action.operation is Operation.list
            obey(made, action)


def test_a_creation_that_failed_is_asked_for_again() -> None:
    made = Scenario(Shape(1, 1, 0.0, MIX), MERCHANTS, OFFER, "run", 1)
    (creation,) = made.opening()
    made.learn(creation, 0, b"")
    (again,) = made.next()
    assert (again.operation, again.body) == (Operation.create, creation.body)
    made.learn(again, 409, b"")
    assert again.session.state is State.preparing, "an earlier try was applied without an answer"


@pytest.mark.parametrize("body", [b"", b"[]", b'{"attached":3}', b"\xff", b'{"attached":["something-else"]}'])
def test_an_answer_that_names_nothing_attached_attaches_nothing(body: bytes) -> None:
    made = scenario(mix={Operation.attach_foreign: 1.0})
    (action,) = made.next()
    made.learn(action, 200, body)
    assert not action.session.attached


def test_what_was_added_live_is_known_only_after_the_start_was_confirmed() -> None:
    made = scenario(rooms=1, mix={Operation.attach_foreign: 1.0, Operation.start: 1.0})
    early = next(a for a in iter(lambda: made.next()[0], None) if a.operation in ATTACHES)
    start = next(a for a in iter(lambda: made.next()[0], None) if a.operation is Operation.start)
    obey(made, start)
    late = next(a for a in iter(lambda: made.next()[0], None) if a.operation in ATTACHES)
    obey(made, early)
    obey(made, late)
    assert early.session.added_live == set(late.products)


def test_no_answer_or_a_failure_shakes_the_session() -> None:
    made = scenario(mix={Operation.attach_own: 1.0})
    for status, shaken in ((200, False), (403, False), (0, True), (502, True)):
        (action,) = made.next()
        action.session.shaken = False
        made.learn(action, status, b"")
        assert action.session.shaken is shaken
