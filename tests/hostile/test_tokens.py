"""Tokens that should not open anything, over real sockets, before a gateway that asks for signed ones.

As with the corpus, what counts is not the status alone: the ledger and the upstream's journal must agree, and nothing
may have been applied. And nobody may choose where keys come from: an address that a token names is never asked.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import jwt
import pytest
import pytest_asyncio
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import RSAAlgorithm

from gateway.demo import platform
from gateway.ledger import embedded
from gateway.ledger.steps import Ledger

from .conftest import PROFESSIONAL, SHOP, Site, Strict, sections, start_gateway, stop_gateway
from .raw import Wire

pytestmark = pytest.mark.asyncio(loop_scope="module")

OURS, THEIRS = (rsa.generate_private_key(65537, 2048) for _ in range(2))
PEM = OURS.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class Login(NamedTuple):
    """The issuer's keys at `url`; `evil` is an address that only a token names, `asked` what it was asked."""

    url: str
    evil: str
    asked: list[str]


def jwk(key: rsa.RSAPrivateKey, kid: str = "k1") -> dict[str, Any]:
    return {**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig", "alg": "RS256"}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def claims(**changes: Any) -> dict[str, Any]:
    now = time.time()
    made = {"sub": SHOP, "iss": "login", "aud": "attach", "exp": now + 600, **changes}
    return {name: value for name, value in made.items() if value is not None}


def token(key: rsa.RSAPrivateKey = OURS, header: dict[str, Any] | None = None, **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, "RS256", {"kid": "k1", **(header or {})})


def by_hand(header: dict[str, Any], secret: bytes | None = None) -> str:
    text = b64(json.dumps(header).encode()) + "." + b64(json.dumps(claims()).encode())
    return text + "." + (b64(hmac.digest(secret, text.encode(), hashlib.sha256)) if secret is not None else "")


def header_only(value: str) -> list[str]:
    return [f"Bearer {value}"]


Made = Callable[[Login], list[str]]
HOSTILE: dict[str, tuple[str, Made]] = {
    "none": ("nothing signs it", lambda at: header_only(by_hand({"alg": "none", "kid": "k1"}))),
    "none-case": ("the same, spelt otherwise", lambda at: header_only(by_hand({"alg": "nOnE", "kid": "k1"}))),
    "none-signed": ("none, with a signature", lambda at: header_only(by_hand({"alg": "none"}) + b64(b"x" * 256))),
    "public-key-as-secret": (
        "HS256 by the public key that everybody knows (CVE-2015-9235)",
        lambda at: header_only(by_hand({"alg": "HS256", "kid": "k1"}, PEM)),
    ),
    "jwk-as-secret": (
        "the same by the key as the issuer publishes it",
        lambda at: header_only(by_hand({"alg": "HS256", "kid": "k1"}, json.dumps(jwk(OURS)).encode())),
    ),
    "empty-secret": ("HS256 by nothing", lambda at: header_only(by_hand({"alg": "HS256", "kid": "k1"}, b""))),
    "expired": ("its time is over", lambda at: header_only(token(exp=time.time() - 60))),
    "endless": ("it never expires", lambda at: header_only(token(exp=None))),
    "time-as-text": ("its time is no number", lambda at: header_only(token(header={"b": 1}, exp=None, nbf="x"))),
    "early": ("it does not hold yet", lambda at: header_only(token(nbf=time.time() + 600))),
    "audience": ("meant for somebody else", lambda at: header_only(token(aud="billing"))),
    "no-audience": ("meant for anybody", lambda at: header_only(token(aud=None))),
    "issuer": ("of another issuer", lambda at: header_only(token(iss="elsewhere"))),
    "unknown-kid": ("a key that nobody knows", lambda at: header_only(token(header={"kid": "k9"}))),
    "kid-path": (
        "a key that is a path, to a file known to be empty",
        lambda at: header_only(by_hand({"alg": "HS256", "kid": "../../../../dev/null"}, b"")),
    ),
    "kid-injection": ("a key that is a query", lambda at: header_only(token(THEIRS, {"kid": "k1' or '1'='1"}))),
    "kid-url": ("a key that is an address", lambda at: header_only(token(THEIRS, {"kid": at.evil}))),
    "wrong-key": ("signed by somebody else, in our key's name", lambda at: header_only(token(THEIRS))),
    "jku": ("it says where its keys are", lambda at: header_only(token(THEIRS, {"jku": at.evil, "kid": "k2"}))),
    "jku-known-kid": ("the same, for a key we have", lambda at: header_only(token(THEIRS, {"jku": at.evil}))),
    "x5u": ("it says where its certificate is", lambda at: header_only(token(THEIRS, {"x5u": at.evil}))),
    "jwk": ("it brings its key along (CVE-2018-0114)", lambda at: header_only(token(THEIRS, {"jwk": jwk(THEIRS)}))),
    "crit": (
        "it demands what is not understood",
        lambda at: header_only(token(header={"crit": ["b64"], "b64": False})),
    ),
    "two": ("two fields, a good one first", lambda at: [*header_only(token()), "Bearer x.y.z"]),
    "two-alike": ("twice the same", lambda at: header_only(token()) * 2),
    "joined": ("two in one field", lambda at: [f"Bearer {token()}, Bearer {token()}"]),
    "huge": ("over the limit, under that of headers", lambda at: header_only(token(pad="x" * 9000))),
    "cut": ("without its signature", lambda at: header_only(token().rpartition(".")[0] + ".")),
    "changed": (
        "its claims exchanged",
        lambda at: header_only(".".join((token().split(".")[0], b64(json.dumps(claims()).encode()), "AAAA"))),
    ),
    "encrypted-form": ("five parts", lambda at: header_only("a.b.c.d.e")),
    "basic": ("not a bearer", lambda at: [f"Basic {token()}"]),
    "padding": ("padded, a second spelling of the same", lambda at: header_only(token() + "=")),
    "account-path": ("an account that is a path", lambda at: header_only(token(sub="../shop-individual"))),
    "account-list": ("an account that is a list", lambda at: header_only(token(sub=[SHOP]))),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def login() -> AsyncIterator[Login]:
    asked: list[str] = []

    async def serve(request: web.BaseRequest) -> web.Response:
        if request.path == "/evil":
            asked.append(request.path)
            return web.json_response({"keys": [jwk(THEIRS), jwk(THEIRS, "k2")]})
        return web.json_response({"keys": [jwk(OURS)]})

    runner = web.ServerRunner(web.Server(serve))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield Login(f"{url}/keys", f"{url}/evil", asked)
    await runner.cleanup()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(
    login: Login, redis: embedded.EmbeddedRedis, ledger: Ledger, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    running = await platform.start()
    config = sections(running.url, redis.tcp_url, identity=signed(login.url))
    gateway = await start_gateway(tmp_path_factory.mktemp("signed"), config)
    yield Site(gateway, Strict(running.url, running.platform.store), ledger)
    await stop_gateway(gateway)
    await running.close()


def signed(jwks: str) -> dict[str, object]:
    return {"mode": "jwt", "issuer": "login", "audience": "attach", "algorithms": ["RS256"], "jwks": jwks}


def attach(session_id: str, authorization: list[str], extra: str = "") -> bytes:
    fields = "".join(f"Authorization: {value}\r\n" for value in authorization) + extra
    return (
        f"POST /live/sessions/{session_id}/products HTTP/1.1\r\nHost: gateway\r\n{fields}"
        'Content-Type: application/json\r\nContent-Length: 23\r\n\r\n{"product_id":"ally-9"}'
    ).encode()


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("extra", ["", "TE: trailers\r\n"], ids=["fast", "slow"])
async def test_a_hostile_token_opens_nothing(site: Site, login: Login, name: str, extra: str) -> None:
    reason, made = HOSTILE[name]
    session_id = site.new_session(SHOP, "token")
    reply = await site.ask(attach(session_id, made(login), extra + "X-Account-Id: shop-individual\r\n"))
    assert reply.status in (400, 401), reason
    assert json.loads(reply.body)["reason"] in ("identity_invalid", "identity_missing", "headers_malformed")
    if reply.status == 401:
        assert reply.field("www-authenticate") is not None
    assert await site.agree(session_id) == (set(), set())
    assert login.asked == []
    assert site.gateway.runs


async def test_a_good_token_acts_for_its_account_and_for_no_other(site: Site) -> None:
    mine, others = site.new_session(SHOP, "token"), site.new_session(PROFESSIONAL, "token")
    good = header_only(token())
    claimed = "X-Account-Id: shop-flagship\r\n"
    assert (await site.ask(attach(mine, good, claimed))).status == 200
    assert (await site.ask(attach(others, good, claimed))).status == 403
    assert await site.agree(mine) == ({"ally-9"}, {"ally-9"})
    assert await site.agree(others) == (set(), set())


async def test_a_flood_of_unknown_keys_does_not_become_one_of_look_ups(site: Site) -> None:
    """And good tokens go on meanwhile."""
    session_id = site.new_session(SHOP, "token")
    flood = [site.ask(attach(session_id, header_only(token(header={"kid": f"k{n + 9}"})))) for n in range(30)]
    replies, good = await asyncio.gather(asyncio.gather(*flood), site.ask(attach(session_id, header_only(token()))))
    assert {reply.status for reply in replies} <= {401, 503}
    assert good.status == 200


async def test_where_the_keys_can_not_be_had_nobody_is_believed(
    login: Login, redis: embedded.EmbeddedRedis, ledger: Ledger, tmp_path_factory: pytest.TempPathFactory
) -> None:
    running = await platform.start()
    config = sections(running.url, redis.tcp_url, identity=signed("http://127.0.0.1:1/keys"))
    gateway = await start_gateway(tmp_path_factory.mktemp("keyless"), config)
    site = Site(gateway, Strict(running.url, running.platform.store), ledger)
    try:
        session_id = site.new_session(SHOP, "token")
        for authorization in (header_only(token()), header_only(by_hand({"alg": "none"}))):
            reply = await site.ask(attach(session_id, authorization))
            assert reply.status in (401, 503)
        assert await site.agree(session_id) == (set(), set())
        wire = await Wire.open(gateway.port)
        await wire.send(b"GET /products/ally-1 HTTP/1.1\r\nHost: g\r\n\r\n")
        passed = await wire.reply("GET")
        wire.close()
        assert passed is not None
        assert passed.status == 200
    finally:
        await stop_gateway(gateway)
        await running.close()
