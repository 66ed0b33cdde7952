"""Where requests end, followed in whatever pieces they come."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.reading.framing import Framing

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n\r\n"


def follow(pieces: list[bytes], requests: list[tuple[int, bool]]) -> Framing:
    """As the listener does: after each piece, the heads that a parser has found by then."""
    framing = Framing()
    left = list(requests)
    for piece in pieces:
        framing.feed(piece)
        while left and not framing.broken and framing.head(*left[0]):
            left.pop(0)
    return framing


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]


CHUNKED = (0, True)
PLACES = st.lists(st.integers(0, 10_000), max_size=12)
BODIES = st.one_of(
    st.binary(max_size=60).map(lambda body: (body, (len(body), False))),
    st.lists(st.binary(min_size=1, max_size=20), max_size=4).map(
        lambda parts: (b"".join(b"%X\r\n%b\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n", CHUNKED)
    ),
)


@settings(max_examples=300, deadline=None)
@given(bodies=st.lists(BODIES, min_size=1, max_size=4), places=PLACES, extra=st.sampled_from([b"", b"\r\n"]))
def test_whole_requests_are_followed_to_their_end(
    bodies: list[tuple[bytes, tuple[int, bool]]], places: list[int], extra: bytes
) -> None:
    data = b"".join(extra + HEAD + body for body, _ in bodies)
    framing = follow(cut(data, places), [how for _, how in bodies])
    assert framing.idle
    assert not framing.broken
    assert not framing.trailed
    assert not follow(cut(data + b"P", places), [how for _, how in bodies]).idle


@settings(max_examples=300, deadline=None)
@given(
    body=st.sampled_from(
        [
            b"2;a\r\nhi\r\n0\r\n\r\n",
            b"2\r\nhi\r\n0;a=b\r\n\r\n",
            b"2 \r\nhi\r\n0\r\n\r\n",
            b" 2\r\nhi\r\n0\r\n\r\n",
            b"0x2\r\nhi\r\n0\r\n\r\n",
            b"+2\r\nhi\r\n0\r\n\r\n",
            b"\r\n2\r\nhi\r\n0\r\n\r\n",
            b"2\nhi\r\n0\r\n\r\n",
            b"2\r\r\nhi\r\n0\r\n\r\n",
            b"00000000000000002\r\nhi\r\n0\r\n\r\n",
            b"g\r\nhi\r\n0\r\n\r\n",
        ]
    ),
    places=PLACES,
)
def test_chunks_that_are_not_plain_are_found_in_any_pieces(body: bytes, places: list[int]) -> None:
    assert follow(cut(HEAD + body, places), [CHUNKED]).broken


@settings(max_examples=200, deadline=None)
@given(places=PLACES)
def test_trailers_are_found(places: list[int]) -> None:
    framing = follow(cut(HEAD + b"2\r\nhi\r\n0\r\nX: 0\r\n\r\n", places), [CHUNKED])
    assert framing.trailed
    assert not framing.broken
    assert not framing.idle


@pytest.mark.parametrize(
    ("data", "requests"),
    [
        (HEAD + b"0123", [(5, False), (0, False)]),
        (b"POST / HTTP/1.1\n\n", [(0, False)]),
        (HEAD + b"0\r\n", [CHUNKED, (0, False)]),
        (b"", [(0, False)]),
    ],
)
def test_a_parser_that_sees_more_requests_is_contradicted(data: bytes, requests: list[tuple[int, bool]]) -> None:
    framing = Framing()
    framing.feed(data)
    for how in requests[:-1]:
        assert framing.head(*how)
    assert not framing.head(*requests[-1])


def test_a_long_body_is_not_kept() -> None:
    framing = follow([HEAD], [(1 << 30, False)])
    piece = bytes(1 << 16)
    for _ in range((1 << 30) // len(piece)):
        framing.feed(piece)
    assert framing.idle
    framing = follow([HEAD], [CHUNKED])
    for _ in range(1000):
        framing.feed(b"10000\r\n" + piece + b"\r\n")
        assert len(framing._rest) <= len(piece) + 16
    framing.feed(b"0\r\n\r\n")
    assert framing.idle


def test_what_is_lost_stays_lost() -> None:
    framing = Framing()
    framing.lose()
    framing.feed(HEAD)
    assert not framing.head(0, False)
    assert not framing.idle
