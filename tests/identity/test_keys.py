"""Key sets: what is taken from them, and how they are kept fresh, over a real HTTP server and a real file."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from gateway import fetch
from gateway.config.checks import ALGORITHMS
from gateway.identity import keys as module
from gateway.identity.keys import Keys, file_source, parse, url_source

RSA_KEY = rsa.generate_private_key(65537, 2048)


def b64(secret: bytes) -> str:
    return base64.urlsafe_b64encode(secret).rstrip(b"=").decode()


def rsa_jwk(key: rsa.RSAPrivateKey = RSA_KEY, **more: object) -> dict[str, Any]:
    return {**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), **more}


def oct_jwk(kid: str, secret: bytes = b"s" * 64, **more: object) -> dict[str, Any]:
    return {"kty": "oct", "k": b64(secret), "kid": kid, **more}


def jwks(*keys: object) -> bytes:
    return json.dumps({"keys": keys}).encode()


def served(*keys: object, algorithms: tuple[str, ...] = ALGORITHMS) -> list[tuple[str | None, list[str]]]:
    """Which algorithms each usable key serves."""
    parsed = parse(jwks(*keys), frozenset(algorithms))
    assert not isinstance(parsed, fetch.Failure)
    return [(key.kid, sorted(key.verifiers)) for key in parsed]


def test_each_type_and_curve_serves_its_own_algorithms() -> None:
    def ec_jwk(curve: ec.EllipticCurve) -> dict[str, Any]:
        return ECAlgorithm.to_jwk(ec.generate_private_key(curve).public_key(), as_dict=True)

    ed = OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate().public_key(), as_dict=True)
    assert served(
        rsa_jwk(kid="r"), oct_jwk("o"), ec_jwk(ec.SECP256R1()), ec_jwk(ec.SECP384R1()), ec_jwk(ec.SECP521R1()), ed
    ) == [
        ("r", ["PS256", "PS384", "PS512", "RS256", "RS384", "RS512"]),
        ("o", ["HS256", "HS384", "HS512"]),
        (None, ["ES256"]),
        (None, ["ES384"]),
        (None, ["ES512"]),
        (None, ["EdDSA"]),
    ]
    assert {alg for algorithms in module.FITS.values() for alg in algorithms} == set(ALGORITHMS)


def test_only_configured_algorithms_and_the_keys_own_are_served() -> None:
    assert served(rsa_jwk(kid="r"), oct_jwk("o"), algorithms=("RS256",)) == [("r", ["RS256"])]
    assert served(rsa_jwk(kid="r", alg="PS512"), algorithms=ALGORITHMS) == [("r", ["PS512"])]
    assert served(rsa_jwk(kid="r", alg="HS256"), rsa_jwk(kid="n", alg="none")) == []


@pytest.mark.parametrize(
    "unusable",
    [
        7,
        None,
        "key",
        {},
        {"kty": "oct"},
        {"kty": "oct", "k": 7},
        {"kty": "oct", "k": ""},
        {"kty": "RSA", "n": "AQAB"},
        {"kty": "RSA", "n": "", "e": "AQAB"},
        {"kty": ["RSA"]},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "P-256", "x": b64(b"1" * 32), "y": b64(b"1" * 32)},
        OKPAlgorithm.to_jwk(ed448.Ed448PrivateKey.generate().public_key(), as_dict=True),
        ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256K1()).public_key(), as_dict=True),
        rsa_jwk(use="enc"),
        rsa_jwk(key_ops=["encrypt"]),
        rsa_jwk(key_ops=7),
        rsa_jwk(kid=7),
        rsa_jwk(rsa.generate_private_key(65537, 1024)),
        oct_jwk("short", b"secret"),
    ],
)
def test_an_unusable_key_is_skipped_and_the_others_serve(unusable: object) -> None:
    assert served(unusable, oct_jwk("o", alg="HS256")) == [("o", ["HS256"])]


def test_a_secret_serves_only_the_algorithms_that_it_is_long_enough_for() -> None:
    assert served(oct_jwk("o", b"s" * 32)) == [("o", ["HS256"])]
    assert served(oct_jwk("o", b"s" * 31)) == []


def test_private_parameters_are_not_kept() -> None:
    private = {**RSAAlgorithm.to_jwk(RSA_KEY, as_dict=True), "key_ops": ["sign", "verify"]}
    parsed = parse(jwks(private), frozenset(ALGORITHMS))
    assert not isinstance(parsed, fetch.Failure)
    assert isinstance(parsed[0].verifiers["RS256"].key, rsa.RSAPublicKey)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"keys":{}}', b"\xff", b'{"keys":[' + b"[" * 99_999])
def test_what_is_not_a_set_is_a_failure(body: bytes) -> None:
    assert isinstance(parse(body, frozenset(ALGORITHMS)), fetch.Failure)
    assert isinstance(parse(jwks(*[oct_jwk("o")] * 101), frozenset(ALGORITHMS)), fetch.Failure)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Issuer:
    """Serves `body`. While `gate` is clear, requests wait; `arrived` says that one does."""

    def __init__(self) -> None:
        self.body = jwks(oct_jwk("k1"))
        self.status = 200
        self.asked = 0
        self.arrived = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.url = ""

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked += 1
        said = web.Response(body=self.body, status=self.status, headers={"Location": "/"})
        self.arrived.set()
        await self.gate.wait()
        return said


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer()
    server = RawTestServer(issuer.answer)
    await server.start_server()
    issuer.url = str(server.make_url("/jwks.json"))
    yield issuer
    issuer.gate.set()
    await server.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def keys(issuer: Issuer, clock: Clock) -> AsyncIterator[Keys]:
    async with aiohttp.ClientSession() as http:
        keys = Keys(url_source(http, issuer.url), ("HS256",), clock, 300.0)
        yield keys
        await keys.close()


def has(keys: Keys, kid: str) -> bool:
    return bool(keys.fitting(kid, "HS256"))


async def test_a_set_is_read_at_the_start(keys: Keys) -> None:
    assert not keys.loaded
    assert not has(keys, "k1")
    await keys.start()
    assert keys.loaded
    assert has(keys, "k1")
    assert not keys.fitting("k1", "HS512")


async def test_reads_that_tokens_cause_are_rare(keys: Keys, issuer: Issuer, clock: Clock) -> None:
    assert keys.may_refresh()
    await keys.refresh()
    assert not keys.may_refresh()
    clock.now += module.REFRESH_SECONDS
    assert keys.may_refresh()
    issuer.status = 500
    await keys.refresh()
    assert not keys.may_refresh()
    clock.now += module.RETRY_SECONDS
    assert keys.may_refresh(), "sooner while the source fails"


async def test_a_thousand_who_want_it_at_once_read_it_once(keys: Keys, issuer: Issuer) -> None:
    issuer.gate.clear()
    waiting = [asyncio.ensure_future(keys.refresh()) for _ in range(1000)]
    await issuer.arrived.wait()
    assert keys.may_refresh(), "who comes now waits for the same read"
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    issuer.gate.set()
    await asyncio.gather(*waiting[1:])
    assert issuer.asked == 1
    assert has(keys, "k1")


@pytest.mark.parametrize(
    ("status", "body"),
    [(500, b""), (302, b""), (200, b"<html>"), (200, b" " * (module.LIMIT_BYTES + 1)), (404, jwks(oct_jwk("k2")))],
)
async def test_while_the_source_fails_the_keys_stay_in_use(
    keys: Keys, issuer: Issuer, status: int, body: bytes
) -> None:
    await keys.refresh()
    issuer.status, issuer.body = status, body
    await keys.refresh()
    assert keys.failing
    assert has(keys, "k1")
    assert keys.generation == 1
    issuer.status, issuer.body = 200, jwks(oct_jwk("k2"))
    await keys.refresh()
    assert not keys.failing
    assert (has(keys, "k1"), has(keys, "k2")) == (False, True)
    assert keys.generation == 2


async def test_an_unchanged_set_is_no_new_generation(keys: Keys) -> None:
    await keys.refresh()
    await keys.refresh()
    assert keys.generation == 1


async def test_an_empty_set_takes_every_key_away(keys: Keys, issuer: Issuer) -> None:
    await keys.refresh()
    issuer.body = jwks()
    await keys.refresh()
    assert not keys.failing
    assert keys.loaded
    assert not has(keys, "k1")


async def test_reload_sees_what_was_there_when_it_was_asked(keys: Keys, issuer: Issuer) -> None:
    issuer.gate.clear()
    earlier = asyncio.ensure_future(keys.refresh())
    await issuer.arrived.wait()
    issuer.body = jwks(oct_jwk("k2"))
    reloaded = asyncio.ensure_future(keys.reload())
    await asyncio.sleep(0)
    issuer.gate.set()
    await asyncio.gather(earlier, reloaded)
    assert has(keys, "k2")
    assert issuer.asked == 2


async def test_the_source_is_read_regularly(issuer: Issuer, clock: Clock) -> None:
    async with aiohttp.ClientSession() as http:
        keys = Keys(url_source(http, issuer.url), ("HS256",), clock, 0.001)
        issuer.status = 500
        await keys.start()
        assert keys.failing
        issuer.status, issuer.body = 200, jwks(oct_jwk("k2"))
        for _ in range(2):
            issuer.arrived.clear()
            await issuer.arrived.wait()
        await keys.refresh()
        assert has(keys, "k2")
        await keys.close()
    assert len(keys._tasks) == 0


async def test_a_file_is_read_again_when_it_changes(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "jwks.json"
    keys = Keys(file_source(str(file)), ("HS256",), clock, 300.0)
    await keys.refresh()
    assert keys.failing
    assert not keys.loaded
    file.write_bytes(jwks(oct_jwk("k1")))
    await keys.refresh()
    assert has(keys, "k1")
    file.write_bytes(jwks(oct_jwk("k2")))
    await keys.refresh()
    assert (has(keys, "k1"), has(keys, "k2")) == (False, True)
    file.write_bytes(jwks(oct_jwk("k3"))[:-2])
    await keys.refresh()
    assert keys.failing
    assert has(keys, "k2")
    file.write_bytes(b" " * (module.LIMIT_BYTES + 1))
    await keys.refresh()
    assert keys.failing
    file.unlink()
    await keys.reload()
    assert has(keys, "k2")
