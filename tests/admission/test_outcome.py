"""What an answer means: the contract's table, every status and every kind of failure."""

from __future__ import annotations

import asyncio
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import errors
from gateway.admission.outcome import Outcome, applied_products, of_error, of_status
from gateway.config import Operation, Route
from gateway.upstream.pool import NotSent, UpstreamAnswer
from gateway.upstream.rest import Rest

OPERATIONS: tuple[Operation, ...] = get_args(Operation)
BATCH = Route("attach", "POST", "/x", "live_room", ("/product_id", "/product_ids/*"), "/attached/*", (), (409,))
UNNAMED = Route("attach", "POST", "/x", "live_room", ("/product_id", "/product_ids/*"))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_status_means_one_thing(operation: Operation) -> None:
    for status in range(100, 1000):
        outcome = of_status(operation, status)
        if 200 <= status < 300:
            assert outcome is Outcome.applied
        elif operation == "detach" and status == 404:
            assert outcome is Outcome.absent
        elif 400 <= status < 500 and status != 406:
            assert outcome is Outcome.not_applied
        else:
            assert outcome is Outcome.in_doubt, "it may be said behind the work, or the contract does not name it"


def test_a_status_that_means_already_there_is_a_yes() -> None:
    assert of_status("attach", 409, (409, 422)) is Outcome.applied
    assert of_status("attach", 410, (409, 422)) is Outcome.not_applied


@pytest.mark.parametrize(
    "kind", [error for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "status")]
)
def test_only_what_surely_never_left_was_not_applied(kind: type[errors.GatewayError]) -> None:
    error = kind("…")
    assert of_error(error) is (Outcome.not_applied if kind is errors.Overloaded else Outcome.in_doubt)


def test_a_connection_that_was_never_made_never_carried_it() -> None:
    assert of_error(NotSent("…")) is Outcome.not_applied


def answered(body: bytes, status: int = 200) -> UpstreamAnswer:
    return UpstreamAnswer(status, b"", [], body)


@pytest.mark.parametrize(
    ("body", "asked", "applied"),
    [
        (b'{"attached":["a","b"]}', ["a", "b"], {"a", "b"}),
        (b'{"attached":["a"]}', ["a", "b"], {"a"}),
        (b'{"attached":[]}', ["a", "b"], set()),
        (b'{"attached":["x"]}', ["a", "b"], set()),
        (b'{"attached":["a","a","x"]}', ["a", "b"], {"a"}),
        (b"{}", ["a", "b"], None),
        (b"", ["a", "b"], None),
        (b"not json", ["a", "b"], None),
        (b'{"attached":"a"}', ["a", "b"], None),
        (b'{"attached":[1]}', ["a", "b"], None),
        (b'{"attached":null}', ["a", "b"], None),
        (b"\x1f\x8b\x08", ["a", "b"], None),
        (b"[" * 200_000, ["a", "b"], None),
        (b'{"attached":' + b"[" * 200_000, ["a", "b"], None),
        (b'{"attached":["\xff"]}', ["a", "b"], None),
        (b"", ["a"], {"a"}),
        (b"not json", ["a"], {"a"}),
        (b'{"attached":["a"]}', ["a"], {"a"}),
        (b'{"attached":[]}', ["a"], set()),
    ],
)
def test_of_a_batch_the_answer_must_say_what_was_applied(
    body: bytes, asked: list[str], applied: set[str] | None
) -> None:
    assert applied_products(BATCH, asked, answered(body)) == applied


async def test_of_a_long_answer_the_beginning_says_nothing() -> None:
    rest = Rest(asyncio.Transport(), None, lambda: None)
    begun = UpstreamAnswer(200, b"", [], b'{"attached":["a"]}', rest)
    assert applied_products(BATCH, ["a", "b"], begun) is None
    assert applied_products(BATCH, ["b"], begun) == {"b"}


def test_where_answers_name_nothing_a_yes_is_for_all() -> None:
    assert applied_products(UNNAMED, ["a", "b"], answered(b'{"attached":["a"]}')) == {"a", "b"}


def test_already_there_is_for_all() -> None:
    assert applied_products(BATCH, ["a", "b"], answered(b'{"error":"there"}', 409)) == {"a", "b"}


@given(st.binary(max_size=200), st.lists(st.text(max_size=5), min_size=1, max_size=4, unique=True))
def test_whatever_the_answer_holds_nothing_is_applied_that_was_not_asked_for(body: bytes, asked: list[str]) -> None:
    applied = applied_products(BATCH, asked, answered(body))
    assert applied is None or applied <= set(asked)
