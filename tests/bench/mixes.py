"""What is asked: each row's requests, as tuples and as whole HTTP messages. Pure; the same seed gives the same ones.

A session's state is in its name (see `upstream`): `f…` is full with p0, p1 and p2, `o…` has p0 and p1 and one free
place. Nothing that a row asks changes a state for good, so a fast proxy meets the same sessions as a slow one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

OPEN_SHARE: Final = 0.2
PRODUCTS: Final = 8
CAP: Final = 3


class Request(NamedTuple):
    method: str
    path: str
    account_id: str
    body: bytes = b""


def session_names(count: int, begin: int = 0) -> list[str]:
    """Four in five are full, one has a free place."""
    every = round(1 / OPEN_SHARE)
    return [f"{'o' if number % every == 0 else 'f'}{number:07d}" for number in range(begin, begin + count)]


def attached(session_id: str) -> tuple[str, ...]:
    return ("p0", "p1", "p2") if session_id[0] == "f" else ("p0", "p1")


def attach(session_id: str, product_id: str) -> Request:
    body = json.dumps({"product_id": product_id}, separators=(",", ":")).encode()
    return Request("POST", f"/live/sessions/{session_id}/products", f"a-{session_id}", body)


class Mix(NamedTuple):
    """`refused`: the share of answers that are 4xx, by which a run is checked."""

    name: str
    says: str
    refused: float


MIXES: Final = {
    mix.name: mix
    for mix in (
        Mix(
            "mix",
            "of full sessions any of 8 products (5 refused by the cap, 3 attached again); of the others, with a place"
            " free, attached ones again and one that the upstream refuses, whose slot comes back",
            0.6,
        ),
        Mix("refusals", "products beyond the cap, of full sessions", 1.0),
        Mix("admits", "attached products again: reserved, forwarded, committed", 0.0),
        Mix("releases", "products that the upstream refuses: reserved, forwarded, released", 1.0),
        Mix("own", "products of the account's own shop: no slot", 0.0),
        Mix("small", "a GET of 200 bytes that nobody judges", 0.0),
    )
}


def requests(name: str, sessions: Sequence[str], count: int, seed: int = 1) -> Iterator[Request]:
    """`count` requests of a mix."""
    chance = random.Random(f"{name} {seed}")
    full = [session for session in sessions if session[0] == "f"]
    free = [session for session in sessions if session[0] == "o"]
    for _ in range(count):
        if name == "mix":
            session = chance.choice(sessions)
            if session[0] == "f":
                yield attach(session, f"p{chance.randrange(PRODUCTS)}")
            else:
                yield attach(session, "x0" if chance.random() < 0.5 else f"p{chance.randrange(2)}")
        elif name == "refusals":
            yield attach(chance.choice(full), f"p{chance.randrange(CAP, PRODUCTS)}")
        elif name == "admits":
            yield attach(chance.choice(full), f"p{chance.randrange(CAP)}")
        elif name == "releases":
            yield attach(chance.choice(free), "x0")
        elif name == "own":
            yield attach(chance.choice(sessions), f"own{chance.randrange(PRODUCTS)}")
        elif name == "small":
            session = chance.choice(sessions)
            yield Request("GET", f"/pages/{session}", f"a-{session}")
        else:
            raise ValueError(f"no mix {name}")


def message(request: Request) -> bytes:
    """The request on the wire, as the plainest client sends it."""
    head = f"{request.method} {request.path} HTTP/1.1\r\nHost: bench.test\r\nX-Account-Id: {request.account_id}\r\n"
    if request.body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(request.body)}\r\n"
    return head.encode() + b"\r\n" + request.body
