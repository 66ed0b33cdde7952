"""Signed tokens: who is let in, and every way not to be."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from gateway import config
from gateway.errors import IdentityInvalid, IdentityMissing, IdentityUnavailable
from gateway.identity import build, keys, token
from gateway.identity.token import TokenIdentity
from tests.identity.claims import Claims

RSA_KEY, OTHER_RSA_KEY = (rsa.generate_private_key(65537, 2048) for _ in range(2))
EC_KEYS = {
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
}
ED_KEY = ed25519.Ed25519PrivateKey.generate()
SECRET = b"0123456789abcdef" * 4
PATTERN = config.Limits().id_pattern
ASYMMETRIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def rsa_jwk(key: rsa.RSAPrivateKey, kid: str | None) -> dict[str, Any]:
    return {**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), **({"kid": kid} if kid else {})}


RSA_JWK = rsa_jwk(RSA_KEY, "rsa")
OCT_JWK = {"kty": "oct", "k": b64(SECRET), "kid": "oct"}
ASYMMETRIC_JWKS = [
    RSA_JWK,
    *({**ECAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": alg} for alg, key in EC_KEYS.items()),
    {**OKPAlgorithm.to_jwk(ED_KEY.public_key(), as_dict=True), "kid": "EdDSA"},
]


class Clock:
    """Both clocks of a test: monotonic seconds from 0, and the wall's from now."""

    def __init__(self) -> None:
        self.now = 0.0
        self.epoch = time.time()

    def wall(self) -> float:
        return self.epoch + self.now

    def __call__(self) -> float:
        return self.now


class Issuer:
    """Serves its keys, and signs."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = list(ASYMMETRIC_JWKS)
        self.status = 200
        self.asked = 0
        self.url = ""

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked += 1
        return web.json_response({"keys": self.keys}, status=self.status)


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer()
    server = RawTestServer(issuer.answer)
    await server.start_server()
    issuer.url = str(server.make_url("/jwks.json"))
    yield issuer
    await server.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


Make = Callable[..., TokenIdentity]


@pytest.fixture
async def make(issuer: Issuer, clock: Clock) -> AsyncIterator[Make]:
    made: list[TokenIdentity] = []
    async with aiohttp.ClientSession() as http:

        def make(**settings: object) -> TokenIdentity:
            values = {
                "mode": "jwt",
                "issuer": "https://id.example",
                "audience": "attachgate",
                "algorithms": ASYMMETRIC,
                "jwks": issuer.url,
                **settings,
            }
            identity = build(config.Identity(**values), PATTERN, http, clock, clock.wall)  # type: ignore[arg-type]
            assert isinstance(identity, TokenIdentity)
            made.append(identity)
            return identity

        yield make
        for identity in made:
            await identity.close()


@pytest.fixture
async def identity(make: Make) -> TokenIdentity:
    identity = make()
    await identity.start()
    return identity


def claims(**changes: object) -> dict[str, Any]:
    """A good token's claims with changes; None takes one away."""
    now = int(time.time())
    good = {"iss": "https://id.example", "aud": "attachgate", "sub": "a:1", "exp": now + 600, "iat": now}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def signed(
    alg: str = "RS256",
    key: Any = RSA_KEY,
    kid: str | None = "rsa",
    header: dict[str, Any] | None = None,
    **changes: object,
) -> str:
    headers = {**({"kid": kid} if kid else {}), **(header or {})}
    return jwt.encode(claims(**changes), key, alg, headers)


def forged(header: dict[str, Any], body: dict[str, Any] | None = None, signature: bytes = b"sig") -> str:
    return ".".join((b64(json.dumps(header).encode()), b64(json.dumps(body or claims()).encode()), b64(signature)))


def signed_bytes(payload: bytes) -> str:
    """Any bytes under a good signature."""
    head = ".".join((b64(json.dumps({"alg": "RS256", "kid": "rsa"}).encode()), b64(payload)))
    return f"{head}.{b64(RSAAlgorithm(RSAAlgorithm.SHA256).sign(head.encode(), RSA_KEY))}"


def bearing(credentials: str, scheme: str = "Bearer") -> Claims:
    return Claims(authorization=f"{scheme} {credentials}")


def ask(identity: TokenIdentity, credentials: str) -> str | None:
    return identity.peek("203.0.113.9", bearing(credentials))


def refusal(identity: TokenIdentity, credentials: str) -> str:
    with pytest.raises(IdentityInvalid) as refused:
        ask(identity, credentials)
    assert credentials not in refused.value.detail
    assert len(refused.value.detail) < 200
    return refused.value.detail


def key_of(alg: str) -> tuple[Any, str]:
    if alg in EC_KEYS:
        return EC_KEYS[alg], alg
    return (ED_KEY, "EdDSA") if alg == "EdDSA" else (RSA_KEY, "rsa")


@pytest.mark.parametrize("alg", ASYMMETRIC)
async def test_a_good_token_says_who_asks(identity: TokenIdentity, alg: str) -> None:
    key, kid = key_of(alg)
    assert ask(identity, signed(alg, key, kid)) == "a:1"


@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
async def test_a_shared_secret_works_where_it_is_configured(make: Make, issuer: Issuer, alg: str) -> None:
    issuer.keys = [OCT_JWK]
    identity = make(algorithms=(alg,))
    await identity.start()
    assert ask(identity, signed(alg, SECRET, "oct")) == "a:1"
    assert "signature" in refusal(identity, signed(alg, SECRET[::-1], "oct"))


async def test_the_scheme_is_read_in_any_case_and_other_claims_may_name_the_account(
    make: Make,
) -> None:
    identity = make(claim="account")
    await identity.start()
    headers = bearing(signed(account="a2", sub=None), "bEARER")
    assert await identity.resolve("", headers) == "a2"


async def test_several_audiences_may_include_ours(identity: TokenIdentity) -> None:
    assert ask(identity, signed(aud=["other", "attachgate"])) == "a:1"


async def test_the_upstream_is_told_by_the_gateways_own_header(identity: TokenIdentity) -> None:
    assert identity.forwarded_header("a:1") == (b"X-Account-Id", b"a:1")
    assert identity.own_header == b"x-account-id"


async def test_without_authorization_nobody_asks_whatever_other_headers_say(identity: TokenIdentity) -> None:
    with pytest.raises(IdentityMissing, match="Authorization"):
        identity.peek("127.0.0.1", Claims("a1"))


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", "Basic YTpi", "Token x.y.z", "Bearerx.y.z", "Bearer\tx.y.z"]
)
async def test_other_credentials_are_refused(identity: TokenIdentity, value: str) -> None:
    with pytest.raises(IdentityInvalid, match="Bearer token"):
        identity.peek("127.0.0.1", Claims(authorization=value))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda good: good + ", Bearer " + good,
        lambda good: good + " " + good,
        lambda good: " " + good,
        lambda good: good + " ",
        lambda good: good + "=",
        lambda good: good + ".x",
        lambda good: good.rpartition(".")[0],
        lambda good: good.replace(".", "..", 1),
        lambda good: "a.b.c.d.e",
        lambda good: good + "é",
        lambda good: good + "\x00",
        lambda good: good.replace(".", ".\n", 1),
    ],
)
async def test_what_is_not_a_compact_token_is_refused(identity: TokenIdentity, spoil: Callable[[str], str]) -> None:
    assert "compact form" in refusal(identity, spoil(signed()))


async def test_a_token_over_the_limit_is_refused_before_it_is_read(identity: TokenIdentity) -> None:
    assert "longer than 8192" in refusal(identity, signed(pad="x" * 8192))
    assert "longer than 8192" in refusal(identity, "x" * 8193)


@pytest.mark.parametrize(
    "header", [b"", b"{}", b"[]", b'{"alg":1}', b'{"alg":"RS256","kid":7}', b"\xff", b"[" * 5000, b'{"alg":"RS256"']
)
async def test_a_malformed_header_is_refused(identity: TokenIdentity, header: bytes) -> None:
    assert "malformed" in refusal(identity, f"{b64(header) or 'A'}.e30.c2ln")


async def test_a_malformed_payload_is_refused(identity: TokenIdentity) -> None:
    for payload in (b"7", b"[]", b'{"exp":', b"[" * 5000):
        assert "malformed" in refusal(identity, signed_bytes(payload))


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "HS256", "ES256K", "RS257", "rs256", ""])
async def test_an_algorithm_that_is_not_configured_is_refused(identity: TokenIdentity, alg: str) -> None:
    assert "(alg)" in refusal(identity, forged({"alg": alg, "kid": "rsa"}))
    assert "(alg)" in refusal(identity, forged({"alg": alg, "kid": "rsa"}, signature=b""))


async def test_a_public_key_is_no_hmac_secret(make: Make, issuer: Issuer) -> None:
    """Algorithm confusion: signed with the public key's bytes as if they were a shared secret."""
    issuer.keys = [RSA_JWK, OCT_JWK]
    identity = make(algorithms=("RS256", "HS256"))
    await identity.start()
    public = RSA_KEY.public_key()
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    for secret in (der, pem, json.dumps(RSA_JWK).encode(), RSA_JWK["n"].encode()):
        for kid in ("rsa", "oct"):
            head = f"{b64(json.dumps({'alg': 'HS256', 'kid': kid}).encode())}.{b64(json.dumps(claims()).encode())}"
            signature = hmac.new(secret, head.encode(), hashlib.sha256).digest()
            why = refusal(identity, f"{head}.{b64(signature)}")
            assert ("not for its algorithm" if kid == "rsa" else "signature") in why


async def test_an_algorithm_of_the_same_family_must_be_configured_too(make: Make) -> None:
    identity = make(algorithms=("RS256",))
    await identity.start()
    assert "(alg)" in refusal(identity, signed("RS512"))
    assert "(alg)" in refusal(identity, signed("PS256"))


async def test_a_header_cannot_say_that_another_algorithm_signed_it(identity: TokenIdentity) -> None:
    good = signed("RS256")
    head = b64(json.dumps({"alg": "PS256", "kid": "rsa"}).encode())
    assert "signature" in refusal(identity, f"{head}.{good.partition('.')[2]}")


@pytest.mark.parametrize("crit", [["exp"], ["b64"], [], "exp", None, ["http://example/x"]])
async def test_critical_extensions_are_refused(identity: TokenIdentity, crit: object) -> None:
    assert "(crit)" in refusal(identity, forged({"alg": "RS256", "kid": "rsa", "crit": crit, "b64": True}))


async def test_a_detached_payload_is_refused(identity: TokenIdentity) -> None:
    assert "malformed" in refusal(identity, forged({"alg": "RS256", "kid": "rsa", "b64": False}))


async def test_keys_that_a_token_brings_along_are_not_looked_at(identity: TokenIdentity, issuer: Issuer) -> None:
    brought = {"jwk": rsa_jwk(OTHER_RSA_KEY, "rsa"), "jku": issuer.url, "x5u": issuer.url}
    asked = issuer.asked
    assert "signature" in refusal(identity, signed(key=OTHER_RSA_KEY, header=brought))
    assert issuer.asked == asked


async def test_a_changed_token_does_not_verify(identity: TokenIdentity) -> None:
    head, body, signature = signed().split(".")
    other = b64(json.dumps(claims(sub="a:2")).encode())
    assert "signature" in refusal(identity, f"{head}.{other}.{signature}")
    assert "signature" in refusal(identity, f"{head}.{body}.")
    assert "signature" in refusal(identity, f"{head}.{body}.{b64(bytes(256))}")


@pytest.mark.parametrize("claim", ["exp", "iss", "aud"])
async def test_a_token_without_a_needed_claim_is_refused(identity: TokenIdentity, claim: str) -> None:
    assert f"has no {claim}" in refusal(identity, signed(**{claim: None}))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"aud": "other"}, "audience"),
        ({"aud": ["other"]}, "audience"),
        ({"aud": ["attachgate", 7]}, "audience"),
        ({"aud": "attachgate "}, "audience"),
        ({"aud": {"attachgate": 1}}, "audience"),
        ({"aud": []}, "has no aud"),
        ({"iss": "https://id.example/"}, "issuer"),
        ({"iss": "https://evil.example"}, "issuer"),
        ({"sub": "a/1"}, "claim sub"),
        ({"sub": ""}, "claim sub"),
        ({"sub": "a1\n"}, "claim sub"),
        ({"sub": "a" * 129}, "claim sub"),
        ({"sub": None}, "claim sub"),
        ({"sub": 7}, "(sub)"),
        ({"sub": ["a:1"]}, "(sub)"),
        ({"exp": str(int(time.time()) + 86_400)}, "exp is not a number"),
        ({"exp": True}, "exp is not a number"),
        ({"exp": [1]}, "exp is not a number"),
        ({"exp": 10**400}, "exp is not a number"),
        ({"exp": float("nan")}, "exp is not a number"),
        ({"exp": float("inf")}, "exp is not a number"),
        ({"exp": 1}, "expired"),
        ({"exp": -5}, "expired"),
        ({"nbf": "0"}, "nbf is not a number"),
        ({"nbf": time.time() + 86_400}, "not hold yet"),
    ],
)
async def test_claims_that_do_not_fit_are_refused(
    identity: TokenIdentity, changes: dict[str, object], why: str
) -> None:
    assert why in refusal(identity, signed(**changes))


async def test_an_issuer_that_is_not_text_is_refused(identity: TokenIdentity) -> None:
    payload = json.dumps(claims(iss=["https://id.example"])).encode()
    assert "issuer" in refusal(identity, signed_bytes(payload))


async def test_the_leeway_counts_at_both_ends(identity: TokenIdentity, clock: Clock) -> None:
    ends, begins = signed(exp=clock.epoch + 10), signed(nbf=clock.epoch + 10)
    clock.now = 4.9
    assert "not hold yet" in refusal(identity, begins)
    clock.now = 5.1
    assert ask(identity, begins) == "a:1"
    clock.now = 14.9
    assert ask(identity, ends) == "a:1"
    clock.now = 15.1
    assert "expired" in refusal(identity, ends)


async def test_a_verified_token_costs_a_look_up(
    identity: TokenIdentity, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = []
    decode = jwt.decode

    def counted(*args: Any, **options: Any) -> Any:
        verified.append(args)
        return decode(*args, **options)

    monkeypatch.setattr(token.jwt, "decode", counted)
    good = signed()
    for _ in range(3):
        assert ask(identity, good) == "a:1"
    assert len(verified) == 1
    clock.now += token.REMEMBER_SECONDS
    ask(identity, good)
    assert len(verified) == 2


async def test_a_remembered_token_does_not_outlive_its_expiry(identity: TokenIdentity, clock: Clock) -> None:
    short = signed(exp=clock.epoch + 20)
    assert ask(identity, short) == "a:1"
    clock.now = 24.9
    assert ask(identity, short) == "a:1"
    clock.now = 25
    assert "expired" in refusal(identity, short)


async def test_what_is_remembered_of_tokens_is_bounded(
    identity: TokenIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token, "MAX_REMEMBERED", 5)
    for number in range(12):
        assert ask(identity, signed("EdDSA", ED_KEY, "EdDSA", jti=str(number))) == "a:1"
    assert len(identity._verified) == 5


async def test_a_refusal_is_not_remembered_as_good(identity: TokenIdentity) -> None:
    bad = signed(aud="other")
    for _ in range(2):
        assert "audience" in refusal(identity, bad)


async def test_a_rotated_key_is_fetched_when_a_token_names_it(
    identity: TokenIdentity, issuer: Issuer, clock: Clock
) -> None:
    old, new = signed(), signed(key=OTHER_RSA_KEY, kid="new")
    assert ask(identity, old) == "a:1"
    issuer.keys = [rsa_jwk(OTHER_RSA_KEY, "new")]
    clock.now += keys.REFRESH_SECONDS
    assert ask(identity, new) is None, "this one must wait"
    assert await identity.resolve("", bearing(new)) == "a:1"
    assert ask(identity, new) == "a:1"
    assert "not known" in refusal(identity, old), "what the old key verified is forgotten with it"


async def test_a_flood_of_unknown_keys_costs_the_issuer_one_request(
    identity: TokenIdentity, issuer: Issuer, clock: Clock
) -> None:
    clock.now += keys.REFRESH_SECONDS
    asked = issuer.asked
    tokens = [bearing(signed(kid=f"invented-{number}")) for number in range(50)]
    results = await asyncio.gather(*(identity.resolve("", headers) for headers in tokens), return_exceptions=True)
    assert all(isinstance(result, IdentityInvalid) for result in results)
    assert issuer.asked == asked + 1
    for headers in tokens:
        with pytest.raises(IdentityInvalid, match="not known"):
            identity.peek("", headers)
    assert issuer.asked == asked + 1


async def test_while_the_issuer_is_away_known_keys_serve_and_unknown_ones_are_not_judged(
    identity: TokenIdentity, issuer: Issuer, clock: Clock
) -> None:
    clock.now += keys.REFRESH_SECONDS
    issuer.status = 503
    with pytest.raises(IdentityUnavailable):
        await identity.resolve("", bearing(signed(kid="new")))
    assert ask(identity, signed()) == "a:1"
    with pytest.raises(IdentityUnavailable):
        ask(identity, signed(kid="new"))
    issuer.status = 200
    await identity.reload()
    assert "not known" in refusal(identity, signed(kid="new"))


async def test_keys_never_loaded_are_a_failure_of_ours(make: Make, issuer: Issuer, clock: Clock) -> None:
    issuer.status = 500
    identity = make()
    await identity.start()
    headers = bearing(signed())
    for _ in range(3):
        with pytest.raises(IdentityUnavailable, match="try again") as refused:
            await identity.resolve("", headers)
    assert (refused.value.status, refused.value.reason) == (503, "identity_unavailable")
    assert issuer.asked == 1
    issuer.status = 200
    clock.now += keys.RETRY_SECONDS
    assert await identity.resolve("", headers) == "a:1"


async def test_what_can_be_refused_without_keys_is_refused_without_waiting(make: Make) -> None:
    identity = make()
    assert "(alg)" in refusal(identity, forged({"alg": "none"}))
    assert ask(identity, signed()) is None


async def test_a_token_without_key_id_uses_the_only_key_that_fits(identity: TokenIdentity) -> None:
    assert ask(identity, signed("RS256", RSA_KEY, None)) == "a:1"
    assert ask(identity, signed("ES384", EC_KEYS["ES384"], None)) == "a:1"


async def test_a_token_without_key_id_is_refused_where_several_keys_fit(make: Make, issuer: Issuer) -> None:
    issuer.keys = [RSA_JWK, rsa_jwk(OTHER_RSA_KEY, None)]
    identity = make()
    await identity.start()
    assert "must name its key" in refusal(identity, signed(kid=None))
    assert ask(identity, signed()) == "a:1"


async def test_two_keys_of_one_name_are_told_apart_by_type_only(make: Make, issuer: Issuer) -> None:
    ec_jwk = {**ECAlgorithm.to_jwk(EC_KEYS["ES256"].public_key(), as_dict=True), "kid": "rsa"}
    issuer.keys = [RSA_JWK, ec_jwk]
    identity = make()
    await identity.start()
    assert ask(identity, signed()) == "a:1"
    assert ask(identity, signed("ES256", EC_KEYS["ES256"], "rsa")) == "a:1"
    issuer.keys = [RSA_JWK, rsa_jwk(OTHER_RSA_KEY, "rsa")]
    await identity.reload()
    assert "more than one key" in refusal(identity, signed())


async def test_keys_from_a_file(make: Make, tmp_path: Any, clock: Clock) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [RSA_JWK]}))
    identity = make(jwks=str(file))
    await identity.start()
    assert ask(identity, signed()) == "a:1"
    file.write_text(json.dumps({"keys": [rsa_jwk(OTHER_RSA_KEY, "new")]}))
    clock.now += keys.REFRESH_SECONDS
    assert await identity.resolve("", bearing(signed(key=OTHER_RSA_KEY, kid="new"))) == "a:1"
